"""Layers: Parameters and the pairs of ops composed, forward beside backward.

A layer keeps no state between forward and backward; the cache goes back to the caller::

    y, cache = layer.forward(x)
    dx = layer.backward(dy, cache, grads)      # grads.add(parameter, gradient)

``forward(x, rng)`` with a numpy Generator turns dropout on; without one there is none.
``backward(..., need_dx=False)`` says that nobody reads dx: it is then not formed and None returns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array, ShapeError, get_xp, to_device
from lora_np.ops import (
    dropout_backward,
    dropout_forward,
    dropout_mask,
    embedding_backward,
    embedding_forward,
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_forward,
)
from lora_np.ops.fast import (
    attention_backward,
    attention_forward,
    gelu_backward,
    gelu_forward,
    lora_linear_backward,
    lora_linear_forward,
)
from lora_np.ops.linear import LinearCache
from lora_np.parameters import Grads, Parameter

Rng = np.random.Generator | None


class Flops(NamedTuple):
    """Floating-point operations of the matrix products, for one token."""

    forward: int
    backward: int

    def plus(self, other: Flops) -> Flops:
        """Return the sum of the two, entry by entry."""
        return Flops(self.forward + other.forward, self.backward + other.backward)


class Place(NamedTuple):
    """Where other people's files keep a linear layer: the rows from `start` on of `name`.

    A file may stack several of our layers in one matrix of `total` rows.
    """

    name: str
    start: int
    total: int


class Layer:
    """What every layer offers: its parts by name, forward, backward, and its cost.

    Attributes that are Parameters, Layers, or lists of Layers are its parts, in the order in which
    they were set.

    Attributes
    ----------
    fan_in_fan_out : bool
        Whether other people's files keep this model's weights as (in, out). Ours are (out, in).

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig
    >>> model = GPT(GPTConfig(9, 4, 1, 2, 8), np.random.default_rng(0))
    >>> [path for path in model.modules() if path.endswith("_proj")]
    ['h.0.attn.q_proj', 'h.0.attn.k_proj', 'h.0.attn.v_proj', 'h.0.attn.o_proj', 'h.0.mlp.up_proj',
    'h.0.mlp.down_proj']
    """

    fan_in_fan_out: bool = False

    def file_places(self) -> dict[str, Place]:
        """Return the places of linear layers by path; one that is not named keeps its path."""
        return {}

    def forward(self, x: Array, /, rng: Rng = None) -> tuple[Array, Any]:
        """Return (y, cache)."""
        raise TypeError(f"{type(self).__name__} has no forward of its own")

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add the trainable Parameters' gradients to `grads`; return dx, or None if not needed."""
        raise TypeError(f"{type(self).__name__} has no backward of its own")

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the cost of a token in a sequence of `T`; entry-by-entry work is not counted."""
        return Flops(0, 0)

    def parts(self) -> Iterator[tuple[str, Parameter | Layer]]:
        """Yield the direct parts with their names."""
        for name, part in vars(self).items():
            if isinstance(part, Parameter | Layer):
                yield name, part
            elif isinstance(part, list):
                yield from ((f"{name}.{i}", layer) for i, layer in enumerate(part))
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
        """Return all Parameters by dotted path, in order; a tied one appears once."""
        found: dict[str, Parameter] = {}
        seen: set[int] = set()
        for prefix, layer in {"": self, **self.modules()}.items():
            for name, part in layer.parts():
                if isinstance(part, Parameter) and id(part) not in seen:
                    seen.add(id(part))
                    found[f"{prefix}.{name}" if prefix else name] = part
        return found

    @property
    def trainable(self) -> bool:
        """Whether any Parameter in here is trainable."""
        return any(part.trainable for _, part in self.parts())


def _holds_parts(container: tuple | set | dict) -> bool:
    items = container.values() if isinstance(container, dict) else container
    return any(isinstance(item, Parameter | Layer) for item in items)


def rebuild(
    layer: Layer,
    make: Callable[[Parameter], Parameter],
    replace: Callable[[str, Layer], Layer | None] = lambda path, layer: None,
) -> Any:
    """Return a new tree of layers like `layer`, which is left as it was.

    Parameters
    ----------
    layer : Layer
    make : callable
        Gives the new tree's Parameter for one of the old. Called once for each, as `replace` is
        for each layer, so that what is used twice stays one thing.
    replace : callable, optional
        ``replace(path, layer)`` gives the layer that takes this one's place, which is then used
        as it is, or None to go on.
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
            new = copy.copy(part)
            for name, inner in vars(part).items():
                setattr(new, name, build(f"{path}.{name}" if path else name, inner))
        return new

    return build("", layer)


