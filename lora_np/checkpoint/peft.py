"""A model's adapters to a folder of PEFT's, and back onto the model.

The names and places in the file are the model's to say (``Layer.file_places``). Where the file
stacks several of our layers in one matrix, as GPT-2's c_attn stacks q, k and v, one adapter holds
theirs: A stacked, B in blocks, so that each row block meets its own rows of A::

    B A = [B_q  0  ] [A_q]  =  [B_q A_q]
          [0    0  ] [A_v]     [   0   ]        k has no adapter
          [0    B_v]           [B_v A_v]
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.adapt import adapters, check_adapted
from lora_np.backend import like, to_host
from lora_np.checkpoint.adapter import AdapterFile, AdapterModule, open_adapter, write_adapter
from lora_np.checkpoint.arrays import CheckpointError
from lora_np.checkpoint.names import matched
from lora_np.layers import Layer, Linear, LoRALinear, Place, rebuild
from lora_np.parameters import Parameter


def save_adapter(
    adapted: Layer, folder: str | Path, *, base_model: str | None = None, dtype: Any = None
) -> None:
    """Write a model's adapters as a folder that PEFT loads onto the same base.

    Layers that the file stacks become one adapter, of rank the sum of theirs, or of their common
    rank if their As and scales are equal. Where their scales differ the largest is written, and the
    others' B is multiplied by what they lack.

    Parameters
    ----------
    adapted : Layer
        From ``inject`` or :func:`load_adapter`. The base itself is not written.
    folder : str or Path
        A new or an empty one.
    base_model : str, optional
        The base's name, e.g. "gpt2".
    dtype : dtype or str, optional
        Of the file; by default the model's.

    Raises
    ------
    ValueError
        If there is no adapter; if the model trains what the file has no place for, so that the file
        would hold another model; or what :func:`~lora_np.checkpoint.adapter.write_adapter` says.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, LoraConfig, inject, open_adapter, save_adapter
    >>> rng = np.random.default_rng(0)
    >>> adapted = inject(GPT(GPTConfig(9, 4, 1, 2, 8), rng), LoraConfig(r=2), rng)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_adapter(adapted, folder)
    ...     with open_adapter(folder) as file:  # q and v in one, as GPT-2's files have them
    ...         {name: (module.r, module.shape) for name, module in file.modules.items()}
    {'transformer.h.0.attn.c_attn': (4, (24, 8))}
    """
    check_adapted(adapted)
    _refuse_what_the_file_cannot_hold(adapted)
    dropouts = {layer.dropout for layer in adapters(adapted).values()}
    if len(dropouts) > 1:
        raise ValueError(f"the adapters have dropouts {sorted(dropouts)}: PEFT knows one for all")
    groups: dict[str, list[tuple[Place, LoRALinear]]] = {}
    for path, layer in adapters(adapted).items():
        place = _place(adapted, path, layer)
        groups.setdefault(place.name, []).append((place, layer))
    write_adapter(
        folder,
        ((name, *_stacked(group)) for name, group in groups.items()),
        base_model=base_model,
        dtype=dtype,
        fan_in_fan_out=adapted.fan_in_fan_out,
        lora_dropout=dropouts.pop(),
    )


def _refuse_what_the_file_cannot_hold(adapted: Layer) -> None:
    """Raise ValueError unless A and B of plain LoRA layers are all that the model changed."""
    written = set()
    for path, layer in adapters(adapted).items():
        if type(layer) is not LoRALinear:
            raise ValueError(
                f"{path or 'the model'} is a {type(layer).__name__}, whose change the file, which "
                "holds A and B, does not describe: fold it into factors and pass them to "
                "write_adapter(), or keep all Parameters by save_parameters()"
            )
        written |= {layer.A, layer.B}
    others = [n for n, p in adapted.parameters().items() if p.trainable and p not in written]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ValueError(
            f"the model also trains {others[0]}{more}, for which the file has no place: freeze "
            "what was not trained, or keep it too by save_parameters(trainable_only=True)"
        )


def _place(model: Layer, path: str, layer: Linear | LoRALinear) -> Place:
    return model.file_places().get(path, Place(path, 0, layer.d_out))


def _stacked(group: list[tuple[Place, LoRALinear]]) -> tuple[np.ndarray, np.ndarray, float]:
    """Return B (total, r), A (r, in) and the scale of layers that the file stacks."""
    As = [to_host(layer.A.value) for _, layer in group]
    scale = max(layer.scale for _, layer in group)
    alike = all(layer.scale == scale for _, layer in group) and all(
        np.array_equal(A, As[0]) for A in As
    )
    A = As[0] if alike else np.concatenate(As)  # (r, in)
    B = np.zeros((group[0][0].total, len(A)), A.dtype)
    column = 0
    for place, layer in group:
        rows = slice(place.start, place.start + layer.d_out)
        ratio = 1.0 if layer.scale == scale else layer.scale / scale
        B[rows, column : column + layer.r] = to_host(layer.B.value) * ratio
        column += 0 if alike else layer.r
    return B, A, scale


def load_adapter(base: Any, folder: str | Path) -> Any:
    """Return `base` with the adapters of a file; `base` stays as it was and lends its arrays.

    An adapter on a matrix that stacks several of our layers becomes one for each: A is copied, B's
    rows are split. Where every column of B serves one layer alone, as :func:`save_adapter` writes
    it, each layer takes its own columns and one without any takes no adapter.

    Parameters
    ----------
    base : Layer
        A plain model, e.g. from ``load_gpt2``.
    folder : str or Path
        What :func:`~lora_np.checkpoint.adapter.open_adapter` reads.

    Returns
    -------
    Layer
        As from ``inject``: A and B alone are trainable, in the base's dtype.

    Raises
    ------
    CheckpointError
        If the file is broken, or adapts what the model has not in that shape.
    ValueError
        If the model is adapted already.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, LoraConfig, inject, load_adapter, save_adapter
    >>> rng, tokens = np.random.default_rng(0), np.array([[1, 2, 3]])
    >>> base = GPT(GPTConfig(9, 4, 1, 2, 8), rng)
    >>> adapted = inject(base, LoraConfig(r=2), rng)
    >>> adapted.h[0].attn.q_proj.B.value[...] = 1.0  # as if it had been trained
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_adapter(adapted, folder)
    ...     again = load_adapter(base, folder)
    >>> np.allclose(again.forward(tokens)[0], adapted.forward(tokens)[0], atol=1e-6)
    True
    """
    if adapters(base):
        raise ValueError("the model is adapted already: load onto its base, or merge() it first")
    with open_adapter(folder) as adapter:
        adapter.require_scale()
        factors = _by_path(base, adapter, str(folder))
        scales = {path: module.scale for path, (module, _, _) in factors.items()}
        dropout = adapter.lora_dropout

    def adapt(path: str, layer: Layer) -> Layer | None:
        if path not in factors or not isinstance(layer, Linear):
            return None
        W0 = layer.W.value
        _, B, A = factors[path]
        B, A = (Parameter(like(x.astype(W0.dtype), W0)) for x in (B, A))
        return LoRALinear(layer, A, B, scales[path], dropout)

    return rebuild(rebuild(base, Parameter.share), lambda p: p, adapt)


def _by_path(
    base: Layer, adapter: AdapterFile, source: str
) -> dict[str, tuple[AdapterModule, np.ndarray, np.ndarray]]:
    """Return the module, B (out, r) and A (r, in) of each layer of ours that is adapted."""
    homes: dict[str, list[tuple[str, Place, Linear]]] = {}
    for path, layer in base.modules().items():
        if isinstance(layer, Linear):
            place = _place(base, path, layer)
            homes.setdefault(place.name, []).append((path, place, layer))
    found = {}
    called = matched(adapter.modules, homes, source)
    for name, module in zip(called.values(), adapter.modules.values()):
        if name not in homes:
            near = get_close_matches(name, homes, n=1, cutoff=0.0)
            raise CheckpointError(
                f"{source} adapts {name!r}, which the model has not: nearest is {near}"
            )
        _, place, layer = homes[name][0]
        expected = (place.total, layer.W.shape[1])
        if module.shape != expected:
            raise CheckpointError(f"{source} adapts {name!r} {module.shape}, expected {expected}")
        B, A = module.factors()
        blocks = [B[p.start : p.start + layer.d_out] for _, p, layer in homes[name]]
        for (path, _, _), block, own in zip(homes[name], blocks, _columns(blocks)):
            if own.any():
                found[path] = module, block[:, own], A[own]
    return found


def _columns(blocks: list[np.ndarray]) -> np.ndarray:
    """Return which columns (parts, r) each of the row blocks (out, r) of one B takes."""
    touched = np.array([(block != 0).any(axis=0) for block in blocks])
    of_one_alone = (touched.sum(axis=0) == 1).all()
    return touched if of_one_alone else np.ones_like(touched)
