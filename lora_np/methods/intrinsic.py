"""Intrinsic dimension: all D parameters theta move in a random subspace of d dimensions.

Only z is trained (Li et al. 2018)::

    theta = theta0 + P z                        theta (D,), z (d,), P (D, d) random and fixed
    dL/dz = P^T dL/dtheta

The structure-aware variant (SAID, Aghajanyan et al. 2020) gives each of the m layers a scale of
its own, which is also trained and starts at one. The m scales count, so z has d - m entries. For
layer i::

    theta_i = theta0_i + lambda_i (P z)_i       dL/dlambda_i = <dL/dtheta_i, (P z)_i>

P is a Fastfood projection (ops/fastfood.py). Start: z = 0. The model at theta is a plain model, so
the method merges. PEFT does not have it: a file of ours holds z, the scales and the seed of P.

Sources: Li, Farkhoor, Liu and Yosinski, arXiv:1804.08838, equation 2; Aghajanyan, Zettlemoyer and
Gupta, arXiv:2012.13255, equation 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array, get_xp
from lora_np.layers import Flops, Layer, Rng, rebuild
from lora_np.methods.contract import Adapter, FilePlace, MethodConfig
from lora_np.ops.fastfood import Fastfood
from lora_np.parameters import Grads, Packed, Parameter
from lora_np.patterns import Pattern
from lora_np.tables import first_of


class IntrinsicCache(NamedTuple):
    """What backward reads: the model at theta and its cache, P z, and the scales by entry."""

    twin: Any
    inner: Any
    direction: np.ndarray
    scale: np.ndarray | None


class IntrinsicModel(Adapter):
    """A model whose parameters move in d dimensions; it is used like the model itself.

    Each call builds a model at theta0 + P z, which goes to backward in the cache. So neither this
    object nor the base is written to: threads may share this object, and forked processes see the
    z in shared memory.

    Parameters
    ----------
    model : Layer
        On the host. It stays unchanged.
    d : int
        Number of trained numbers, including the scales of the structured variant.
    rng : numpy.random.Generator or int
        Draws P; an int is a seed, which a file can hold.
    structured : bool
        One scale for each layer that holds Parameters directly (a Linear, a LayerNorm, ...).
    names : iterable of str, optional
        The Parameters that move; by default the trainable ones, whose values are copied.

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
        dtype, m, self.scales = self.theta0.dtype, 0, None
        if structured:
            layers = list(layers_of(chosen))
            m = len(layers)
            if d <= m:
                raise ValueError(f"d = {d}, expected more than the {m} scales, one for each layer")
            of = [layers.index(_layer(name)) for name in chosen]
            self.layer = np.repeat(of, [p.size for p in chosen.values()])  # (D,)
            self.scales = Parameter(np.ones(m, dtype))
        self.z = Parameter(np.zeros(d - m, dtype))
        self.draw(rng)

    def draw(self, rng: np.random.Generator | int) -> None:
        """Draw P; `seed` is kept if it is an int, else None."""
        self.seed = None if isinstance(rng, np.random.Generator) else rng
        theta0, rng = self.theta0, np.random.default_rng(rng)
        self.projection = Fastfood(theta0.size, self.z.size, rng, theta0.dtype)

    @property
    def theta0(self) -> np.ndarray:
        """The base's values, end to end."""
        return np.concatenate([p.value.reshape(-1) for p in self._chosen(self.base).values()])

    def point(self) -> Any:
        """Return the model at theta0 + P z; its other values are those of the base."""
        return self._twin()[0]

    def merged(self) -> Any:
        """Return the model at theta0 + P z."""
        return self.point()

    def delta(self) -> Array:
        """Raise ValueError: the change is not that of one weight."""
        raise ValueError(
            "the method moves the whole model: its old values are in the base that it was "
            "injected into, which is as it was"
        )

    def config(self) -> IntrinsicConfig:
        """Return a configuration with this d and variant."""
        return IntrinsicConfig(sum(p.size for p in self.own().values()), self.scales is not None)

    # ------------------------------------------------------------------------- still a model

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, IntrinsicCache]:
        """Return the model's output at theta0 + P z, and the cache."""
        return self._run("forward", x, rng)

    def loss(
        self, inputs: Array, targets: Array, rng: Any = None, **options: Any
    ) -> tuple[Array, IntrinsicCache]:
        """Return the loss at theta0 + P z, and the cache; the arguments are the model's."""
        return self._run("loss", inputs, targets, rng, **options)

    def backward(self, dy: Any, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add dz = P^T dtheta and dlambda, and those of the base's trainable Parameters."""
        twin, inner, direction, scale = cache
        found, moved = Grads(), self._chosen(twin)
        dx = twin.backward(dy, inner, found, need_dx)
        for p, at_theta in zip(self.base.parameters().values(), twin.parameters().values()):
            if p.trainable:
                grads.add(p, found.get(at_theta))
        dtheta = Packed(direction, moved).gather(found)  # (D,)
        if self.scales is not None and self.scales.trainable:
            by_layer = np.bincount(self.layer, dtheta * direction)  # (m,), float64
            grads.add(self.scales, by_layer.astype(dtheta.dtype))
        if self.z.trainable:
            dtheta = dtheta if scale is None else dtheta * scale
            grads.add(self.z, self.projection.adjoint(dtheta))
        return dx

    def extend(self, x: Array, memory: Any = None) -> tuple[Array, Any]:
        """Return the model's output at the newest positions, and its memory."""
        return self.point().extend(x, memory)

    def generate(self, *args: Any, **options: Any) -> Any:
        """Continue texts as the model at theta0 + P z does."""
        return self.point().generate(*args, **options)

    @property
    def number(self) -> Any:
        """The model's function of how many things its loss averages over."""
        return self.base.number

    @property
    def block_size(self) -> int:
        """The model's longest sequence."""
        return self.base.block_size

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the model's cost when all that moves is trained; P has no matrix product."""
        return self.point().flops(T, need_dx)

    def _run(self, name: str, *args: Any, **options: Any) -> tuple[Array, IntrinsicCache]:
        twin, direction, scale = self._twin()
        y, inner = getattr(twin, name)(*args, **options)
        return y, IntrinsicCache(twin, inner, direction, scale)

    def _chosen(self, model: Layer) -> dict[str, Parameter]:
        held = model.parameters()
        return {name: held[name] for name in self.names}

    def _twin(self) -> tuple[Any, np.ndarray, np.ndarray | None]:
        """Return the model at theta, P z (D,), and the scale of every entry (D,)."""
        chosen = self._chosen(self.base)
        direction = self.projection.forward(self.z.value)
        scale = None if self.scales is None else self.scales.value[self.layer]
        theta = self.theta0 + (direction if scale is None else scale * direction)
        places = {chosen[name]: s for name, s in Packed(theta, chosen).slices().items()}

        def make(p: Parameter) -> Parameter:
            place = places.get(p)
            return p if place is None else Parameter(theta[place].reshape(p.shape))

        return rebuild(self.base, make), direction, scale


def _frozen(p: Parameter) -> Parameter:
    return Parameter(p.value.copy(), trainable=False) if p.trainable else p


def layers_of(names: Iterable[str]) -> dict[str, None]:
    """Return the layers that hold Parameters of these names, in order, as SAID counts them."""
    return dict.fromkeys(_layer(name) for name in names)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]  # h.0.attn.q_proj.W is of layer h.0.attn.q_proj


