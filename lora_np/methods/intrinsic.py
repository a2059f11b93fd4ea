"""Intrinsic dimension: all D parameters theta of a model move in a random subspace of dimension d.

Only z is trained, and in the structure-aware variant a scale lambda for each of the m layers::

    theta = theta0 + P z                        theta (D,), z (d,), P (D, d) random and fixed
    theta_i = theta0_i + lambda_i (P z)_i       structure-aware, layer i; z (d - m,), lambda (m,)

z starts at zero and lambda at one, so theta starts at theta0. The scales count in d.

subspace.py derives the gradients; ops/fastfood.py is P. The model at theta is a plain model, so the
method merges. PEFT does not have it: our file holds z, the scales, and the seed that draws P again.

Sources: Li, Farkhoor, Liu and Yosinski (2018), arXiv:1804.08838, section 2; the scales: SAID,
Aghajanyan, Zettlemoyer and Gupta (2020), arXiv:2012.13255, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lora_np.backend import Array, get_xp
from lora_np.layers import Layer, rebuild
from lora_np.methods.contract import MethodConfig
from lora_np.methods.options import check_whole
from lora_np.methods.subspace import layer_numbers, subspace_backward, subspace_forward
from lora_np.methods.whole import WholeModel
from lora_np.ops.fastfood import Fastfood
from lora_np.parameters import Grads, Packed, Parameter


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
        check_whole("seed", rng if isinstance(rng, int) else None, 0)
        held = model.parameters()
        self.names = [n for n, p in held.items() if p.trainable] if names is None else list(names)
        chosen = {name: held[name] for name in self.names}
        if not chosen:
            raise ValueError("nothing is trainable: every Parameter is frozen")
        ours = {get_xp(p.value) for p in chosen.values()} == {np}
        if not ours or len({p.dtype for p in chosen.values()}) > 1:
            raise ValueError("expected trainable arrays of one dtype, on the host")
        self.base = rebuild(model, lambda p: Parameter(p.value.copy(), False) if p.trainable else p)
        self.method: IntrinsicConfig | None = None
        dtype, m, self.layer, self.scales = self.theta0.dtype, 0, None, None
        if structured:
            m, self.layer = layer_numbers({name: p.size for name, p in chosen.items()})
            if d <= m:
                raise ValueError(f"d = {d}, expected more than the {m} scales, one for each layer")
            self.scales = Parameter(np.ones(m, dtype))
        self.projection = Fastfood(self.theta0.size, d - m, np.random.default_rng(rng), dtype)
        self.z = Parameter(np.zeros(d - m, dtype))

    @property
    def theta0(self) -> np.ndarray:
        """The base's values, end to end."""
        return np.concatenate([p.value.reshape(-1) for p in self._chosen(self.base).values()])

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
        grads.add_all(held, subspace_backward(dtheta, c_theta, need)[1:])
        return dx

    def _chosen(self, model: Layer) -> dict[str, Parameter]:
        held = model.parameters()
        return {name: held[name] for name in self.names}

    def at_point(self) -> tuple[Any, Any]:
        """Return the model at theta, whose other values are those of the base, and the cache."""
        chosen, P = self._chosen(self.base), self.projection
        scales = None if self.scales is None else self.scales.value
        theta, cache = subspace_forward(self.theta0, self.z.value, scales, P=P, layer=self.layer)
        places = {chosen[name]: s for name, s in Packed(theta, chosen).slices().items()}

        def make(p: Parameter) -> Parameter:
            return Parameter(theta[places[p]].reshape(p.shape)) if p in places else p

        return rebuild(self.base, make), cache


@dataclass(frozen=True)
class IntrinsicConfig(MethodConfig):
    """The options of training in a random subspace: all Parameters of the model move.

    Parameters
    ----------
    d : int
        Number of trained numbers, including the scales of the structured variant.
    structured : bool
        One scale for each layer that holds Parameters directly (SAID).
    seed, D : int, optional
        The seed that draws P, by default a new one, and how many numbers the model has: a file
        holds both, as does ``model.method``.

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
    D: int | None = None

    name = "intrinsic"

    def places(self, model: Layer) -> list[str]:
        """Return the root."""
        return [""]

    def wrap(self, path: str, layer: Layer, rng: np.random.Generator) -> IntrinsicModel:
        """Return the model with z = 0, and with the seed of P in its configuration."""
        seed = int(rng.integers(2**53)) if self.seed is None else self.seed  # exact in any JSON
        made = IntrinsicModel(layer, self.d, seed, self.structured, layer.parameters())
        if (D := made.projection.D) != (self.D or D):
            raise ValueError(f"D = {self.D}, but the model has {D} numbers: it is another model")
        made.method = replace(self, seed=seed, D=D)
        return made
