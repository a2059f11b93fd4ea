"""Loss at every rank: of DyLoRA, of LoRA trained at the rank, and of one LoRA that is cut to it.

A model that is served at several ranks can be trained in three ways: once for each rank; once at
the largest rank and then cut, by SVD or naively (the first rows of A and columns of B); or once
with DyLoRA, whose training makes the naive cut a good one.

The learning rate of a DyLoRA is chosen by its mean validation loss over the ranks 1 .. r_max. This
is the loss that its steps lower, as they draw the rank uniformly; the loss at r_max alone would
choose a rate for which the other ranks may be of no use. LoRA is trained for one rank, and its rate
is chosen there, also where it is cut later.

LoRA has the scale 1 at every rank. DyLoRA's "constant" scale is 1 too, and its "drawn" scale is
r_max / k at the rank k.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

from lora_np.experiments.dylora.claims import claims, dylora, lora
from lora_np.experiments.dylora.measure import losses_by_rank, seconds_of_training
from lora_np.experiments.dylora.picture import plot_dylora
from lora_np.experiments.dylora.report import report
from lora_np.experiments.rank_sweep.text import TextSettings
from lora_np.experiments.runner import Arrays
from lora_np.experiments.study import Contender, Study
from lora_np.experiments.study.losses import Results
from lora_np.methods import DyLoraConfig, LoraConfig

UPDATES: tuple[Literal["all", "frozen"], ...] = ("all", "frozen")
SCALES: tuple[Literal["drawn", "constant"], ...] = ("drawn", "constant")


@dataclass(frozen=True)
class DyLoraSettings:
    """The settings of the comparison; they decide its results.

    Parameters
    ----------
    text : TextSettings
        The task. Its ``lora_lr`` is where searches start; its ranks are not used, and ``full_lr``
        must be None.
    r_max : int
        The rank of DyLoRA and of the LoRA that is cut. LoRA is also trained at the powers of two
        below it.

    Examples
    --------
    >>> from lora_np.experiments.dylora import DyLoraSettings, dylora_study
    >>> DyLoraSettings(r_max=12).ranks
    (1, 2, 4, 8, 12)
    >>> [contender.label for contender in dylora_study(DyLoraSettings(r_max=2)).contenders][-3:]
    ['DyLoRA frozen, constant', 'LoRA, r = 1', 'LoRA, r = 2']
    """

    text: TextSettings = field(default_factory=lambda: TextSettings(seeds=5, full_lr=None))
    r_max: int = 16

    task = "dylora"

    def __post_init__(self) -> None:
        if self.text.full_lr is not None:
            raise ValueError("full_lr must be None: adapters are compared alone")
        if self.r_max < 2:
            raise ValueError(f"r_max = {self.r_max}, expected at least 2: what is cut has ranks")

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks at which LoRA is trained."""
        powers = (2**k for k in range(self.r_max.bit_length()))
        return (*(r for r in powers if r < self.r_max), self.r_max)


QUICK = DyLoraSettings(
    TextSettings(
        seeds=2, pretrain_steps=80, steps=12, d_model=32, n_head=2, windows=16, full_lr=None
    ),
    r_max=8,
)


def dylora_study(settings: DyLoraSettings) -> Study:
    """Return the study of DyLoRA against LoRA of each rank, and against one LoRA that is cut."""
    s, r_max = settings.text, settings.r_max
    methods: dict[str, DyLoraConfig | LoraConfig] = {}
    for update in UPDATES:
        for scale in SCALES:
            methods[dylora(update, scale)] = DyLoraConfig(
                r=r_max,
                lora_alpha=r_max,
                target_modules=s.target_modules,
                update=update,
                scale=scale,
            )
    for r in settings.ranks:
        methods[lora(r)] = LoraConfig(r=r, lora_alpha=r, target_modules=s.target_modules)
    return Study(
        settings.task,
        s,
        [Contender(label, method, s.lora_lr) for label, method in methods.items()],
        {"r_max": r_max, "ranks": settings.ranks, "dylora": list(methods)[: -len(settings.ranks)]},
        partial(conclude, settings),
        report,
        {"dylora.png": plot_dylora},
        partial(losses_by_rank, r_max),
    )


def conclude(settings: DyLoraSettings, results: Results, arrays: Arrays) -> dict[str, Any]:
    """Return how long a training takes, and the claims."""
    study = dylora_study(settings)
    found = {**results, "training_seconds": seconds_of_training(study, arrays)}
    decided = [asdict(claim) for claim in claims(found)]
    return {"training_seconds": found["training_seconds"], "claims": decided}
