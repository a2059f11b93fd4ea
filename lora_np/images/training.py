"""Train the three things that an image model is made of here: a base, styles, fewer steps.

    train_base      a denoiser from nothing, on regular letters in latents
    train_style     a style, from a few images: an adapter of the base, or all weights of a copy
    distil          a student that draws in one to four steps: an adapter or all weights, too

An adapter is a method of the library on a frozen base. A style and an acceleration that were
trained apart are changes of the same weights, so they can be added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lora_np.images.denoiser import Denoiser, mlp_denoiser
from lora_np.images.distance import spread
from lora_np.images.glyphs import NO_FAMILY, NO_LETTER, letters
from lora_np.images.latent import SvdCodec
from lora_np.images.objective import Consistency, VPrediction
from lora_np.images.samplers import Sampler, consistency, ddim
from lora_np.images.schedule import T_MAX, grid
from lora_np.methods import MethodConfig, inject
from lora_np.train import MovingAverage, Trainer, continue_from, fit
from lora_np.train.loop import AfterStep

SIZE = 16  # pixels along an image
DROP = 0.2  # chance of each word of a prompt to be left out
BEND = 0.65  # t = T_MAX u^BEND, u uniform in (0, 1): below 1, there are more noisy times
WATCHED = 100  # steps between two looks at whether a student collapses
LEAST_SPREAD = 0.05  # of a student's images, as a share of the teacher's spread


class Base(NamedTuple):
    """An image model: a denoiser, and the codec of the latents that it denoises."""

    denoiser: Denoiser
    codec: SvdCodec


class Mixed:
    """Batches for :class:`~lora_np.images.VPrediction`: latents, noise, times and words.

    The times of a batch are stratified: one from each of n equal parts of (0, 1), bent towards the
    noisy end, where a letter takes its shape. Each word is left out of a fifth of the prompts, so
    that the denoiser also learns to do without.
    """

    def __init__(self, z: np.ndarray, words: np.ndarray, batch: int, rng: np.random.Generator):
        if batch < 1:
            raise ValueError(f"batch = {batch}, expected at least 1")
        self.z, self.words, self.batch, self.rng = z, words, batch, rng

    def __call__(self) -> tuple[np.ndarray, ...]:
        """Return x0 (n, k), eps (n, k), t (n,), words (n, 2)."""
        x0, eps, words = self.mixed()
        u = (np.arange(self.batch) + self.rng.random(self.batch)) / self.batch
        return x0, eps, (T_MAX * u**BEND).astype(np.float32), words

    def mixed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw latents (n, k), noise (n, k) and words (n, 2), some of them left out."""
        rng = self.rng
        rows = rng.integers(0, len(self.z), self.batch)
        left_out = rng.random((self.batch, 2)) < DROP
        words = np.where(left_out, (NO_LETTER, NO_FAMILY), self.words[rows])
        eps = rng.standard_normal((self.batch, self.z.shape[1]), np.float32)
        return self.z[rows], eps, words


class Neighbours(Mixed):
    """Batches for :class:`~lora_np.images.Consistency`, with neighbouring times and guidance."""

    def __init__(
        self,
        z: np.ndarray,
        words: np.ndarray,
        batch: int,
        rng: np.random.Generator,
        steps: int,
        guidance: tuple[float, float],
    ):
        super().__init__(z, words, batch, rng)
        self.times, self.guidance = grid(steps), guidance

    def __call__(self) -> tuple[np.ndarray, ...]:
        """Return x0, eps, t, words, later (n,) and guidance (n, 1)."""
        x0, eps, words = self.mixed()
        n, last = self.batch, len(self.times) - 1
        place = ((np.arange(n) + self.rng.random(n)) * (last / n)).astype(np.int64)  # stratified
        place = np.minimum(place, last - 1)
        w = self.rng.uniform(*self.guidance, (n, 1)).astype(np.float32)
        return x0, eps, self.times[place], words, self.times[place + 1], w


# ----------------------------------------------------------------------------------- the base


