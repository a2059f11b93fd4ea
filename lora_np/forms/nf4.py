"""NF4: 4 bits a number, the code of the nearest of 16 quantiles of a normal distribution.

An array is read row by row and cut into blocks of 64 numbers. Each block keeps its largest absolute
value, and each number keeps the index c of the nearest of 16 values q, from -1 to 1::

    c = argmin_i |w / absmax - q_i|            w is about q_c absmax         4 + 32/64 bits a number

The q_i are quantiles of a normal distribution, scaled to [-1, 1], so that they lie closest where
most numbers do. (Normal numbers do not use all codes equally often: the largest of 64 is further
out than the last quantile, so 9 % of them get the code of -0.09 but 2 % that of 1.) One q_i is 0,
so that zeros are exact. Double quantisation subtracts from the absmax of all blocks their mean m
and stores the rest in 8 bits, in blocks of 256::

    absmax is about m + s d_e,   s = max |absmax - m| of 256        4 + 8/64 + 32/(64 256) bits

The 256 values d_e spend 8 bits on a sign, a decimal exponent from -6 to 0, and a fraction, which
gets the more bits the larger the number is.

Sources: Dettmers, Pagnoni, Holtzman and Zettlemoyer (2023), arXiv:2305.14314, section 3; the d_e:
Dettmers, Lewis, Shleifer and Zettlemoyer (2021), arXiv:2110.02861. The codes are those of
bitsandbytes, ties included. The mean m is computed in float64 and rounded once, to float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_np.backend import Array, like
from lora_np.forms.form import Form
from lora_np.forms.narrow import narrowed

Q = np.array(  # the 16 values
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
     -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
     0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
     0.7229568362236023, 1.0], np.float32,
)  # fmt: skip
PAIRS = np.stack(np.meshgrid(Q, Q, indexing="ij"), axis=-1)  # the two values of each byte
PAIRS = PAIRS.reshape(-1).view(np.int64)  # (256,): both in one item of 8 bytes, to look up fast
SECOND = 256  # absmax values in a block of double quantisation


def dynamic_map() -> np.ndarray:
    """Return the 256 values d_e in order, rounded as bitsandbytes rounds them.

    Examples
    --------
    >>> from lora_np.forms.nf4 import dynamic_map
    >>> d = dynamic_map()
    >>> len(d), [f"{x:.3g}" for x in d[[0, 127, 128, 254, 255]]]
    (256, ['-0.993', '0', '5.5e-07', '0.993', '1'])
    """
    values = [np.zeros(1, np.float32), np.ones(1, np.float32)]
    for exponent in range(7):  # 2^exponent fractions, the middles of equal parts of [0.1, 1]
        n = 2**exponent
        k, step = np.arange(n + 1), float(np.float32(np.float32(0.9) / n))
        low = float(np.float32(0.1)) + step * k
        edges = np.where(k < (n + 1) // 2, low, 1.0 - step * (n - k)).astype(np.float32)
        middles = np.float32(10.0 ** (exponent - 6)) * ((edges[:-1] + edges[1:]) / 2)
        values += [middles, -middles]
    return np.sort(np.concatenate(values))


DYNAMIC = dynamic_map()


def block_codes(x: np.ndarray, size: int, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes of x in blocks of `size`, and the absmax of each block.

    The last block is filled up with zeros. A number halfway between two values gets the lower code.
    """
    blocks = np.zeros((-(-x.size // size), size), np.float32)
    blocks.reshape(-1)[: x.size] = x.reshape(-1)
    absmax = np.abs(blocks).max(axis=1, initial=0.0)
    divisor = np.maximum(absmax, np.float32(1e-38))[:, None]
    ratios = blocks * (np.float32(1.0) / divisor)
    if x.size % size:
        ratios[-1] = blocks[-1] / divisor[-1]  # bitsandbytes rounds the last block in this way
    codes = np.searchsorted((values[:-1] + values[1:]) / 2, ratios.reshape(-1), side="left")
    return codes.astype(np.uint8), absmax


@dataclass(frozen=True, eq=False)
class Nf4(Form):
    """Numbers as NF4, two codes a byte; the first code is in the upper four bits.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.forms.nf4 import Nf4
    >>> form = Nf4.encode(np.linspace(-2.0, 2.0, 64))
    >>> form.parts["codes"][:3].tolist(), form.decode(np.float64)[[0, 31, -1]].round(2).tolist()
    ([0, 0, 1], [-2.0, 0.0, 2.0])
    """

    name = "nf4"
    block_size: int = 64

    @classmethod
    def encode(cls, x: Array, block_size: int = 64, double: bool = True) -> Nf4:
        """Return `x` in the nearest NF4 codes."""
        codes, absmax = block_codes(narrowed(x, "float32"), check_block(block_size), Q)
        parts = {"codes": codes[0::2] << 4 | codes[1::2], "absmax": absmax}
        if double:
            mean = absmax.mean(dtype=np.float64).astype(np.float32).reshape(1)
            second, scales = block_codes(absmax - mean, SECOND, DYNAMIC)
            parts |= {"absmax": second[: absmax.size], "scales": scales, "mean": mean}
        return cls(x.shape, {name: like(part, x) for name, part in parts.items()}, block_size)

    def decode(self, dtype: Any) -> Array:
        """Return the numbers in `dtype`; the products are formed in float32."""
        parts, size, n = self.parts, self.block_size, int(np.prod(self.shape))
        absmax, pairs = parts["absmax"], like(PAIRS, parts["codes"])
        if "mean" in parts:
            block = like(np.arange(absmax.size) // SECOND, absmax)
            absmax = like(DYNAMIC, absmax)[absmax] * parts["scales"][block] + parts["mean"]
        values = pairs[parts["codes"]].view(np.float32).reshape(-1, size)  # (blocks, size)
        numbers = (values * absmax.reshape(-1, 1)).reshape(-1)[:n]
        return numbers.reshape(self.shape).astype(dtype, copy=False)


def check_block(size: int) -> int:
    """Return the size of a block, or raise unless bitsandbytes has it: 32, 64, ... or 4096."""
    if type(size) is not int or size not in [2**k for k in range(5, 13)]:
        raise ValueError(f"block_size = {size!r:.40}, expected a power of 2 from 32 to 4096")
    return size
