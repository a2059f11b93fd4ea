"""Draws for some rows of a batch, as the whole batch would have drawn them.

A batch may be worked through in parts, or shared by several workers. What it draws, as masks of
dropout or noise of an objective, must not depend on that. So every part draws the numbers of the
whole batch, from a copy of one generator, and takes its own rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np


class RowsOfBatch:
    """A generator for some rows of a batch; the first axis of what is drawn is the batch's.

    Parameters
    ----------
    rng : numpy.random.Generator
        Is copied, and stays where it is.
    rows : slice
        With a start and a stop.
    batch_size : int

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.data import RowsOfBatch
    >>> whole = np.random.default_rng(0).random((4, 2))
    >>> last = RowsOfBatch(np.random.default_rng(0), slice(3, 4), batch_size=4)
    >>> np.array_equal(last.random((1, 2)), whole[3:])
    True
    """

    def __init__(self, rng: np.random.Generator, rows: slice, batch_size: int) -> None:
        self.rng, self.rows, self.batch_size = copy.deepcopy(rng), rows, batch_size

    @property
    def bit_generator(self) -> Any:
        """The copy's source of bits, whose state is that after the whole batch's draws."""
        return self.rng.bit_generator

    def random(self, size: Any = None, dtype: Any = np.float64) -> np.ndarray:
        """Return the rows' share of uniform numbers in [0, 1)."""
        return self._share("random", size, lambda whole: self.rng.random(whole, dtype))

    def standard_normal(self, size: Any = None, dtype: Any = np.float64) -> np.ndarray:
        """Return the rows' share of standard normal numbers."""
        return self._share(
            "standard_normal", size, lambda whole: self.rng.standard_normal(whole, dtype)
        )

    def integers(
        self, low: Any, high: Any = None, size: Any = None, dtype: Any = np.int64
    ) -> np.ndarray:
        """Return the rows' share of integers in low .. high - 1, or 0 .. low - 1."""
        return self._share(
            "integers", size, lambda whole: self.rng.integers(low, high, whole, dtype)
        )

    def _share(self, name: str, size: Any, draw: Callable[[Any], np.ndarray]) -> np.ndarray:
        rows = self.rows.stop - self.rows.start
        if not isinstance(size, tuple) or size[:1] != (rows,):
            raise ValueError(f"{name}({size}) for {rows} samples, expected size = ({rows}, ...)")
        return draw((self.batch_size, *size[1:]))[self.rows]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(np.random.Generator, name):
            raise AttributeError(name)
        raise AttributeError(
            f"rng.{name}: a batch that is split draws by random, standard_normal or integers"
        )
