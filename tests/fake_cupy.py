"""A stand-in for CuPy on a machine without a GPU: arrays that never meet NumPy's by accident.

Put this module under ``sys.modules["cupy"]`` (the fixture ``device`` of test_device.py does), and
code that says ``xp = get_xp(x)`` runs on it. Its arrays hold a NumPy array that nobody else can
reach, so results are exactly the host's, and whatever would go wrong on a GPU goes wrong here:

- nothing converts implicitly: ``np.asarray``, ``np.exp`` or ``host + device`` raise TypeError;
- only :func:`asarray` brings an array here, only :func:`asnumpy` takes it back, each as a copy;
- a reduction gives an array without axes that stays here, never a NumPy scalar;
- what is not written below raises AttributeError: the names below are all that lora_np uses.

It is stricter than CuPy in two ways. NumPy scalars are refused, for one of float64 would lift
float32; and so is a NumPy function, where CuPy answers by dispatch. And laxer in one: indices out
of range raise IndexError, while a GPU wraps them around without a word.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from tests.counting import product_flops

__all__ = [
    "abs",
    "add",
    "arange",
    "asarray",
    "ascontiguousarray",
    "asnumpy",
    "concatenate",
    "cos",
    "cuda",
    "empty",
    "empty_like",
    "exp",
    "eye",
    "flatnonzero",
    "float64",
    "isfinite",
    "isnan",
    "linalg",
    "log",
    "may_share_memory",
    "multiply",
    "ndarray",
    "ones",
    "sin",
    "sqrt",
    "stack",
    "tanh",
    "tile",
    "unpackbits",
    "where",
    "zeros",
    "zeros_like",
]

float64 = np.float64  # CuPy's dtypes are NumPy's own


class ndarray:
    """An array on the pretended device."""

    __array_ufunc__ = None  # NumPy's ufuncs refuse it, its operators hand over to ours below
    __hash__ = None  # type: ignore[assignment]
    flops = 0  # multiplications and additions of all matrix products so far; set it back to 0

    def __init__(self, host: Any) -> None:
        self._host = np.asarray(host)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("implicit conversion of a device array to a host array")

    def __array_function__(self, function: Any, *args: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} was given a device array")

    shape = property(lambda self: self._host.shape)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    dtype = property(lambda self: self._host.dtype)
    T = property(lambda self: ndarray(self._host.T))
    real = property(lambda self: ndarray(self._host.real))

    def __len__(self) -> int:
        return len(self._host)

    def __bool__(self) -> bool:
        return bool(self._host)

    def __int__(self) -> int:
        return int(self._host)

    def __float__(self) -> float:
        return float(self._host)

    def __repr__(self) -> str:
        return f"device {self._host!r}"

    def __getitem__(self, index: Any) -> ndarray:
        return ndarray(self._host[_index(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._host[_index(index)] = _operand(value)

    def __matmul__(self, other: Any) -> ndarray:
        y = np.asarray(self._host @ _operand(other))
        ndarray.flops += product_flops(self._host, _operand(other), y)
        return ndarray(y)

    def dot(self, other: Any, out: Any = None) -> ndarray:
        """Return the product, written to `out` if it is given."""
        y = self @ other
        if out is None:
            return y
        if (out.shape, out.dtype) != (y.shape, y.dtype):
            raise ValueError("out has another shape or dtype than the product")
        out._host[...] = y._host
        return out

    __rmatmul__ = __matmul__  # only ever reached with a host array on the left: refused


def _operand(x: Any) -> Any:
    """Return what NumPy may compute with, for a device array or a Python number."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, bool | int | float | complex) and not isinstance(x, np.generic):
        return x
    raise TypeError(f"a device array met {type(x).__name__} of {type(x).__module__}")


