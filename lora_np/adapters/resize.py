"""A smaller adapter: the best of lower rank, module by module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lora_np.adapters.cut import Fit, Keep, distance, factors_of, naming, rounded
from lora_np.adapters.file import AdapterFile, AdapterModule, open_adapter
from lora_np.adapters.write import Written, write_like
from lora_np.rank import best_rank_error, svd_of_factors


def resize_adapter(adapter: str | Path, folder: str | Path, keep: Keep) -> list[Fit]:
    """Write an adapter of lower rank, the nearest there is; no product B A is formed.

    Parameters
    ----------
    adapter : str or Path
        In PEFT's form or in kohya's, in which it is written again.
    folder : str or Path
        A new or an empty one.
    keep : Keep
        How many directions of each module. A module with no more than that stays bit for bit as it
        is; one that is zero keeps rank 1. Scales stay, exactly, and types.

    Returns
    -------
    list of Fit
        The error of every module: by Eckart and Young, and as written.

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
    fits: list[Fit] = []
    with open_adapter(adapter) as file:
        write_like(file, folder, _resized(file, keep, fits))
    return fits


def _resized(file: AdapterFile, keep: Keep, fits: list[Fit]) -> Iterator[Written]:
    for name, module in file.modules.items():
        with naming(name):
            B, A, fit = _smaller(module, keep)
        fits.append(fit)
        yield name, B, A, module.scale


def _smaller(module: AdapterModule, keep: Keep) -> tuple[np.ndarray, np.ndarray, Fit]:
    """Return the factors of one module as they will be written, and their errors."""
    B, A = module.factors()  # (out, r), (r, in)
    U, sigma, Vt = svd_of_factors(B, A)  # without the scale, which stays
    k = keep.of(sigma, module.shape)
    if max(k, keep.rank or 0) >= module.r:
        k, missed = module.r, 0.0
        new_B, new_A = _as_it_was(module, B, A)
    else:
        missed = best_rank_error(sigma, k, relative=False)
        new_B, new_A = (rounded(x, module.dtype) for x in factors_of(U, sigma, Vt, k))
    scale = abs(module.scale)
    fit = Fit(
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
    """Return factors in the file's type, or in a wider one if B needs it."""
    narrow_B, narrow_A = rounded(B, module.dtype), rounded(A, module.dtype)
    return (narrow_B, narrow_A) if np.array_equal(narrow_B, B) else (B, A)
