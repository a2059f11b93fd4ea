"""One adapter for layers that a file stacks in one matrix, and the way back.

GPT-2's files keep q, k and v as the rows of one matrix, c_attn. One adapter in the file therefore
holds their adapters: A is stacked and B has blocks, so that each block meets its own rows of A::

    B A = [B_q  0  ] [A_q]  =  [B_q A_q]
          [0    0  ] [A_v]     [   0   ]        k has no adapter
          [0    B_v]           [B_v A_v]
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from lora_np.files.names import meaning_of
from lora_np.layers import Embedding, Layer, Linear
from lora_np.methods.contract import FilePlace, NoPeftForm, Places, Tensors, adapters
from lora_np.methods.file_form import tensors_of
from lora_np.tables import first_of

Factors = tuple[np.ndarray, np.ndarray, float]  # B (out, r), A (r, in), scale
FACTOR_NAMES: dict[type[Layer], dict[str, str]] = {  # PEFT's, by the kind of the adapted layer
    Linear: {"A": "lora_A.weight", "B": "lora_B.weight"},
    Embedding: {"A": "lora_embedding_A", "B": "lora_embedding_B"},
}
ADAPTED = tuple(FACTOR_NAMES)  # the kinds of layers that LoRA adapts
Homes = dict[str, list[tuple[str, FilePlace, Any]]]  # by a file's name: (path, place, layer)
PathFactors = tuple[str, np.ndarray, np.ndarray]  # the file's name, B, A


def place_of(path: str, layer: Any, places: Places) -> FilePlace:
    """Return the place of our layer at `path`; by default a module of the same path, all of it."""
    return places.get(path) or FilePlace(path, 0, layer.d_out)


def file_factors(adapted: Layer, places: Places) -> dict[str, Factors]:
    """Return the factors of an adapted model's adapters, by their names in the file.

    Raises
    ------
    ValueError
        If the model also trains other Parameters, which the file cannot hold.
    """
    groups: dict[str, list[tuple[FilePlace, Factors]]] = {}
    written = set()
    for path, layer in adapters(adapted).items():
        place = place_of(path, layer, places)
        if not place.name:
            raise NoPeftForm("a module has no name: PEFT adapts parts of a model, not the whole")
        try:
            groups.setdefault(place.name, []).append((place, layer.factors()))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        written |= set(layer.own().values())
    others = [name for name, p in tensors_of(adapted).items() if p not in written]
    if others:
        raise ValueError(
            f"the model also trains {first_of(others)}, for which the file has no place: freeze "
            "what was not trained, or save it with save_parameters(trainable_only=True)"
        )
    return {name: stack(group) for name, group in groups.items()}


def model_factors(homes: Homes, tensors: Tensors) -> dict[str, PathFactors]:
    """Return the factors of each layer that a file adapts, by the layer's path.

    Parameters
    ----------
    homes : dict
        From :func:`homes_of`, of the kinds of layers that may be adapted.
    tensors : mapping of str to ndarray
        NAME.lora_A.weight (r, in) and NAME.lora_B.weight (total, r), of an embedding
        NAME.lora_embedding_A (r, V) and NAME.lora_embedding_B (d, r).

    Raises
    ------
    ValueError
        If the model does not have a layer that the file adapts, or has it in another shape.
    """
    if not tensors:
        raise ValueError("the file holds no tensor")
    found: dict[str, PathFactors] = {}
    for odd in (tensor for tensor in tensors if ".lora_" not in tensor):
        raise ValueError(f"the file holds {odd!r}, {meaning_of(odd)}")
    for name in dict.fromkeys(tensor.rpartition(".lora_")[0] for tensor in tensors):
        if name not in homes:
            near = get_close_matches(name, homes, n=1, cutoff=0.0)
            raise ValueError(
                f"the file adapts {name!r}, which the model does not have: nearest is "
                f"{', '.join(map(repr, near)) or 'none'}"
            )
        _, place, layer = homes[name][0]
        A, B = _halves(name, layer, tensors)
        shape, expected = (len(B), A.shape[1]), (place.total, layer.d_in)
        if shape != expected:
            raise ValueError(f"the file adapts {name!r} with shape {shape}, expected {expected}")
        parts = split(B, A, [p for _, p, _ in homes[name]], [m.d_out for *_, m in homes[name]])
        for (path, _, _), own in zip(homes[name], parts):
            if own is not None:
                found[path] = (name, *own)
    return found


def _halves(name: str, layer: Any, tensors: Tensors) -> list[np.ndarray]:
    """Return A and B of a module of a file; their names depend on the kind of the layer."""
    names = next(names for kind, names in FACTOR_NAMES.items() if isinstance(layer, kind))
    expected = {f"{name}.{half}" for half in names.values()}
    for odd in sorted(expected ^ {n for n in tensors if n.startswith(f"{name}.lora_")}):
        which = "lacks" if odd in expected else "holds"
        own = " and ".join(names.values())
        raise ValueError(f"the file {which} {odd!r}: LoRA of this layer has {own}")
    A, B = (tensors[f"{name}.{names[half]}"] for half in "AB")
    if A.ndim != 2 or B.ndim != 2 or B.shape[1] != len(A) or not A.size:
        raise ValueError(
            f"the file adapts {name!r} with A {A.shape} and B {B.shape}, expected (r, in) and "
            "(out, r)"
        )
    return [A, B]


def homes_of(base: Layer, places: Places, kinds: tuple[type[Layer], ...] = (Linear,)) -> Homes:
    """Return the layers of these kinds under each name of a file, as (path, place, layer)."""
    homes: Homes = {}
    modules = {"": base, **base.modules()}
    chosen: dict[str, Any] = {path: m for path, m in modules.items() if isinstance(m, kinds)}
    for path, layer in chosen.items():
        place = place_of(path, layer, places)
        homes.setdefault(place.name, []).append((path, place, layer))
    return homes


def stack(group: Sequence[tuple[FilePlace, Factors]]) -> Factors:
    """Return B (total, r), A (r, in) and the scale for the adapters of stacked layers.

    The rank is the sum of their ranks, or their common rank if all A and all scales are equal. If
    the scales differ, the largest is used, and each B is multiplied by its own scale over that.

    Parameters
    ----------
    group : sequence of (FilePlace, (B, A, scale))

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.methods.contract import FilePlace
    >>> from lora_np.methods.stacked import stack
    >>> q, v = (FilePlace("c_attn", start, 6) for start in (0, 4))
    >>> one = np.ones((2, 1)), np.ones((1, 3)), 1.0
    >>> two = np.ones((2, 1)), np.zeros((1, 3)), 1.0
    >>> B, A, scale = stack([(q, one), (v, two)])
    >>> B.T.tolist(), A.shape
    ([[1.0, 1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]], (2, 3))
    """
    As, scales = [A for _, (_, A, _) in group], [scale for _, (_, _, scale) in group]
    scale = max(scales)
    alike = set(scales) == {scale} and all(np.array_equal(A, As[0]) for A in As)
    A = As[0] if alike else np.concatenate(As)  # (r, in)
    B = np.zeros((group[0][0].total, len(A)), A.dtype)
    column = 0
    for place, (B_own, A_own, own_scale) in group:
        rows = slice(place.start, place.start + len(B_own))
        ratio = 1.0 if own_scale == scale else own_scale / scale
        B[rows, column : column + len(A_own)] = B_own * ratio
        column += 0 if alike else len(A_own)
    return B, A, scale


def split(
    B: np.ndarray, A: np.ndarray, places: Sequence[FilePlace], lengths: Sequence[int]
) -> list[tuple[np.ndarray, np.ndarray] | None]:
    """Return the factors (B, A) of each stacked layer, or None for a layer without an adapter.

    Each layer takes its rows of B and a copy of A. If no column of B belongs to two layers, as
    :func:`stack` arranges it, a layer takes only its own columns of B and rows of A. A column of
    zeros belongs to the layer of the column before it. If all of B is zero, as before training,
    each layer takes everything.

    Parameters
    ----------
    B, A : ndarray, shapes (total, r) and (r, in)
    places : sequence of FilePlace
    lengths : sequence of int
        Number of rows of each layer.
    """
    blocks = [B[place.start : place.start + n] for place, n in zip(places, lengths)]
    touched = np.array([(block != 0).any(axis=0) for block in blocks])  # (layers, r)
    served = touched.sum(axis=0)  # (r,), by how many layers a column is used
    if served.max() > 1 or not served.any():
        columns = np.ones_like(touched)
    else:
        used = np.maximum.accumulate(np.where(served, np.arange(len(served)), served.argmax()))
        columns = touched[:, used]  # those of the last column before it that is used
    return [(block[:, own], A[own]) if own.any() else None for block, own in zip(blocks, columns)]
