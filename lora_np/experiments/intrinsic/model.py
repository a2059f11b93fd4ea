"""The model: all D trainable parameters move in a random subspace of d dimensions.

Only z is trained (Li et al. 2018)::

    theta = theta0 + P z                        theta (D,), z (d,), P (D, d) random and fixed
    dL/dz = P^T dL/dtheta

The structure-aware variant (SAID, Aghajanyan et al. 2020) gives each of the m layers a scale of
its own, which is also trained and starts at one. The m scales count, so z has d - m entries. For
layer i::

    theta_i = theta0_i + lambda_i (P z)_i       dL/dlambda_i = <dL/dtheta_i, (P z)_i>

Sources: Li, Farkhoor, Liu and Yosinski, arXiv:1804.08838; Aghajanyan, Zettlemoyer and Gupta,
arXiv:2012.13255.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array, get_xp
from lora_np.experiments.intrinsic.fastfood import Fastfood
from lora_np.layers import Layer, rebuild
from lora_np.parameters import Grads, Packed, Parameter
from lora_np.train.gradient import number_of


class IntrinsicCache(NamedTuple):
    """What backward reads: the model at theta, its packed form and cache, P z, and the scales."""

    twin: Any
    packed: Packed
    inner: Any
    direction: np.ndarray
    scale: np.ndarray | None


class IntrinsicModel:
    """A model whose trainable parameters move in d dimensions; :func:`lora_np.fit` trains it.

    The loss builds a model at theta0 + P z each time, which goes to backward in the cache. So
    neither this object nor `model` is written to: threads may share this object, and forked
    processes see the z in shared memory.

    Parameters
    ----------
    model : Layer
        With ``loss`` and ``backward``, on the host. Its trainable values are copied as theta0; its
        frozen Parameters are used as they are.
    d : int
        Number of trained numbers, including the scales of the structured variant.
    rng : numpy.random.Generator
        Draws P.
    structured : bool
        One scale for each layer that holds Parameters directly (a Linear, a LayerNorm, ...).

    Attributes
    ----------
    theta0 : array, shape (D,)
    z : Parameter, shape (d,), or (d - m,) where structured
        Starts at zero.
    scales : Parameter, shape (m,), or None
        Start at one.

    Raises
    ------
    ValueError
        If d does not fit, nothing is trainable, or the values are of several dtypes or on a GPU.

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
        self, model: Layer, d: int, rng: np.random.Generator, structured: bool = False
    ) -> None:
        chosen = {name: p for name, p in model.parameters().items() if p.trainable}
        if not chosen:
            raise ValueError("nothing is trainable: every Parameter is frozen")
        if len({p.dtype for p in chosen.values()}) > 1 or any(
            get_xp(p.value) is not np for p in chosen.values()
        ):
            raise ValueError("expected trainable arrays of one dtype, on the host")
        self.model = model
        self.theta0 = np.concatenate([p.value.reshape(-1) for p in chosen.values()])  # (D,)
        self.places = {chosen[n]: s for n, s in Packed(self.theta0, chosen).slices().items()}
        dtype, m, self.scales = self.theta0.dtype, 0, None
        if structured:
            names = list(layers_of(chosen))
            m = len(names)
            if d <= m:
                raise ValueError(f"d = {d}, expected more than the {m} scales, one for each layer")
            of = [names.index(_layer(name)) for name in chosen]
            self.layer = np.repeat(of, [p.size for p in chosen.values()])  # (D,)
            self.scales = Parameter(np.ones(m, dtype))
        self.projection = Fastfood(self.theta0.size, d - m, rng, dtype)
        self.z = Parameter(np.zeros(d - m, dtype))

    def parameters(self) -> dict[str, Parameter]:
        """Return the trained Parameters: z, and the scales of the structured variant."""
        return {"z": self.z} if self.scales is None else {"z": self.z, "scales": self.scales}

    def point(self) -> Any:
        """Return the model at theta0 + P z; its frozen values are those of the base."""
        return self._twin()[0]

    def loss(
        self, inputs: Array, targets: Array, rng: Any = None, **options: Any
    ) -> tuple[Array, IntrinsicCache]:
        """Return the loss at theta0 + P z, and the cache; the arguments are the model's."""
        twin, packed, direction, scale = self._twin()
        loss, inner = twin.loss(inputs, targets, rng, **options)
        return loss, IntrinsicCache(twin, packed, inner, direction, scale)

    def number(self, batch: Any) -> int:
        """Return how many things the model's loss averages over."""
        return number_of(self.model, batch)

    def backward(self, dy: Any, cache: IntrinsicCache, grads: Grads) -> None:
        """Add the gradients of z, P^T dtheta, and of the scales."""
        inner = Grads()
        cache.twin.backward(dy, cache.inner, inner)
        dtheta = cache.packed.gather(inner)  # (D,)
        if self.scales is not None and cache.scale is not None:
            by_layer = np.bincount(self.layer, dtheta * cache.direction)  # (m,), float64
            grads.add(self.scales, by_layer.astype(dtheta.dtype))
            dtheta = dtheta * cache.scale
        grads.add(self.z, self.projection.adjoint(dtheta))

    def _twin(self) -> tuple[Any, Packed, np.ndarray, np.ndarray | None]:
        """Return the model at theta, its theta, P z (D,), and the scale of every entry (D,)."""
        direction = self.projection.forward(self.z.value)
        scale = None if self.scales is None else self.scales.value[self.layer]
        theta = self.theta0 + (direction if scale is None else scale * direction)

        def make(p: Parameter) -> Parameter:
            place = self.places.get(p)
            return p if place is None else Parameter(theta[place].reshape(p.shape))

        twin = rebuild(self.model, make)
        trained = {name: p for name, p in twin.parameters().items() if p.trainable}
        return twin, Packed(theta, trained), direction, scale


def layers_of(names: Iterable[str]) -> dict[str, None]:
    """Return the layers that hold Parameters of these names, in order, as SAID counts them."""
    return dict.fromkeys(_layer(name) for name in names)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]  # h.0.attn.q_proj.W is of layer h.0.attn.q_proj
