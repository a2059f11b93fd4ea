"""The tables of the text-to-SQL study, as text, from the records of every answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from textwrap import fill
from typing import Any

import numpy as np

from lora_np.experiments.claims import WIDTH
from lora_np.experiments.runner import Progress
from lora_np.experiments.sql.judge import REASONS
from lora_np.experiments.sql.plan import TRAINED, best_rate, records_of, tried_rates
from lora_np.experiments.sql.task import TESTS
from lora_np.experiments.sql.templates import TEMPLATES
from lora_np.experiments.terminal import Terminal
from lora_np.report import Report
from lora_np.tables import Mean, Table, counted

Records = Sequence[dict[str, Any]]


class Listener(Terminal):
    """Shows every training and every answered split that ends."""

    def __call__(self, progress: Progress) -> None:
        """Show what has ended."""
        found = progress.result
        said = f"{found['cpu_seconds']:.0f} CPU seconds"
        if "right" in found:
            said = f"{100 * np.mean(found['right']):.0f} % right"
        if "diverged" in found:
            said = "diverged"
        self.show(f"{progress.trial}, {said}", progress.done, progress.expected)


PERCENT = ".1f"
NOTE = (
    "Learning rates are chosen on the validation split, which no other table shows. A training is "
    "timed in a process with one BLAS thread: CPU seconds of that process and its children. An "
    "error of 0 says only that all n answers agree: the true share may still differ by 3/n."
)


def study_report(results: dict[str, Any]) -> Report:
    """Return what a study found, as text.

    Parameters
    ----------
    results : dict
        What :func:`lora_np.experiments.sql.study.run_sql` returns.
    """
    tests = tested(results)
    every = "execution accuracy of every trained model, %"
    return Report(
        [
            report(tests),
            replace(seed_table(tests), title=every),
            replace(training_table(results), title="training, mean over runs"),
            rates_text(results),
            fill(NOTE, WIDTH),
        ]
    )


def tested(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records of the test splits.

    Parameters
    ----------
    results : dict
    """
    return [record for record in records_of(results) if record["split"] in TESTS]


def report(records: Records) -> Report:
    """Return all tables as text.

    Parameters
    ----------
    records : sequence of dict
        What :func:`lora_np.experiments.sql.task.scored` returns, of all contenders and splits.
    """
    seeds = counted(len({record["seed"] for record in records}), "seed")
    tables = {
        f"execution accuracy, %, with its standard error over questions; {seeds}": (
            accuracy_table(records, "right")
        ),
        "exact match, %": accuracy_table(records, "exact"),
        "execution accuracy by template, %, over all splits": template_table(records),
        "why answers are wrong, % of all answers": reason_table(records),
    }
    return Report([replace(table, title=title) for title, table in tables.items()])


def training_table(results: dict[str, Any]) -> Table:
    """Return what training took: a row for each contender that is trained.

    Parameters
    ----------
    results : dict
        The content of ``results.json``.
    """
    rows = [
        (name, [t for t in results["trials"] if t["contender"] == name and t["lr"] == best])
        for name in TRAINED
        if (best := best_rate(results, name)) is not None
    ]
    kept = [[t for t in found if "diverged" not in t] for _, found in rows]
    columns = {
        "": [name for name, _ in rows],
        "trained numbers": [found[0]["trainable"] for found in kept],
        "lr": [found[0]["lr"] for found in kept],
        "runs": [len(found) for found in kept],
        "CPU minutes": [_mean(found, "cpu_seconds") / 60 for found in kept],
        "at most": [max(t["cpu_seconds"] for t in found) / 60 for found in kept],
        "wall minutes": [_mean(found, "wall_seconds") / 60 for found in kept],
        "train loss": [_mean(found, "train_loss") for found in kept],
    }
    forms = {"trained numbers": ",", "lr": "g", "train loss": ".3f"}
    minutes = dict.fromkeys(("CPU minutes", "at most", "wall minutes"), ".2f")
    return Table(columns, {**forms, **minutes})


def rates_text(results: dict[str, Any]) -> str:
    """Return the validation accuracy at every learning rate that was tried, and what diverged.

    Parameters
    ----------
    results : dict
        The content of ``results.json``.
    """
    n, lines = len(results["questions"]["validation"]), []
    for name in TRAINED:
        tried = tried_rates(results, name).items()
        said = [f"{lr:g}: {'diverged' if x is None else f'{100 * x:.1f}'}" for lr, x in tried]
        lines.append(f"{name}: {', '.join(said)}")
    diverged = [
        f"{t['contender']}, seed {t['seed']}, lr {t['lr']:g}: training diverged"
        for t in results["trials"]
        if "diverged" in t and t["seed"] > 0
    ]
    return "\n".join((f"accuracy on validation (n = {n}), seed 0, %", *lines, *diverged))


