"""The study: a pretrained GPT, its stored copies, and one LoRA trained over each at one rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lora_np.costs import account
from lora_np.crew import one_blas_thread
from lora_np.data import (
    VOCAB_SIZE,
    Batches,
    encode,
    language_reference,
    split,
    standard_library,
    windows,
)
from lora_np.experiments.precision.merging import FORMS, merge_row, unchanged_by_size
from lora_np.experiments.precision.planted import Planted
from lora_np.layers.stored import store_model
from lora_np.methods import LoraConfig, inject
from lora_np.methods.nf4 import quantise
from lora_np.models import GPT, GPTConfig
from lora_np.train import Diverged, evaluate, fit


@dataclass(frozen=True)
class PrecisionSettings:
    """The settings of the study; they decide its results.

    Parameters
    ----------
    pretrain_steps, steps, scaling_steps : int
        Steps of pretraining, of every LoRA, and of every run with small gradients.
    pretrain_lr, lr : float
        Learning rates; that of LoRA is the same for all.
    r : int
        The rank of LoRA on all linear layers, with lora_alpha = 2 r.
    batch_size, block_size, d_model, n_layer, n_head : int
    windows : int
        Number of windows of the held-out text to evaluate on.
    sizes : tuple of float
        Norms of a change over the norm of its weight, at which merges are tried.
    plants : tuple of int
        Gradients are multiplied by 2 to the power of each of these.

    Examples
    --------
    >>> from lora_np.experiments.precision import PrecisionSettings
    >>> PrecisionSettings().r
    8
    """

    pretrain_steps: int = 700
    steps: int = 100
    scaling_steps: int = 50
    pretrain_lr: float = 5e-3
    lr: float = 1e-2
    r: int = 8
    batch_size: int = 16
    block_size: int = 64
    d_model: int = 64
    n_layer: int = 2
    n_head: int = 4
    windows: int = 128
    sizes: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    plants: tuple[int, ...] = (12, 0, -8, -16, -24)

    def gpt(self) -> GPTConfig:
        """Return the GPT's configuration."""
        return GPTConfig(VOCAB_SIZE, self.block_size, self.n_layer, self.n_head, self.d_model)


QUICK = PrecisionSettings(
    pretrain_steps=60, steps=20, scaling_steps=10, windows=32, sizes=(1e-4, 1e-2), plants=(12, -16)
)

Listen = Callable[[str], None]


@dataclass(frozen=True)
class Texts:
    """The tokens to train on, and the held-out windows to evaluate on."""

    train: np.ndarray
    held_out: tuple[np.ndarray, np.ndarray]


def precision_study(
    settings: PrecisionSettings, listen: Listen = lambda what: None
) -> dict[str, Any]:
    """Run the whole study.

    Parameters
    ----------
    settings : PrecisionSettings
    listen : callable, optional
        ``listen(what)`` is called before each part with what comes next.

    Returns
    -------
    dict
        Plain values: ``storage``, ``merging`` and ``scaling`` are lists of rows, ``sizes`` holds
        by form the shares of entries that changes of ``settings["sizes"]`` leave unchanged.
    """
    with one_blas_thread():
        listen("pretraining")
        base = pretrained(settings)
        parts = split(encode(standard_library()))
        held_out = windows(parts.validation, settings.block_size, settings.windows)
        texts = Texts(parts.train, held_out)
        storage, merging, reference = [], [], None
        for name, model in stored_bases(base).items():
            listen(f"LoRA over a base in {name}")
            logits = model.forward(held_out[0])[0]
            reference = logits if reference is None else reference
            row, adapted = storage_row(model, texts, settings)
            error = float(np.linalg.norm(logits - reference) / np.linalg.norm(reference))
            storage.append({"form": name, "error": error, **row})
            merging.append({"form": name, **merge_row(name, adapted)})
        return {
            "settings": asdict(settings),
            "parameters": account(base).base,
            "storage": storage,
            "merging": merging,
            "sizes": {name: unchanged_by_size(name, base, settings.sizes) for name in FORMS},
            "scaling": list(scaling_rows(base, texts, settings, listen)),
        }


def pretrained(settings: PrecisionSettings) -> GPT:
    """Return a GPT trained on Python's reference."""
    s, rng = settings, np.random.default_rng(0)
    model = GPT(s.gpt(), rng)
    tokens = split(encode(language_reference())).train
    batches = Batches(tokens, s.batch_size, s.block_size, rng)
    fit(model, batches, steps=s.pretrain_steps, lr=s.pretrain_lr, warmup=s.pretrain_steps // 14)
    return model


def stored_bases(base: GPT) -> dict[str, Any]:
    """Return the base in each form. Over NF4 for linear weights, all else is in bfloat16."""
    packed = quantise(base)
    rest = [name for name, p in packed.parameters().items() if not p.stored_as]
    found: dict[str, Any] = {"float32": base}
    for name in ("bfloat16", "float16"):
        found[name] = store_model(base, FORMS[name].encode)
    return {**found, "nf4": store_model(packed, FORMS["bfloat16"].encode, rest)}


def adapted_at_start(base: Any, settings: PrecisionSettings) -> Any:
    """Return the base with LoRA, drawn alike for every base."""
    config = LoraConfig(settings.r, 2 * settings.r, target_modules="all-linear")
    return inject(base, config, np.random.default_rng(1))


def train_lora(model: Any, texts: Texts, settings: PrecisionSettings, **recipe: Any) -> None:
    """Train on the batches that every run gets."""
    s = settings
    batches = Batches(texts.train, s.batch_size, s.block_size, np.random.default_rng(2))
    options = {"weight_decay": 0.0, **recipe.pop("options", {})}
    recipe = {"steps": s.steps, "lr": s.lr, **recipe}
    fit(model, batches, warmup=recipe["steps"] // 10, options=options, **recipe)


def storage_row(
    model: Any, texts: Texts, settings: PrecisionSettings
) -> tuple[dict[str, float], Any]:
    """Return what a base costs and what it reaches, and the trained model."""
    adapted = adapted_at_start(model, settings)
    before = evaluate(adapted, *texts.held_out)
    train_lora(adapted, texts, settings)
    after = evaluate(adapted, *texts.held_out)
    nbytes = account(model).weight_bytes
    return {"bytes": nbytes, "before": before, "after": after}, adapted


def scaling_rows(
    base: GPT, texts: Texts, settings: PrecisionSettings, listen: Listen
) -> Iterator[dict[str, Any]]:
    """Yield a row for each size of the gradients and each loss scale, with float16 passed back."""
    for power in settings.plants:
        for scale in (None, 2.0**16, "dynamic"):
            listen(f"gradients times 2^{power}, loss scale {scale}")
            model = Planted(adapted_at_start(base, settings), 2.0**power)
            recipe = {"steps": settings.scaling_steps, "loss_scale": scale, "clip": None}
            eps = 1e-8 * model.factor  # Adam's step then does not depend on the factor
            try:
                train_lora(model, texts, settings, **recipe, options={"eps": eps})
                loss = evaluate(model, *texts.held_out)
            except Diverged:
                loss = None
            yield {"power": power, "scale": scale, "lost": model.lost(), "loss": loss}
