"""The names of tensors and modules: without the parts that a wrapper put in, and matched.

torch.compile, FSDP, activation checkpointing, DataParallel and PEFT wrap a model, or modules in
it, and each puts a part of its own into the names of the parameters. A file saved from inside a
wrapper holds names such as::

    module.base_model.model.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.lora_A.weight

Every command reads names without these parts, so that they are the plain model's. A part that is
called "module" or "model" for reasons of the model's own stays.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from lora_np.files.arrays import CheckpointError

PREFIX = "base_model.model."  # PEFT's
PARALLEL = "module."  # DataParallel's, DistributedDataParallel's and DeepSpeed's
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # at any depth
BODIES = ("model.", "transformer.")  # how transformers' models with a head call the rest
OTHERS = {  # what a tensor's name gives away; the first that is found counts
    r"\.(?:lora_magnitude_vector|dora_scale)\b": "a magnitude of DoRA's, whose change is no B A",
    r"\.lora_(?:E|ranknum)\b": "of AdaLoRA, which has singular values too",
    r"\.lora_[ab]$": "of mlx, which keeps both factors transposed",
    r"\.lora_embedding_[AB]\b": "a factor of an embedding, which is not read",
    r"\.lora_mid\b": "the core of a Tucker decomposition, which is not read",
    r"\.(?:diff|diff_b)$": "a whole change, without factors",
    r"\.ia3_l\b": "of IA3, another method",
    r"\.hada_": "of LoHa, another method",
    r"\.lokr_": "of LoKr, another method",
    r"\.b?oft_": "of OFT or BOFT, another method",
    r"\.vera_lambda_": "of VeRA, another method",
    r"\bprompt_(?:embeddings|encoder)\b": "a trained prompt, of another method",
    r"\bbias$": "a trained bias, which is not read",
    r"\.alpha$": "an alpha of kohya's, beside a config of PEFT's that sets the scale",
    r"\.weight$": "a layer saved whole, as PEFT saves modules_to_save, and embeddings and heads "
    "unless save_embedding_layers=False",
}


def plain_names(names: Iterable[str], source: str | Path) -> dict[str, str]:
    """Return the plain model's name for each name of a file, in the file's order.

    Parameters
    ----------
    names : iterable of str
        All of the file's: "module." is left off only where all begin with it.
    source : str or Path
        The file, for the error.

    Raises
    ------
    CheckpointError
        If two names become one.

    Examples
    --------
    >>> from lora_np.files.names import plain_names
    >>> names = ["_orig_mod.h.0.module.q.weight", "base_model.model.h.1._orig_mod.q.weight"]
    >>> list(plain_names(names, "x.safetensors").values())
    ['h.0.module.q.weight', 'h.1.q.weight']
    """
    plain = {name: ".".join(p for p in name.split(".") if p not in WRAPPERS) for name in names}
    while plain and all(name.startswith(PARALLEL) for name in plain.values()):
        plain = {raw: name.removeprefix(PARALLEL) for raw, name in plain.items()}
    return _distinct({raw: _without_peft(name) for raw, name in plain.items()}, source)


def _without_peft(name: str) -> str:
    while name.startswith(PREFIX):
        name = name.removeprefix(PREFIX)
    return name


def _distinct(called: dict[str, str], source: str | Path) -> dict[str, str]:
    """Return `called` if no two of its names are called alike."""
    first: dict[str, str] = {}
    for name, new in called.items():
        if first.setdefault(new, name) != name:
            raise CheckpointError(
                f"{source} holds {first[new]!r} again as {name!r}: both names stand for {new!r}"
            )
    return called


def wrappers_of(plain: Mapping[str, str]) -> list[str]:
    """Return the wrappers' parts that :func:`plain_names` left off, PEFT's own apart.

    Parameters
    ----------
    plain : mapping of str to str
        What it returned.
    """
    parts = {part for name in plain for part in name.split(".")}
    found = [part for part in WRAPPERS if part in parts]
    module = PARALLEL.removesuffix(".")  # which may be a part of the model's own too
    parallel = any(
        name.split(".").count(module) > new.split(".").count(module) for name, new in plain.items()
    )
    return [*found, *([module] if parallel else [])]


def matched(names: Collection[str], others: Collection[str], source: str | Path) -> dict[str, str]:
    """Return what another file of the same model calls each of the names.

    One of the two may be of the model's body alone, whose names lack the body's own: "model." or
    "transformer." is then left off or put before, whichever makes most names meet. Names that meet
    as they are stay.

    Parameters
    ----------
    names, others : collection of str
        Plain ones of two files.
    source : str or Path
        The file of `names`, for the error.

    Raises
    ------
    CheckpointError
        If two names become one.

    Examples
    --------
    >>> from lora_np.files.names import matched
    >>> matched(["model.h.0.q", "lm_head"], ["h.0.q", "h.1.q"], "x.safetensors")
    {'model.h.0.q': 'h.0.q', 'lm_head': 'lm_head'}
    """
    held = set(others)
    ways = [{name: name for name in names}]
    for body in BODIES:
        ways.append({name: name.removeprefix(body) for name in names})
        ways.append({name: body + name if body + name in held else name for name in names})
    best = max(ways, key=lambda way: len(held.intersection(way.values())))  # the first of equals
    return _distinct(best, source)


def meaning_of(name: str) -> str:
    """Say what a tensor is that no plain LoRA has, as far as its name tells.

    Examples
    --------
    >>> from lora_np.files.names import meaning_of
    >>> meaning_of("h.0.q.ia3_l")
    'of IA3, another method'
    """
    found = (meaning for pattern, meaning in OTHERS.items() if re.search(pattern, name))
    return next(found, "of a method that is not known here")
