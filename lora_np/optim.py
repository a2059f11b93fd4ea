"""Optimizers over one flat vector, learning-rate schedules, and clipping.

With g the gradient, t = 1, 2, ... the step and lr its learning rate::

    SGD     u = mu u + g;  w = w - lr u
    Adam    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
            w = w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    AdamW   w = w - lr weight_decay w, on matrices only; then Adam's step

Sources: Kingma and Ba (2014), arXiv:1412.6980, algorithm 1; Loshchilov and Hutter (2017),
arXiv:1711.05101, algorithm 2 (the paper scales the decay by the schedule alone; libraries, and this
file, scale it by lr as well); cosine schedule: the same authors (2016), arXiv:1608.03983.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lora_np.backend import Array, get_xp
from lora_np.parameters import Packed

CHUNK = 1 << 16  # entries; each entry is updated alone, so chunks do not change the result


class SGD:
    """Stochastic gradient descent, optionally with momentum.

    Parameters
    ----------
    packed : Packed
        Its vector is updated in place.
    momentum : float
        mu in the module's formula; 0 for none.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import SGD, Parameter, pack
    >>> w = Parameter(np.array([1.0, -1.0]))
    >>> SGD(pack({"w": w})).step(np.array([0.5, 0.5]), lr=0.1)
    >>> w.value.round(6).tolist()
    [0.95, -1.05]
    """

    def __init__(self, packed: Packed, momentum: float = 0.0) -> None:
        self.packed, self.momentum = packed, momentum
        self.t = 0
        self.u = get_xp(packed.vector).zeros_like(packed.vector) if momentum else None

    def step(self, gradient: Array, lr: float) -> None:
        """Move the vector (n,) against `gradient` (n,)."""
        self.t += 1
        update = gradient
        if self.u is not None:
            self.u *= self.momentum
            self.u += gradient
            update = self.u
        self.packed.vector -= lr * update

    def state(self) -> dict[str, Array]:
        """Return the arrays that the next step depends on, by name; `t` counts the steps."""
        return {} if self.u is None else {"u": self.u}


class Adam:
    """Adam: each entry moves by its mean gradient over the root of its mean squared gradient.

    Parameters
    ----------
    packed : Packed
        Its vector is updated in place.
    betas : pair of float
        b1 and b2.
    eps : float
        Added to the root.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Adam, Parameter, pack
    >>> w = Parameter(np.zeros(3))
    >>> Adam(pack({"w": w})).step(np.array([1000.0, -0.001, 0.0]), lr=0.1)
    >>> w.value.round(4).tolist()  # the first step has size lr, however large the gradient is
    [-0.1, 0.1, 0.0]
    """

    def __init__(
        self, packed: Packed, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.packed, self.betas, self.eps = packed, betas, eps
        self.m = get_xp(packed.vector).zeros_like(packed.vector)
        self.v = get_xp(packed.vector).zeros_like(packed.vector)
        self.t = 0

    def step(self, gradient: Array, lr: float) -> None:
        """Move the vector (n,) against `gradient` (n,)."""
        (b1, b2), self.t = self.betas, self.t + 1
        for start in range(0, len(self.m), CHUNK):  # a chunk stays in the CPU's cache
            part = slice(start, start + CHUNK)
            g, m, v = gradient[part], self.m[part], self.v[part]
            m *= b1
            m += (1.0 - b1) * g
            v *= b2
            v += (1.0 - b2) * (g * g)
            denominator = get_xp(v).sqrt(v / (1.0 - b2**self.t))
            denominator += self.eps
            self.packed.vector[part] -= (lr / (1.0 - b1**self.t)) * (m / denominator)

    def state(self) -> dict[str, Array]:
        """Return the arrays that the next step depends on, by name; `t` counts the steps."""
        return {"m": self.m, "v": self.v}


class AdamW(Adam):
    """Adam with decoupled weight decay, on matrices only (not on biases and gains).

    Parameters
    ----------
    packed : Packed
    betas, eps : pair of float, float
        As in :class:`Adam`.
    weight_decay : float
        Each step multiplies the matrices by 1 - lr weight_decay first.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import AdamW, Parameter, pack
    >>> W, b = Parameter(np.ones((2, 2))), Parameter(np.ones(2))
    >>> AdamW(pack({"W": W, "b": b}), weight_decay=0.5).step(np.zeros(6), lr=0.1)
    >>> W.value.tolist(), b.value.tolist()  # 1 - 0.1 x 0.5; a bias does not decay
    ([[0.95, 0.95], [0.95, 0.95]], [1.0, 1.0])
    """

    def __init__(
        self,
        packed: Packed,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(packed, betas, eps)
        self.weight_decay = weight_decay
        self.matrices = [
            place
            for name, place in packed.slices().items()
            if len(packed.parameters[name].shape) >= 2
        ]

    def step(self, gradient: Array, lr: float) -> None:
        """Shrink the matrices, then take Adam's step."""
        if self.weight_decay:
            for place in self.matrices:
                self.packed.vector[place] *= 1.0 - lr * self.weight_decay
        super().step(gradient, lr)


