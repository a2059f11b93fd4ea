"""The methods of every layer: its parts by name, forward, backward, extend, and its cost.

A layer keeps no state between forward and backward; forward returns the cache to the caller::

    y, cache = layer.forward(x)
    dx = layer.backward(dy, cache, grads)      # grads.add(parameter, gradient)

``forward(x, rng)`` with a NumPy Generator applies dropout; without a Generator there is no dropout.
``backward(..., need_dx=False)`` does not form dx and returns None.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from textwrap import indent
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array
from lora_np.parameters import Grads, Parameter

Rng = np.random.Generator | None


class Flops(NamedTuple):
    """Floating-point operations of the matrix products, for one token."""

    forward: int
    backward: int

    def plus(self, other: Flops) -> Flops:
        """Return the sum of the two, entry by entry."""
        return Flops(self.forward + other.forward, self.backward + other.backward)


class Layer:
    """The base class of layers: parts by name, forward, backward, extend, and the cost.

    The parts of a layer are its attributes that are Parameters, Layers or lists of Layers, in the
    order in which they were set. A layer prints as the tree of its parts, with shapes, what is
    frozen, and counts.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig
    >>> model = GPT(GPTConfig(9, 4, 1, 2, 8), np.random.default_rng(0))
    >>> [path for path in model.modules() if path.endswith("_proj")]
    ['h.0.attn.q_proj', 'h.0.attn.k_proj', 'h.0.attn.v_proj', 'h.0.attn.o_proj', 'h.0.mlp.up_proj',
    'h.0.mlp.down_proj']
    >>> model.h[0].attn.q_proj
    Linear(W (8, 8), b (8,))
    72 parameters, 72 trainable
    """

    def forward(self, x: Array, /, rng: Rng = None) -> tuple[Array, Any]:
        """Return (y, cache)."""
        raise TypeError(f"{type(self).__name__} has no forward of its own")

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add the trainable Parameters' gradients to `grads`; return dx, or None if not needed."""
        raise TypeError(f"{type(self).__name__} has no backward of its own")

    def extend(self, x: Array, memory: Any = None) -> tuple[Array, Any]:
        """Return y for the newest positions `x` (..., T, d), and the memory for the next call.

        `memory` is None, or the memory that the last call returned. Most layers need no memory.
        """
        if self.conditioned:
            raise TypeError(f"{type(self).__name__} needs a condition c: use forward(x, c)")
        return self.forward(x)[0], None

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the cost per token in a sequence of `T`; only matrix products are counted."""
        return Flops(0, 0)

    conditioned: bool = False  # True: forward(x, c, rng=None), and backward returns dx, dc
    fixed: Mapping[str, Array] | None = None  # values of constants() during a gradient check

    def constants(self) -> dict[str, Array]:
        """Return values that backward treats as constant although they depend on Parameters.

        Most layers have none. A layer that has some reads them from ``self.fixed`` if that is set.
        """
        return {}

    def parts(self) -> Iterator[tuple[str, Parameter | Layer]]:
        """Yield the direct parts with their names."""
        for name, part in vars(self).items():
            if isinstance(part, Parameter | Layer):
                yield name, part
            elif isinstance(part, list):
                for i, item in enumerate(part):
                    if isinstance(item, Parameter | Layer):
                        yield f"{name}.{i}", item
            elif isinstance(part, tuple | set | dict) and _holds_parts(part):
                raise TypeError(
                    f"{type(self).__name__}.{name} keeps parts in a {type(part).__name__}, where "
                    "they would be neither trained nor saved: keep them in a list"
                )

    def modules(self) -> dict[str, Layer]:
        """Return all layers below this one by dotted path, in order."""
        found: dict[str, Layer] = {}
        for name, part in self.parts():
            if isinstance(part, Layer):
                found[name] = part
                found.update({f"{name}.{path}": layer for path, layer in part.modules().items()})
        return found

    def parameters(self) -> dict[str, Parameter]:
        """Return all Parameters by dotted path, in order; a tied Parameter appears once."""
        found: dict[str, Parameter] = {}
        seen: set[int] = set()
        for prefix, layer in {"": self, **self.modules()}.items():
            for name, part in layer.parts():
                if isinstance(part, Parameter) and id(part) not in seen:
                    seen.add(id(part))
                    found[f"{prefix}.{name}" if prefix else name] = part
        return found

    def moving(self) -> list[Parameter]:
        """Return the Parameters that change between steps but are not trained, such as averages.

        They are saved with a training run, and have no gradient. A layer that has some returns
        them; by default these are its parts'.
        """
        layers = (part for _, part in self.parts() if isinstance(part, Layer))
        return list(dict.fromkeys(p for layer in layers for p in layer.moving()))

    @property
    def trainable(self) -> bool:
        """Whether the layer has a trainable Parameter."""
        return any(part.trainable for _, part in self.parts())

    def facts(self) -> dict[str, Any]:
        """Return what the printed tree says of this layer: by default its numbers and names."""
        plain = (int, float, str)
        return {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, plain) and not name.startswith("_")
        }

    def __repr__(self) -> str:
        found = self.parameters().values()
        trainable = sum(p.size for p in found if p.trainable)
        return f"{_tree(self)}\n{sum(p.size for p in found):,} parameters, {trainable:,} trainable"


def _tree(layer: Layer) -> str:
    """Return a layer as text: its own Parameters and facts in a line, then the layers below."""
    own, below = [], []
    for name, part in layer.parts():
        if isinstance(part, Layer):
            below.append((name, _tree(part)))
        else:
            own.append(f"{name} {part.shape}{_state(part)}")
    own += [f"{name}={_short(value)}" for name, value in layer.facts().items()]
    head = f"{type(layer).__name__}({', '.join(own)}"
    if not below:
        return f"{head})"
    lines = indent("\n".join(_folded(below)), "  ")
    return f"{head}\n{lines}\n)"


def _folded(parts: list[tuple[str, str]]) -> Iterator[str]:
    """Yield the parts of a layer as text; neighbours in a list that look alike become one."""

    def alike(part: tuple[str, str]) -> tuple[str, str]:
        name, text = part
        return name.rpartition(".")[0] or name, text  # of h.0 and h.1: h

    for (_, text), run in groupby(parts, alike):
        names = [name for name, _ in run]
        last = names[-1].rpartition(".")[2]
        many = len(names) > 1
        yield f"({names[0]}-{last}): {len(names)} x {text}" if many else f"({names[0]}): {text}"


def _state(parameter: Parameter) -> str:
    stored = f" {parameter.stored_as}" if parameter.stored_as else ""
    return stored if parameter.trainable else f"{stored} frozen"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _holds_parts(container: tuple | set | dict) -> bool:
    items = container.values() if isinstance(container, dict) else container
    return any(isinstance(item, Parameter | Layer) for item in items)
