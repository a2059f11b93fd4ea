r"""Combine several adapters into one: the weighted sum of their changes.

The sum of products is exactly one product of concatenated factors::

    sum_i w_i s_i B_i A_i = [w_1 s_1 B_1, w_2 s_2 B_2, ...] [A_1; A_2; ...]

This is the method "cat"; its rank is the sum of the ranks. "svd" truncates this product to the
nearest one of a lower rank. "linear" keeps the rank and sums the factors themselves, as PEFT does,
with ``root_i = sqrt(|w_i s_i|)``::

    B = sum_i root_i B_i,   A = sum_i sign(w_i) root_i A_i

Beside the wanted terms, this product contains the cross terms B_i A_j of adapters that were never
trained together. The error that they cause is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.adapters.cut import (
    Term,
    Truncation,
    distance,
    factors_of,
    naming,
    norm_of_sum,
    rounded,
    stacked,
)
from lora_np.adapters.file import AdapterFile, AdapterModule, open_adapter
from lora_np.adapters.write import Written, require_matrices, write_adapter
from lora_np.files import CheckpointError
from lora_np.files.names import matched
from lora_np.pretrained.find import base_of_adapter, kept_of_records
from lora_np.rank import svd_of_factors
from lora_np.reading import shown
from lora_np.tables import counted, listed

CANCELS = 1e-13  # relative to the largest term's norm: a smaller sum is zero to rounding
Modules = dict[str, AdapterModule]
Terms = list[Term]  # (w s, B, A) of each adapter that has the module
Made = tuple[np.ndarray, np.ndarray, float]  # B, A, and the error of the method


def combine_adapters(
    adapters: Sequence[str | Path],
    weights: Sequence[float],
    folder: str | Path,
    method: str = "cat",
    rank: int | None = None,
) -> list[Truncation]:
    """Write one adapter for the weighted sum of several on the same base.

    Parameters
    ----------
    adapters : sequence of str or Path
        At least two, in PEFT's format. If only some use names that begin with "model.", the names
        of the first are written.
    weights : sequence of float
        One for each adapter. A weight may be negative, but not 0.
    folder : str or Path
        A new or an empty folder.
    method : {"cat", "svd", "linear"}
        "cat" is exact, and its rank is the sum of the ranks. "svd" truncates to `rank`. "linear"
        is PEFT's sum of factors, which needs the same modules and ranks in all adapters.
    rank : int, optional
        The rank for "svd", which requires it; the other methods refuse it.

    Returns
    -------
    list of Truncation
        Errors against the exact sum: of the method, and as written (scale 1, float32 or float64).

    Raises
    ------
    CheckpointError
        If an adapter is broken or kohya's, or the folder is not empty. Nothing is then written.
    ValueError
        If the arguments or the adapters do not fit together, or the adapters have different bases.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import combine_adapters, open_adapter, write_adapter
    >>> with tempfile.TemporaryDirectory() as d:
    ...     one, two, both = f"{d}/one", f"{d}/two", f"{d}/both"
    ...     write_adapter(one, [("layer", np.array([[1.0], [0.0]]), np.ones((1, 3)), 1.0)])
    ...     write_adapter(two, [("layer", np.array([[0.0], [1.0]]), np.ones((1, 3)), 1.0)])
    ...     fits = combine_adapters([one, two], [0.5, 2.0], both)
    ...     with open_adapter(both) as file:
    ...         B, A = file.modules["layer"].factors()
    >>> (B @ A).tolist()
    [[0.5, 0.5, 0.5], [2.0, 2.0, 2.0]]
    """
    make = _method(method, rank)
    _check_weights(adapters, weights)
    fits: list[Truncation] = []
    with ExitStack() as stack:
        files = [stack.enter_context(open_adapter(path)) for path in adapters]
        _check_forms(files, adapters)
        held = _by_common_name(files, adapters, same_modules=method == "linear")
        _write(folder, files, _combined(held, weights, make, fits), kept_of_records(adapters))
    return fits


def _write(
    folder: str | Path, files: list[AdapterFile], modules: Iterator[Written], record: dict[str, Any]
) -> None:
    """Write the modules and the record, with the config fields that all files have in common."""
    write_adapter(
        folder,
        modules,
        base_model=_common([_base_of(file) for file in files]),
        dtype=None,
        fan_in_fan_out=files[0].fan_in_fan_out,
        lora_dropout=_common([file.lora_dropout for file in files]) or 0.0,
        origin=_common([file.origin for file in files]),
        record=record,
    )


def _check_forms(files: list[AdapterFile], paths: Sequence[Any]) -> None:
    for file, path in zip(files, paths):
        if file.naming == "kohya":
            raise CheckpointError(
                f"{path} has kohya's names, which fit no model in PEFT's format: combine adapters "
                "in PEFT's format"
            )
        file.require_scale()
        require_matrices(file)
    _check_bases(files, paths)


def _check_weights(adapters: Sequence[Any], weights: Sequence[float]) -> None:
    if len(adapters) < 2:
        raise ValueError(f"{counted(len(adapters), 'adapter')} to combine: give at least two")
    if len(weights) != len(adapters):
        raise ValueError(f"{len(weights)} weights for {len(adapters)} adapters: give one for each")
    for weight in weights:
        if weight == 0 or not math.isfinite(weight):
            raise ValueError(f"weight {weight}: expected a finite number other than 0")


def _check_bases(files: list[AdapterFile], paths: Sequence[Any]) -> None:
    """Refuse adapters of different models, as far as their configs and records say."""
    if len({file.fan_in_fan_out for file in files}) > 1:
        raise ValueError("the adapters differ in fan_in_fan_out: they belong to different models")
    first: dict[str, Any] = {}
    for file, path in zip(files, paths):
        if base := _base_of(file):
            first.setdefault(base, path)
    if len(first) > 1:
        one, other, *_ = first
        raise ValueError(
            f"{first[one]} adapts {one!r}, {first[other]} adapts {other!r}: if these are the same "
            "model, set the same base_model_name_or_path in both adapter_config.json"
        )
    made_on = [(path, base) for path in paths if (base := base_of_adapter(path)) is not None]
    for path, base in made_on[1:]:
        other, known = made_on[0]
        if base.fingerprint != known.fingerprint:
            raise ValueError(
                f"{other} was trained on {shown(known.name)}, fingerprint "
                f"{shown(known.fingerprint)}, {path} on another base, {shown(base.fingerprint)}, "
                f"says {base.record}"
            )


def _base_of(file: AdapterFile) -> str | None:
    return file.base_model.rstrip("/") if isinstance(file.base_model, str) else None


def _by_common_name(
    files: list[AdapterFile], paths: Sequence[Any], same_modules: bool
) -> list[Modules]:
    """Return each adapter's modules, under the names of the first adapter that has them."""
    found: list[Modules] = [dict(files[0].modules)]
    for file, path in zip(files[1:], paths[1:]):
        known = {name for modules in found for name in modules}
        called = matched(file.modules, known, path)
        found.append({called[name]: module for name, module in file.modules.items()})
    for i, path in enumerate(paths):
        others = {name: None for j, modules in enumerate(found) if j != i for name in modules}
        if not others.keys() & found[i].keys():
            raise ValueError(
                f"{path} has no module in common with the others: it adapts {listed(found[i])}; "
                f"they adapt {listed(others)}"
            )
    _check_alike(found, paths, same_modules)
    return found


