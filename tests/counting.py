"""Counts the floating-point operations of the matrix products that are really carried out."""

from unittest import mock

import numpy as np


def unmerged():
    """Let LoRA send its samples through A and B, however many: what account() states."""
    return mock.patch("lora_np.ops.fast.lora.merging_pays", lambda x, W0: False)


def product_flops(a: np.ndarray, b: np.ndarray, y: np.ndarray) -> int:
    """Return the operations of y = a @ b; a sum, written as a product with a vector, is none."""
    is_sum = 1 in (a.ndim, b.ndim) or bool(np.all(a == 1) or np.all(b == 1))
    return 0 if is_sum else 2 * y.size * a.shape[-1]


class Counting(np.ndarray):
    """An array that counts: all that is computed from it is a Counting array, too."""

    flops = 0  # so far; set it back to 0
    __array_priority__ = 1.0  # so that concatenate, too, returns a Counting

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        plain = [x.view(np.ndarray) if isinstance(x, Counting) else x for x in inputs]
        if out is not None:
            kwargs["out"] = tuple(x.view(np.ndarray) for x in out)
        y = getattr(ufunc, method)(*plain, **kwargs)
        if ufunc is np.matmul:
            Counting.flops += product_flops(*plain, y)
        if out is not None:
            return out[0]
        return y.view(Counting) if isinstance(y, np.ndarray) else y