OPTIMIZERS = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


def make_optimizer(name: str, packed: Packed, **options: Any) -> SGD | Adam:
    """Return the optimizer of this name: "sgd", "adam" or "adamw".

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Parameter, pack
    >>> from lora_np.optim import make_optimizer
    >>> make_optimizer("sgd", pack({"w": Parameter(np.zeros(2))}), momentum=0.9).momentum
    0.9
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer {name!r} is unknown: choose {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name](packed, **options)


def schedule(
    name: str, steps: int, *, warmup: int = 0, floor: float = 0.0
) -> Callable[[int], float]:
    """Return the factor on the learning rate as a function of the step, 0 .. steps - 1.

    Parameters
    ----------
    name : {"constant", "linear", "cosine"}
        The form after the warmup: 1 throughout, or a fall from 1 towards `floor`. The factor would
        reach `floor` at step `steps`, one after the last, so that the last step still moves.
    steps : int
        Number of steps.
    warmup : int
        The factor rises linearly over this many steps: 1 / warmup, 2 / warmup, ..., 1.
    floor : float
        Not used by "constant".

    Returns
    -------
    callable

    Examples
    --------
    >>> from lora_np import schedule
    >>> factor = schedule("linear", steps=6, warmup=2)
    >>> [factor(step) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if name not in ("constant", "linear", "cosine"):
        raise ValueError(f"schedule {name!r} is unknown: choose constant, linear or cosine")
    if not 0 <= warmup <= steps:
        raise ValueError(f"warmup = {warmup}, expected 0 to steps = {steps}")

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, steps - warmup)  # 0 <= done < 1
        if name == "constant":
            return 1.0
        fall = done if name == "linear" else (1.0 - math.cos(math.pi * done)) / 2.0
        return 1.0 - (1.0 - floor) * fall

    return factor


def global_norm(gradient: Array) -> float:
    """Return the Euclidean norm of the flat gradient (n,).

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.optim import global_norm
    >>> global_norm(np.array([3e30, 4e30], np.float32)) / 1e30 > 4.99  # no square overflows
    True
    """
    # Scaled by the largest entry first: squares of float32 numbers overflow from 1e19 on.
    largest = float(abs(gradient).max())
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    scaled = gradient / largest
    return largest * math.sqrt(float(scaled @ scaled))


def clip_by_global_norm(gradient: Array, max_norm: float) -> tuple[Array, float]:
    """Shorten the flat gradient (n,) to at most `max_norm`, keeping its direction.

    Parameters
    ----------
    gradient : array, shape (n,)
    max_norm : float

    Returns
    -------
    clipped : array, shape (n,)
        `gradient` itself if its norm is at most `max_norm`.
    norm : float
        The norm before clipping.

    References
    ----------
    Pascanu, Mikolov and Bengio (2013), arXiv:1211.5063, algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import clip_by_global_norm
    >>> clipped, norm = clip_by_global_norm(np.array([3.0, 4.0]), max_norm=1.0)
    >>> norm, clipped.round(6).tolist()
    (5.0, [0.6, 0.8])
    """
    norm = global_norm(gradient)
    if norm > max_norm:
        gradient = gradient * (max_norm / norm)
    return gradient, norm
