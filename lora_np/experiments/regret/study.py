"""The claims of "LoRA Without Regret" at our size: rates, layers, capacity, batch sizes.

Source: J. Schulman and Thinking Machines Lab, "LoRA Without Regret", 2025,
https://thinkingmachines.ai/blog/lora/.

As there, lora_alpha is 32 at every rank, so that the scale is 32 / r. Four questions, each with its
own contenders, every one with its own search for a learning rate:

1. Rates: full fine-tuning and LoRA at several ranks; the curve of the loss over learning rates.
2. Layers: attention alone, the MLP alone and all of them, at equal trainable parameters.
3. Capacity: full fine-tuning and LoRA at several ranks, as the data grow with the steps. No text is
   read twice.
4. Batch: the same amount of data in small and in large batches.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from lora_np.experiments.paper.settings import nearest_rank, trainable_parameters
from lora_np.experiments.rank_sweep.text import TextSettings
from lora_np.experiments.regret.claims import FULL, LAYERS, claims, label, lora
from lora_np.experiments.regret.picture import (
    plot_batch,
    plot_capacity,
    plot_layers,
    plot_rates,
)
from lora_np.experiments.regret.report import report
from lora_np.experiments.runner import Arrays
from lora_np.experiments.study import Contender, Study
from lora_np.experiments.study.losses import Results
from lora_np.methods import LoraConfig

TARGETS: dict[str, tuple[str, ...] | str] = {
    "all layers": "all-linear",
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "MLP": ("up_proj", "down_proj"),
}


@dataclass(frozen=True)
class RegretSettings:
    """The settings of the four questions; they decide the results.

    Parameters
    ----------
    text : TextSettings
        The task. Its ranks are those of the first question; ``lora_lr`` and ``full_lr`` are where
        searches start.
    alpha : float
        lora_alpha at every rank.
    layers_rank : int
        The rank on all layers of the second question; the other ranks come nearest to its number of
        trainable parameters.
    ranks : tuple of int
        The ranks of the third and the fourth question: a low and a high one.
    steps : tuple of int
        The steps of the third question, ascending.
    batch_sizes : tuple of int
        The batch sizes of the fourth question, ascending. The steps shrink as they grow.

    Examples
    --------
    >>> from lora_np.experiments.regret import RegretSettings, regret_study
    >>> study = regret_study(RegretSettings())
    >>> [c.label for c in study.contenders if "attention" in c.label or "MLP" in c.label]
    ['attention, r = 9', 'MLP, r = 7']
    """

    text: TextSettings = field(
        default_factory=lambda: TextSettings(ranks=(1, 4, 16, 32), seeds=5, lora_lr=1e-2)
    )
    alpha: float = 32
    layers_rank: int = 4
    ranks: tuple[int, int] = (1, 16)
    steps: tuple[int, ...] = (25, 50, 100, 200, 400)
    batch_sizes: tuple[int, ...] = (4, 16, 64)

    task = "regret"

    def __post_init__(self) -> None:
        if self.text.full_lr is None:
            raise ValueError("full_lr is None, expected a learning rate: full fine-tuning is tried")
        for name in ("ranks", "steps", "batch_sizes"):
            values = getattr(self, name)
            if len(values) < 2 or list(values) != sorted({*values}) or values[0] < 1:
                raise ValueError(f"{name} = {values}, expected at least two, ascending")


QUICK = RegretSettings(
    TextSettings(
        ranks=(1, 8),
        seeds=2,
        pretrain_steps=80,
        steps=8,
        d_model=32,
        n_head=2,
        windows=16,
        lora_lr=1e-2,
    ),
    layers_rank=2,
    ranks=(1, 8),
    steps=(4, 8),
    batch_sizes=(8, 16),
)


def regret_study(settings: RegretSettings) -> Study:
    """Return the study of all four questions; a contender of several questions is trained once."""
    s = settings.text
    layers = layer_ranks(settings)
    found: dict[str, Contender] = {}

    def add(name: str, config: LoraConfig | None, around: int = 0, **changes: int) -> None:
        changes = {key: value for key, value in changes.items() if value != getattr(s, key)}
        start = s.lora_lr if config is not None else s.full_lr
        at = label(name, **changes)
        assert start is not None  # RegretSettings refuses None
        found.setdefault(at, Contender(at, config, start, around=around, changes=changes))

    full_and_ranks = {FULL: None, **{lora(r): _lora(settings, r) for r in settings.ranks}}
    for name, config in {FULL: None, **{lora(r): _lora(settings, r) for r in s.ranks}}.items():
        add(name, config, around=2)
    for where, r in layers.items():
        name = lora(r) if where == LAYERS[0] else lora(r, where)
        add(name, _lora(settings, r, TARGETS[where]))
    for name, config in full_and_ranks.items():
        for steps in settings.steps:
            add(name, config, steps=steps)
        for size in settings.batch_sizes:
            add(name, config, batch_size=size, steps=steps_of(settings, size))
    own = {name: value for name, value in asdict(settings).items() if name != "text"}
    own |= {"rate_ranks": s.ranks, "layers": layers, "capacity_steps": own.pop("steps")}
    own["batch_steps"] = [steps_of(settings, size) for size in settings.batch_sizes]
    pictures = {
        "regret_rates.png": plot_rates,
        "regret_layers.png": plot_layers,
        "regret_capacity.png": plot_capacity,
        "regret_batch.png": plot_batch,
    }
    return Study(settings.task, s, list(found.values()), own, conclude, report, pictures)


def conclude(results: Results, arrays: Arrays) -> dict[str, Any]:
    """Return the claims."""
    return {"claims": [asdict(claim) for claim in claims(results)]}


def layer_ranks(settings: RegretSettings) -> dict[str, int]:
    """Return the rank on each choice of layers at about equal trainable parameters."""
    number = trainable_parameters(settings.text, TARGETS[LAYERS[0]], settings.layers_rank)
    return {where: nearest_rank(settings.text, TARGETS[where], number) for where in LAYERS}


def steps_of(settings: RegretSettings, batch_size: int) -> int:
    """Return in how many steps of this batch size the task's amount of data is read."""
    return max(1, round(settings.text.steps * settings.text.batch_size / batch_size))


def _lora(
    settings: RegretSettings, r: int, targets: tuple[str, ...] | str = "all-linear"
) -> LoraConfig:
    return LoraConfig(r=r, lora_alpha=settings.alpha, target_modules=targets)
