"""What a piece of the report's work has at hand: settings, folders, models, generators."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.files import load_json
from lora_np.images.adapters import adapted
from lora_np.images.denoiser import Denoiser
from lora_np.images.folder import load_base, refine_base
from lora_np.images.judge import load_judge
from lora_np.images.plan import (
    BASE,
    CHOSEN,
    ImagesSettings,
    Work,
    all_work,
)
from lora_np.images.samplers import SAMPLERS
from lora_np.images.training import Base
from lora_np.methods import is_adapted, merge

AROUND_BASE = "base-refined"  # a base with convolutional networks around it


class Desk:
    """A piece of work with what it needs: settings, folders, models, generators."""

    def __init__(self, settings: ImagesSettings, out: Path, work: Work) -> None:
        self.settings, self.out, self.work = settings, out, work

    def rng(self) -> np.random.Generator:
        """Return a generator of this work's own."""
        place = [str(work) for work in all_work(self.settings)].index(str(self.work))
        return np.random.default_rng([self.work.seed, place])

    def folder(self, what: str) -> Path:
        """Return the folder of a model with this work's seed."""
        return self.out / "models" / f"{what}-{self.work.seed}"

    def weights(self) -> list[tuple[float, ...]]:
        """Return the weights of the sum that were chosen: for both parts, and for each alone."""
        chosen = load_json(self.out / "results.json")["done"][CHOSEN]
        return [tuple(pair) for pair in (chosen["weights"], *chosen["alone"].values())]

    @property
    def base(self) -> Base:
        """The base of this seed."""
        return _base(self.folder(BASE))

    @property
    def refined(self) -> Base:
        """The base of this seed with convolutional networks around it."""
        folder = self.folder(AROUND_BASE)
        if not folder.exists():
            refine_base(self.folder(BASE), folder, self.work.seed)
        return _base(folder)

    @property
    def judge(self) -> Any:
        """The judge of all seeds."""
        return _judge(self.out / "judge.npz")

    def model(self, **weights: float) -> Denoiser:
        """Return the base with adapters merged into it, each named with its weight."""
        folders = [self.folder(what.replace("_", "-")) for what in weights]
        return plain(adapted(self.base, folders, list(weights.values())))

    def draw(
        self, model: Denoiser, words: np.ndarray, sampler: str, steps: int, guidance: float = 1.0
    ) -> np.ndarray:
        """Draw images; every model and sampler starts from the same noise."""
        z = SAMPLERS[sampler](
            model, words, steps=steps, rng=np.random.default_rng(self.work.seed), guidance=guidance
        )
        return self.base.codec.decode(z)


def plain(model: Denoiser) -> Denoiser:
    """Return the model with its adapters merged, which draws faster."""
    return merge(model) if is_adapted(model) else model


@lru_cache(maxsize=2)
def _base(folder: Path) -> Base:
    return load_base(folder)


@lru_cache(maxsize=1)
def _judge(path: Path) -> Any:
    return load_judge(path)
