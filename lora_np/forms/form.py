"""What a packed form of an array is: a few arrays, and the rule that decodes them.

A new form is a subclass of Form with a name, ``encode`` and ``decode``. A StoredParameter holds it,
and files, copies, byte counts and training follow. A form whose parts keep the rows of the array
one by one is a RowForm: some of its rows can be decoded alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from lora_np.backend import Array, get_xp


@dataclass(frozen=True, eq=False)
class Form:
    """A packed copy of an array of numbers; a subclass has a name, ``encode`` and ``decode``.

    Attributes
    ----------
    name : str
        For example "bfloat16"; part of the names in a file.
    shape : tuple of int
        The shape of the decoded array.
    parts : mapping of str to array
        The arrays that are kept in memory and in files.
    """

    name: ClassVar[str] = ""
    shape: tuple[int, ...]
    parts: Mapping[str, Array]

    def decode(self, dtype: Any) -> Array:
        """Return the decoded array, a new one."""
        raise TypeError(f"{type(self).__name__} does not define decode()")

    def take(self, rows: Array | slice, dtype: Any) -> Array:
        """Return ``decode(dtype)[rows]``; `rows` is an integer array of any shape, or a slice."""
        return self.decode(dtype)[rows]

    def finite(self) -> bool:
        """Whether all numbers are finite."""
        numbers = self.decode("float32")
        return bool(get_xp(numbers).isfinite(numbers).all())

    def converted(self, convert: Callable[[Array], Array]) -> Self:
        """Return the same form over what `convert` returns for each part."""
        return replace(self, parts={name: convert(part) for name, part in self.parts.items()})


class RowForm(Form):
    """A form whose parts have as many axes as the array, and keep its rows along the first.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.forms import Float16
    >>> table = Float16.encode(np.arange(6.0).reshape(3, 2))
    >>> table.take(np.array([2, 0]), np.float32).tolist()
    [[4.0, 5.0], [0.0, 1.0]]
    >>> table.rows(slice(1, None)).shape  # still packed
    (2, 2)
    """

    def rows(self, index: Array | slice) -> Self:
        """Return these rows, still packed; `index` is as in :meth:`take`."""
        if len(self.shape) < 2:
            raise ValueError(f"an array of shape {self.shape} has no rows")
        picked = {name: part[index] for name, part in self.parts.items()}
        first = next(iter(picked.values()))
        leading = first.shape[: first.ndim - len(self.shape) + 1]
        return replace(self, shape=(*leading, *self.shape[1:]), parts=picked)

    def take(self, rows: Array | slice, dtype: Any) -> Array:
        """Return ``decode(dtype)[rows]``, and decode only these rows."""
        return super().take(rows, dtype) if len(self.shape) < 2 else self.rows(rows).decode(dtype)