@dataclass(frozen=True)
class IntrinsicConfig(MethodConfig):
    """The options of training in a random subspace.

    Parameters
    ----------
    d : int
        Number of trained numbers, including the scales of the structured variant.
    structured : bool
        One scale for each layer that holds Parameters directly (SAID).
    parameters : str
        A regular expression that must match the whole name of a Parameter that moves.

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
    parameters: str = ".*"

    name = "intrinsic"

    def places(self, model: Layer) -> list[str]:
        """Return the root."""
        self._moving(model)
        return [""]

    def wrap(self, path: str, layer: Layer, rng: np.random.Generator) -> IntrinsicModel:
        """Return the model with z = 0; the seed of P is drawn from `rng`."""
        seed = int(rng.integers(2**53))  # exact in any reader of JSON
        return IntrinsicModel(layer, self.d, seed, self.structured, self._moving(layer))

    def _moving(self, model: Layer) -> list[str]:
        pattern, names = Pattern(self.parameters), list(model.parameters())
        found = [name for name in names if pattern.fullmatch(name)]
        if not found:
            near = first_of(names)
            raise ValueError(
                f"parameters {self.parameters!r} matches no Parameter: there is {near}"
            )
        return found

    def to_file(
        self, adapted: Any, places: Mapping[str, FilePlace]
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the fields with the seed of P, and z and the scales."""
        if adapted.seed is None:
            raise ValueError("P was drawn from a Generator: a file needs a seed, an int, instead")
        fields, tensors = super().to_file(adapted, places)
        return {**fields, "seed": adapted.seed, "draws": adapted.projection.checksum()}, tensors

    @classmethod
    def of_file(
        cls,
        saved: Mapping[str, Any],
        tensors: Mapping[str, np.ndarray],
        base: Layer,
        places: Mapping[str, FilePlace],
    ) -> Any:
        """Return `base` at theta0 + P z, with P drawn again."""
        adapted = super().of_file(saved, tensors, base, places)
        adapted.draw(saved["seed"])
        if adapted.projection.checksum() != saved["draws"]:
            raise ValueError(
                "this NumPy draws another P from the file's seed, or the model has another D: "
                "load it with the NumPy and the base that it was trained with"
            )
        return adapted