def _index(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(_index(i) for i in index)
    return index if index is None or index is ... or isinstance(index, slice) else _operand(index)


def _binary(name: str) -> Any:
    def compute(self: ndarray, other: Any) -> ndarray:
        return ndarray(getattr(self._host, name)(_operand(other)))

    return compute


def _in_place(function: Any) -> Any:
    def compute(self: ndarray, other: Any) -> ndarray:
        function(self._host, _operand(other))
        return self

    return compute


def _unary(name: str) -> Any:
    def compute(self: ndarray, *args: Any, **kwargs: Any) -> ndarray:
        return ndarray(getattr(self._host, name)(*args, **kwargs))

    return compute


for _name in ("add", "sub", "mul", "truediv", "pow", "radd", "rsub", "rmul", "rtruediv", "rpow"):
    setattr(ndarray, f"__{_name}__", _binary(f"__{_name}__"))
for _name in ("and", "or", "lshift", "rshift"):
    setattr(ndarray, f"__{_name}__", _binary(f"__{_name}__"))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(ndarray, f"__{_name}__", _binary(f"__{_name}__"))
for _name in ("iadd", "isub", "imul", "itruediv", "ior"):
    setattr(ndarray, f"__{_name}__", _in_place(getattr(operator, _name)))
for _name in ("neg", "abs"):
    setattr(ndarray, f"__{_name}__", _unary(f"__{_name}__"))
METHODS = (
    "all",
    "any",
    "astype",
    "clip",
    "copy",
    "max",
    "mean",
    "min",
    "reshape",
    "sum",
    "swapaxes",
    "view",
)
for _name in METHODS:
    setattr(ndarray, _name, _unary(_name))


def asarray(x: Any) -> ndarray:
    """Bring a host array here, as a copy; an array that is here already is returned itself."""
    return x if isinstance(x, ndarray) else ndarray(np.array(x))


def asnumpy(x: ndarray) -> np.ndarray:
    """Take an array back to the host, as a copy."""
    return _held(x).copy()


def _held(x: Any) -> np.ndarray:
    if not isinstance(x, ndarray):
        raise TypeError(f"a device function was given {type(x).__name__} of {type(x).__module__}")
    return x._host


def _elementwise(function: Any) -> Any:
    def compute(*inputs: Any, out: ndarray | None = None) -> ndarray:
        y = function(*map(_operand, inputs), out=None if out is None else _held(out))
        return ndarray(y) if out is None else out

    return compute


abs, cos, exp, log, multiply, sin, sqrt, tanh, isfinite, isnan = map(
    _elementwise,
    (np.abs, np.cos, np.exp, np.log, np.multiply, np.sin, np.sqrt, np.tanh, np.isfinite, np.isnan),
)


class add:
    """The sum, of which one form is used by name."""

    @staticmethod
    def at(x: ndarray, index: ndarray, values: ndarray) -> None:
        """Add `values` to rows of `x` in place; equal indices add up."""
        np.add.at(_held(x), _held(index), _held(values))


def flatnonzero(x: ndarray) -> ndarray:
    """Return where `x` is not zero."""
    return ndarray(np.flatnonzero(_held(x)))


def where(condition: ndarray, x: Any, y: Any) -> ndarray:
    """Return `x` where the condition holds, else `y`."""
    return ndarray(np.where(_held(condition), _operand(x), _operand(y)))


def ascontiguousarray(x: ndarray) -> ndarray:
    """Return `x` in C's order."""
    return ndarray(np.ascontiguousarray(_held(x)))


def zeros_like(x: ndarray) -> ndarray:
    """Return zeros of `x`'s shape and dtype."""
    return ndarray(np.zeros_like(_held(x)))


def empty(shape: tuple[int, ...], dtype: Any) -> ndarray:
    """Return memory that nobody has written to."""
    return ndarray(np.empty(shape, dtype))


def empty_like(x: ndarray, shape: tuple[int, ...] | None = None, dtype: Any = None) -> ndarray:
    """Return memory whose axes lie as `x`'s do."""
    return ndarray(np.empty_like(_held(x), shape=shape, dtype=dtype))


def unpackbits(x: ndarray, bitorder: str) -> ndarray:
    """As NumPy's, over a whole array."""
    return ndarray(np.unpackbits(_held(x), bitorder=bitorder))


def arange(*bounds: int) -> ndarray:
    """Count, as ``range`` does."""
    return ndarray(np.arange(*bounds))


def zeros(shape: tuple[int, ...], dtype: Any) -> ndarray:
    """Return zeros."""
    return ndarray(np.zeros(shape, dtype))


def ones(shape: Any, dtype: Any) -> ndarray:
    """Return ones."""
    return ndarray(np.ones(shape, dtype))


def eye(n: int, dtype: Any) -> ndarray:
    """Return the unit matrix."""
    return ndarray(np.eye(n, dtype=dtype))


def tile(x: ndarray, repetitions: int) -> ndarray:
    """Repeat `x` along its last axis."""
    return ndarray(np.tile(_held(x), repetitions))


def concatenate(arrays: list[ndarray], axis: int = 0) -> ndarray:
    """Join arrays end to end."""
    return ndarray(np.concatenate([_held(x) for x in arrays], axis))


def may_share_memory(x: ndarray, y: ndarray) -> bool:
    """NumPy's."""
    return np.may_share_memory(_held(x), _held(y))


def stack(arrays: list[ndarray]) -> ndarray:
    """Put arrays of one shape side by side, on a first axis of their own."""
    return ndarray(np.stack([_held(x) for x in arrays]))


class linalg:
    """The decompositions that the analyser uses, and the inverse."""

    @staticmethod
    def inv(x: ndarray) -> ndarray:
        """Return the inverse of every matrix."""
        return ndarray(np.linalg.inv(_held(x)))

    @staticmethod
    def qr(x: ndarray, mode: str) -> ndarray:
        """Return R alone."""
        if mode != "r":
            raise ValueError(f"mode {mode!r} is not written yet")
        return ndarray(np.linalg.qr(_held(x), mode="r"))

    @staticmethod
    def svd(x: ndarray, compute_uv: bool) -> ndarray:
        """Return the singular values alone."""
        if compute_uv:
            raise ValueError("compute_uv=True is not written yet")
        return ndarray(np.linalg.svd(_held(x), compute_uv=False))


class cuda:
    """Whether there is a GPU."""

    @staticmethod
    def is_available() -> bool:
        """Pretend that there is one."""
        return True
