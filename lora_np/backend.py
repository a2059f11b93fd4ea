"""Where arrays live: NumPy on the host, CuPy on a GPU.

All other code is written once, against ``xp = get_xp(x)``, and runs on either. No array is
converted implicitly: :func:`to_device` and :func:`to_host` move arrays from one to the other.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]  # or a cupy.ndarray, which has the same methods
IN_BROWSER = sys.platform == "emscripten"  # Pyodide: no processes, and no BLAS in NumPy
SMALL = 16384  # multiplications of a product that gains nothing from BLAS


class DeviceError(RuntimeError):
    """The device is unknown, or this machine or installation does not have it."""


class ShapeError(ValueError):
    """An argument has the wrong shape; the message names the argument and the expected shape.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.backend import ShapeError
    >>> from lora_np.ops import linear_forward
    >>> try:
    ...     linear_forward(np.ones((5, 3)), np.ones((4, 2)))
    ... except ShapeError as error:
    ...     print(error)
    x has shape (5, 3), expected (..., 2)
    """


def get_xp(x: Any) -> Any:
    """Return the array module of `x`: ``cupy`` for a CuPy array, else ``numpy``.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.backend import get_xp
    >>> get_xp(np.ones(2)) is np
    True
    """
    cupy = sys.modules.get("cupy")  # no CuPy array exists before cupy is imported
    return cupy if cupy is not None and isinstance(x, cupy.ndarray) else np


def get_device(name: str) -> Any:
    """Return the array module of a device.

    Parameters
    ----------
    name : {"cpu", "cuda"}

    Raises
    ------
    DeviceError
        If `name` is unknown, or is "cuda" and CuPy is missing or finds no GPU.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.backend import get_device
    >>> get_device("cpu") is np
    True
    """
    if name == "cpu":
        return np
    if name != "cuda":
        raise DeviceError(f"device {name!r} is unknown: choose 'cpu' or 'cuda'")
    try:
        import cupy  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DeviceError(
            "device 'cuda' needs CuPy: pip install 'lora_np[gpu]', or use 'cpu'"
        ) from None
    if not cupy.cuda.is_available():
        raise DeviceError("device 'cuda' needs a CUDA GPU and its driver, found none: use 'cpu'")
    return cupy


def to_device(x: Array, device: str) -> Array:
    """Return `x` on a device ("cpu" or "cuda"); the same array if it is already there.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.backend import to_device
    >>> x = np.ones(2)
    >>> to_device(x, "cpu") is x  # nothing to do
    True
    """
    return to_host(x) if device == "cpu" else get_device(device).asarray(x)


def to_host(x: Array | Sequence[Any]) -> np.ndarray:
    """Return `x` as a NumPy array; an array on the GPU is copied.

    Examples
    --------
    >>> from lora_np.backend import to_host
    >>> to_host([1, 2]).tolist()
    [1, 2]
    """
    xp = get_xp(x)
    return np.asarray(x) if xp is np else xp.asnumpy(x)


def like(x: np.ndarray, other: Array) -> Array:
    """Return the host array `x` on the device of `other` (the same array if that is the CPU).

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.backend import like
    >>> x, weights_on_a_cpu = np.ones(2), np.zeros(3)
    >>> like(x, weights_on_a_cpu) is x
    True
    """
    return get_xp(other).asarray(x)


def read_only_view(x: Array) -> Array:
    """Return a view of `x`'s memory; on the host, writing through it is an error."""
    view = x.view()
    if get_xp(x) is np:
        view.flags.writeable = False  # CuPy has no such flag: only Parameter.borrowed marks a view
    return view


def blas_matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return ``a @ b``, computed by SciPy's BLAS where that is faster than NumPy's own loops.

    NumPy for Pyodide is built without BLAS: a large product, or one with a transposed matrix on the
    left, takes about ten times as long there as with the OpenBLAS in SciPy. Products that are
    small, have a vector, or are neither float32 nor float64, are left to NumPy.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.backend import blas_matmul
    >>> a = np.arange(4096.0).reshape(64, 64)
    >>> bool(np.allclose(blas_matmul(a.T, a), a.T @ a))
    True
    """
    if min(a.ndim, b.ndim) < 2 or a.dtype != b.dtype or a.shape[-1] != b.shape[-2]:
        return a @ b
    if a.shape[-2] * a.shape[-1] * b.shape[-1] < SMALL or (gemm := _gemm(a.dtype.char)) is None:
        return a @ b
    if b.ndim == 2:  # the leading axes are rows of one product
        return _product(gemm, a.reshape(-1, a.shape[-1]), b).reshape(*a.shape[:-1], b.shape[-1])
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (np.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (a, b))
    y = np.empty((*lead, a.shape[-2], b.shape[-1]), a.dtype)
    for i in np.ndindex(lead):
        _product(gemm, a[i], b[i], y[i])
    return y


def _product(gemm: Any, a: np.ndarray, b: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
    """Return a @ b of two matrices, written to the contiguous matrix `y` if it is given.

    BLAS has Fortran's order of axes, in which a C-contiguous matrix is its transpose: it computes
    y^T = b^T a^T. A contiguous matrix, in either order, is read where it lies.
    """
    (right, right_is_turned), (left, left_is_turned) = _turned(b), _turned(a)
    memory = None if y is None else y.T
    return gemm(1.0, right, left, 0.0, memory, right_is_turned, left_is_turned, 1).T


def _turned(x: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return a matrix whose columns lie side by side, and whether it is x rather than x^T."""
    return (x, True) if x.strides[0] < x.strides[1] else (x.T, False)


@cache
def _gemm(char: str) -> Callable[..., np.ndarray] | None:
    """Return BLAS's product of matrices for a dtype, or None if there is none."""
    try:
        from scipy.linalg import blas
    except ImportError:
        return None
    name = {"f": "sgemm", "d": "dgemm"}.get(char)
    return getattr(blas, name) if name else None


# The product of the fast twins. What is not called in every step of training says ``@``.
matmul: Callable[[Any, Any], Any] = blas_matmul if IN_BROWSER else operator.matmul
