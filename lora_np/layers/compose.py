"""Layers made of layers: a chain, a residual connection, and the MLP."""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_np.backend import Array
from lora_np.layers.base import Flops, Layer, Rng
from lora_np.layers.basic import Gelu
from lora_np.layers.linear import Linear
from lora_np.ops import swiglu_backward, swiglu_forward
from lora_np.parameters import Grads


class Chain(Layer):
    """Layers one after the other.

    Parameters
    ----------
    *layers : Layer
        In the order of forward.

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

        With need_dx=False, caches that ``backward(..., need_dx=False)`` does not read are None.
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

    def extend(self, x: Array, memory: Any = None) -> tuple[Array, Any]:
        """Extend each layer in turn; return the last y and the list of the layers' memories."""
        remembered = []
        for layer, before in zip(self.layers, memory or [None] * len(self.layers)):
            x, now = layer.extend(x, before)
            remembered.append(now)
        return x, remembered

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the sum of the layers' costs; layers that backward does not reach cost less."""
        total = Flops(0, 0)
        for layer, needed in zip(self.layers, self._needs(need_dx)):
            total = total.plus(layer.flops(T, needed))
        return total

    def _needs(self, need_dx: bool) -> list[bool]:
        """Return for each layer whether dx is read, by the caller or a trainable layer below."""
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

    def extend(self, x: Array, memory: Any = None) -> tuple[Array, Any]:
        """Return x + the layer's y, and the layer's memory."""
        y, memory = self.layer.extend(x, memory)
        return x + y, memory

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the layer's cost."""
        return self.layer.flops(T, need_dx)


class Composed(Layer):
    """A layer with named parts that computes a :class:`Chain` of them."""

    def path(self) -> Chain:
        """Return the chain of the parts."""
        raise TypeError(f"{type(self).__name__} has no path of its own")

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Run the path forward."""
        return self.path().forward(x, rng)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Run the path backward."""
        return self.path().backward(dy, cache, grads, need_dx)

    def extend(self, x: Array, memory: Any = None) -> tuple[Array, Any]:
        """Run the path for the newest positions."""
        return self.path().extend(x, memory)

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


class GatedMLP(Layer):
    """down_proj(silu(gate_proj(x)) * up_proj(x)), d -> d_hidden -> d.

    Parameters
    ----------
    gate_proj, up_proj, down_proj : Linear
        Twice d -> d_hidden, and back.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GatedMLP, Linear
    >>> rng = np.random.default_rng(0)
    >>> mlp = GatedMLP(*(Linear(*shape, rng, bias=False) for shape in [(4, 8), (4, 8), (8, 4)]))
    >>> {name: p.shape for name, p in mlp.parameters().items()}
    {'gate_proj.W': (8, 4), 'up_proj.W': (8, 4), 'down_proj.W': (4, 8)}
    """

    def __init__(self, gate_proj: Linear, up_proj: Linear, down_proj: Linear) -> None:
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (..., d) and the four caches."""
        gate, c_gate = self.gate_proj.forward(x, rng)  # (..., d_hidden)
        up, c_up = self.up_proj.forward(x, rng)  # (..., d_hidden)
        hidden, c_product = swiglu_forward(gate, up)  # (..., d_hidden)
        y, c_down = self.down_proj.forward(hidden, rng)  # (..., d)
        return y, (c_gate, c_up, c_product, c_down)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Go back through down_proj and the product; the two parts of dx add up."""
        c_gate, c_up, c_product, c_down = cache
        need = [need_dx or proj.trainable for proj in (self.gate_proj, self.up_proj)]
        dhidden = self.down_proj.backward(dy, c_down, grads, any(need))  # (..., d_hidden)
        if dhidden is None:
            return None
        dgate, dup = swiglu_backward(dhidden, c_product, need)  # (..., d_hidden)
        dx = None
        for proj, d, inner in ((self.gate_proj, dgate, c_gate), (self.up_proj, dup, c_up)):
            if d is not None:
                part = proj.backward(d, inner, grads, need_dx)  # (..., d)
                dx = part if dx is None else dx + part
        return dx

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the sum of the three products' costs."""
        inner = need_dx or self.gate_proj.trainable or self.up_proj.trainable
        total = self.down_proj.flops(T, inner)
        for proj in (self.gate_proj, self.up_proj):
            total = total.plus(proj.flops(T, need_dx))
        return total
