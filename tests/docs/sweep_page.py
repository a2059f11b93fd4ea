"""``python -m tests.docs.sweep_page RUN LOG``: put a sweep of SmolLM2 into the docs.

RUN is the folder of ``lora-np sweep --model smollm2 --jobs 2 --out RUN``, and LOG what
``/usr/bin/time -v`` and that command printed. What the pages need of them is kept in
docs/rank_on_smollm2.json, and the picture is drawn beside it. Without RUN and LOG, the pages are
filled from what is kept. A page marks the places::

    <!-- sweep: table -->
    <!-- end -->

A test holds that nothing would change. So no figure was typed by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

from lora_np.experiments.claims import WIDTH
from lora_np.experiments.rank_sweep.picture import plot_rank_vs_loss
from lora_np.experiments.rank_sweep.report import (
    ARTICLE,
    FULL,
    beats,
    flat_ranks,
    losses_by_seed,
    summary,
    table,
    trainable_parameters,
)
from lora_np.experiments.search import MOST_RATES
from lora_np.tables import Table, counted
from tests.docs.filling import complete_run, keep_in, kept_in, marks

DOCS = Path(__file__).parents[2] / "docs"
SOURCE, PICTURE = DOCS / "rank_on_smollm2.json", "rank_on_smollm2.png"
PAGES = DOCS / "rank_on_smollm2.md", DOCS / "guides" / "own_data.md"
PLACE = marks("sweep")
SHOWN = (
    *("settings", "versions", "complete", "base_validation_loss", "base_test_loss", "base_made"),
    *("samples", "learned_tokens", "trials", "runs"),
)


def filled(text: str, content: Mapping[str, Any]) -> str:
    """Return a page's text with the figures of `content`, which ``rank_on_smollm2.json`` held."""
    return PLACE.sub(lambda m: f"{m[1]}{BLOCKS[m[2]](content)}\n{m[3]}", text)


def _run(content: Mapping[str, Any]) -> str:
    results = content["results"]
    s, samples, learned = (results[k] for k in ("settings", "samples", "learned_tokens"))
    *lower, highest = map(str, s["ranks"])
    said = [
        f"- {results['base_made'].capitalize()}: by LoRA of rank {', '.join(lower)} and {highest} "
        "on all linear layers, and by full fine-tuning.",
        f"- {samples['train']} questions to train on ({learned['train']:,} tokens to learn), "
        f"{samples['validation']} to validate on and {samples['test']} to test on.",
        f"- {s['steps']} steps of {s['batch_size']} samples, {counted(s['seeds'], 'seed')}; with "
        f"the searches for a learning rate, {counted(len(results['trials']), 'training')}.",
        f"- The searches for a learning rate start around {s['lora_lr']:g} for LoRA and "
        f"{s['full_lr']:g} for full fine-tuning, and try at most {MOST_RATES} rates.",
        f"- {_took(content)} on two cores ({_versions(content)}); the largest process took "
        f"{content['peak'] / 1e9:.1f} GB.",
    ]
    return "\n".join(_wrapped(line) for line in said)


def _took(content: Mapping[str, Any]) -> str:
    minutes, seconds = divmod(round(content["seconds"]), 60)
    jobs = counted(content["processes"], "process", "processes")
    return f"{counted(minutes, 'minute')} {counted(seconds, 'second')} in {jobs}"


def _versions(content: Mapping[str, Any]) -> str:
    return ", ".join((content["date"], *map(" ".join, content["results"]["versions"].items())))


def _table(content: Mapping[str, Any]) -> str:
    alt = "Test loss against rank: all the way down from the base, and the ranks close up"
    return f"```\n{table(content['results'])}\n```\n\n![{alt}]({PICTURE})"


def _gain(results: Mapping[str, Any], rank: int) -> str:
    """Return a rank's share of full fine-tuning's gain, and of what that trains."""
    test, count = summary(results, "test_loss"), trainable_parameters(results)
    base = results["base_test_loss"]
    share = (base - test["lora", rank][0]) / (base - test[FULL][0])
    trained = count["lora", rank]
    return (
        f"r = {rank} gets {100 * share:.0f} % of the gain with {trained:,} trained numbers, "
        f"{100 * trained / count[FULL]:.2g} % of full fine-tuning's"
    )


def _findings(content: Mapping[str, Any]) -> str:
    results = content["results"]
    loss, ranks = losses_by_seed(results), sorted(results["settings"]["ranks"])
    full = {r["seed"]: r["test_loss"] for r in results["runs"] if r["rank"] is None}
    every = all(full[seed] < x for found in loss.values() for seed, x in found.items())
    last = "has the lowest loss" if every else "does not have the lowest loss"
    return _wrapped(
        f"{_gain(results, ranks[0])}; {_gain(results, ranks[-1])}. Full fine-tuning {last} with "
        "every seed."
    )


def _which(content: Mapping[str, Any]) -> str:
    """Return which rank to take: the lowest that no higher one beats."""
    results = content["results"]
    test, (rank, *_) = summary(results, "test_loss"), flat_ranks(results)
    said = f"**Take r = {rank}**: no higher rank gains two standard errors on it"
    lower = [r for r in results["settings"]["ranks"] if r < rank]
    said += f", as one does on r = {max(lower)}. " if lower else ". "
    said += f"{_gain(results, rank)}."
    if lower:
        next_lower, loss = max(lower), losses_by_seed(results)
        more = test["lora", next_lower][0] - test["lora", rank][0]
        clear = beats(loss[rank], loss[next_lower], results["base_test_loss"])
        said += (
            f" If an adapter has to be smaller, r = {next_lower} costs {more:.3f} nats a token "
            f"more, {'beyond' if clear else 'within'} two standard errors."
        )
    return _wrapped(said)