def copy_model(model: Layer, *, dtype: Any = None, device: str | None = None) -> Any:
    """Return an equal model with memory of its own, on another dtype or device if asked.

    Parameters
    ----------
    model : Layer
    dtype : numpy dtype, optional
        E.g. ``np.float64`` to check gradients; by default as it is.
    device : {"cpu", "cuda"}, optional
        By default where it is.

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
        value = p.value.copy() if dtype is None else p.value.astype(dtype)
        return Parameter(value if device is None else to_device(value, device), p.trainable)

    return rebuild(model, make)


def as_pair(
    layer: Layer,
    run: Callable[[Any, Array], tuple[Array, Any]] | None = None,
    seed: int | None = None,
) -> tuple[Callable, Callable, Callable]:
    """See a layer as a pair of pure functions of its input and its Parameters' values.

    This is how a layer goes through ``check_gradients(forward, backward, inputs(x))``.

    Parameters
    ----------
    layer : Layer
    run : callable, optional
        ``run(layer, x) -> (y, cache)``; by default ``layer.forward(x, rng)``.
    seed : int, optional
        Turns dropout on, with the same masks at every call.

    Returns
    -------
    forward, backward : callables
    inputs : callable
        ``inputs(x)`` gives forward's arguments by name.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import MLP, as_pair, check_gradients
    >>> layer = MLP(3, 6, np.random.default_rng(0), dtype=np.float64)
    >>> forward, backward, inputs = as_pair(layer)
    >>> check_gradients(forward, backward, inputs(np.ones((2, 3)))).ok
    True
    """
    names = list(layer.parameters())

    def default_run(twin: Layer, x: Array) -> tuple[Array, Any]:
        return twin.forward(x, None if seed is None else np.random.default_rng(seed))

    def forward(x: Array, *values: Array) -> tuple[Array, Any]:
        of = dict(zip(layer.parameters().values(), values))
        twin = rebuild(layer, lambda p: Parameter(of[p]))
        y, cache = (run or default_run)(twin, x)
        return y, (twin, cache, x.dtype.kind in "fc")

    def backward(dy: Array, cache: Any, need: Sequence[bool] | None = None) -> tuple:
        twin, inner, x_is_real = cache
        parameters = twin.parameters()
        flags = list(need) if need is not None else [True] * (len(parameters) + x_is_real)
        for parameter, flag in zip(parameters.values(), flags[x_is_real:]):
            parameter.trainable = flag
        grads = Grads()
        dx = twin.backward(dy, inner, grads, need_dx=x_is_real and flags[0])
        of_parameters = tuple(grads.get(p) for p in parameters.values())
        return (dx, *of_parameters) if x_is_real else of_parameters

    def inputs(x: Array) -> dict[str, Array]:
        return {"x": x, **{name: layer.parameters()[name].value for name in names}}

    return forward, backward, inputs


# ---------------------------------------------------------------------------------------- leaves


class Linear(Layer):
    """y = x W^T + b, W (out, in).

    Parameters
    ----------
    d_in, d_out : int
        Lengths of an input and an output.
    rng : numpy.random.Generator
        Draws the weights.
    bias : bool
        Whether there is a b; it starts at zero.
    std : float
        Standard deviation of the entries of W.
    dtype : numpy dtype

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Grads, Linear
    >>> layer, grads = Linear(3, 2, np.random.default_rng(0)), Grads()
    >>> y, cache = layer.forward(np.ones((5, 3), np.float32))
    >>> dx = layer.backward(np.ones_like(y), cache, grads)
    >>> y.shape, dx.shape, grads[layer.W].shape, grads[layer.b].tolist()
    ((5, 2), (5, 3), (2, 3), [5.0, 5.0])
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        rng: np.random.Generator,
        *,
        bias: bool = True,
        std: float = 0.02,
        dtype: Any = np.float32,
    ) -> None:
        self.W = Parameter(normal(rng, (d_out, d_in), std, dtype))
        self.b = Parameter(np.zeros(d_out, dtype)) if bias else None

    @classmethod
    def over(cls, W: Parameter, b: Parameter | None) -> Linear:
        """Return a linear layer that holds these Parameters, (out, in) and (out,)."""
        linear = cls.__new__(cls)
        linear.W, linear.b = W, b
        return linear

    @property
    def d_out(self) -> int:
        """The length of an output."""
        return self.W.shape[0]

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (..., out) and the cache."""
        y, cache = linear_forward(x, self.W.value, None if self.b is None else self.b.value)
        return y, lean(cache, self.W)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add dW and db; return dx."""
        need_b = self.b is not None and self.b.trainable
        dx, dW, db = linear_backward(dy, cache, (need_dx, self.W.trainable, need_b))
        grads.add(self.W, dW)
        if self.b is not None:
            grads.add(self.b, db)
        return dx

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return 2 in out for y, as much again for each of dx and dW that is formed."""
        return product_flops(self.W, need_dx)


def normal(rng: np.random.Generator, shape: tuple[int, ...], std: float, dtype: Any) -> np.ndarray:
    """Draw normal numbers with this standard deviation."""
    return (rng.standard_normal(shape) * std).astype(dtype)


def probability(p: float) -> float:
    """Return p if dropout can use it."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout = {p}, expected 0 <= p < 1")
    return p


