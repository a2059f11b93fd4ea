"""What the text-to-SQL study compares, and which work remains, as a function of what is done.

Four contenders answer the same questions: the base without and with worked examples, the base with
LoRA, and full fine-tuning of the layers that LoRA adapts. The last two are trained, once for each
seed. Their learning rates are chosen by the first seed's accuracy on the validation split. Only
then are test splits answered, each once by every model that was trained at the chosen rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from lora_np.experiments.sql.task import TESTS, Sizes

BASE, SHOWN, LORA, FULL = "base", "base with examples", "LoRA", "full"
UNTRAINED, TRAINED = (BASE, SHOWN), (LORA, FULL)
VALIDATION = "validation"
SCORED = (VALIDATION, *TESTS)

VERDICT = ("answer", "right", "exact", "reason")  # what a score holds of every answer

Results = Mapping[str, Any]


@dataclass(frozen=True)
class SqlSettings:
    """The settings of the study; they decide its results.

    Parameters
    ----------
    model : str
        As for :func:`lora_np.pretrained.load_llm`. Its weights decide the results, not its name.
    sizes : Sizes
        How many questions each split has.
    draw : int
        Seed of the questions, which are the same for all contenders and seeds.
    seeds : int
        How often each trained contender is trained.
    examples : int
        How many worked examples the base is shown.
    r, alpha : int
        Of LoRA; the scale is alpha / r.
    target_modules : str or tuple of str
        The layers that are trained.
    top_layers : int, optional
        Train only the last so many blocks; by default all.
    epochs, batch_size : int
        Of the training: how often every question is seen, and how many questions a step has.
    together : int
        How many questions on one schema stay in one step, where the schema is computed once.
    warmup : float
        Share of the steps over which the learning rate rises. It then falls along a cosine.
    lora_rates, full_rates : tuple of float
        Learning rates among which the validation split chooses.
    longest : int
        Most tokens of an answer.
    answered : int
        How many questions are answered in one batch.

    Examples
    --------
    >>> from lora_np.experiments.sql.plan import SqlSettings
    >>> SqlSettings().rates("LoRA") == SqlSettings().lora_rates
    True
    """

    model: str = "smollm2"
    sizes: Sizes = field(default_factory=lambda: Sizes(train=1500))
    draw: int = 0
    seeds: int = 3
    examples: int = 3
    r: int = 16
    alpha: int = 32
    target_modules: str | tuple[str, ...] = "all-linear"
    top_layers: int | None = None
    epochs: int = 1
    batch_size: int = 8
    together: int = 8
    warmup: float = 0.05
    lora_rates: tuple[float, ...] = (1.5e-3, 3e-3)
    full_rates: tuple[float, ...] = (1e-4, 3e-4)
    longest: int = 60
    answered: int = 24

    task, device = "sql", "cpu"

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds = {self.seeds}, expected at least 1")

    def rates(self, contender: str) -> tuple[float, ...]:
        """Return the learning rates that are tried; none for a contender that is not trained."""
        return {LORA: self.lora_rates, FULL: self.full_rates}.get(contender, ())


QUICK = SqlSettings(
    sizes=Sizes(train=36, validation=18, test=18),
    seeds=1,
    examples=1,
    top_layers=6,
    lora_rates=(3e-3,),
    full_rates=(3e-4,),
    longest=32,
)


class Trial(NamedTuple):
    """A model that answers; `lr` is None where nothing is trained."""

    contender: str
    seed: int
    lr: float | None


class Work(NamedTuple):
    """What a worker does at once: train, if `split` is None, or answer the questions of a split."""

    trial: Trial
    split: str | None = None

    def __str__(self) -> str:
        contender, seed, lr = self.trial
        name = contender if lr is None else f"{contender}, seed {seed}, lr {lr:g}"
        return f"{name}: {self.split or 'training'}"


def next_work(settings: SqlSettings, results: Results) -> list[Work]:
    """Return the work that can start now; an empty list means that the study is complete.

    Parameters
    ----------
    settings : SqlSettings
    results : mapping
        "trials", the trainings that are done, and "scores", the splits that are answered.

    Examples
    --------
    >>> from lora_np.experiments.sql.plan import SqlSettings, next_work
    >>> work = next_work(SqlSettings(lora_rates=(0.003,)), {"trials": [], "scores": []})
    >>> print(work[0], "|", work[6])
    base: new values | LoRA, seed 0, lr 0.003: training
    """
    work = [w for name in UNTRAINED for w in _missing(results, Trial(name, 0, None), TESTS)]
    for name in TRAINED:
        tried = [Trial(name, 0, lr) for lr in settings.rates(name)]
        first = [w for trial in tried for w in _missing(results, trial, (VALIDATION,))]
        best = None if first else best_rate(results, name)
        if best is not None:
            trials = [Trial(name, seed, best) for seed in range(settings.seeds)]
            first = [w for t in trials for w in _missing(results, t, SCORED)]
        work += first
    return work


def _missing(results: Results, trial: Trial, splits: tuple[str, ...]) -> list[Work]:
    """Return the training, if it is not done; else the splits that are not answered."""
    if trial.lr is not None:
        done = [t for t in results["trials"] if trial_of(t) == trial]
        if not done:
            return [Work(trial)]
        if "diverged" in done[0]:
            return []
    answered = [score["split"] for score in results["scores"] if trial_of(score) == trial]
    return [Work(trial, split) for split in splits if split not in answered]


def trial_of(entry: Mapping[str, Any]) -> Trial:
    """Return the trial that an entry of "trials" or "scores" belongs to."""
    return Trial(entry["contender"], entry["seed"], entry["lr"])


def tried_rates(results: Results, contender: str) -> dict[float, float | None]:
    """Return the first seed's validation accuracy by learning rate; None where training diverged.

    Parameters
    ----------
    results : mapping
    contender : str
        One that is trained.
    """
    rates = sorted(t["lr"] for t in results["trials"] if trial_of(t)[:2] == (contender, 0))
    found: dict[float, float | None] = dict.fromkeys(rates)
    for score in results["scores"]:
        if trial_of(score)[:2] == (contender, 0) and score["split"] == VALIDATION:
            found[score["lr"]] = float(np.mean(score["right"]))
    return found


def best_rate(results: Results, contender: str) -> float | None:
    """Return the rate of the highest validation accuracy; the smallest one of equals.

    None if training diverged at every rate.

    Examples
    --------
    >>> from lora_np.experiments.sql.plan import best_rate
    >>> trial = {"contender": "LoRA", "seed": 0, "lr": 0.1}
    >>> score = {**trial, "split": "validation", "right": [True, False]}
    >>> best_rate({"trials": [{**trial, "lr": 0.2}, trial], "scores": [score]}, "LoRA")
    0.1
    """
    tried = tried_rates(results, contender)
    shares = {lr: share for lr, share in tried.items() if share is not None}
    return max(shares, key=lambda lr: shares[lr]) if shares else None


def expected_number(settings: SqlSettings) -> int:
    """Return how many pieces of work the study has if no training diverges."""
    answered = len(UNTRAINED) * len(TESTS)
    for name in TRAINED:
        models = len(settings.rates(name)) + settings.seeds - 1
        answered += 2 * models + settings.seeds * len(TESTS)  # train, validate; test
    return answered


def in_order(entry: Mapping[str, Any]) -> tuple[float, ...]:
    """Return a sort key for entries of "trials" or "scores": any order of work gives one file."""
    contender, seed, lr = trial_of(entry)
    rank = (*UNTRAINED, *TRAINED).index(contender)
    split = SCORED.index(entry["split"]) if "split" in entry else 0
    return rank, lr or 0.0, seed, split


def records_of(results: Results) -> list[dict[str, Any]]:
    """Return a record of every answer, as :func:`lora_np.experiments.sql.task.scored` makes it.

    Parameters
    ----------
    results : mapping
        The content of ``results.json``.

    Examples
    --------
    >>> from lora_np.experiments.sql.plan import records_of
    >>> asked = {"template": "count", "prompt": "How many?", "gold": "SELECT 1"}
    >>> score = {"contender": "base", "seed": 0, "lr": None, "split": "new values"}
    >>> verdicts = {"answer": ["two"], "right": [False], "exact": [False], "reason": ["syntax"]}
    >>> results = {"questions": {"new values": [asked]}, "scores": [{**score, **verdicts}]}
    >>> records_of(results)[0]["gold"], records_of(results)[0]["reason"]
    ('SELECT 1', 'syntax')
    """
    records = []
    for score in results["scores"]:
        run = {name: score[name] for name in ("contender", "split", "seed", "lr")}
        for i, asked in enumerate(results["questions"][score["split"]]):
            records.append({**run, **asked, **{name: score[name][i] for name in VERDICT}})
    return records
