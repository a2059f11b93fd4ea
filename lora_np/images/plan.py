"""What the report on images trains and draws, and which work remains, given what is done.

One judge scores everything. Every seed trains a base of its own; on this base a style, with LoRA
and with all weights, three students of few steps, and outlines with and without convolutions. All
of them then draw, with several samplers and numbers of steps. The weights of a sum are chosen on
a style that nothing else uses: it is trained on the other letters, from draws of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lora_np.images.glyphs import LETTERS
from lora_np.images.refiner import REFINED_STYLE
from lora_np.images.training import (
    ALL_WEIGHTS_DISTIL,
    ALL_WEIGHTS_STYLE,
    BaseSettings,
    DistilSettings,
    StyleSettings,
)

JUDGE, BASE = "judge", "base"
STYLE, STYLE_FULL, CHOOSING = "style", "style-full", "style-choosing"
LCM, LCM_FULL, LCM_SMALL = "lcm", "lcm-full", "lcm-small"
OUTLINE, REFINED = "outline", "outline-refined"
CHANGES = (STYLE, STYLE_FULL, LCM, LCM_FULL, LCM_SMALL, OUTLINE, REFINED)
CHOSEN, SPEED = "chosen", "speed"  # weights of the sum; what a step costs
ONCE = (JUDGE, CHOOSING, CHOSEN, SPEED)  # with seed 0 alone
SUM = "sum"  # of a style and LCM-LoRA, as a row of scores calls it
SUM_BARS = {"seen": (2, 0.80), "unseen": (50, 0.75)}  # a share of the style's FD in so many steps
DRAWN = ("regular", "styled", "weighed", "outlined")  # what is drawn and judged of every seed


@dataclass(frozen=True)
class ImagesSettings:
    """The settings of the report; they decide its results.

    Parameters
    ----------
    seeds : int
        Bases, with all that is built on them.
    n : int
        Images in every set that is judged: a multiple of 78, the number of prompts, so that all
        prompts are in it equally often.
    base, style, distil : BaseSettings, StyleSettings, DistilSettings
    style_full, distil_full : StyleSettings, DistilSettings
        For all weights, which need lower learning rates.
    refined : StyleSettings
        For outlines, with convolutions around the base.
    r, r_refined, r_lcm, r_small : int
        Ranks of a style, of one with convolutions, of LCM-LoRA, and of LCM-LoRA with few
        parameters.
    steps : tuple of int
        Numbers of steps.
    style_weights, lcm_weights : tuple of float
        Weights of a style and of LCM-LoRA that are tried in a sum.

    Examples
    --------
    >>> from lora_np.images.plan import ImagesSettings
    >>> ImagesSettings().unseen
    'BDFHJLNPRTVXZ'
    """

    seeds: int = 3
    n: int = 4056
    base: BaseSettings = field(default_factory=BaseSettings)
    style: StyleSettings = field(default_factory=StyleSettings)
    distil: DistilSettings = field(default_factory=DistilSettings)
    style_full: StyleSettings = field(default_factory=lambda: StyleSettings(**ALL_WEIGHTS_STYLE))
    distil_full: DistilSettings = field(
        default_factory=lambda: DistilSettings(**ALL_WEIGHTS_DISTIL)
    )
    refined: StyleSettings = field(
        default_factory=lambda: StyleSettings(style="outline", **REFINED_STYLE)
    )
    r: int = 4
    r_refined: int = 8
    r_lcm: int = 16
    r_small: int = 4
    steps: tuple[int, ...] = (1, 2, 4, 8, 20, 50)
    style_weights: tuple[float, ...] = (0.9, 1.0, 1.05, 1.1, 1.15, 1.2)
    lcm_weights: tuple[float, ...] = (0.0, 0.6, 0.8, 1.0, 1.2)

    task, device = "images", "cpu"  # what the commands of all experiments ask their settings for

    def __post_init__(self) -> None:
        if self.n % 78 or self.seeds < 1:
            raise ValueError(
                f"n = {self.n} and seeds = {self.seeds}, expected a multiple of 78 and at least 1"
            )

    @property
    def unseen(self) -> str:
        """The letters that the style is never shown."""
        return "".join(letter for letter in LETTERS if letter not in self.style.of)


QUICK = ImagesSettings(  # the whole chain in less than a minute of one core
    seeds=1,
    n=312,
    base=BaseSettings(images=4000, k=96, d=128, d_hidden=256, n_block=2, steps=1500, batch=128),
    refined=StyleSettings(style="outline", **{**REFINED_STYLE, "steps": 100}),
    distil=DistilSettings(images=4000, steps=200),
    distil_full=DistilSettings(images=4000, steps=200, **ALL_WEIGHTS_DISTIL),
    style_weights=(0.6, 1.0),
    lcm_weights=(0.0, 0.6, 1.0),
)


class Work(NamedTuple):
    """A piece of work: what is trained or drawn, and the seed."""

    what: str
    seed: int

    def __str__(self) -> str:
        return self.what if self.what in ONCE else f"{self.what}, seed {self.seed}"


NEEDS: Mapping[str, tuple[str, ...]] = {  # what must be done before, with the same seed
    JUDGE: (),
    BASE: (),
    **dict.fromkeys((*CHANGES, CHOOSING), (BASE,)),
    "regular": (JUDGE, BASE, LCM, LCM_FULL, LCM_SMALL),
    CHOSEN: (JUDGE, BASE, CHOOSING, LCM),
    "styled": (JUDGE, BASE, STYLE, STYLE_FULL, LCM, CHOSEN),
    "weighed": (JUDGE, BASE, STYLE),
    "outlined": (JUDGE, BASE, OUTLINE, REFINED),
    SPEED: (BASE, LCM, *DRAWN),
}


def all_work(settings: ImagesSettings) -> list[Work]:
    """Return every piece of work, in an order in which it can be done.

    Examples
    --------
    >>> from lora_np.images.plan import ImagesSettings, all_work
    >>> [str(work) for work in all_work(ImagesSettings(seeds=2))][:4]
    ['judge', 'base, seed 0', 'base, seed 1', 'style, seed 0']
    """
    return [
        Work(what, seed) for what in NEEDS for seed in range(1 if what in ONCE else settings.seeds)
    ]


def next_work(settings: ImagesSettings, done: Mapping[str, Any]) -> list[Work]:
    """Return the work that can start now; `done` holds what is done, by its name."""
    waiting = []
    for work in all_work(settings):
        needed = (Work(what, 0 if what in ONCE else work.seed) for what in NEEDS[work.what])
        if str(work) not in done and all(str(other) in done for other in needed):
            waiting.append(work)
    return waiting