def lean(cache: LinearCache, W: Parameter) -> LinearCache:
    """Let go of x where W is frozen: only dW would have read it."""
    return cache if W.trainable else cache._replace(x=None)


def product_flops(W: Parameter, need_dx: bool) -> Flops:
    """Return the cost of y = x W^T for one token: 2 in out, and again for dx and for dW."""
    product = 2 * W.size
    return Flops(product, product * (need_dx + W.trainable))


class LoRALinear(Layer):
    """y = x W0^T + b + scale ((x * mask) A^T) B^T over a linear layer's W0 and b.

    Parameters
    ----------
    linear : Linear
        Its Parameters are taken over as they are.
    A, B : Parameter
        Shapes (r, in) and (out, r).
    scale : float
    dropout : float
        Probability with which an entry of the adapter's input is dropped, when rng is given.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Linear, LoRALinear, Parameter
    >>> base = Linear(4, 3, np.random.default_rng(0), dtype=np.float64)
    >>> lora = LoRALinear(base, Parameter(np.ones((1, 4))), Parameter(np.ones((3, 1))), scale=0.5)
    >>> x = np.ones((2, 4))
    >>> (lora.forward(x)[0] - base.forward(x)[0]).round(12).tolist()  # 0.5 B (A x)
    [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    >>> lora.delta().tolist()[0]
    [0.5, 0.5, 0.5, 0.5]
    """

    def __init__(
        self, linear: Linear, A: Parameter, B: Parameter, scale: float, dropout: float = 0.0
    ) -> None:
        self.W0, self.b = linear.W, linear.b
        self.A, self.B = A, B
        self.scale, self.dropout = scale, probability(dropout)

    @property
    def d_out(self) -> int:
        """The length of an output."""
        return self.W0.shape[0]

    @property
    def r(self) -> int:
        """The rank."""
        return self.A.shape[0]

    def own(self) -> dict[str, Parameter]:
        """Return the Parameters that the adapter adds to the base's W0 and b."""
        base = [self.W0, self.b]
        return {name: p for name, p in self.parameters().items() if p not in base}

    def delta(self) -> Array:
        """Form scale B A (out, in): for merging and for looking at, never during training."""
        if not set(self.own().values()) <= {self.A, self.B}:
            raise TypeError(f"{type(self).__name__} adds Parameters: it needs a delta() of its own")
        return self.scale * (self.B.value @ self.A.value)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (..., out) and the cache."""
        mask = dropout_mask(x, self.dropout, rng) if rng is not None and self.dropout else None
        b = None if self.b is None else self.b.value
        return lora_linear_forward(
            x, self.W0.value, self.A.value, self.B.value, b, scale=self.scale, mask=mask
        )

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add dA and dB (and dW0, db where they are not frozen); return dx."""
        held = [self.W0, self.A, self.B, self.b]
        need = [need_dx, *(p is not None and p.trainable for p in held)]
        dx, *gradients = lora_linear_backward(dy, cache, need)
        for parameter, gradient in zip(held, gradients):
            if parameter is not None:
                grads.add(parameter, gradient)
        return dx

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return W0's cost and the adapter's: two thin products, and those of du, dA, dB, dx.

        In a large batch less is done: W0 + s B A is formed once (see ops/fast/lora.py).
        """
        a, b = 2 * self.A.size, 2 * self.B.size
        reach_u = b * (need_dx or self.A.trainable)
        thin = reach_u + a * (need_dx + self.A.trainable) + b * self.B.trainable
        return product_flops(self.W0, need_dx).plus(Flops(a + b, thin))


class Embedding(Layer):
    """Row number `token` of a table W (V, d).

    Parameters
    ----------
    vocab_size, d : int
        V and d.
    rng : numpy.random.Generator
        Draws the weights.
    std : float
        Standard deviation of the entries of W.
    dtype : numpy dtype

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Embedding
    >>> layer = Embedding(10, 4, np.random.default_rng(0))
    >>> y, cache = layer.forward(np.array([[7, 7, 0]]))
    >>> y.shape, bool((y[0, 0] == layer.W.value[7]).all())
    ((1, 3, 4), True)
    """

    def __init__(
        self,
        vocab_size: int,
        d: int,
        rng: np.random.Generator,
        *,
        std: float = 0.02,
        dtype: Any = np.float32,
    ) -> None:
        self.W = Parameter(normal(rng, (vocab_size, d), std, dtype))

    def forward(self, tokens: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return the rows (..., d) of `tokens` (...)."""
        return embedding_forward(tokens, self.W.value)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = False) -> None:
        """Add dW; tokens have no gradient."""
        grads.add(self.W, embedding_backward(dy, cache, (self.W.trainable,))[0])


