"""LoRA-FA: LoRA whose A stays as it was drawn, so that backward needs no x.

::

    u = x A^T                          (N, r)    kept for backward, in place of x
    y = x W0^T + b + s u B^T
    dB = s dy^T u                      (out, r)
    dx = dy W0 + s (dy B) A            (N, in)

LoRA keeps x (N, in) for dA = s (dy B)^T x. Without dA, u is enough: r numbers a sample. (Dropout
also keeps its mask.)

Source: Zhang et al. (2023), arXiv:2308.03303, section 3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lora_np.backend import Array
from lora_np.layers import Rng
from lora_np.methods.lora import LoRALinear
from lora_np.ops import dropout_mask, linear_backward, linear_forward
from lora_np.ops.linear import rows
from lora_np.parameters import Grads


class LoRAFACache(NamedTuple):
    """What backward reads."""

    linear: Any
    u: Array  # (N, r)
    mask: Array | None  # (..., in), of dropout


class LoRAFALinear(LoRALinear):
    """y = x W0^T + b + scale ((x * mask) A^T) B^T with A frozen; x is not kept for backward."""

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, LoRAFACache]:
        """Return y (..., out) and the cache."""
        mask = dropout_mask(x, self.dropout, rng) if rng is not None and self.dropout else None
        u = rows(x if mask is None else x * mask) @ self.A.value.T  # (N, r)
        y, cache = linear_forward(x, self.W0.value, None if self.b is None else self.b.value)
        y += ((self.scale * u) @ self.B.value.T).reshape(y.shape)
        kept = cache if self.W0.trainable or self.A.trainable else cache._replace(x=None)
        return y, LoRAFACache(kept, u, mask)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add dB, and dA, dW0 and db if they are trained; return dx."""
        linear, u, mask = cache
        need_b = self.b is not None and self.b.trainable
        dx, dW0, db = linear_backward(dy, linear, (need_dx, self.W0.trainable, need_b))
        grads.add_all((self.W0, self.b), (dW0, db))
        g = rows(dy)  # (N, out)
        if self.B.trainable:
            grads.add(self.B, self.scale * (g.T @ u))  # (out, r)
        if not need_dx and not self.A.trainable:
            return None
        du = self.scale * (g @ self.B.value)  # (N, r)
        if self.A.trainable:
            x = linear.x if mask is None else linear.x * mask
            grads.add(self.A, du.T @ rows(x))
        if dx is None:
            return None
        through = (du @ self.A.value).reshape(dx.shape)  # (..., in)
        dx += through if mask is None else through * mask
        return dx
