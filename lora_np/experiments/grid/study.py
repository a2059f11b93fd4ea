"""Loss over rank x lora_alpha: with one learning rate for all cells, and with the best for each.

LoRA adds s B A to a weight, s = lora_alpha / r. A larger s makes larger steps (first_step.py), and
so does a larger learning rate. So how much of what lora_alpha does can the learning rate do as
well? Every cell of the grid has its own search for a learning rate, and every cell is also trained
at one common rate.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from lora_np.experiments.grid.claims import cell, claims
from lora_np.experiments.grid.first_step import first_steps
from lora_np.experiments.grid.picture import plot_grid, plot_rates
from lora_np.experiments.grid.report import report
from lora_np.experiments.rank_sweep.text import TextSettings
from lora_np.experiments.runner import Arrays
from lora_np.experiments.study import Contender, Study
from lora_np.experiments.study.losses import Results
from lora_np.methods import LoraConfig


@dataclass(frozen=True)
class GridSettings:
    """The settings of the grid; they decide its results.

    Parameters
    ----------
    text : TextSettings
        The task. Its ranks are those of the grid, ``lora_lr`` is the common rate and where all
        searches start, and ``full_lr`` must be None.
    alphas : tuple of float
        The values of lora_alpha.
    scales : tuple of float
        The scales s of the first-step analysis.
    step_rank : int
        Its rank.

    Examples
    --------
    >>> from lora_np.experiments.grid import GridSettings, grid_study
    >>> len(grid_study(GridSettings(alphas=(4, 8))).contenders)
    6
    """

    text: TextSettings = field(
        default_factory=lambda: TextSettings(ranks=(1, 4, 16), seeds=5, full_lr=None)
    )
    alphas: tuple[float, ...] = (2, 4, 8, 16, 32)
    scales: tuple[float, ...] = (0.125, 0.5, 2.0, 8.0, 32.0)
    step_rank: int = 8

    task = "grid"

    def __post_init__(self) -> None:
        if self.text.full_lr is not None:
            raise ValueError("full_lr must be None: the grid compares adapters alone")
        if not self.text.ranks:
            raise ValueError("ranks is empty: name at least one")
        if len(self.alphas) < 2:
            raise ValueError(f"alphas = {self.alphas}, expected at least two to compare")


QUICK = GridSettings(
    TextSettings(
        ranks=(1, 8),
        seeds=2,
        pretrain_steps=80,
        steps=10,
        d_model=32,
        n_head=2,
        windows=16,
        full_lr=None,
    ),
    alphas=(2, 32),
    scales=(0.5, 2.0, 8.0),
)


def grid_study(settings: GridSettings) -> Study:
    """Return the study of the grid."""
    s = settings.text
    contenders = [
        Contender(
            cell(r, alpha),
            LoraConfig(r=r, lora_alpha=alpha, target_modules=s.target_modules),
            s.lora_lr,
            rates=(s.lora_lr,),
            around=1,
        )
        for r in s.ranks
        for alpha in settings.alphas
    ]
    own = {name: value for name, value in asdict(settings).items() if name != "text"}
    return Study(
        settings.task,
        s,
        contenders,
        {**own, "ranks": s.ranks, "common_lr": s.lora_lr},
        partial(conclude, settings),
        report,
        {"grid.png": plot_grid, "grid_rates.png": plot_rates},
    )


def conclude(settings: GridSettings, results: Results, arrays: Arrays) -> dict[str, Any]:
    """Return the claims about the grid, and the first steps that two of them are about."""
    steps = first_steps(settings.text, arrays, settings.step_rank, settings.scales)
    found = claims({**results, "first_step": steps})
    return {"first_step": steps, "claims": [asdict(claim) for claim in found]}
