"""Intrinsic dimension: all D parameters theta of a model move in a random subspace of dimension d.

Only z is trained, and in the structure-aware variant a scale lambda for each of the m layers. The
scales start at one; they count, so that z has d - m entries. For layer i::

    theta = theta0 + P z                        theta (D,), z (d,), P (D, d) random and fixed
    theta_i = theta0_i + lambda_i (P z)_i       structure-aware

theta is linear in z and in lambda::

    dz = P^T (lambda * dtheta)                  dlambda_i = <dtheta_i, (P z)_i>

P is a Fastfood projection (ops/fastfood.py). Start: z = 0. The model at theta is a plain model, so
the method merges. PEFT does not have it: a file of ours holds z, the scales and the seed of P, from
which P is drawn again.

Sources: Li, Farkhoor, Liu and Yosinski (2018), arXiv:1804.08838, equation 2; the scales: SAID,
Aghajanyan, Zettlemoyer and Gupta (2020), arXiv:2012.13255, equation 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array, get_xp
from lora_np.layers import Layer, Rng, rebuild
from lora_np.methods.contract import MethodConfig
from lora_np.methods.whole import WholeModel
from lora_np.ops.contract import Need, expect_shape, wanted
from lora_np.ops.fastfood import Fastfood
from lora_np.parameters import Grads, Packed, Parameter


class SubspaceCache(NamedTuple):
    """What :func:`subspace_backward` reads."""

    P: Fastfood
    layer: Any  # (D,), the number of each entry's layer
    direction: Array  # (D,), P z
    scale: Array | None  # (D,), lambda of each entry's layer


def subspace_forward(
    theta0: Array, z: Array, scales: Array | None = None, *, P: Fastfood, layer: Any = None
) -> tuple[Array, SubspaceCache]:
    """Return theta (D,) for z (d,) and scales (m,), and the cache."""
    expect_shape("theta0", theta0, P.D)
    direction = P.forward(z)
    scale = None if scales is None else scales[layer]
    theta = theta0 + (direction if scale is None else scale * direction)
    return theta, SubspaceCache(P, layer, direction, scale)


def subspace_backward(
    dtheta: Array, cache: SubspaceCache, need: Need = None
) -> tuple[Array | None, Array | None, Array | None]:
    """Return (dtheta0, dz, dscales) of :func:`subspace_forward`."""
    P, layer, direction, scale = cache
    need_theta0, need_z, need_scales = wanted(need, 3)
    dz = dscales = None
    if need_z:
        dz = P.adjoint(dtheta if scale is None else dtheta * scale)
    if need_scales and scale is not None:
        dscales = np.bincount(layer, dtheta * direction).astype(dtheta.dtype)  # in float64
    return dtheta if need_theta0 else None, dz, dscales


class IntrinsicModel(WholeModel):
    """A model whose parameters move in d dimensions; it is used like the model itself.

    Each call builds a model at theta, which goes to backward in the cache: nothing is written to,
    so threads may share this object, and forked processes see the z in shared memory.

    Parameters
    ----------
    model : Layer
        On the host. It stays unchanged.
    d : int
        Number of trained numbers, including the scales of the structured variant.
    rng : numpy.random.Generator or int
        Draws P; an int is a seed.
    structured : bool
        One scale for each layer that holds Parameters directly (a Linear, a LayerNorm, ...).
    names : iterable of str, optional
        The Parameters that move; by default the trainable ones, whose values are copied.

    Attributes
    ----------
    theta0 : array, shape (D,)
    z, scales : Parameter, shapes (d,) or (d - m,), and (m,); without a structure scales is None

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, IntrinsicModel, fit
    >>> rng = np.random.default_rng(0)
    >>> model = IntrinsicModel(GPT(GPTConfig(4, 3, 1, 1, 8), rng), d=50, rng=rng)
    >>> batch = np.array([[0, 1, 2]]), np.array([[1, 2, 3]])  # learn to count
    >>> history = fit(model, lambda: batch, steps=40, lr=0.5, options={"weight_decay": 0.0})
    >>> model.theta0.size, model.z.size, history.loss[-1] < 0.1 * history.loss[0]
    (944, 50, True)
    """

    def __init__(
        self,
        model: Layer,
        d: int,
        rng: np.random.Generator | int,
        structured: bool = False,
        names: Iterable[str] | None = None,
    ) -> None:
        held = model.parameters()
        self.names = [n for n, p in held.items() if p.trainable] if names is None else list(names)
        chosen = {name: held[name] for name in self.names}
        if not chosen:
            raise ValueError("nothing is trainable: every Parameter is frozen")
        if len({p.dtype for p in chosen.values()}) > 1 or any(
            get_xp(p.value) is not np for p in chosen.values()
        ):
            raise ValueError("expected trainable arrays of one dtype, on the host")
        self.base = rebuild(model, _frozen)
        self.method: IntrinsicConfig | None = None
        dtype, m, self.layer, self.scales = self.theta0.dtype, 0, None, None
        if structured:
            layers = list(layers_of(chosen))
            m = len(layers)
            if d <= m:
                raise ValueError(f"d = {d}, expected more than the {m} scales, one for each layer")
            of = [layers.index(_layer(name)) for name in chosen]
            self.layer = np.repeat(of, [p.size for p in chosen.values()])  # (D,)
            self.scales = Parameter(np.ones(m, dtype))
        self.z = Parameter(np.zeros(d - m, dtype))
        draws = np.random.default_rng(rng)
        self.projection = Fastfood(self.theta0.size, d - m, draws, dtype)

    @property
    def theta0(self) -> np.ndarray:
        """The base's values, end to end."""
        return np.concatenate([p.value.reshape(-1) for p in self._chosen(self.base).values()])

    def point(self) -> Any:
        """Return the model at theta; its other values are those of the base."""
        return self._twin()[0]

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return the model's output at theta, and the cache."""
        twin, cache = self._twin()
        y, inner = twin.forward(x, rng)
        return y, (twin, inner, cache)

    def loss(
        self, inputs: Array, targets: Array, rng: Any = None, **options: Any
    ) -> tuple[Array, Any]:
        """Return the loss at theta, and the cache; the arguments are the model's."""
        twin, cache = self._twin()
        loss, inner = twin.loss(inputs, targets, rng, **options)
        return loss, (twin, inner, cache)

    def backward(self, dy: Any, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add dz, dlambda, and the gradients of the base's trainable Parameters; return dx."""
        (twin, inner, c_theta), found = cache, Grads()
        dx = twin.backward(dy, inner, found, need_dx)
        for p, at_theta in zip(self.base.parameters().values(), twin.parameters().values()):
            if p.trainable:
                grads.add(p, found.get(at_theta))
        dtheta = Packed(c_theta.direction, self._chosen(twin)).gather(found)  # (D,)
        held = self.z, self.scales
        need = [False, *(p is not None and p.trainable for p in held)]
        for p, gradient in zip(held, subspace_backward(dtheta, c_theta, need)[1:]):
            if p is not None:
                grads.add(p, gradient)
        return dx

    def _chosen(self, model: Layer) -> dict[str, Parameter]:
        held = model.parameters()
        return {name: held[name] for name in self.names}

    def _twin(self) -> tuple[Any, SubspaceCache]:
        """Return the model at theta, and the cache of theta."""
        chosen, P = self._chosen(self.base), self.projection
        scales = None if self.scales is None else self.scales.value
        theta, cache = subspace_forward(self.theta0, self.z.value, scales, P=P, layer=self.layer)
        places = {chosen[name]: s for name, s in Packed(theta, chosen).slices().items()}

        def make(p: Parameter) -> Parameter:
            return Parameter(theta[places[p]].reshape(p.shape)) if p in places else p

        return rebuild(self.base, make), cache


def _frozen(p: Parameter) -> Parameter:
    return Parameter(p.value.copy(), trainable=False) if p.trainable else p


def layers_of(names: Iterable[str]) -> dict[str, None]:
    """Return the layers that hold Parameters of these names, in order, as SAID counts them."""
    return dict.fromkeys(_layer(name) for name in names)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]  # h.0.attn.q_proj.W is of layer h.0.attn.q_proj


