"""Models that are trained beforehand for readers in a browser.

``make``: a GPT of 32,000 weights and adapters of ranks 1, 4 and 16 for it. The base learns English
about Python, and each adapter turns it to Python code. ``write_here.ipynb`` writes with them.
``make_image_base``: chapter 15's image model and judge, as the chapter itself trains them.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from lora_np import GPT, GPTConfig, LoraConfig, fit, inject, save_adapter
from lora_np.crew import one_blas_thread
from lora_np.data import language_reference, sample_batch, standard_library
from lora_np.files import save_arrays, save_json
from lora_np.images import BaseSettings, train_base, train_judge
from lora_np.images.folder import save_base
from lora_np.images.judge import save_judge

RANKS = (1, 4, 16)
CONFIG = GPTConfig(vocab_size=128, block_size=64, n_layer=2, n_head=4, d_model=32)  # ASCII
IMAGE_BASE = BaseSettings(
    **{"k": 64, "d": 96, "d_hidden": 192, "n_block": 3, "d_c": 64},
    **{"images": 6000, "batch": 128, "processes": 1, "steps": 2500, "lr": 6e-3},
)


def make(out: Path, steps: int = 2000, adapter_steps: int = 500) -> None:
    """Train the base and the adapters, and write them to the folder `out`: about 150 kB."""
    out.mkdir(parents=True, exist_ok=True)
    base = GPT(CONFIG, np.random.default_rng(0))
    learn(base, language_reference(), steps, lr=5e-3)
    arrays = {name: p.value.astype(np.float16) for name, p in base.parameters().items()}
    for name, p in base.parameters().items():  # the adapters are trained on what is written
        p.value[...] = arrays[name]
    save_json(out / "config.json", asdict(CONFIG))
    save_arrays(out / "base.npz", arrays)
    for r in RANKS:
        config = LoraConfig(r=r, lora_alpha=r, target_modules="all-linear")
        model = inject(base, config, np.random.default_rng(1))
        learn(model, standard_library(), adapter_steps, lr=0.02)
        save_adapter(model, out / f"rank-{r}", dtype=np.float16)


def learn(model: GPT, text: str, steps: int, lr: float) -> None:
    """Train on random windows of the text's ASCII characters."""
    tokens = np.frombuffer(text.encode("ascii", "ignore"), np.uint8).astype(int)
    rng = np.random.default_rng(0)
    with one_blas_thread():  # two are no faster on matrices this small
        fit(
            model,
            lambda: sample_batch(tokens, 16, CONFIG.block_size, rng),
            steps=steps,
            lr=lr,
            warmup=steps // 10,
            options={"weight_decay": 0.0},
        )


def make_image_base(
    out: Path, settings: BaseSettings = IMAGE_BASE, judge_steps: int = 1000
) -> None:
    """Train chapter 15's base and judge, and write them to the new folder `out`."""
    base = train_base(np.random.default_rng(0), settings)
    save_base(out, base, {"kind": "mlp", **settings.sizes()})
    judge = train_judge(np.random.default_rng(9), n=3000, steps=judge_steps)
    save_judge(out / "judge.npz", judge)