class LayerNorm(Layer):
    """Layer normalisation with gain gamma (d,) and bias beta (d,).

    Parameters
    ----------
    d : int
        Length of a sample.
    eps : float
        Added to the variance.
    dtype : numpy dtype

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import LayerNorm
    >>> y, cache = LayerNorm(3).forward(np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]))
    >>> y.round(2).tolist()  # the size of a sample is gone
    [[-1.22, 0.0, 1.22], [-1.22, 0.0, 1.22]]
    """

    def __init__(self, d: int, *, eps: float = 1e-5, dtype: Any = np.float32) -> None:
        self.gamma = Parameter(np.ones(d, dtype))
        self.beta = Parameter(np.zeros(d, dtype))
        self.eps = eps

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (..., d) and the cache."""
        return layernorm_forward(x, self.gamma.value, self.beta.value, self.eps)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add dgamma and dbeta; return dx."""
        need = (need_dx, self.gamma.trainable, self.beta.trainable)
        dx, dgamma, dbeta = layernorm_backward(dy, cache, need)
        grads.add(self.gamma, dgamma)
        grads.add(self.beta, dbeta)
        return dx


class Dropout(Layer):
    """Dropout with probability p when rng is given, else nothing.

    Parameters
    ----------
    p : float
        From 0 on, below 1.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Dropout
    >>> x = np.ones(6)
    >>> y, cache = Dropout(0.5).forward(x)
    >>> y is x  # without rng there is none
    True
    >>> y, cache = Dropout(0.5).forward(x, np.random.default_rng(0))
    >>> sorted(set(y.tolist()))
    [0.0, 2.0]
    """

    def __init__(self, p: float) -> None:
        self.p = probability(p)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return x with entries dropped, and the cache (None when nothing was dropped)."""
        if rng is None or self.p == 0.0:
            return x, None
        return dropout_forward(x, dropout_mask(x, self.p, rng))

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Return dx."""
        if cache is None:
            return dy if need_dx else None
        return dropout_backward(dy, cache, (need_dx,))[0]


class Gelu(Layer):
    """GELU in its tanh form.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Gelu
    >>> y, cache = Gelu().forward(np.array([-1.0, 0.0, 1.0]))
    >>> y.round(3).tolist()
    [-0.159, 0.0, 0.841]
    """

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y, like x, and the cache."""
        return gelu_forward(x)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Return dx."""
        return gelu_backward(dy, cache, (need_dx,))[0]


# ----------------------------------------------------------------------------------- composition


