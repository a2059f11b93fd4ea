"""Random numbers for some rows of a batch, equal to those that the whole batch would draw.

A batch may be split into parts, or shared by several workers. Its random numbers, such as dropout
masks or the noise of an objective, must not depend on the split. So every part draws the numbers of
the whole batch, from a copy of one generator, and takes its own rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np


class RowsOfBatch:
    """A generator for some rows of a batch; the first axis of every draw is the batch.

    Parameters
    ----------
    rng : numpy.random.Generator
        The generator of the whole batch. It is copied, and its state does not change.
    rows : slice
        The rows of this part, with a start and a stop.
    batch_size : int
        The number of rows of the whole batch.

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
        """The copy's bit generator; its state is that after the draws of the whole batch."""
        return self.rng.bit_generator

    def random(self, size: Any = None, dtype: Any = np.float64) -> np.ndarray:
        """Return uniform numbers in [0, 1) for these rows."""
        return self._share("random", size, lambda whole: self.rng.random(whole, dtype))

    def standard_normal(self, size: Any = None, dtype: Any = np.float64) -> np.ndarray:
        """Return standard normal numbers for these rows."""
        return self._share(
            "standard_normal", size, lambda whole: self.rng.standard_normal(whole, dtype)
        )

    def integers(
        self, low: Any, high: Any = None, size: Any = None, dtype: Any = np.int64
    ) -> np.ndarray:
        """Return integers in low .. high - 1, or 0 .. low - 1, for these rows."""
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
            f"rng.{name} is not available in a split batch: use random, standard_normal or integers"
        )