@dataclass(frozen=True)
class BaseSettings:
    """How a base is trained.

    Parameters
    ----------
    images : int
        Number of regular letters, drawn anew for every seed.
    k : int
        Latents of the codec.
    d, d_hidden, n_block, d_c : int
        Sizes of :func:`~lora_np.images.mlp_denoiser`.
    steps, batch, lr : int, int, float
    processes : int
        Workers that share each batch.
    """

    images: int = 60_000
    k: int = 112
    d: int = 144
    d_hidden: int = 288
    n_block: int = 5
    d_c: int = 128
    steps: int = 6600
    batch: int = 256
    lr: float = 8e-3
    processes: int = 2

    def __post_init__(self) -> None:
        """Check what would be refused once the images are drawn."""
        most = min(self.images - 1, SIZE * SIZE)
        if not 1 <= self.k <= most:
            raise ValueError(f"k = {self.k}, expected 1 to {most} for {self.images} images")
        for name, size in self.sizes().items():
            if size < 1:
                raise ValueError(f"{name} = {size}, expected at least 1")

    def sizes(self) -> dict[str, int]:
        """Return the sizes of the denoiser, as arguments of its function."""
        return {n: getattr(self, n) for n in ("k", "d", "d_hidden", "n_block", "d_c")}


def train_base(
    rng: np.random.Generator,
    settings: BaseSettings = BaseSettings(),
    *,
    state: str | Path | None = None,
    after: AfterStep | None = None,
) -> Base:
    """Train an image model from nothing, on regular letters.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws images, weights, batches.
    settings : BaseSettings
    state : str or Path, optional
        A file in which the training saves its state, and from which it continues.
    after : callable, optional
        Called after every step, as ``after_step`` of :class:`~lora_np.train.Trainer`.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.images import BaseSettings, ddim, train_base
    >>> tiny = BaseSettings(images=200, k=8, d=16, d_hidden=16, n_block=1, steps=2, batch=8)
    >>> base = train_base(np.random.default_rng(0), tiny)
    >>> z = ddim(base.denoiser, np.array([[17, 1]]), steps=2, rng=np.random.default_rng(1))
    >>> base.codec.decode(z).shape
    (1, 16, 16)
    """
    s, key = settings, {"settings": asdict(settings), "generator": rng.bit_generator.state}
    drawn = letters(rng, s.images, size=SIZE)
    codec = SvdCodec.fit(drawn.images, s.k)
    denoiser = mlp_denoiser(rng, **s.sizes())
    trainer = Trainer(
        VPrediction(denoiser),
        Mixed(codec.encode(drawn.images), drawn.words, s.batch, rng),
        steps=s.steps,
        lr=s.lr,
        warmup=min(50, s.steps),
        clip=None,
        processes=s.processes,
        after_step=after,
    )
    if state is not None:
        continue_from(state, trainer, key)
    trainer.run()
    return Base(denoiser, codec)


# ---------------------------------------------------------------------------- what is added to it


@dataclass(frozen=True)
class StyleSettings:
    """How a style is trained on a few images.

    Parameters
    ----------
    style : str
        One of the styles of :func:`~lora_np.images.letters`.
    images : int
        Number of images to learn from.
    of : str
        The letters that the images show. How other letters look in this style must be guessed.
    steps, batch, lr : int, int, float
    weight_decay : float
        It keeps the change small, so that letters that are not shown stay readable.
    """

    style: str = "bold"
    images: int = 117
    of: str = "ACEGIKMOQSUWY"
    steps: int = 200
    batch: int = 128
    lr: float = 2e-2
    weight_decay: float = 2.0


def train_style(
    base: Base,
    method: MethodConfig,
    rng: np.random.Generator,
    settings: StyleSettings = StyleSettings(),
    *,
    after: AfterStep | None = None,
) -> Denoiser:
    """Return the base adapted to a style.

    Parameters
    ----------
    base : Base
        It stays as it was.
    method : MethodConfig
        What is trained, such as a LoraConfig, or a FullConfig for all weights.
    rng : numpy.random.Generator
        Draws images, what the method draws, batches.
    settings : StyleSettings
    after : callable, optional
        As for :func:`~lora_np.images.train_base`.

    Raises
    ------
    ValueError
        If there are fewer images than letters, or the codec cannot hold the style's images.
    """
    s = settings
    if s.images < len(s.of):
        raise ValueError(f"{s.images} images for {len(s.of)} letters: give at least one for each")
    drawn = letters(rng, s.images, s.style, base.codec.size, of=s.of)
    base.codec.expect_held(drawn.images)
    adapted = inject(base.denoiser, method, rng)
    batches = Mixed(base.codec.encode(drawn.images), drawn.words, s.batch, rng)
    fit(
        VPrediction(adapted),
        batches,
        steps=s.steps,
        lr=s.lr,
        warmup=min(20, s.steps),
        clip=None,
        after_step=after,
        options={"weight_decay": s.weight_decay},
    )
    return adapted


