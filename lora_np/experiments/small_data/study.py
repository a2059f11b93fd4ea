"""Train and validation loss of LoRA and full fine-tuning, for less and less text to train on.

The number of steps stays the same, so that a shorter text is read more often. Each of the two has
its own search for a learning rate at every length, which looks at the validation loss: a method
that overfits can lower its rate.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from lora_np.experiments.rank_sweep.text import TextSettings
from lora_np.experiments.runner import Arrays
from lora_np.experiments.small_data.claims import claims, label
from lora_np.experiments.small_data.picture import plot_small_data
from lora_np.experiments.study import Contender, Study
from lora_np.experiments.study.losses import Results
from lora_np.experiments.study.report import report
from lora_np.methods import LoraConfig


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

    text: TextSettings = field(default_factory=lambda: TextSettings(seeds=5, steps=300))
    tokens: tuple[int, ...] = (1024, 4096, 16384, 65536, 262144, 2097152)
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
        Contender(label(name, n), method, start, tokens=n)
        for name, (method, start) in methods.items()
        for n in settings.tokens
    ]
    own = {"tokens": settings.tokens, "r": r}
    pictures = {"small_data.png": plot_small_data}
    return Study(settings.task, s, contenders, own, conclude, report, pictures)


def conclude(results: Results, arrays: Arrays) -> dict[str, Any]:
    """Return the claims."""
    return {"claims": [asdict(claim) for claim in claims(results)]}