def _searched(results: Mapping[str, Any]) -> dict[int | None, dict[float, float]]:
    """Return by rank the validation loss at every rate that the search tried, on the first seed."""
    found: dict[int | None, dict[float, float]] = {}
    for t in results["trials"]:
        if t["seed"] == 0 and t["validation_loss"] is not None:
            found.setdefault(t["rank"], {})[t["lr"]] = t["validation_loss"]
    return {rank: found[rank] for rank in (*results["settings"]["ranks"], None)}


def _answer(content: Mapping[str, Any]) -> str:
    """Return whether the best rates lie in the article's range, and what a rate in it does."""
    results, (low, high) = content["results"], ARTICLE
    searched = _searched(results)
    best = {run["rank"]: run["lr"] for run in results["runs"] if run["rank"] is not None}
    inside = sum(low <= lr <= high for lr in best.values())
    verdict = {0: "No", len(best): "Yes"}.get(inside, "Not at every rank")
    said = f"**{verdict}.** The best rate is in the range at {inside or 'none'} of the {len(best)} "
    said += "ranks. "
    times = [lr / high for lr in best.values()]
    if min(times) > 1:
        span = f"{min(times):.0f} to {max(times):.0f}"
        said += f"The best rates are {span} times the upper end of the range. "
    for lr in sorted({lr for rank in best for lr in searched[rank] if low <= lr <= high}):
        there = [f"{searched[r][lr]:.3f} at r = {r}" for r in best if lr in searched[r]]
        said += f"At {lr:g}, a rate in the range, the validation loss is {', '.join(there)}; "
    chosen = [f"{searched[rank][lr]:.3f}" for rank, lr in best.items()]
    said += f"at the best rates, it is {', '.join(chosen)}. "
    ends = [f"r = {rank}" for rank, lr in best.items() if lr == max(searched[rank])]
    if ends:
        said += f"At {', '.join(ends)} the best rate is the highest that was tried, so a higher "
        said += "one may be better still."
    return _wrapped(said.strip())


def _rates(content: Mapping[str, Any]) -> str:
    searched = _searched(content["results"])
    rates = sorted({lr for losses in searched.values() for lr in losses})
    columns = {"learning rate": [f"{lr:.2g}" for lr in rates]}
    for rank, losses in searched.items():
        name = "full" if rank is None else f"r = {rank}"
        best = min(losses.values())
        shown = {lr: f"{x:.3f}{'*' if x == best else ' '}" for lr, x in losses.items()}
        columns[f"{name} "] = [shown.get(lr, "") for lr in rates]
    return f"```\n{Table(columns)}\n```"


def _directions(content: Mapping[str, Any]) -> str:
    said = []
    for part, name in (("self_attn", "attention"), ("mlp", "the MLP")):
        found = [row for row in content["energy"] if f".{part}." in row["name"]]
        ranks = [row["90 %"] for row in found]
        said.append(f"in {min(ranks)} to {max(ranks)} directions for the matrices of {name}")
    return _wrapped(f"90 % of the energy of the change lies {' and '.join(said)}.")


def _own_data(content: Mapping[str, Any]) -> str:
    return _wrapped(
        f"With the questions for SQL that the sweep takes by default, it took {_took(content)} on "
        f"two cores ({content['date']}): [Rank versus loss on a real language "
        "model](../rank_on_smollm2.md)."
    )


BLOCKS = {
    "run": _run,
    "table": _table,
    "findings": _findings,
    "which": _which,
    "answer": _answer,
    "rates": _rates,
    "directions": _directions,
    "own-data": _own_data,
}


def _wrapped(text: str) -> str:
    return fill(text, WIDTH, subsequent_indent="  " * text.startswith("- "))


def slim(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the pages show of results; a model's file is named without its folder."""
    model = results["settings"]["model"]
    shown = {name: results[name] for name in SHOWN}
    shown["settings"] = {**results["settings"], "model": Path(model).stem}
    return {**shown, "base_made": results["base_made"].removeprefix(f"{model}, ")}


def measured(log: str) -> dict[str, Any]:
    """Return how long the command took [s], its largest process [bytes], and how many it had."""
    (clock,) = re.findall(r"Elapsed .*: ([\d:.]+)$", log, re.M)
    (kilobytes,) = re.findall(r"Maximum resident set size \(kbytes\): (\d+)", log)
    (processes,) = re.findall(r"in (\d+) process", log)
    seconds = sum(float(x) * 60**i for i, x in enumerate(reversed(clock.split(":"))))
    return {"seconds": seconds, "peak": 1024 * int(kilobytes), "processes": int(processes)}


def kept() -> dict[str, Any]:
    """Return what docs/rank_on_smollm2.json holds."""
    return kept_in(SOURCE)


def take(run: Path, log: Path) -> None:
    """Keep what the pages need of a sweep, and draw its picture."""
    results, date = complete_run(run)
    energy = [
        {"name": change["name"], "90 %": change["energy_ranks"]["0.90"]}
        for change in results["spectrum"]
    ]
    content = {"date": date, **measured(log.read_text(encoding="utf-8"))}
    content |= {"results": slim(results), "energy": energy}
    keep_in(SOURCE, content)
    plot_rank_vs_loss(results, SOURCE.parent / PICTURE)


def main(arguments: list[str]) -> None:
    """Take a sweep, if one is named, and write its figures into the pages."""
    if arguments:
        run, log = map(Path, arguments)
        take(run, log)
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), kept()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
