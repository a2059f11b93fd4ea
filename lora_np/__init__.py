"""lora_np: LoRA from scratch in pure NumPy, with gradients derived by hand and checked.

Names load on first use (PEP 562), so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "gradcheck": ("check_gradients",),
    "parameters": ("Parameter", "Grads", "freeze", "pack"),
    "layers": (
        "Linear",
        "LoRALinear",
        "Embedding",
        "LayerNorm",
        "Dropout",
        "Gelu",
        "MLP",
        "CausalSelfAttention",
        "Residual",
        "Chain",
        "as_pair",
        "copy_model",
    ),
    "gpt": ("GPT", "GPTConfig"),
    "adapt": ("LoraConfig", "inject", "merge", "unmerge", "account"),
    "optim": ("SGD", "Adam", "AdamW", "schedule", "clip_by_global_norm"),
    "checkpoint": ("open_adapter", "write_adapter", "save_adapter", "load_adapter"),
    "pretrained": ("load_gpt2",),
    "train": ("fit", "evaluate"),
    "rank": (
        "spectrum",
        "svd_of_factors",
        "principal_angles",
        "subspace_similarity",
        "random_similarity",
        "amplification",
        "intruder_dimensions",
        "best_rank_error",
        "smallest_rank",
        "estimate_noise",
        "gavish_donoho_threshold",
        "randomised_svd",
    ),
    "sweep": ("rank_sweep",),
    "intrinsic": ("IntrinsicModel", "intrinsic_dimension"),
    "paper": ("run_paper",),
    "adapterfiles": (
        "Keep",
        "resize_adapter",
        "extract_adapter",
        "merge_adapter",
        "combine_adapters",
    ),
    "analyse": ("analyse_adapter", "analyse_checkpoints", "analyse_sweep"),
    "diagnose": ("run_isolated",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
_MODULES = (
    *_HOME,
    "backend",
    "cli",
    "data",
    "ops",
    "plots",
    "selfcheck",
)

__all__ = ["__version__", *_MODULE_OF]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"lora_np.{_MODULE_OF[name]}"), name)
    if name in _MODULES:
        return import_module(f"lora_np.{name}")
    raise AttributeError(f"module 'lora_np' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
