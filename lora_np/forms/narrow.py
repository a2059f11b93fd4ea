"""Numbers in 16 bits: float16 and bfloat16.

bfloat16 is the upper half of a float32: the same 8 bits of exponent, and 7 bits of fraction.
float16 has 5 bits of exponent and 10 of fraction, so that its largest number is 65504.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_np.backend import Array, get_xp, like, to_host
from lora_np.forms.form import RowForm


class Float16(RowForm):
    """Numbers as float16.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.forms import Float16
    >>> Float16.encode(np.array([0.1, 1.0], np.float32)).decode(np.float64).tolist()
    [0.0999755859375, 1.0]
    """

    name = "float16"

    @classmethod
    def encode(cls, x: Array) -> Float16:
        """Return `x` rounded to float16."""
        return cls(x.shape, {"numbers": like(narrowed(x, "float16"), x)})

    def decode(self, dtype: Any) -> Array:
        """Return the numbers in `dtype`."""
        return self.parts["numbers"].astype(dtype)

    def finite(self) -> bool:
        """Whether all numbers are finite."""
        numbers = self.parts["numbers"]
        return bool(get_xp(numbers).isfinite(numbers).all())


class Bfloat16(RowForm):
    """Numbers as bfloat16, kept as whole numbers of 16 bits, which every array module has.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.forms import Bfloat16
    >>> Bfloat16.encode(np.array([0.1, 1.0], np.float32)).decode(np.float64).tolist()
    [0.10009765625, 1.0]
    """

    name = "bfloat16"

    @classmethod
    def encode(cls, x: Array) -> Bfloat16:
        """Return `x` rounded to bfloat16."""
        numbers = narrowed(x, "bfloat16")  # float32: their upper halves are the bits
        return cls(x.shape, {"bits": like(bfloat16_bits(numbers), x)})

    def decode(self, dtype: Any) -> Array:
        """Return the numbers in `dtype`: the bits are the upper half of a float32."""
        return bfloat16_numbers(self.parts["bits"]).astype(dtype, copy=False)

    def finite(self) -> bool:
        """Whether all numbers are finite: the 8 bits of the exponent are not all 1."""
        return bool((self.parts["bits"] & 0x7F80 != 0x7F80).all())


def narrowed(x: Array, name: str) -> np.ndarray:
    """Return finite numbers rounded to a narrow dtype, on the host.

    Numbers of bfloat16 are returned as float32, because NumPy does not have this dtype.

    Raises
    ------
    ValueError
        If a number is not finite, or is too large for the dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.forms import narrowed
    >>> try:
    ...     narrowed(np.array([7e4]), "float16")
    ... except ValueError as error:
    ...     print(error)
    the largest number is 70000, too large for float16
    """
    numbers = to_host(x)
    if not np.isfinite(numbers).all():
        raise ValueError("some numbers are not finite: such weights cannot be stored")
    with np.errstate(over="ignore"):
        narrow = in_bfloat16(numbers) if name == "bfloat16" else numbers.astype(name)
    if not np.isfinite(narrow).all():
        largest = float(np.abs(numbers).max())
        raise ValueError(f"the largest number is {largest:g}, too large for {name}")
    return narrow


def in_bfloat16(x: Array) -> Array:
    """Return numbers rounded to the nearest number of bfloat16, as float32.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.forms import in_bfloat16
    >>> in_bfloat16(np.array([1 + 3 / 256, 1 + 1 / 256])).tolist()  # 1 + 4/256, and a tie: to even
    [1.015625, 1.0]
    """
    return bfloat16_numbers(bfloat16_bits(x))


def bfloat16_bits(x: Array) -> Array:
    """Return numbers as bfloat16, the upper halves of float32, in whole numbers of 16 bits.

    The lower half is rounded off: to the nearest number, and a tie to the even one. Numbers that
    are too large become infinite; nan stays nan.
    """
    xp = get_xp(x)
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = xp.asarray(x, np.float32)
    bits = xp.ascontiguousarray(numbers).view(np.uint32).reshape(numbers.shape)
    half = 0x7FFF + (bits >> 16 & 1)  # just below one half, or one half where the upper is odd
    nearest = (bits + half >> 16).astype(np.uint16)
    return xp.where(xp.isnan(numbers), np.uint16(0x7FC0), nearest)


def bfloat16_numbers(bits: Array) -> Array:
    """Return the numbers of :func:`bfloat16_bits`, exactly, as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