def seed_table(records: Records) -> Table:
    """Return execution accuracies: a row for each model, a column for each split.

    Parameters
    ----------
    records : sequence of dict
    """
    models = list(dict.fromkeys((r["contender"], r["seed"]) for r in records if r["lr"]))
    columns: dict[str, list[Any]] = {
        "": [f"{contender}, seed {seed}" for contender, seed in models]
    }
    for split in _names(records, "split"):
        chosen = (_of(records, contender=c, seed=seed, split=split) for c, seed in models)
        columns[split] = [_percent(found, "right") for found in chosen]
    return _percents(columns)


def _mean(trials: Records, key: str) -> float:
    return float(np.mean([t[key] for t in trials]))


def accuracy(records: Records, key: str = "right") -> tuple[float, float | None, int]:
    """Return the share of right answers, its standard error, and the number of questions.

    Several seeds answer the same question, and are right or wrong together more often than by
    chance. So the error is that of a mean over questions, each with its mean over seeds.

    Parameters
    ----------
    records : sequence of dict
    key : str
        "right" or "exact".

    Returns
    -------
    share : float
    error : float or None
        None for a single question.
    number : int

    Examples
    --------
    >>> from lora_np.experiments.sql.report import accuracy
    >>> records = [{"prompt": str(i // 2), "right": i < 6} for i in range(8)]
    >>> share, error, number = accuracy(records)
    >>> print(share, error, number)
    0.75 0.25 4
    """
    by_question: dict[str, list[bool]] = {}
    for record in records:
        by_question.setdefault(record["prompt"], []).append(record[key])
    means = [float(np.mean(found)) for found in by_question.values()]
    n = len(means)
    error = float(np.std(means, ddof=1)) / math.sqrt(n) if n > 1 else None
    return float(np.mean(means)), error, n


def accuracy_table(records: Records, key: str) -> Table:
    """Return accuracies with their errors: a row for each contender, a column for each split.

    Parameters
    ----------
    records : sequence of dict
    key : str
        "right" or "exact".
    """
    contenders = _names(records, "contender")
    columns: dict[str, list[Any]] = {"": contenders}
    for split in _names(records, "split"):
        chosen = [_of(records, contender=c, split=split) for c in contenders]
        n = max(len({record["prompt"] for record in found}) for found in chosen)
        columns[f"{split} (n = {n})"] = [_percent(found, key) for found in chosen]
    return _percents(columns)


def template_table(records: Records) -> Table:
    """Return execution accuracies: a row for each template, a column for each contender.

    Parameters
    ----------
    records : sequence of dict
    """
    found = {record["template"] for record in records}
    templates = [name for name in TEMPLATES if name in found]
    columns: dict[str, list[Any]] = {"": templates}
    for contender in _names(records, "contender"):
        chosen = [_of(records, contender=contender, template=name) for name in templates]
        columns[contender] = [_percent(found, "right") for found in chosen]
    return _percents(columns)


def reason_table(records: Records) -> Table:
    """Return how often answers fail: a row for each reason, a column for each contender.

    Parameters
    ----------
    records : sequence of dict
    """
    met = {record["reason"] for record in records}
    reasons = [reason for reason in REASONS if reason in met]
    columns: dict[str, list[Any]] = {"": [*reasons, "right"]}
    for contender in _names(records, "contender"):
        found = Counter(record["reason"] for record in _of(records, contender=contender))
        columns[contender] = [100 * found[reason] / found.total() for reason in (*reasons, None)]
    return _percents(columns)


def _names(records: Records, key: str) -> list[str]:
    """Return the names under a key, in the order in which they come."""
    return list(dict.fromkeys(record[key] for record in records))


def _of(records: Records, **named: Any) -> list[dict[str, Any]]:
    return [r for r in records if all(r[key] == name for key, name in named.items())]


def _percent(records: Iterable[dict[str, Any]], key: str) -> Mean | None:
    """Return an accuracy in percent with its error; None where nothing was asked."""
    if not (found := list(records)):
        return None
    share, error, _ = accuracy(found, key)
    return Mean(100 * share, None if error is None else 100 * error, PERCENT)


def _percents(columns: dict[str, list[Any]]) -> Table:
    return Table(columns, dict.fromkeys(columns, PERCENT), missing="-")
