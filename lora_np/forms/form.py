"""What a packed form of an array is: a few arrays, and the rule that decodes them.

A new form is a subclass of Form with a name, ``encode`` and ``decode``. A StoredParameter holds it,
and files, copies, byte counts and training follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from lora_np.backend import Array


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

    def converted(self, convert: Callable[[Array], Array]) -> Form:
        """Return the same form over what `convert` returns for each part."""
        return replace(self, parts={name: convert(part) for name, part in self.parts.items()})
