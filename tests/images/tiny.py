"""A base of letters that is trained in a blink, and adapters of it."""

from functools import cache

import numpy as np

from lora_np.images import (
    Base,
    BaseSettings,
    DistilSettings,
    StyleSettings,
    distil,
    save_base,
    save_trained,
    train_base,
    train_style,
)
from lora_np.images.adapters import method_of

SMALL = {"images": 300, "k": 48, "d": 16, "d_hidden": 16, "n_block": 1, "steps": 12}
SETTINGS = BaseSettings(**SMALL, d_c=8, batch=32, processes=1)
BODY = {"kind": "mlp", **SETTINGS.sizes()}


@cache
def base(seed=0) -> Base:
    return train_base(np.random.default_rng(seed), SETTINGS)


def write_base(folder, seed=0):
    save_base(folder, base(seed), BODY)
    return folder


def write_style(folder, r=2, of=None, seed=0):
    """Write a style whose weights are far from zero; `of` is the base that it is trained on."""
    of, rng = of or base(), np.random.default_rng(seed)
    settings = StyleSettings(steps=4, batch=16, lr=0.05)
    trained = train_style(of, method_of(r), rng, settings)
    save_trained(folder, trained, of, "letters", {"kind": "style", "style": "bold"})
    return folder


def write_lcm(folder, r=2):
    settings = DistilSettings(images=60, steps=4, batch=16, lr=0.02, processes=1)
    trained = distil(base(), method_of(r), np.random.default_rng(1), settings)
    about = {"kind": "lcm", "sampler": "consistency", "guidance": [1.0, 1.5]}
    save_trained(folder, trained, base(), "letters", about)
    return folder