def _check_alike(held: list[Modules], paths: Sequence[Any], same_modules: bool) -> None:
    """Refuse modules of the same name that differ in shape, or that "linear" cannot sum."""
    first: dict[str, tuple[Any, AdapterModule]] = {}
    for modules, path in zip(held, paths):
        for name, module in modules.items():
            other, before = first.setdefault(name, (path, module))
            if module.shape != before.shape:
                raise ValueError(f"{name!r} is {before.shape} in {other}, {module.shape} in {path}")
            if same_modules and module.r != before.r:
                raise ValueError(
                    f"{name!r} has rank {before.r} in {other}, {module.r} in {path}: linear needs "
                    "equal ranks; use cat or svd"
                )
    for modules, path in zip(held, paths):
        missing = [name for name in first if name not in modules]
        if same_modules and missing:
            raise ValueError(
                f"{path} has no {missing[0]!r}: linear needs the same modules in all adapters; "
                "use cat or svd"
            )


def _common(values: Sequence[Any]) -> Any:
    """Return the common value, or None if the values differ."""
    return values[0] if all(value == values[0] for value in values) else None


def _combined(
    held: list[Modules],
    weights: Sequence[float],
    make: Callable[[Terms], Made],
    fits: list[Truncation],
) -> Iterator[Written]:
    for name in {name: None for modules in held for name in modules}:
        own = [(w, modules[name]) for w, modules in zip(weights, held) if name in modules]
        with naming(name):
            B, A, fit = _together(name, own, make)
        fits.append(fit)
        yield name, B, A, 1.0


def _together(
    name: str, held: list[tuple[float, AdapterModule]], make: Callable[[Terms], Made]
) -> tuple[np.ndarray, np.ndarray, Truncation]:
    """Return one module's factors as they will be written, and their errors."""
    terms = [(w * module.scale, *module.factors()) for w, module in held]
    B, A, missed = make(terms)
    wide = any(x.dtype == np.float64 for _, *factors in terms for x in factors)
    dtype = np.float64 if wide else np.float32
    new_B, new_A = rounded(B, dtype), rounded(A, dtype)
    norms = (norm_of_sum(terms), missed, distance(new_B, new_A, terms))
    noise = CANCELS * max(norm_of_sum([term]) for term in terms)
    cancels = norms[0] <= noise  # only rounding is left of the sum
    norm, missed, written = (0.0 if cancels and x <= noise else x for x in norms)
    fit = Truncation(
        name=name,
        shape=held[0][1].shape,
        before=sum(module.r for _, module in held),
        r=len(new_A),
        norm=norm,
        missed=missed,
        written=written,
    )
    return new_B, new_A, fit


def _method(method: str, rank: int | None) -> Callable[[Terms], Made]:
    """Return the function that turns several terms into one product."""
    if method == "svd":
        if rank is None or rank < 1:
            raise ValueError(f"method svd needs a rank of at least 1, not {rank}")
        return lambda terms: _svd(terms, rank)
    if rank is not None:
        raise ValueError(f"method {method} takes no rank: its rank follows from the adapters")
    if method not in ("cat", "linear"):
        raise ValueError(f"method {method!r}: expected cat, svd or linear")
    return _cat if method == "cat" else _linear


def _cat(terms: Terms) -> Made:
    return *stacked(terms), 0.0


def _svd(terms: Terms, rank: int) -> Made:
    U, sigma, Vt = svd_of_factors(*stacked(terms))
    k = min(rank, len(sigma))
    return *factors_of(U, sigma, Vt, k), float(np.linalg.norm(sigma[k:]))


def _linear(terms: Terms) -> Made:
    roots = [math.sqrt(abs(s)) for s, *_ in terms]
    B = sum(root * B.astype(np.float64) for root, (_, B, _) in zip(roots, terms))
    A = sum(math.copysign(root, s) * A.astype(np.float64) for root, (s, _, A) in zip(roots, terms))
    B, A = np.asarray(B), np.asarray(A)
    return B, A, distance(B, A, terms)
