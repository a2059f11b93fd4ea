"""GGML's block types: the packed weights of GGUF files, decoded from their own bytes.

A row is cut into blocks of 32 numbers (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0) or of 256 (Q4_K, Q5_K, Q6_K).
A block keeps whole numbers q of 4, 5, 6 or 8 bits, and a scale d in float16. Types that end in 0
store w = d q, with q around 0; those that end in 1 add the block's least number m::

    Q4_0, Q5_0, Q8_0:   w = d (q - 2^(bits - 1))        Q4_1, Q5_1:   w = d q + m

A block of 256 has 8 or 16 groups, each with a scale s (and a minimum s') of its own, in few bits::

    Q6_K:   w = (d s) (q - 32)                          Q4_K, Q5_K:   w = (d s) q - (d' s')

Each class below says where the bytes lie; "a | b" are bytes one after the other. Numbers of less
than 8 bits are split: the lower four bits of two numbers share a byte, and these two lie half a
block apart, not side by side.

All products are formed in float32, in the order above, as in ggml: the results are equal bit for
bit. Source: ggml-quants.c of llama.cpp, and gguf-py's quants.py.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from lora_np.backend import Array, get_xp, like
from lora_np.forms.form import RowForm
from lora_np.forms.narrow import narrowed

CHUNK = 2**17  # numbers decoded at once: their temporaries stay in the processor's cache


class BlockForm(RowForm):
    """Numbers in blocks of one of GGML's types; the part "blocks" holds the bytes of each row.

    A subclass states the type's name in GGUF, the numbers and the bytes of a block, and decodes.

    Attributes
    ----------
    type : str
        The type's name in GGUF, such as "Q4_1".
    block_size : int
        Numbers in a block.
    block_bytes : int
        Bytes of a block.
    scales_at : tuple of int
        Where the float16 scales lie in a block.
    """

    type: ClassVar[str] = ""
    block_size: ClassVar[int] = 32
    block_bytes: ClassVar[int] = 0
    scales_at: ClassVar[tuple[int, ...]] = (0,)

    @classmethod
    def over(cls, shape: tuple[int, ...], data: Array) -> BlockForm:
        """Return the form over the bytes of a file, which are not copied.

        Parameters
        ----------
        shape : tuple of int
            The shape of the decoded array; its last axis is a multiple of ``block_size``.
        data : array of uint8
        """
        return cls(shape, {"blocks": data.reshape(*shape[:-1], cls.row_bytes(shape))})

    @classmethod
    def row_bytes(cls, shape: tuple[int, ...]) -> int:
        """Return the bytes of a row, or raise unless rows are whole blocks."""
        if not shape or shape[-1] % cls.block_size:
            raise ValueError(
                f"shape {shape}: rows of {cls.type} are whole blocks of {cls.block_size}"
            )
        return shape[-1] // cls.block_size * cls.block_bytes

    def decode(self, dtype: Any) -> Array:
        """Return the numbers in `dtype`; the products are formed in float32."""
        blocks = self.parts["blocks"].reshape(-1, self.block_bytes)
        out = get_xp(blocks).empty((len(blocks), self.block_size), np.float32)
        step = CHUNK // self.block_size
        with np.errstate(over="ignore", invalid="ignore"):  # a scale may be inf or nan
            for start in range(0, len(blocks), step):
                self.fill(out[start : start + step], blocks[start : start + step])
        return out.reshape(self.shape).astype(dtype, copy=False)

    def finite(self) -> bool:
        """Whether all numbers are finite, which is so if all scales are."""
        blocks = self.parts["blocks"].reshape(-1, self.block_bytes)
        xp = get_xp(blocks)
        return all(bool(xp.isfinite(_float16(blocks, at)).all()) for at in self.scales_at)

    @staticmethod
    def fill(out: Array, blocks: Array) -> None:
        """Write the numbers of blocks (n, bytes) to `out` (n, size)."""
        raise TypeError("a type of blocks defines fill()")


class Q4_0(BlockForm):
    """4 bits around 0: d float16 | 16 bytes of q; w = d (q - 8).

    Byte i holds q_i in its lower and q_(i + 16) in its upper four bits.
    """

    name, type, block_bytes = "q4_0", "Q4_0", 18

    @staticmethod
    def fill(out: Array, blocks: Array) -> None:
        """Write the numbers of blocks (n, 18) to `out` (n, 32)."""
        q = _nibbles(blocks[:, 2:], 16)
        q -= 8
        _convert(out, q.view(np.int8))
        out *= _float16(blocks, 0)


class Q4_1(BlockForm):
    """4 bits and a minimum: d float16 | m float16 | 16 bytes of q as in Q4_0; w = d q + m."""

    name, type, block_bytes = "q4_1", "Q4_1", 20
    scales_at = (0, 2)

    @staticmethod
    def fill(out: Array, blocks: Array) -> None:
        """Write the numbers of blocks (n, 20) to `out` (n, 32)."""
        _convert(out, _nibbles(blocks[:, 4:], 16))
        out *= _float16(blocks, 0)
        out += _float16(blocks, 2)


class Q5_0(BlockForm):
    """5 bits around 0: d float16 | h uint32 | 16 bytes as in Q4_0; w = d (q - 16).

    Bit i of h is the fifth bit of q_i.
    """

    name, type, block_bytes = "q5_0", "Q5_0", 22

    @staticmethod
    def fill(out: Array, blocks: Array) -> None:
        """Write the numbers of blocks (n, 22) to `out` (n, 32)."""
        q = _with_fifth_bit(_nibbles(blocks[:, 6:], 16), blocks[:, 2:6])
        q -= 16
        _convert(out, q.view(np.int8))
        out *= _float16(blocks, 0)


class Q5_1(BlockForm):
    """5 bits and a minimum: d float16 | m float16 | h uint32 | 16 bytes as in Q5_0; w = d q + m."""

    name, type, block_bytes = "q5_1", "Q5_1", 24
    scales_at = (0, 2)

    @staticmethod
    def fill(out: Array, blocks: Array) -> None:
        """Write the numbers of blocks (n, 24) to `out` (n, 32)."""
        _convert(out, _with_fifth_bit(_nibbles(blocks[:, 8:], 16), blocks[:, 4:8]))
        out *= _float16(blocks, 0)
        out += _float16(blocks, 2)


class Q8_0(BlockForm):
    """8 bits around 0: d float16 | 32 bytes, each a q of type int8; w = d q.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.forms import Q8_0
    >>> form = Q8_0.encode(np.linspace(-1.0, 1.0, 32))
    >>> form.parts["blocks"].nbytes, form.decode(np.float64)[[0, 15, 31]].round(3).tolist()
    (34, [-1.0, -0.031, 1.0])
    """

    name, type, block_bytes = "q8_0", "Q8_0", 34

    @classmethod
    def encode(cls, x: Array) -> Q8_0:
        """Return `x` in blocks whose largest absolute value becomes 127, rounded to nearest.

        A number halfway between two codes is rounded away from zero, as in ggml.

        Raises
        ------
        ValueError
            If the rows of `x` are not whole blocks of 32, or a number is not finite or is too
            large.
        """
        numbers = narrowed(x, "float32")
        row_bytes = cls.row_bytes(numbers.shape)
        numbers = numbers.reshape(-1, cls.block_size)
        d = np.abs(numbers).max(axis=1, keepdims=True, initial=0.0) / np.float32(127)
        with np.errstate(divide="ignore", over="ignore"):
            inverse, scale = np.float32(1) / d, d.astype(np.float16)
        inverse[np.isinf(inverse)] = 0  # all numbers are 0, or so small that the scale is 0
        if not np.isfinite(scale).all():
            largest = float(np.abs(numbers).max())
            raise ValueError(f"the largest number is {largest:g}, too large for Q8_0")
        q = numbers * inverse
        magnitude = np.abs(q)
        floor = np.floor(magnitude)
        q = np.sign(q) * (floor + np.floor(2 * (magnitude - floor)))
        parts = [scale.view(np.uint8), q.astype(np.int8).view(np.uint8)]
        blocks = np.concatenate(parts, axis=1).reshape(*x.shape[:-1], row_bytes)
        return cls(x.shape, {"blocks": like(blocks, x)})

    @staticmethod
    def fill(out: Array, blocks: Array) -> None:
        """Write the numbers of blocks (n, 34) to `out` (n, 32)."""
        out[...] = blocks[:, 2:].view(np.int8)
        out *= _float16(blocks, 0)


class Q4_K(BlockForm):
    """4 bits in 8 groups of 32: d float16 | d' float16 | 12 bytes of s and s' | 128 bytes of q.

    w = (d s) q - (d' s'). The 8 scales s and minima s' have 6 bits each. For groups 0 to 3 they
    are the lower six bits of bytes 0 to 3 and 4 to 7; for group 4 + i, the lower (s) and upper
    (s') four bits of byte 8 + i, topped by the two upper bits of byte i (s) and 4 + i (s').
    Byte 32 c + i of q holds number i of group 2 c in its lower and of group 2 c + 1 in its upper
    four bits.
    """

    name, type, block_size, block_bytes = "q4_k", "Q4_K", 256, 144
    scales_at = (0, 2)

    @staticmethod
    def fill(out: Array, blocks: Array) -> None:
        """Write the numbers of blocks (n, 144) to `out` (n, 256)."""
        _fill_groups(out, _nibbles(blocks[:, 16:], 32), blocks)


class Q5_K(BlockForm):
    """5 bits in 8 groups of 32: as Q4_K, with 32 bytes h between the scales and the 128 bytes.

    w = (d s) q - (d' s'). Bit g of byte i of h is the fifth bit of number i of group g.
    """

    name, type, block_size, block_bytes = "q5_k", "Q5_K", 256, 176
    scales_at = (0, 2)

    @staticmethod
    def fill(out: Array, blocks: Array) -> None:
        """Write the numbers of blocks (n, 176) to `out` (n, 256)."""
        q = _nibbles(blocks[:, 48:], 32).reshape(-1, 8, 32)
        fifth = blocks[:, 16:48].copy()
        for group in range(8):
            q[:, group] |= (fifth >> group & 1) << 4
        _fill_groups(out, q, blocks)


class Q6_K(BlockForm):
    """6 bits around 0 in 16 groups of 16: 128 bytes l | 64 bytes h | 16 bytes s (int8) | d float16.

    w = (d s) (q - 32). Each half of a block, 128 numbers, has 64 bytes of l and 32 of h. Byte i of
    l holds the lower four bits of number i (in its lower half) and of number 64 + i (in its upper
    half); bits 2 k and 2 k + 1 of byte i of h are the upper two bits of number 32 k + i.
    """

    name, type, block_size, block_bytes = "q6_k", "Q6_K", 256, 210
    scales_at = (208,)

    @staticmethod
    def fill(out: Array, blocks: Array) -> None:
        """Write the numbers of blocks (n, 210) to `out` (n, 256)."""
        q = _nibbles(blocks[:, :128], 64).reshape(-1, 2, 4, 32)
        upper = blocks[:, 128:192].copy().reshape(-1, 2, 32)
        for k in range(4):
            q[:, :, k] |= (upper >> 2 * k & 3) << 4
        q -= 32
        _convert(out, q.view(np.int8))
        scales = blocks[:, 192:208].copy().view(np.int8).astype(np.float32)
        groups = out.reshape(-1, 16, 16)
        groups *= (scales * _float16(blocks, 208))[:, :, None]


BLOCKS: dict[str, type[BlockForm]] = {
    form.type: form for form in (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K)
}


def _float16(blocks: Array, start: int) -> Array:
    """Return the float16 at byte `start`, an even number, of each block, as float32 (n, 1)."""
    at = start // 2
    return blocks.view(np.float16)[:, at : at + 1].astype(np.float32)


def _nibbles(packed: Array, apart: int) -> Array:
    """Return the lower, then the upper four bits of each `apart` bytes (n, b), as (n, 2 b)."""
    packed = packed.copy()  # contiguous, so that the two lines below are fast
    groups = math.prod(packed.shape) // apart
    q = get_xp(packed).empty((groups, 2, apart), np.uint8)
    q[:, 0] = (packed & 15).reshape(groups, apart)
    q[:, 1] = (packed >> 4).reshape(groups, apart)
    return q.reshape(len(packed), -1)


def _with_fifth_bit(q: Array, bits: Array) -> Array:
    """Return q (n, 32) with the bits of (n, 4) bytes, the lowest first, above the four of q."""
    fifth = get_xp(bits).unpackbits(bits.reshape(-1), bitorder="little").reshape(q.shape)
    q |= fifth << 4
    return q


def _convert(out: Array, q: Array) -> None:
    """Write whole numbers to a contiguous array of the same size."""
    out.reshape(-1)[...] = q.reshape(-1)


def _fill_groups(out: Array, q: Array, blocks: Array) -> None:
    """Write (d s) q - (d' s') to `out` (n, 256), by the first 16 bytes of Q4_K and Q5_K."""
    _convert(out, q)
    low, minima, both = (blocks[:, start : start + 4] for start in (4, 8, 12))
    s = get_xp(blocks).concatenate([low & 63, both & 15 | low >> 2 & 48], axis=1)  # (n, 8)
    least = get_xp(blocks).concatenate([minima & 63, both >> 4 | minima >> 2 & 48], axis=1)
    groups = out.reshape(-1, 8, 32)
    groups *= (s.astype(np.float32) * _float16(blocks, 0))[:, :, None]
    groups -= (least.astype(np.float32) * _float16(blocks, 2))[:, :, None]