@dataclass(frozen=True)
class IntrinsicConfig(MethodConfig):
    """The options of training in a random subspace: all Parameters of the model move.

    Parameters
    ----------
    d : int
        Number of trained numbers, including the scales of the structured variant.
    structured : bool
        One scale for each layer that holds Parameters directly (SAID).
    seed : int, optional
        Draws P: a file holds it. By default it is drawn when the model is made, and kept in the
        configuration ``model.method``.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import MLP, IntrinsicConfig, inject, merge
    >>> rng = np.random.default_rng(0)
    >>> adapted = inject(MLP(4, 8, rng), IntrinsicConfig(d=5), rng)
    >>> {name: p.shape for name, p in adapted.parameters().items() if p.trainable}
    {'z': (5,)}
    >>> type(merge(adapted)).__name__
    'MLP'
    """

    d: int = 200
    structured: bool = False
    seed: int | None = None

    name = "intrinsic"

    def places(self, model: Layer) -> list[str]:
        """Return the root."""
        return [""]

    def wrap(self, path: str, layer: Layer, rng: np.random.Generator) -> IntrinsicModel:
        """Return the model with z = 0, and with the seed of P in its configuration."""
        seed = int(rng.integers(2**53)) if self.seed is None else self.seed  # exact in any JSON
        made = IntrinsicModel(layer, self.d, seed, self.structured, layer.parameters())
        made.method = replace(self, seed=seed)
        return made
