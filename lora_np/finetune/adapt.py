"""The model that a fine-tuning run trains: the method of the settings, on the chosen blocks."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from lora_np.finetune.settings import OF_METHOD, Settings, default_of
from lora_np.methods import METHODS, MethodConfig, inject, is_adapted
from lora_np.methods.table import make_method
from lora_np.tables import counted

NAMES = {  # what a method may call a setting
    "r": ("r",),
    "alpha": ("lora_alpha", "alpha"),
    "dropout": ("lora_dropout",),
    "target_modules": ("target_modules",),
    "top_layers": ("layers_to_transform",),
}


def method_in(settings: Settings, model: Any, steps: int) -> MethodConfig:
    """Return the configuration that the settings describe, for a run of so many steps on a model.

    Raises
    ------
    ValueError
        If there is no such method, it lacks a setting that was given, or the model has fewer
        blocks than `top_layers`.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Llama, LlamaConfig
    >>> from lora_np.finetune import Settings
    >>> from lora_np.finetune.adapt import method_in
    >>> config = LlamaConfig(9, 8, n_layer=3, n_head=1, n_kv_head=1, d_model=4, d_hidden=6)
    >>> model = Llama(config, np.random.default_rng(0))
    >>> method_in(Settings(r=2, top_layers=2), model, steps=10).layers_to_transform
    (1, 2)
    """
    chosen: Any = METHODS.get(settings.method)
    known = () if chosen is None else {f.name for f in fields(chosen)}
    options = dict(settings.options)
    for name, theirs in NAMES.items():
        if (value := getattr(settings, name)) is None:
            continue
        own = next((option for option in theirs if option in known), None)
        if known and own is None:
            raise ValueError(f"method {settings.method!r} has no {name}: leave it out")
        if own in options:
            raise ValueError(f"{name} and the option {own} are one setting: leave one of them out")
        options[own or name] = _top(model, value) if name == "top_layers" else value
    if "total_step" in known:
        options.setdefault("total_step", steps)
    return make_method(settings.method, **options)


def _top(model: Any, number: int) -> tuple[int, ...]:
    """Return the numbers of the last blocks."""
    blocks = model.config.n_layer
    if number > blocks:
        raise ValueError(f"top_layers = {number}, but the model has {counted(blocks, 'layer')}")
    return tuple(range(blocks - number, blocks))


def adapted_by(settings: Settings, model: Any, steps: int) -> Any:
    """Return the model to train: `model` with the method's adapters, or itself if it has some.

    Raises
    ------
    ValueError
        As :func:`method_in` and :func:`lora_np.inject`; if the model has adapters already and the
        settings describe others; if the method does not leave caches to recompute.
    """
    if not is_adapted(model):
        rng = np.random.default_rng([settings.seed, 1])
        adapted = inject(model, method_in(settings, model, steps), rng)
    else:
        adapted = model
        for name in OF_METHOD:
            if getattr(settings, name) != default_of(name):
                raise ValueError(f"{name} is that of the adapter that is trained on: leave it out")
    if settings.recompute:
        if not hasattr(adapted, "recompute"):
            raise ValueError(f"method {settings.method!r} moves the whole model: no recompute")
        adapted.recompute = True
    return adapted
