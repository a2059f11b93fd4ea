"""A model as a tree of layers: rebuild it with other parts, copy it, check it as a pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lora_np.backend import Array
from lora_np.layers.base import Layer
from lora_np.parameters import Grads, Parameter


def rebuild(
    layer: Layer,
    make: Callable[[Parameter], Parameter],
    replace: Callable[[str, Layer], Layer | None] = lambda path, layer: None,
) -> Any:
    """Return a new tree of layers like `layer`, which stays unchanged.

    Parameters
    ----------
    layer : Layer
    make : callable
        ``make(parameter)`` returns the new Parameter for an old one. `make` is called once for each
        Parameter and `replace` once for each layer, so that shared parts stay shared.
    replace : callable, optional
        ``replace(path, layer)`` returns a layer to use in place of this one, or None to rebuild
        this layer's parts.
    """
    memo: dict[int, Any] = {}

    def build(path: str, part: Any) -> Any:
        if isinstance(part, list):
            return [build(f"{path}.{i}", item) for i, item in enumerate(part)]
        if not isinstance(part, Parameter | Layer):
            return part
        if id(part) not in memo:
            memo[id(part)] = make(part) if isinstance(part, Parameter) else descend(path, part)
        return memo[id(part)]

    def descend(path: str, part: Layer) -> Layer:
        new = replace(path, part)
        if new is None:
            new = object.__new__(type(part))  # all that it holds is set below
            for name, inner in vars(part).items():
                setattr(new, name, build(f"{path}.{name}" if path else name, inner))
        return new

    return build("", layer)


def copy_model(
    model: Layer, *, dtype: Any = None, device: str | None = None, decode: bool = False
) -> Any:
    """Return an equal model with its own memory, optionally with another dtype or device.

    Parameters
    ----------
    model : Layer
    dtype : numpy dtype, optional
        For example ``np.float64`` to check gradients; by default unchanged. Stored Parameters keep
        their bytes: only the dtype in which they are decoded changes.
    device : {"cpu", "cuda"}, optional
        By default unchanged.
    decode : bool
        Decode stored Parameters to arrays, which can be trained and changed.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Linear, copy_model
    >>> layer = Linear(3, 2, np.random.default_rng(0))
    >>> twin = copy_model(layer, dtype=np.float64)
    >>> bool((twin.W.value == layer.W.value).all()), np.shares_memory(twin.W.value, layer.W.value)
    (True, False)
    """

    def make(p: Parameter) -> Parameter:
        return (p.decoded() if decode else p).copy(dtype, device)

    return rebuild(model, make)


def as_pair(
    layer: Layer,
    run: Callable[..., tuple[Array, Any]] | None = None,
    seed: int | None = None,
) -> tuple[Callable, Callable, Callable]:
    """Return a layer as a pair, for ``check_gradients(forward, backward, inputs(x))``.

    Parameters
    ----------
    layer : Layer
    run : callable, optional
        ``run(layer, x) -> (y, cache)``; by default ``layer.forward``, with x or with x and c.
    seed : int, optional
        Turns dropout on, with the same masks at every call.

    Returns
    -------
    forward, backward : callables
    inputs : callable
        ``inputs(x)``, or ``inputs(x, c)``, returns forward's arguments by name.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import MLP, as_pair, check_gradients
    >>> layer = MLP(3, 6, np.random.default_rng(0), dtype=np.float64)
    >>> forward, backward, inputs = as_pair(layer)
    >>> check_gradients(forward, backward, inputs(np.ones((2, 3)))).ok
    True
    """
    held = _with_constants(rebuild(layer, lambda p: p))
    own = list(_differentiated(held).values())
    names = ("x", "c") if layer.conditioned else ("x",)

    def forward(*arguments: Array) -> tuple[Array, Any]:
        inputs, values = arguments[: len(names)], arguments[len(names) :]
        of = dict(zip(own, values))
        twin = rebuild(held, lambda p: Parameter(of[p]) if p in of else p)
        y, cache = (run or _forward_of(seed))(twin, *inputs)
        return y, (twin, cache, [x.dtype.kind in "fc" for x in inputs])

    def backward(dy: Array, cache: Any, need: Sequence[bool] | None = None) -> tuple:
        twin, inner, real = cache
        parameters, grads = _differentiated(twin), Grads()
        flags = iter([True] * (sum(real) + len(parameters)) if need is None else need)
        wanted = [next(flags) if is_real else False for is_real in real]
        for parameter in parameters.values():
            parameter.trainable = next(flags)
        found = twin.backward(dy, inner, grads, need_dx=wanted[0])
        if layer.conditioned:  # such a layer forms dc whether or not it is needed
            found = found[0], found[1] if wanted[1] else None
        of_inputs = found if layer.conditioned else (found,)
        kept = [d for d, is_real in zip(of_inputs, real) if is_real]
        return (*kept, *(grads.get(p) for p in parameters.values()))

    def inputs(*of_layer: Array) -> dict[str, Array]:
        values = {name: p.value for name, p in _differentiated(layer).items()}
        return {**dict(zip(names, of_layer)), **values}

    return forward, backward, inputs


def _differentiated(layer: Layer) -> dict[str, Parameter]:
    """Return the Parameters on which the output depends: all but those of ``moving()``."""
    moving = set(layer.moving())
    return {name: p for name, p in layer.parameters().items() if p not in moving}


def _forward_of(seed: int | None) -> Callable[..., tuple[Array, Any]]:
    """Return a function that runs a layer, with the masks of this seed at every call."""

    def run(layer: Any, *inputs: Array) -> tuple[Array, Any]:
        return layer.forward(*inputs, None if seed is None else np.random.default_rng(seed))

    return run


def _with_constants(layer: Layer) -> Layer:
    """Let every layer in here hold the constants still that it has now."""
    for module in (layer, *layer.modules().values()):
        module.fixed = module.constants() or None
    return layer
