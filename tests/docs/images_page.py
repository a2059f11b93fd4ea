"""``python -m tests.docs.images_page RUN``: put a run of ``lora-np images report`` into the docs.

RUN is the folder of ``lora-np images report --out RUN``. Its results are kept in docs/images.json,
and the pictures beside it. Without RUN, docs/images.md is filled from what is kept. The page marks
the places::

    <!-- images: claims -->
    <!-- end -->

A test holds that nothing would change. So no figure was typed by hand.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

from lora_np.experiments.claims import WIDTH
from lora_np.images.claims import all_claims, claims_table, of_training, scores
from lora_np.images.picture import PAIRS, SHEET, STEPS, WEIGHT
from lora_np.images.plan import BASE
from lora_np.images.report import (
    NOTE,
    RULE,
    costs_table,
    further_text,
    guidance_table,
    head_text,
    outline_table,
    pairs_head,
    pairs_table,
    steps_table,
    style_table,
    weight_table,
)
from lora_np.tables import Table, counted
from tests.docs.filling import complete_run, keep_in, kept_in, marks

ROOT = Path(__file__).parents[2]
SOURCE, PAGE = ROOT / "docs" / "images.json", ROOT / "docs" / "images.md"
PICTURES = {
    STEPS: "FD against the number of steps: regular letters, and a style seen and unseen",
    WEIGHT: "FD and the share of the style against the weight of the style",
    PAIRS: "FD of the sum over that of the style alone, for every pair of weights",
    SHEET: "Rows of letters: real ones, and those that each model draws",
}
PLACE = marks("images")
MISSING = "The run of this section has not been made yet."
SMALL = 1000  # images of a set, below which a run decides nothing

Results = Mapping[str, Any]


def filled(text: str, content: Mapping[str, Any]) -> str:
    """Return the page's text with the figures of `content`, which ``images.json`` holds."""
    return PLACE.sub(lambda m: f"{m[1]}{block(m[2], content)}\n{m[3]}", text)


def block(name: str, content: Mapping[str, Any]) -> str:
    """Return what stands at a mark."""
    write = BLOCKS[name]
    if not content:
        return MISSING
    return _run(content) if name == "run" else write(content["results"])


def _run(content: Mapping[str, Any]) -> str:
    results = content["results"]
    s, versions = results["settings"], results["versions"]
    b, d, y = (s[name] for name in ("base", "distil", "style"))
    guidance = " to ".join(f"{w:g}" for w in dict.fromkeys(d["guidance"]))
    (parameters, *_) = of_training(results, BASE, "parameters")
    said = (
        f"The base has {parameters:,} weights in {counted(b['n_block'], 'block')} and "
        f"{b['k']} latents; it is trained on {b['images']:,} regular letters in {b['steps']:,} "
        f"steps of {b['batch']}. A style is {y['images']} images of {len(y['of'])} letters, "
        f"{y['steps']} steps of {y['batch']}; a distillation is {d['steps']:,} steps of "
        f"{d['batch']}, with guidance {guidance}. "
        f"{content['date']}, {', '.join(' '.join(x) for x in versions.items())}."
    )
    small = "\n\n**A quick run: there is nothing to conclude from it.**" if s["n"] < SMALL else ""
    return f"{head_text(results)}\n\n{fill(said, WIDTH)}{small}"


def _claims(results: Results) -> str:
    counts = Counter(claim.verdict for claim in all_claims(results))
    said = ", ".join(f"{number} {name}" for name, number in counts.most_common())
    table = claims_table(results).markdown()
    return f"{table}\n\nOf these claims: {said}.\n\n{fill(RULE, WIDTH)}"


def _copies(results: Results) -> str:
    return fill(further_text(results), WIDTH)


def _guidance(results: Results) -> str:
    def style(guidance: float) -> list[float]:
        how = {"sampler": "ddim", "steps": 20, "guidance": guidance}
        return scores(results, "regular", "all", BASE, "style", **how)

    shares = {w: style(w) for w in (1.0, 1.5, 2.0, 3.0)}
    said = ", ".join(
        f"{100 * sum(found) / len(found):.1f} % at {w:g}" for w, found in shares.items() if found
    )
    return f"{_text(guidance_table(results))}\n\n{fill(f'Read as regular: {said}.', WIDTH)}"


def _picture(name: str) -> Callable[[Results], str]:
    return lambda results: f"![{PICTURES[name]}]({name})"


def _text(table: Table | str) -> str:
    return f"```\n{table}\n```"


BLOCKS: Mapping[str, Any] = {
    "run": _run,
    "claims": _claims,
    "letters": _picture(SHEET),
    "steps": _picture(STEPS),
    "steps-table": lambda results: f"{_text(steps_table(results))}\n\n{fill(NOTE, WIDTH)}",
    "seen": lambda results: _text(style_table(results, "seen")),
    "unseen": lambda results: _text(style_table(results, "unseen")),
    "weight": _picture(WEIGHT),
    "weight-table": lambda results: _text(weight_table(results)),
    "pairs": _picture(PAIRS),
    "pairs-table": lambda results: _text(f"{pairs_head(results)}\n{pairs_table(results)}"),
    "guidance": _guidance,
    "copies": _copies,
    "outline": lambda results: _text(outline_table(results)),
    "costs": lambda results: _text(costs_table(results)),
}


def kept() -> dict[str, Any]:
    """Return what docs/images.json holds; an empty mapping before the first run."""
    return kept_in(SOURCE)


def take(run: Path) -> None:
    """Keep the results of a run, and its pictures."""
    results, date = complete_run(run)
    content = {"date": date, "results": results}
    keep_in(SOURCE, content)
    for name in PICTURES:
        shutil.copyfile(run / name, SOURCE.parent / name)


def main(arguments: list[str]) -> None:
    """Take a run, if one is named, and write its figures into the page."""
    if arguments:
        take(Path(arguments[0]))
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(filled(text, kept()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
