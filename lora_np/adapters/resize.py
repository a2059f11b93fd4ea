"""Reduce the rank of an adapter, module by module, with the smallest possible error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lora_np.adapters.cut import Keep, Truncation, distance, factors_of, naming, rounded
from lora_np.adapters.file import AdapterFile, AdapterModule, open_adapter
from lora_np.adapters.write import Written, write_like
from lora_np.rank import best_rank_error, svd_of_factors


def resize_adapter(adapter: str | Path, folder: str | Path, keep: Keep) -> list[Truncation]:
    """Write the nearest adapter of lower rank, without forming the product B A.

    Parameters
    ----------
    adapter : str or Path
        An adapter with PEFT's or kohya's names. The format stays the same.
    folder : str or Path
        A new or an empty folder.
    keep : Keep
        How many directions to keep of each module. A module with no more than that is copied bit
        for bit, and a module of zeros keeps rank 1. Scales and types stay the same.

    Returns
    -------
    list of Truncation
        Two errors of every module: of the truncation (Eckart and Young), and as written.

    Raises
    ------
    CheckpointError
        If the adapter is broken, or the folder is not empty. Nothing is then written.

    References
    ----------
    Eckart, Young: The approximation of one matrix by another of lower rank. Psychometrika 1 (1936).

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import Keep, resize_adapter, write_adapter
    >>> with tempfile.TemporaryDirectory() as d:
    ...     write_adapter(f"{d}/old", [("layer", np.diag([4.0, 3.0]), np.eye(2, 5), 2.0)])
    ...     fits = resize_adapter(f"{d}/old", f"{d}/new", Keep(rank=1))
    >>> fits[0].before, fits[0].r, round(fits[0].norm, 4), round(fits[0].missed, 4)  # 2 x 5, 2 x 3
    (2, 1, 10.0, 6.0)
    """
    fits: list[Truncation] = []
    with open_adapter(adapter) as file:
        write_like(file, folder, _resized(file, keep, fits))
    return fits


def _resized(file: AdapterFile, keep: Keep, fits: list[Truncation]) -> Iterator[Written]:
    for name, module in file.modules.items():
        with naming(name):
            B, A, fit = _smaller(module, keep)
        fits.append(fit)
        yield name, B, A, module.scale


def _smaller(module: AdapterModule, keep: Keep) -> tuple[np.ndarray, np.ndarray, Truncation]:
    """Return the factors of one module as they will be written, and their errors."""
    B, A = module.factors()  # (out, r), (r, in)
    U, sigma, Vt = svd_of_factors(B, A)  # without the scale, which does not change
    k = keep.of(sigma, module.shape)
    if max(k, keep.rank or 0) >= module.r:
        k, missed = module.r, 0.0
        new_B, new_A = _as_it_was(module, B, A)
    else:
        missed = best_rank_error(sigma, k, relative=False)
        new_B, new_A = (rounded(x, module.dtype) for x in factors_of(U, sigma, Vt, k))
    scale = abs(module.scale)
    fit = Truncation(
        name=module.name,
        shape=module.shape,
        before=module.r,
        r=k,
        norm=scale * float(np.linalg.norm(sigma)),
        missed=scale * missed,
        written=scale * distance(new_B, new_A, [(1.0, B, A)]),
    )
    return new_B, new_A, fit


def _as_it_was(
    module: AdapterModule, B: np.ndarray, A: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the factors in the type of A in the file, or in a wider type if B needs it."""
    narrow_B, narrow_A = rounded(B, module.dtype), rounded(A, module.dtype)
    return (narrow_B, narrow_A) if np.array_equal(narrow_B, B) else (B, A)
