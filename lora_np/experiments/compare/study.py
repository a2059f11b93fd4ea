"""LoRA and its rivals: every method with its own search for a learning rate, then on all seeds.

The windows are shorter than the model's context, for all contenders alike: the rows that prompt and
prefix tuning put before a text need positions of the context. After training, what each contender
costs is measured in one process (measure.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from lora_np.experiments.compare.claims import claims
from lora_np.experiments.compare.measure import measure
from lora_np.experiments.compare.picture import plot_latency, plot_losses
from lora_np.experiments.compare.report import report, write_csv
from lora_np.experiments.compare.rows import TOKENS, rows_called
from lora_np.experiments.rank_sweep.text import TextSettings
from lora_np.experiments.runner import Arrays
from lora_np.experiments.study import Study
from lora_np.experiments.study.losses import Results


@dataclass(frozen=True)
class CompareSettings:
    """The settings of the comparison; they decide its results.

    Parameters
    ----------
    text : TextSettings
        The task. Its ranks, targets and learning rates are not used: rows.py has them.
    methods : tuple of str, optional
        Labels of rows, or names of methods; by default all rows.
    rounds : int
        In how many rounds times are measured.
    turn : float
        Seconds that each action of a contender gets in a round.

    Examples
    --------
    >>> from lora_np.experiments.compare import CompareSettings, compare_study
    >>> study = compare_study(CompareSettings(methods=("full", "lora")))
    >>> [contender.label for contender in study.contenders]
    ['full', 'lora']
    """

    text: TextSettings = field(
        default_factory=lambda: TextSettings(
            seeds=5, pretrain_steps=2000, steps=800, windows=256, full_lr=None
        )
    )
    methods: tuple[str, ...] | None = None
    rounds: int = 9
    turn: float = 0.1

    task = "compare"

    def __post_init__(self) -> None:
        if self.text.block_size <= TOKENS:
            raise ValueError(
                f"block_size = {self.text.block_size} leaves no room for a text behind {TOKENS} "
                f"virtual tokens: expected at least {TOKENS + 1}"
            )
        if self.rounds < 1:
            raise ValueError(f"rounds = {self.rounds}, expected at least 1")


PRESETS = {
    "minutes": CompareSettings(TextSettings(seeds=2, full_lr=None), rounds=3, turn=0.03),
    "hour": CompareSettings(),
}


def compare_study(settings: CompareSettings) -> Study:
    """Return the study of the contenders that the settings name."""
    rows = rows_called(settings.methods)
    about = {
        row.label: {"family": row.family, "method": row.method, "enters": row.enters}
        for row in rows
    }
    window = {"block_size": settings.text.block_size - TOKENS}
    contenders = [row.contender(settings.text.steps) for row in rows]
    return Study(
        settings.task,
        settings.text,
        [replace(contender, changes=window) for contender in contenders],
        {"rounds": settings.rounds, "turn": settings.turn, "rows": about, "changes": window},
        partial(conclude, settings),
        report,
        {
            "compare.csv": write_csv,
            "compare_losses.png": plot_losses,
            "compare_latency.png": plot_latency,
        },
    )


def conclude(settings: CompareSettings, results: Results, arrays: Arrays) -> dict[str, Any]:
    """Return what the contenders cost, and the claims."""
    costs = measure(compare_study(settings), arrays, settings.rounds, settings.turn)
    found = claims({**results, "measured": costs})
    return {"measured": costs, "claims": [asdict(claim) for claim in found]}
