"""The rank sweeps of section 7: one for each set of adapted matrices.

Table 5 fixes the number of trainable parameters and asks which matrices should have them. An
adapter of rank r on an (out, in) matrix has r (in + out) parameters, so a set of matrices costs r
times a constant, and the rank that comes nearest to the budget spends it. Table 6, the figures and
table 7 name their ranks. A sweep of a set trains every rank that any of them needs, each
with its own search for a learning rate (lora_np/experiments/search.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lora_np.costs import account
from lora_np.experiments.paper.numbers import QV, TABLE5, TABLE6
from lora_np.experiments.rank_sweep.text import TextSettings
from lora_np.methods import LoraConfig, inject
from lora_np.models import GPT

Targets = tuple[str, ...]
TASK = TextSettings(ranks=(1, 2, 4, 8, 32), seeds=5, full_lr=None)
MLP = (("up_proj",), ("down_proj",), ("up_proj", "down_proj"))


@dataclass(frozen=True)
class PaperSettings:
    """The settings of section 7; they decide its results.

    Parameters
    ----------
    text : TextSettings
        The task. Its ranks are those of table 6, and its target_modules are not used. Section 7
        leaves out full fine-tuning, so full_lr must be None.
    budget_rank : int
        The budget of table 5 is the cost of this rank on the query matrices alone.
    similar : (int, int)
        The ranks that figure 3 compares, the lower one first; figure 4 compares the higher one with
        itself. At a rank near d any two spaces are alike, so ours is half of d.
    amplified : tuple of int
        The ranks of table 7, ascending.

    Examples
    --------
    >>> from lora_np.experiments.paper import PaperSettings
    >>> from lora_np.experiments.paper.settings import budget, table5_ranks
    >>> budget(PaperSettings())  # rank 16 on q in two layers: 2 x 16 (64 + 64)
    4096
    >>> table5_ranks(PaperSettings())[("q_proj", "v_proj")]  # twice the matrices, half the rank
    8
    """

    text: TextSettings = TASK
    budget_rank: int = 16
    similar: tuple[int, int] = (8, 32)
    amplified: tuple[int, ...] = (4, 32)

    task = "paper"

    def __post_init__(self) -> None:
        if self.text.full_lr is not None:
            raise ValueError("full_lr must be None: section 7 compares adapters alone")
        if self.text.seeds < 2:
            raise ValueError(f"seeds = {self.text.seeds}, expected at least 2: figure 4 compares")
        for name in ("similar", "amplified"):
            ranks = getattr(self, name)
            if len(ranks) < 2 or list(ranks) != sorted(set(ranks)) or ranks[0] < 2:
                raise ValueError(f"{name} = {ranks}, expected two ascending ranks of at least 2")
        if not 1 <= self.budget_rank <= self.text.d_model:
            limit = self.text.d_model
            raise ValueError(f"budget_rank = {self.budget_rank}, expected from 1 to {limit}")


DEFAULT = PaperSettings()
QUICK = PaperSettings(
    TextSettings(
        ranks=(1, 8),
        seeds=2,
        pretrain_steps=80,
        steps=15,
        d_model=32,
        n_head=2,
        windows=16,
        full_lr=None,
    ),
    budget_rank=8,
    similar=(4, 16),
    amplified=(4, 16),
)


def trainable_parameters(text: TextSettings, targets: Targets | str, r: int) -> int:
    """Return how many parameters an adapter of rank r on these matrices trains."""
    blank = GPT(text.gpt(), np.random.default_rng(0))
    adapted = inject(blank, LoraConfig(1, target_modules=targets), np.random.default_rng(0))
    return r * account(adapted).adapter


def nearest_rank(text: TextSettings, targets: Targets | str, number: int) -> int:
    """Return the rank on these matrices that comes nearest to a number of parameters, at least 1.

    Of two ranks that are equally near, the lower is taken.
    """
    cost = trainable_parameters(text, targets, 1)
    below = max(1, number // cost)
    return min(below, below + 1, key=lambda r: abs(r * cost - number))


def budget(settings: PaperSettings) -> int:
    """Return the number of trainable parameters of table 5."""
    return trainable_parameters(settings.text, ("q_proj",), settings.budget_rank)


def table5_ranks(settings: PaperSettings) -> dict[Targets, int]:
    """Return for each row of table 5 the rank that comes nearest to the budget."""
    whole = budget(settings)
    return {t: nearest_rank(settings.text, t, whole) for t in (*TABLE5, *MLP)}


def sweeps(settings: PaperSettings) -> dict[Targets, TextSettings]:
    """Return the sweep to run for each set of matrices."""
    ranks: dict[Targets, set[int]] = {t: {r} for t, r in table5_ranks(settings).items()}
    for targets in TABLE6:
        ranks[targets] |= set(settings.text.ranks)
    ranks[QV] |= {*settings.similar, *settings.amplified}
    return {
        targets: replace(settings.text, target_modules=targets, ranks=tuple(sorted(r)))
        for targets, r in ranks.items()
    }


def all_trials(settings: PaperSettings) -> TextSettings:
    """Return one sweep with as many trials as all of them, to estimate the time."""
    ranks = tuple(r for sweep in sweeps(settings).values() for r in sweep.ranks)
    return replace(settings.text, ranks=ranks)
