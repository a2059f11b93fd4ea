"""SHiRA: a few entries of a weight are trained, at places drawn once.

::

    W = W0,  then  W[i_n, j_n] += w_n,  n = 1 ... k        w (k,), the places (2, k) are fixed
    dw_n = dW[i_n, j_n],  dW0 = dW

There are k = r (in + out) places, as many as LoRA of rank r has numbers, all different. The change
is sparse, so switching adapters writes k numbers; its rank is not limited. w starts at zero, so W
starts at W0.

A step forms dW = dy^T x, as full fine-tuning does: computing only the k entries would read x and dy
k times at scattered columns, which is slower.

Sources: Bhardwaj et al. (2024), arXiv:2406.13175, with its random mask; names and start of PEFT
0.21, which writes the places (2, k) as shira_indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from lora_np.backend import Array, get_xp
from lora_np.layers import Linear
from lora_np.methods.options import check_whole
from lora_np.methods.peft import PeftMethod
from lora_np.methods.reweighted import Reweighted
from lora_np.methods.start import parameter_like
from lora_np.ops.contract import Need, expect_shape, wanted
from lora_np.parameters import Parameter


class ShiraCache(NamedTuple):
    """What :func:`shira_weight_backward` reads."""

    places: Array  # (2, k)


def shira_weight_forward(W0: Array, w: Array, *, places: np.ndarray) -> tuple[Array, ShiraCache]:
    """Compute W: W0 with w added at k places.

    Parameters
    ----------
    W0, w : arrays, shapes (out, in) and (k,)
    places : array of int, shape (2, k)
        Rows and columns; no place twice.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.methods.shira import shira_weight_forward
    >>> places = np.array([[0, 1], [2, 0]])
    >>> shira_weight_forward(np.zeros((2, 3)), np.array([5.0, 7.0]), places=places)[0].tolist()
    [[0.0, 0.0, 5.0], [7.0, 0.0, 0.0]]
    """
    expect_shape("w", w, places.shape[1])
    rows, columns = places = get_xp(W0).asarray(places)
    W = W0.astype((W0[:1, :1] + w[:1]).dtype)  # a copy, complex if one of them is
    W[rows, columns] += w
    return W, ShiraCache(places)


def shira_weight_backward(
    dW: Array, cache: ShiraCache, need: Need = None
) -> tuple[Array | None, ...]:
    """Return (dW0, dw) of :func:`shira_weight_forward`."""
    need_W0, need_w = wanted(need, 2)
    rows, columns = cache.places
    return dW if need_W0 else None, dW[rows, columns] if need_w else None


class ShiraLinear(Reweighted):
    """y = x W^T + b with W = W0, and w added at `options["places"]`."""

    weight_forward = staticmethod(shira_weight_forward)
    weight_backward = staticmethod(shira_weight_backward)

    def tensors(self) -> dict[str, Parameter]:
        """Return w and its places, which a file holds too."""
        return {**self.own(), "shira_indices": PlacesInFile(self)}


class PlacesInFile(Parameter):
    """The places of a layer as a Parameter in a file: to read and to write, never to train."""

    def __init__(self, layer: ShiraLinear) -> None:
        self.layer = layer
        super().__init__(layer.options["places"], trainable=False)

    @property
    def value(self) -> Array:
        """The places (2, k)."""
        return self.layer.options["places"]

    @value.setter
    def value(self, places: Array) -> None:
        """Set the places, if they are different entries of the weight."""
        places, shape = np.asarray(places).astype(np.int32), self.layer.base.W.shape
        inside = (places >= 0).all() and (places.max(axis=1) < shape).all()
        if not inside or len(set(zip(*places.tolist()))) < places.shape[1]:
            raise ValueError(f"shira_indices must be different places of a weight {shape}")
        self.layer.options = {**self.layer.options, "places": places}  # copies share the old ones


@dataclass(frozen=True)
class ShiraConfig(PeftMethod):
    """The options of SHiRA, as in PEFT.

    Parameters
    ----------
    r : int
        There are r (in + out) places, as many as LoRA of this rank has numbers.
    random_seed : int, optional
        Draws the places of every layer; by default the rng of :func:`lora_np.inject` does.
    target_modules
        As in :class:`lora_np.LoraConfig`.
    """

    r: int = 32
    random_seed: int | None = None
    target_modules: Sequence[str] | str = ("q_proj", "v_proj")

    name = "shira"
    peft_type, peft_transposes = "SHIRA", False
    peft_defaults: ClassVar = {"mask_type": "random"}

    def __post_init__(self) -> None:
        check_whole("r", self.r)
        check_whole("random_seed", self.random_seed, 0)

    def wrap(self, path: str, layer: Linear, rng: np.random.Generator) -> ShiraLinear:
        """Return `layer` with w = 0 at random places."""
        d_out, d_in = layer.W.shape
        k, whole = self.r * (d_in + d_out), d_in * d_out
        if k > whole:
            raise ValueError(
                f"r = {self.r} is {k} places, but {path or 'the layer'} has {whole} entries: "
                f"r is at most {whole // (d_in + d_out)} here"
            )
        if self.random_seed is not None:
            rng = np.random.default_rng(self.random_seed)
        drawn = np.sort(rng.choice(whole, k, replace=False))
        places = np.stack(np.divmod(drawn, d_in)).astype(np.int32)
        held = {"shira_weight": parameter_like(layer.W, np.zeros(k))}
        return ShiraLinear(layer, held, {"places": places})
