"""``python -m tests.docs.sql_page RUN``: put a run of ``lora-np sql`` into docs/text_to_sql.md.

RUN is the folder of ``lora-np sql --out RUN``. What the page needs of its results is kept in
docs/text_to_sql.json, and the picture beside it. Without RUN, the page is filled from what is kept.
A page marks the places::

    <!-- sql: accuracy -->
    <!-- end -->

A test holds that nothing would change. So no figure was typed by hand.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

from lora_np.experiments.claims import WIDTH
from lora_np.experiments.sql.plan import BASE, FULL, LORA, SHOWN
from lora_np.experiments.sql.report import (
    NOTE,
    accuracy,
    accuracy_table,
    rates_text,
    reason_table,
    seed_table,
    template_table,
    tested,
    training_table,
)
from lora_np.experiments.sql.schemas import TRAINED, UNSEEN, VALIDATION
from lora_np.experiments.sql.task import TESTS
from lora_np.experiments.sql.templates import TEMPLATES
from lora_np.tables import Table, counted
from tests.docs.filling import complete_run, keep_in, kept_in, marks

ROOT = Path(__file__).parents[2]
SOURCE, PAGE = ROOT / "docs" / "text_to_sql.json", ROOT / "docs" / "text_to_sql.md"
PICTURE = "text_to_sql.png"
PLACE = marks("sql")
MINUTES = 4  # of one core, that a training may take
SMALL = 120  # questions of a split, below which a run decides nothing


def filled(text: str, content: Mapping[str, Any]) -> str:
    """Return the page's text with the figures of `content`, which ``text_to_sql.json`` held."""
    return PLACE.sub(lambda m: f"{m[1]}{BLOCKS[m[2]](content)}\n{m[3]}", text)


def _task(content: Mapping[str, Any]) -> str:
    sizes = content["results"]["settings"]["sizes"]
    return fill(
        f"{len(TEMPLATES)} templates ask {sizes['train']} training questions on "
        f"{len(TRAINED)} schemas, and {sizes['test']} in each test split; {len(UNSEEN)} schemas "
        f"stand in the split of unseen schemas alone, {len(VALIDATION)} in validation alone "
        f"({sizes['validation']} questions).",
        WIDTH,
    )


def _run(content: Mapping[str, Any]) -> str:
    results = content["results"]
    s, (n, *_) = results["settings"], (len(results["questions"][split]) for split in TESTS)
    blocks = "all blocks" if s["top_layers"] is None else f"the last {s['top_layers']} blocks"
    said = (
        f"{content['date']}; {', '.join(' '.join(x) for x in results['versions'].items())}. LoRA "
        f"has r = {s['r']} and alpha = {s['alpha']} on {s['target_modules']} of {blocks}; both "
        f"train {counted(s['epochs'], 'epoch')} of {s['sizes']['train']} questions, "
        f"{s['batch_size']} a step. The base is shown {counted(s['examples'], 'example')}."
    )
    small = "\n\n**A quick run: there is nothing to conclude from it.**" if n < SMALL else ""
    return f"{fill(said, WIDTH)}{small}"


def _accuracy(content: Mapping[str, Any]) -> str:
    tests = tested(content["results"])
    picture = f"![Execution accuracy by test split and contender]({PICTURE})"
    exact = f"The same, %, by exact match of the text:\n\n{_text(accuracy_table(tests, 'exact'))}"
    seeds = f"Every trained model alone:\n\n{_text(seed_table(tests))}"
    return "\n\n".join((_text(accuracy_table(tests, "right")), picture, exact, seeds))


def _training(content: Mapping[str, Any]) -> str:
    results = content["results"]
    longest = max(t["cpu_seconds"] for t in results["trials"]) / 60
    said = (
        f"The longest of {counted(len(results['trials']), 'training')}, those of the search "
        f"included, took {longest:.2f} CPU minutes; {MINUTES} were allowed."
    )
    tables = f"{training_table(results)}\n\n{rates_text(results)}\n\n{fill(NOTE, WIDTH)}"
    return f"{fill(said, WIDTH)}\n\n{_text(tables)}"


def _findings(content: Mapping[str, Any]) -> str:
    """Return what the run shows, in sentences whose every figure is computed."""
    tests, said = tested(content["results"]), []
    for split in TESTS:
        shares = {
            name: 100 * accuracy(found)[0]
            for name in (BASE, SHOWN, LORA, FULL)
            if (found := [r for r in tests if (r["contender"], r["split"]) == (name, split)])
        }
        line = ", ".join(f"{name} {share:.1f}" for name, share in shares.items())
        said.append(f"- {split}, %: {line}.")
    return "\n".join(fill(line, WIDTH, subsequent_indent="  ") for line in said)


def _examples(content: Mapping[str, Any]) -> str:
    """Return the first question of each test split, and what each contender answers."""
    shown = []
    for split in TESTS:
        records = [r for r in tested(content["results"]) if r["split"] == split and not r["seed"]]
        asked = records[0]
        shown += [f"{split}, {asked['template']}", *asked["prompt"].split("\n"), asked["gold"]]
        for r in (r for r in records if r["prompt"] == asked["prompt"]):
            said = " ".join(r["answer"].split())
            said = said if len(said) <= 70 else f"{said[:70]} ..."
            shown.append(f"  {r['contender']}: {said} ({r['reason'] or 'right'})")
        shown.append("")
    return _text("\n".join(shown[:-1]))


BLOCKS = {
    "task": _task,
    "run": _run,
    "findings": _findings,
    "accuracy": _accuracy,
    "training": _training,
    "templates": lambda content: _text(template_table(tested(content["results"]))),
    "reasons": lambda content: _text(reason_table(tested(content["results"]))),
    "examples": _examples,
}


def _text(table: Table | str) -> str:
    return f"```\n{table}\n```"


def slim(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return results with what the page shows: of the answers, the first of each split alone."""
    questions = {
        split: [asked if i == 0 else {**asked, "gold": ""} for i, asked in enumerate(found)]
        for split, found in results["questions"].items()
    }
    scores = [
        {**score, "answer": [x if i == 0 else "" for i, x in enumerate(score["answer"])]}
        for score in results["scores"]
    ]
    return {**results, "questions": questions, "scores": scores}


def kept() -> dict[str, Any]:
    """Return what docs/text_to_sql.json holds."""
    return kept_in(SOURCE)


def take(run: Path) -> None:
    """Keep the results of a run, and its picture."""
    results, date = complete_run(run)
    content = {"date": date, "results": slim(results)}
    keep_in(SOURCE, content)
    shutil.copyfile(run / PICTURE, SOURCE.parent / PICTURE)


def main(arguments: list[str]) -> None:
    """Take a run, if one is named, and write its figures into the page."""
    if arguments:
        take(Path(arguments[0]))
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(filled(text, kept()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
