"""lora_np: LoRA from scratch in pure NumPy, with gradients derived by hand and checked.

Names load on first use (PEP 562), so that importing the package costs next to nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "gradcheck": ("check_gradients",),
    "parameters": ("Parameter", "Grads", "freeze", "pack"),
    "layers": (
        "Linear",
        "Embedding",
        "LayerNorm",
        "RMSNorm",
        "Dropout",
        "Gelu",
        "MLP",
        "GatedMLP",
        "CausalSelfAttention",
        "RotaryAttention",
        "SelfAttention",
        "Conv1d",
        "Conv2d",
        "RNN",
        "GRU",
        "Modulated",
        "Residual",
        "Chain",
        "Recompute",
        "as_pair",
        "copy_model",
    ),
    "layers.stored": ("StoredParameter", "store_model"),
    "models": ("GPT", "GPTConfig", "Llama", "LlamaConfig"),
    "methods": (
        "IntrinsicConfig",
        "IntrinsicModel",
        "LoraConfig",
        "LoRALinear",
        "MethodConfig",
        "Nf4Config",
        "PrefixConfig",
        "PromptConfig",
        "inject",
        "merge",
        "unmerge",
    ),
    "costs": ("account",),
    "optim": ("SGD", "Adam", "AdamW", "schedule", "clip_by_global_norm"),
    "pretrained": ("load_gpt2", "load_llama", "load_llm"),
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
    "adapters": (
        "open_adapter",
        "write_adapter",
        "save_adapter",
        "load_adapter",
        "Keep",
        "resize_adapter",
        "extract_adapter",
        "merge_adapter",
        "combine_adapters",
        "convert_adapter",
        "export_model",
        "nearest_lora",
    ),
    "finetune": ("train_adapter",),
    "adapters.analyse": ("analyse_adapter", "analyse_checkpoints"),
    "experiments.rank_sweep": ("rank_sweep",),
    "experiments.rank_sweep.analyse": ("analyse_sweep",),
    "experiments.intrinsic": ("intrinsic_dimension",),
    "experiments.paper": ("run_paper",),
    "checks": ("check_layer", "check_method"),
    "course": ("run_isolated",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
_MODULES = (
    *dict.fromkeys(home.partition(".")[0] for home in _HOME),
    "backend",
    "cli",
    "crew",
    "data",
    "files",
    "forms",
    "ops",
    "plots",
    "selfcheck",
    "tables",
)

__all__ = ["__version__", *_MODULE_OF]  # pyright: ignore[reportUnsupportedDunderAll]


_MOVED = {  # modules of earlier releases, and the modules that now hold their names
    "adapt": ("methods", "methods.targets", "methods.lora", "costs"),
    "adapterfiles": ("adapters",),
    "analyse": (
        "adapters.analyse",
        "adapters.ranks",
        "adapters.kinds",
        "experiments.rank_sweep.analyse",
    ),
    "checkpoint": ("files", "adapters", "train"),
    "course.attention": (
        "course.misconceptions.attention",
        "course.misconceptions.cross_entropy",
        "course.misconceptions.layernorm",
        "course.misconceptions.softmax",
    ),
    "course.child": ("course.sandbox.child",),
    "course.compare": (
        "course.judge",
        "course.comparison",
        "course.factor",
        "course.notebook",
        "course.report",
        "course.task",
    ),
    "course.course": ("course.nbgrader",),
    "course.linear": (
        "course.misconceptions.linear",
        "course.misconceptions.lora",
        "course.misconceptions.lora_backward",
        "course.misconceptions.lora_forward",
        "course.misconceptions.numeric_gradient",
    ),
    "course.rank": ("course.misconceptions.rank",),
    "course.runner": ("course.sandbox.runner",),
    "course.untrusted": ("course.sandbox.untrusted", "reading"),
    "diagnose": ("course",),
    "diagnose.grade": ("course.grade",),
    "diagnose.task": ("course.task",),
    "gpt": ("models", "models.gpt2", "models.language"),
    "intrinsic": ("experiments.intrinsic",),
    "paper": ("experiments.paper",),
    "sweep": ("experiments.rank_sweep",),
    "sweep.models": ("experiments.rank_sweep.models",),
    "sweep.report": ("experiments.rank_sweep.report", "experiments.terminal"),
}
_MOVED |= {  # diagnose was the room's first name
    f"diagnose.{old.removeprefix('course.')}": homes
    for old, homes in _MOVED.items()
    if old.startswith("course.")
}
_LEFT = {  # modules that stayed, and the modules that now hold some of their names
    "plots": (
        "adapters.picture",
        "experiments.intrinsic.picture",
        "experiments.paper.picture",
        "experiments.rank_sweep.picture",
        "rank.picture",
    ),
}


def moved(module: str, name: str) -> Any:
    """Return what a name in an old module refers to now.

    Parameters
    ----------
    module, name : str
        As in ``from lora_np.adapt import inject``: "adapt" and "inject".
    """
    private = name.startswith("_") and name != "__all__"
    for room in () if private else {**_MOVED, **_LEFT}[module]:
        found = getattr(import_module(f"lora_np.{room}"), name, None)
        if found is not None:
            return found
    raise AttributeError(f"module 'lora_np.{module}' has no attribute {name!r}")


class _OldNames:
    """Finds the old modules, so that ``from lora_np.adapt import inject`` still works."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the specification of a module that has moved, else None."""
        old = name.removeprefix("lora_np.")
        return ModuleSpec(name, _OldNames, is_package=True) if old in _MOVED else None  # pyright: ignore[reportArgumentType]

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        """Return None: Python then makes the module."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Make the module look up its names in their new modules."""
        old = module.__name__.removeprefix("lora_np.")
        module.__getattr__ = lambda name: moved(old, name)  # pyright: ignore[reportAttributeAccessIssue]


sys.meta_path.insert(0, _OldNames)  # pyright: ignore[reportArgumentType]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"lora_np.{_MODULE_OF[name]}"), name)
    if name in _MODULES or name in _MOVED:
        return import_module(f"lora_np.{name}")
    raise AttributeError(f"module 'lora_np' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
