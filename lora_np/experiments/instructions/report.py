"""Exact match by split and family, before and after training, as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import mean, stdev
from textwrap import fill
from typing import Any

from lora_np.experiments.claims import WIDTH
from lora_np.experiments.instructions.families import ALL
from lora_np.experiments.instructions.judge import Rate, Row, guessed, rate, refused_wrongly
from lora_np.report import Report
from lora_np.tables import Table, counted

TITLES = {
    "values": "New values: wordings as trained, names, cities and goods never trained",
    "phrasing": "Unseen phrasing: wordings never trained, and new values",
    "formats": "Unseen formats: families never trained, and new values",
}
SIDES = ("before", "after")
NOTE = (
    "Each share is followed by its standard error over n samples. An error of 0 at 0 % or 100 % "
    "says only that all n agree: the true share may still differ by 3 / n. The change is that of "
    "the same samples, with the standard error of their differences."
)


def report(results: Mapping[str, Any]) -> Report:
    """Return the results of a study as text.

    Parameters
    ----------
    results : mapping
        From :func:`lora_np.experiments.instructions.run_instructions`.
    """
    trials = results["trials"]
    before, after = ([row for trial in trials for row in trial[side]] for side in SIDES)
    trained, seeds = counted(trials[0]["train"], "record"), counted(len(trials), "seed")
    parts: list[Table | str] = [
        f"Synthetic instructions, trained on {trained}; {seeds}\n{fill(NOTE, WIDTH)}"
    ]
    for split in dict.fromkeys(row["split"] for row in before):
        rows = [[row for row in side if row["split"] == split] for side in (before, after)]
        parts.append(
            replace(split_table(*rows), title=TITLES[split], notes=refusals(*rows).splitlines())
        )
    if len(trials) > 1:
        parts.append(seeds_table(trials))
    seconds = mean(trial["seconds"] for trial in trials)
    parts.append(f"One training took {seconds / 60:.1f} minutes of one processor.")
    return Report(parts)


def seeds_table(trials: Sequence[Mapping[str, Any]]) -> Table:
    """Return exact match after training by seed and split, and the standard error over seeds."""
    columns: dict[str, list[Any]] = {"": [*(f"seed {t['seed']}" for t in trials), "mean"]}
    for split in TITLES:
        shares = [
            100 * mean(row["exact"] for row in trial["after"] if row["split"] == split)
            for trial in trials
        ]
        error = stdev(shares) / math.sqrt(len(shares))
        columns[split] = [*shares, f"{mean(shares):.1f} +- {error:.1f}"]
    return Table(columns, dict.fromkeys(TITLES, ".1f"), "Exact match by seed, in %")


def split_table(before: Sequence[Row], after: Sequence[Row]) -> Table:
    """Return exact match by family as a table; the rows of both sides are the same samples."""
    names = list(dict.fromkeys(row["family"] for row in before))
    lines = [_line(name, before, after, lambda row, of=name: row["family"] == of) for name in names]
    lines.append(_line("all", before, after, lambda row: True))
    if any(ALL[name].is_json for name in names):
        by_value = [_share([row["value"] for row in side]) for side in (before, after)]
        values = {"": "all, JSON by value", "n": len(before)}
        lines.append({**values, "before": by_value[0], "after": by_value[1], "change": None})
    return Table.of_rows(lines)


def refusals(before: Sequence[Row], after: Sequence[Row]) -> str:
    """Return how often each side guessed, and refused, where it should not have."""
    lines = []
    for name, of in (
        ("guessed where the text does not say", guessed),
        ("refused where the text says", refused_wrongly),
    ):
        rates = [of(side) for side in (before, after)]
        if rates[0].n:
            said = f"{_percent(rates[0])} before, {_percent(rates[1])} after (n = {rates[0].n})"
            lines.append(f"{name}: {said}")
    return "\n".join(lines)


def change(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float]:
    """Return the mean difference of paired samples, and its standard error.

    Examples
    --------
    >>> from lora_np.experiments.instructions.report import change
    >>> change([False, False, True, True], [True, True, True, True])
    (0.5, 0.28867513459481287)
    """
    gains = [float(b) - float(a) for a, b in zip(before, after, strict=True)]
    error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
    return mean(gains), error


def _line(
    name: str, before: Sequence[Row], after: Sequence[Row], belongs: Callable[[Row], bool]
) -> dict[str, Any]:
    sides = [[row["exact"] for row in side if belongs(row)] for side in (before, after)]
    gain, error = change(*sides)
    return {
        "": name,
        "n": len(sides[0]),
        "before": _share(sides[0]),
        "after": _share(sides[1]),
        "change": f"{100 * gain:+.1f} +- {100 * error:.1f}",
    }


def _share(right: Sequence[bool]) -> str:
    return _percent(rate(right))


def _percent(found: Rate) -> str:
    return f"{100 * found.share:.1f} +- {100 * found.error:.1f} %"
