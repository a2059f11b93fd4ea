"""The names of tensors and modules: remove the parts of wrappers, and match two files.

torch.compile, FSDP, activation checkpointing, DataParallel and PEFT wrap a model or its modules,
and each adds a part to the names of the parameters. A file saved from inside a wrapper holds names
such as::

    module.base_model.model.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.lora_A.weight

Every command removes these parts and so gets the names of the plain model. A part "module" or
"model" that belongs to the model itself stays.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from lora_np.files.arrays import CheckpointError

PREFIX = "base_model.model."  # PEFT's
PARALLEL = "module."  # DataParallel's, DistributedDataParallel's and DeepSpeed's
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # at any depth
BODIES = ("model.", "transformer.")  # names of the body in transformers' models with a head
OTHERS = {  # meanings of tensors by their names; the first match counts
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
        All names of the file: "module." is removed only if all of them begin with it.
    source : str or Path
        The file, for the error.

    Raises
    ------
    CheckpointError
        If two names become equal.

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
    """Return `called`, or raise if two of its names have the same plain name."""
    first: dict[str, str] = {}
    for name, new in called.items():
        if first.setdefault(new, name) != name:
            raise CheckpointError(
                f"{source} holds {first[new]!r} again as {name!r}: both names stand for {new!r}"
            )
    return called


def wrappers_of(plain: Mapping[str, str]) -> list[str]:
    """Return the wrappers' parts that :func:`plain_names` removed, except PEFT's.

    Parameters
    ----------
    plain : mapping of str to str
        The result of :func:`plain_names`.
    """
    parts = {part for name in plain for part in name.split(".")}
    found = [part for part in WRAPPERS if part in parts]
    module = PARALLEL.removesuffix(".")  # may also be a part of the model's own names
    parallel = any(
        name.split(".").count(module) > new.split(".").count(module) for name, new in plain.items()
    )
    return [*found, *([module] if parallel else [])]


def matched(names: Collection[str], others: Collection[str], source: str | Path) -> dict[str, str]:
    """Return, for each of the names, its name in another file of the same model.

    One of the files may hold only the model's body, so that its names lack "model." or
    "transformer.". The prefix is then removed or added, whichever makes most names equal to those
    of the other file; otherwise the names stay unchanged.

    Parameters
    ----------
    names, others : collection of str
        Plain names of two files.
    source : str or Path
        The file of `names`, for the error.

    Raises
    ------
    CheckpointError
        If two names become equal.

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
    best = max(ways, key=lambda way: len(held.intersection(way.values())))  # first if equal
    return _distinct(best, source)


def meaning_of(name: str) -> str:
    """Return a description of a tensor that plain LoRA does not have, from its name.

    Examples
    --------
    >>> from lora_np.files.names import meaning_of
    >>> meaning_of("h.0.q.ia3_l")
    'of IA3, another method'
    """
    found = (meaning for pattern, meaning in OTHERS.items() if re.search(pattern, name))
    return next(found, "of a method that is not known here")
