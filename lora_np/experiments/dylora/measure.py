"""What is measured of a trained model: its losses at every rank; and how long training takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from lora_np.adapters.cut import factors_of
from lora_np.backend import like
from lora_np.crew import one_blas_thread
from lora_np.experiments.rank_sweep.text import adapt, losses_on, rebuild_base
from lora_np.experiments.runner import Arrays
from lora_np.experiments.study.trial import Trained, model_of, settings_of, texts_of
from lora_np.methods import DyLoraConfig, LoraConfig, at_rank, inject
from lora_np.methods.contract import adapters
from lora_np.rank import svd_of_factors
from lora_np.train import Diverged, History

TIMED = 20  # steps of each training that is timed, at most

Factors = Callable[[str, int], tuple[np.ndarray, np.ndarray]]  # B and A of a path at a rank


def losses_by_rank(r_max: int, trained: Trained) -> dict[str, float]:
    """Return the losses at every rank, as ``KIND_r``.

    Parameters
    ----------
    r_max : int
    trained : Trained
        DyLoRA has "test" and "validation"; its ``test_loss`` and ``validation_loss`` become the
        means over the ranks. LoRA of rank `r_max` has "svd" and "naive", the test losses of its
        cuts. LoRA of other ranks has nothing.
    """
    method, ranks = trained.contender.method, range(1, r_max + 1)
    found: dict[str, float] = {}
    if isinstance(method, DyLoraConfig):
        for r in ranks:
            losses = _losses(at_rank(trained.model, r), trained, "validation", "test")
            found |= {f"{name}_{r}": loss for name, loss in losses.items()}
        for name in ("validation", "test"):
            found[f"{name}_loss"] = float(np.mean([found[f"{name}_{r}"] for r in ranks]))
    elif isinstance(method, LoraConfig) and method.r == r_max:
        for kind, factors in {"svd": by_svd(trained.model), "naive": naive(trained.model)}.items():
            for r in ranks:
                losses = _losses(cut(trained, r, factors), trained, "test")
                found[f"{kind}_{r}"] = losses["test"]
    return found


def by_svd(model: Any) -> Factors:
    """Return the cuts of a LoRA by SVD: the nearest products of each rank."""
    svds = {
        path: svd_of_factors(layer.B.value, layer.A.value)
        for path, layer in adapters(model).items()
    }
    return lambda path, r: factors_of(*svds[path], r)


def naive(model: Any) -> Factors:
    """Return the cuts of a LoRA to its first columns of B and rows of A."""
    layers = adapters(model)
    return lambda path, r: (layers[path].B.value[:, :r], layers[path].A.value[:r])


def cut(trained: Trained, r: int, factors: Factors) -> Any:
    """Return the model with LoRA of a lower rank; the scale stays the same."""
    method = trained.contender.method
    assert isinstance(method, LoraConfig)
    lower = replace(method, r=r, lora_alpha=method.lora_alpha * r / method.r)
    model = inject(trained.base, lower, np.random.default_rng(0))
    for path, layer in adapters(model).items():
        for p, x in zip((layer.B, layer.A), factors(path, r)):
            p.value[...] = like(x, p.value)
    return model


def seconds_of_training(study: Any, arrays: Arrays) -> dict[str, list[float]]:
    """Return the CPU seconds of one training of each contender, in this process, for each seed.

    CPU time depends less on what else the machine does than the time that passes. A few steps are
    timed and scaled to all of them. Contenders take turns, so that whatever slows the machine down
    for a while meets all of them; a first round is not counted.
    """
    s, found = study.text, {contender.label: [] for contender in study.contenders}
    few = min(TIMED, s.steps)
    with one_blas_thread():
        base = rebuild_base(s, arrays)
        for seed in (0, *range(s.seeds)):
            for contender in study.contenders:
                settings = replace(settings_of(s, contender), steps=few)
                text = texts_of(arrays, contender)["train"]
                model = model_of(base, contender, seed)
                start = time.process_time()
                # At a rate that changes nothing: training cannot diverge.
                adapt(model, settings, text, seed, 1e-12)
                found[contender.label].append((time.process_time() - start) * s.steps / few)
    return {label: seconds[1:] for label, seconds in found.items()}


def _losses(model: Any, trained: Trained, *names: str) -> dict[str, float]:
    """Return the losses on slices by name; raise Diverged if one is not finite."""
    losses = losses_on(model, trained.settings, {name: trained.texts[name] for name in names})
    if not np.isfinite(list(losses.values())).all():
        raise Diverged("the loss at a lower rank is not finite", History())
    return {name: losses[f"{name}_loss"] for name in names}
