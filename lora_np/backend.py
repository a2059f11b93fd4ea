"""Where arrays live: NumPy on the host, CuPy on a GPU.

Everything above this file is written once, against ``xp = get_xp(x)``, and runs on either. Nothing
is ever converted in passing: what must cross says so with :func:`to_device` or :func:`to_host`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]  # or a cupy.ndarray: they share the methods used here


class DeviceError(RuntimeError):
    """A device was asked for that this machine or this installation does not have."""


class ShapeError(ValueError):
    """An argument's shape does not fit; the message names it, its shape and the expected one.

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
    """Return the module that `x` belongs to: ``cupy`` for its arrays, else ``numpy``.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.backend import get_xp
    >>> get_xp(np.ones(2)) is np
    True
    """
    cupy = sys.modules.get("cupy")  # no CuPy array exists before somebody imported cupy
    return cupy if cupy is not None and isinstance(x, cupy.ndarray) else np


def get_device(name: str) -> Any:
    """Return the array module of a device.

    Parameters
    ----------
    name : {"cpu", "cuda"}

    Raises
    ------
    DeviceError
        If "cuda" is asked for and CuPy is missing or sees no GPU.

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
        raise DeviceError("device 'cuda' needs CuPy: pip install '.[gpu]', or use 'cpu'") from None
    if not cupy.cuda.is_available():
        raise DeviceError("device 'cuda' needs a CUDA GPU with its driver, none found: use 'cpu'")
    return cupy


def to_device(x: Array, device: str) -> Array:
    """Return `x` on the device ("cpu" or "cuda"), the same array if it is there already.

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
    """Return `x` as a NumPy array, copied from the GPU if it lies there.

    Examples
    --------
    >>> from lora_np.backend import to_host
    >>> to_host([1, 2]).tolist()
    [1, 2]
    """
    xp = get_xp(x)
    return np.asarray(x) if xp is np else xp.asnumpy(x)


def like(x: np.ndarray, other: Array) -> Array:
    """Return the host array `x` on the device where `other` lies (the same array on a CPU).

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
        view.flags.writeable = False  # CuPy has no such flag: there the Parameter alone says it
    return view