class Chain(Layer):
    """Layers one after the other.

    Parameters
    ----------
    *layers : Layer
        The first one sees the input.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Chain, Gelu, Linear
    >>> rng = np.random.default_rng(0)
    >>> chain = Chain(Linear(3, 8, rng), Gelu(), Linear(8, 2, rng))
    >>> list(chain.parameters())
    ['layers.0.W', 'layers.0.b', 'layers.2.W', 'layers.2.b']
    >>> chain.forward(np.ones((5, 3), np.float32))[0].shape
    (5, 2)
    """

    def __init__(self, *layers: Layer) -> None:
        self.layers = list(layers)

    def forward(self, x: Array, rng: Rng = None, need_dx: bool = True) -> tuple[Array, Any]:
        """Return the last layer's output and the list of caches.

        With need_dx=False, the caches that backward with need_dx=False will not read are None.
        """
        caches, reached = [], need_dx
        for layer in self.layers:
            reached = reached or layer.trainable
            x, cache = layer.forward(x, rng)
            caches.append(cache if reached else None)
        return x, caches

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Go back from the last layer, and stop below the lowest trainable one."""
        dx: Array | None = dy
        for layer, inner, needed in reversed(list(zip(self.layers, cache, self._needs(need_dx)))):
            if dx is None:
                break
            dx = layer.backward(dx, inner, grads, needed)
        return dx if need_dx else None

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the layers' costs added up; what is frozen and needs no dx goes back for free."""
        total = Flops(0, 0)
        for layer, needed in zip(self.layers, self._needs(need_dx)):
            total = total.plus(layer.flops(T, needed))
        return total

    def _needs(self, need_dx: bool) -> list[bool]:
        """Return for each layer whether its dx is read: by the caller or a trainable one below."""
        needs = []
        for layer in self.layers:
            needs.append(need_dx)
            need_dx = need_dx or layer.trainable
        return needs


class Residual(Layer):
    """y = x + layer(x), so dx = dy + the layer's dx.

    Parameters
    ----------
    layer : Layer
        Its output has the shape of its input.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Gelu, Residual
    >>> y, cache = Residual(Gelu()).forward(np.array([-10.0, 10.0]))
    >>> y.round(6).tolist()  # x + gelu(x)
    [-10.0, 20.0]
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return x + layer(x) and the layer's cache."""
        y, cache = self.layer.forward(x, rng)
        return x + y, cache

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Return dy + the layer's dx."""
        dx = self.layer.backward(dy, cache, grads, need_dx)
        return None if dx is None else dy + dx

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the layer's cost."""
        return self.layer.flops(T, need_dx)


class Composed(Layer):
    """A layer whose parts have names, and whose meaning is a :class:`Chain` of them."""

    def path(self) -> Chain:
        """Return the chain that the named parts form."""
        raise TypeError(f"{type(self).__name__} has no path of its own")

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Follow the path."""
        return self.path().forward(x, rng)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Follow the path back."""
        return self.path().backward(dy, cache, grads, need_dx)

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the path's cost."""
        return self.path().flops(T, need_dx)


class MLP(Composed):
    """down_proj(gelu(up_proj(x))), d -> d_hidden -> d.

    Parameters
    ----------
    d, d_hidden : int
        Widths outside and inside.
    rng : numpy.random.Generator
        Draws the weights.
    std_down : float
        Standard deviation of down_proj's weights; up_proj's is 0.02.
    dtype : numpy dtype

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import MLP
    >>> mlp = MLP(4, 16, np.random.default_rng(0))
    >>> {name: p.shape for name, p in mlp.parameters().items()}
    {'up_proj.W': (16, 4), 'up_proj.b': (16,), 'down_proj.W': (4, 16), 'down_proj.b': (4,)}
    """

    def __init__(
        self,
        d: int,
        d_hidden: int,
        rng: np.random.Generator,
        *,
        std_down: float = 0.02,
        dtype: Any = np.float32,
    ) -> None:
        self.up_proj = Linear(d, d_hidden, rng, dtype=dtype)
        self.act = Gelu()
        self.down_proj = Linear(d_hidden, d, rng, std=std_down, dtype=dtype)

    def path(self) -> Chain:
        """Return up_proj, GELU, down_proj."""
        return Chain(self.up_proj, self.act, self.down_proj)


class AttentionLayerCache(NamedTuple):
    """Caches of the four projections and of the attention between them."""

    q: Any
    k: Any
    v: Any
    attention: Any
    o: Any


