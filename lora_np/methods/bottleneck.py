"""Bottleneck adapters: a small trained network behind or beside a sublayer of each block.

::

    h(x) = s (f(x D^T + c) U^T + e)     D (r, d), c (r,), U (d, r), e (d,),  f: ReLU or GELU

    y = a + h(a),  a = base(x)          "houlsby": behind attention and MLP; "pfeiffer": behind MLP
    y = base(x) + h(x)                  "parallel": beside the MLP

U and e start at zero, so that y = base(x). The block's residual connection adds its input to y, as
it does to base(x) without the adapter. From the outside in, with z = x D^T + c and u = f(z)::

    dU = s dh^T u                      (d, r)       de = s sum of dh
    dz = s (dh U) * f'(z)              (N, r)
    dD = dz^T x                        (r, d)       dc = sum of dz
    dx = dz D                          (N, d)
    serial: da = dy + dx, on which the base goes on;  parallel: dx adds to the base's

f stands between D and U, so no plain layer computes the same, and these adapters do not merge.

Sources: Houlsby et al. (2019), arXiv:1902.00751, section 2.1; Pfeiffer et al. (2020),
arXiv:2005.00247, section 3; He et al. (2021), arXiv:2110.04366, section 3.3 (scaled, parallel).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from lora_np.backend import Array, like
from lora_np.layers import Flops, Layer, Linear, Rng
from lora_np.methods.contract import Adapter, MethodConfig
from lora_np.methods.options import check_positive, check_whole
from lora_np.methods.start import kaiming
from lora_np.methods.targets import module_paths
from lora_np.ops import linear_backward, linear_forward, relu_backward, relu_forward
from lora_np.ops.contract import Need, wanted
from lora_np.ops.fast import gelu_backward, gelu_forward
from lora_np.parameters import Grads, Parameter

NONLINEAR = ("relu", "gelu")
ENDS = ("o_proj", "down_proj")  # the last projections of attention and MLP
PLACED = {"houlsby": ENDS, "pfeiffer": ENDS[1:], "parallel": ENDS[1:]}


class BottleneckCache(NamedTuple):
    """What :func:`bottleneck_backward` reads."""

    down: Any
    act: Any
    up: Any
    gelu: bool
    scale: float


def bottleneck_forward(
    x: Array, D: Array, c: Array, U: Array, e: Array, *, gelu: bool = False, scale: float = 1.0
) -> tuple[Array, BottleneckCache]:
    """Compute h = scale (f(x D^T + c) U^T + e) with f GELU or ReLU."""
    z, c_down = linear_forward(x, D, c)  # (..., r)
    u, c_act = (gelu_forward if gelu else relu_forward)(z)
    h, c_up = linear_forward(u, U, e)  # (..., d)
    return scale * h, BottleneckCache(c_down, c_act, c_up, gelu, scale)


def bottleneck_backward(dh: Array, cache: BottleneckCache, need: Need = None) -> Any:
    """Return (dx, dD, dc, dU, de) of :func:`bottleneck_forward`."""
    need_x, need_D, need_c, need_U, need_e = wanted(need, 5)
    below = need_x or need_D or need_c
    du, dU, de = linear_backward(cache.scale * dh, cache.up, (below, need_U, need_e))
    if du is None:
        return None, None, None, dU, de
    dz: Any = (gelu_backward if cache.gelu else relu_backward)(du, cache.act)[0]
    return *linear_backward(dz, cache.down, (need_x, need_D, need_c)), dU, de


class Bottleneck(Adapter):
    """A sublayer of a block with a bottleneck behind it, or beside it if `parallel`."""

    def __init__(
        self, base: Layer, held: Sequence[Parameter], gelu: bool, scale: float, parallel: bool
    ) -> None:
        self.base, self.gelu, self.scale, self.parallel = base, gelu, scale, parallel
        self.D, self.c, self.U, self.e = held

    def branch(self, x: Array) -> tuple[Array, BottleneckCache]:
        """Return h(x) and its cache."""
        values = (p.value for p in (self.D, self.c, self.U, self.e))
        return bottleneck_forward(x, *values, gelu=self.gelu, scale=self.scale)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (..., d) and the caches."""
        y, c_base = self.base.forward(x, rng)
        h, c_branch = self.branch(x if self.parallel else y)
        return y + h, (c_base, c_branch)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add the gradients of the bottleneck and of what the base trains; return dx."""
        c_base, c_branch = cache
        held, through = (self.D, self.c, self.U, self.e), need_dx or self.base.trainable
        reached = need_dx if self.parallel else through
        dx, *gradients = bottleneck_backward(dy, c_branch, (reached, *(p.trainable for p in held)))
        grads.add_all(held, gradients)
        if not through:
            return None
        if not self.parallel:
            return self.base.backward(dy + dx, c_base, grads, need_dx)
        d_base = self.base.backward(dy, c_base, grads, need_dx)
        return d_base + dx if need_dx else None

    def extend(self, x: Array, memory: Any = None) -> tuple[Array, Any]:
        """Return y for the newest positions, and the base's memory; a bottleneck has none."""
        y, memory = self.base.extend(x, memory)
        return y + self.branch(x if self.parallel else y)[0], memory

    def merged(self) -> Any:
        """Raise ValueError: the nonlinearity between D and U has no plain layer."""
        f = NONLINEAR[self.gelu]
        raise ValueError(f"a bottleneck does not merge: {f} stands between its two products")

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the base's cost and that of the two thin products."""
        thin = 2 * self.D.size
        through = need_dx or (self.base.trainable and not self.parallel)
        below = through or self.D.trainable or self.c.trainable
        backward = thin * (through + self.D.trainable + below + self.U.trainable)
        return self.base.flops(T, need_dx).plus(Flops(2 * thin, backward))


@dataclass(frozen=True)
class BottleneckConfig(MethodConfig):
    """Bottleneck adapters: `placement` is "houlsby", "pfeiffer" or "parallel", r the inner width.

    `target_modules` names some of the placement's layers, such as ("h.0.attn", "mlp").
    """

    placement: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    r: int = 8
    nonlinearity: Literal["relu", "gelu"] = "relu"
    scale: float = 1.0
    target_modules: Sequence[str] | str = ".*"
    layers_to_transform: int | Sequence[int] | None = None

    name = "bottleneck"
    merges = False

    def __post_init__(self) -> None:
        check_whole("r", self.r)
        check_positive("scale", self.scale)

    def places(self, model: Layer) -> list[str]:
        """Return the paths of the sublayers, each of which has its last projection as a part."""
        ends = PLACED[self.placement]

        def fits(layer: Layer) -> bool:
            return any(isinstance(getattr(layer, end, None), Linear) for end in ends)

        kind, blocks = f"layer with {' or '.join(ends)}", self.layers_to_transform
        return module_paths(model, self.target_modules, blocks, fits, kind)

    def wrap(self, path: str, layer: Layer, rng: np.random.Generator) -> Bottleneck:
        """Return `layer` with a bottleneck whose output is zero."""
        last: Any = next(getattr(layer, n) for n in ENDS if hasattr(layer, n))
        d, W = last.d_out, last.W.value
        if self.r > d:
            raise ValueError(f"r = {self.r} for {path or 'the model'} is above its width {d}")
        drawn = (kaiming(rng, (self.r, d)), np.zeros(self.r), np.zeros((d, self.r)), np.zeros(d))
        held = [Parameter(like(x.astype(W.dtype), W)) for x in drawn]
        parallel, scale = self.placement == "parallel", float(self.scale)
        return Bottleneck(layer, held, self.nonlinearity == "gelu", scale, parallel)
