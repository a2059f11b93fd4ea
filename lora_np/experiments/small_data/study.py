"""Train and validation loss of LoRA and full fine-tuning, for less and less text to train on.

The number of steps stays the same, so that a shorter text is read more often. Each of the two has
its own search for a learning rate at every length, which looks at the validation loss: a method
that overfits can lower its rate. A short text needs a rate far below that of a long one, so the
search starts lower in proportion to the length, below SHORT bytes. Both are also trained at one
rate for all lengths, one that suits a long text, where nothing stops them from overfitting.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from lora_np.crew import one_blas_thread
from lora_np.data import split
from lora_np.experiments.rank_sweep.text import TextSettings, losses_on, rebuild_base
from lora_np.experiments.runner import Arrays
from lora_np.experiments.small_data.claims import claims, label
from lora_np.experiments.small_data.picture import plot_small_data
from lora_np.experiments.small_data.report import report
from lora_np.experiments.study import Contender, Study
from lora_np.experiments.study.losses import Results
from lora_np.methods import LoraConfig

SHORT = 65536  # bytes


@dataclass(frozen=True)
class SmallDataSettings:
    """The settings of the comparison; they decide its results.

    Parameters
    ----------
    text : TextSettings
        The task. Its ``lora_lr`` and ``full_lr`` are where searches start; its ranks are not used.
    tokens : tuple of int
        Lengths of the text to train on, in bytes, ascending.
    r : int
        The rank of LoRA, on ``text.target_modules``, with scale 1.

    Examples
    --------
    >>> from lora_np.experiments.small_data import SmallDataSettings, small_data_study
    >>> study = small_data_study(SmallDataSettings(tokens=(1000, 2000)))
    >>> [contender.label for contender in study.contenders]
    ['LoRA, 1,000 bytes', 'LoRA, 2,000 bytes', 'full, 1,000 bytes', 'full, 2,000 bytes']
    """

    text: TextSettings = field(default_factory=lambda: TextSettings(seeds=5))
    tokens: tuple[int, ...] = (2048, 8192, 32768, 131072, 524288, 2097152)
    r: int = 8

    task = "small-data"

    def __post_init__(self) -> None:
        if self.text.full_lr is None:
            raise ValueError("full_lr is None, expected a learning rate: full fine-tuning is tried")
        if len(self.tokens) < 2 or list(self.tokens) != sorted({*self.tokens}):
            raise ValueError(f"tokens = {self.tokens}, expected at least two ascending lengths")


QUICK = SmallDataSettings(
    TextSettings(seeds=2, pretrain_steps=80, steps=12, d_model=32, n_head=2, windows=16),
    tokens=(256, 16384),
    r=4,
)


def small_data_study(settings: SmallDataSettings) -> Study:
    """Return the study of shrinking text."""
    s, r = settings.text, settings.r
    assert s.full_lr is not None  # SmallDataSettings refuses None
    lora = LoraConfig(r=r, lora_alpha=r, target_modules=s.target_modules)
    methods = {"LoRA": (lora, s.lora_lr), "full": (None, s.full_lr)}
    contenders = [
        Contender(label(name, n), method, start * min(1.0, n / SHORT), rates=(start,), tokens=n)
        for name, (method, start) in methods.items()
        for n in settings.tokens
    ]
    common = {name: start for name, (_, start) in methods.items()}
    return Study(
        settings.task,
        s,
        contenders,
        {"tokens": settings.tokens, "r": r, "common_lr": common},
        partial(conclude, settings),
        report,
        {"small_data.png": plot_small_data},
    )


def conclude(settings: SmallDataSettings, results: Results, arrays: Arrays) -> dict[str, Any]:
    """Return the claims, and the base's loss on every text to train on."""
    train = split(arrays["adapt"]).train
    with one_blas_thread():
        base = rebuild_base(settings.text, arrays)
        texts = {str(n): train[:n] for n in settings.tokens}
        losses = losses_on(base, settings.text, texts)
    found = {"base_train_losses": {name.removesuffix("_loss"): x for name, x in losses.items()}}
    return {**found, "claims": [asdict(claim) for claim in claims({**results, **found})]}