class CausalSelfAttention(Layer):
    """Every position reads the positions at or before it, in n_head heads of d / n_head.

    o_proj(concat over heads of attention(q, k, v)), with q, k, v = q_proj(x), k_proj(x), v_proj(x).

    Parameters
    ----------
    d : int
        Width, a multiple of n_head.
    n_head : int
    rng : numpy.random.Generator
        Draws the weights.
    std_out : float
        Standard deviation of o_proj's weights; that of the others is 0.02.
    dtype : numpy dtype

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import CausalSelfAttention
    >>> rng = np.random.default_rng(0)
    >>> layer = CausalSelfAttention(8, 2, rng, dtype=np.float64)
    >>> x = rng.standard_normal((1, 5, 8))
    >>> later = x.copy()
    >>> later[:, 3:] += 1.0  # nothing before position 3 may notice
    >>> same = np.isclose(layer.forward(x)[0], layer.forward(later)[0]).all(axis=2)
    >>> same.tolist()
    [[True, True, True, False, False]]
    """

    def __init__(
        self,
        d: int,
        n_head: int,
        rng: np.random.Generator,
        *,
        std_out: float = 0.02,
        dtype: Any = np.float32,
    ) -> None:
        if n_head < 1 or d % n_head:
            raise ShapeError(f"d_model = {d} does not divide into n_head = {n_head} equal heads")
        self.n_head = n_head
        self.q_proj = Linear(d, d, rng, dtype=dtype)
        self.k_proj = Linear(d, d, rng, dtype=dtype)
        self.v_proj = Linear(d, d, rng, dtype=dtype)
        self.o_proj = Linear(d, d, rng, std=std_out, dtype=dtype)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (..., T, d) and the cache."""
        q, q_cache = self.q_proj.forward(x, rng)  # (..., T, d)
        k, k_cache = self.k_proj.forward(x, rng)
        v, v_cache = self.v_proj.forward(x, rng)
        heads, attention = attention_forward(self._split(q), self._split(k), self._split(v))
        y, o_cache = self.o_proj.forward(self._join(heads), rng)  # (..., T, d)
        return y, AttentionLayerCache(q_cache, k_cache, v_cache, attention, o_cache)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Go back through o_proj, the attention, and the three projections, whose dx add."""
        inward = [self.q_proj, self.k_proj, self.v_proj]
        needs = self._inward_needs(need_dx)
        dheads = self.o_proj.backward(dy, cache.o, grads, any(needs))  # (..., T, d)
        if dheads is None:
            return None
        dqkv = attention_backward(self._split(dheads), cache.attention, needs)
        dx = None
        for proj, inner, d_head in zip(inward, (cache.q, cache.k, cache.v), dqkv):
            if d_head is not None:
                part = proj.backward(self._join(d_head), inner, grads, need_dx)  # (..., T, d)
                dx = part if dx is None else dx + part
        return dx

    def extend(self, x: Array, past: Any) -> tuple[Array, Any]:
        """Return y for the newest positions `x` (..., T, d), and keys and values to remember.

        `past` is None or what the last call returned: the KV cache.
        """
        q, k, v = (
            self._split(proj.forward(x)[0]) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # (..., n_head, T, d_head)
        if past is not None:
            xp = get_xp(x)
            k = xp.concatenate([past[0], k], axis=-2)  # (..., n_head, T_past + T, d_head)
            v = xp.concatenate([past[1], v], axis=-2)
        heads, _ = attention_forward(q, k, v)
        return self.o_proj.forward(self._join(heads))[0], (k, v)

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the projections' cost and that of the T x T products, 2 T d each."""
        needs = self._inward_needs(need_dx)
        need_q, need_k, need_v = needs
        product = 2 * T * self.q_proj.d_out
        scores = (need_q or need_k) + need_q + need_k + need_v
        total = Flops(2 * product, scores * product).plus(self.o_proj.flops(T, any(needs)))
        for proj in (self.q_proj, self.k_proj, self.v_proj):
            total = total.plus(proj.flops(T, need_dx))
        return total

    def _inward_needs(self, need_dx: bool) -> list[bool]:
        return [need_dx or p.trainable for p in (self.q_proj, self.k_proj, self.v_proj)]

    def _split(self, x: Array) -> Array:
        heads = x.reshape(*x.shape[:-1], self.n_head, -1)  # (..., T, n_head, d_head)
        return heads.swapaxes(-2, -3)  # (..., n_head, T, d_head)

    def _join(self, heads: Array) -> Array:
        x = heads.swapaxes(-2, -3)  # (..., T, n_head, d_head)
        return x.reshape(*x.shape[:-2], -1)  # (..., T, d)