@dataclass(frozen=True)
class DistilSettings:
    """How a base is distilled into a student of few steps.

    Parameters
    ----------
    guidance : (float, float)
        The weight of guidance of each of the teacher's steps is drawn between these two.
    images : int
        Number of regular letters.
    grid : int
        Steps of the teacher from noise to image.
    decay : float
        How much of the moving average, which gives the target, stays in each step.
    steps, batch, lr : int, int, float
    processes : int
        Workers that share each batch.
    """

    guidance: tuple[float, float] = (1.0, 1.0)
    images: int = 60_000
    grid: int = 50
    decay: float = 0.98
    steps: int = 1400
    batch: int = 256
    lr: float = 4e-3
    processes: int = 2

    def __post_init__(self) -> None:
        low, high = self.guidance
        if not -math.inf < low <= high < math.inf:
            raise ValueError(f"guidance = ({low}, {high}), expected two numbers in rising order")


# Settings for all weights in place of LoRA. Of the learning rates that were tried, these have the
# lowest FD on letters that are shown.
ALL_WEIGHTS_STYLE: Mapping[str, Any] = {"steps": 400, "lr": 5e-4, "weight_decay": 0.01}
ALL_WEIGHTS_DISTIL: Mapping[str, Any] = {"lr": 1e-3}


class Collapsed(ValueError):
    """A student that draws nearly the same image whatever the noise."""


def distil(
    base: Base,
    method: MethodConfig,
    rng: np.random.Generator,
    settings: DistilSettings = DistilSettings(),
    *,
    after: AfterStep | None = None,
) -> Denoiser:
    """Return a student of the base that draws with :func:`~lora_np.images.consistency`.

    Parameters
    ----------
    base : Base
        The teacher; it stays as it was.
    method : MethodConfig
        What is trained: a LoraConfig for LCM-LoRA, a FullConfig for LCM.
    rng : numpy.random.Generator
        Draws images, what the method draws, batches.
    settings : DistilSettings
    after : callable, optional
        As for :func:`~lora_np.images.train_base`.

    Raises
    ------
    Collapsed
        If the spread of the student's images falls below 5 % of that of the teacher's.
    """
    s = settings
    drawn = letters(rng, s.images, size=base.codec.size)
    student = inject(base.denoiser, method, rng)
    average = MovingAverage(student, s.decay)
    z = base.codec.encode(drawn.images)
    batches = Neighbours(z, drawn.words, s.batch, rng, s.grid, s.guidance)
    watch = _Watch(base, student)

    def after_step(*step: Any) -> None:
        average.update()
        if after is not None:
            after(*step)

    fit(
        Consistency(student, base.denoiser, average),
        batches,
        steps=s.steps,
        lr=s.lr,
        warmup=min(20, s.steps),
        clip=None,
        processes=s.processes,
        after_step=after_step,
        validate=watch,
        validate_every=WATCHED,
    )
    return student


class _Watch:
    """Raises Collapsed if a student's images hardly depend on the noise."""

    def __init__(self, base: Base, student: Denoiser) -> None:
        self.codec, self.student = base.codec, student
        self.words = np.repeat([[i, i % NO_FAMILY] for i in range(NO_LETTER)], 4, axis=0)
        self.expected = self._spread(base.denoiser, ddim, 8)

    def __call__(self) -> float:
        """Return the share of the teacher's spread that the student has."""
        share = self._spread(self.student, consistency, 1) / self.expected
        if not share >= LEAST_SPREAD:
            raise Collapsed(
                f"the student has collapsed: the spread of its images is {share:.1%} of the "
                f"teacher's; give it a lower learning rate, or the target a slower moving average "
                f"(a decay nearer to 1)"
            )
        return share

    def _spread(self, denoiser: Denoiser, sampler: Sampler, steps: int) -> float:
        z = sampler(denoiser, self.words, steps=steps, rng=np.random.default_rng(0))
        return spread(self.codec.decode(z), self.words)
