"""A point of a random subspace, and the scales of its layers.

For z (d,), a random and fixed P (D, d), and a scale lambda for each of m layers; for layer i::

    theta_i = theta0_i + lambda_i (P z)_i       theta, theta0 (D,)

Derivation: theta is linear in z and in lambda::

    dz = P^T (lambda * dtheta)                  dlambda_i = <dtheta_i, (P z)_i>

Without scales, lambda is one.

Sources: Li, Farkhoor, Liu and Yosinski (2018), arXiv:1804.08838, section 2; the scales: SAID,
Aghajanyan, Zettlemoyer and Gupta (2020), arXiv:2012.13255, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array
from lora_np.ops.contract import Need, expect_shape, wanted
from lora_np.ops.fastfood import Fastfood


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
        dscales = np.bincount(layer, dtheta * direction)  # (m,), a sum for each layer, in float64
        dscales = dscales.astype(dtheta.dtype)
    return dtheta if need_theta0 else None, dz, dscales


def layer_numbers(sizes: Mapping[str, int]) -> tuple[int, np.ndarray]:
    """Return m and the layer's number of each entry (D,), for Parameters of these sizes."""
    layers = list(layers_of(sizes))
    of = [layers.index(_layer_of(name)) for name in sizes]
    return len(layers), np.repeat(of, list(sizes.values()))


def layers_of(names: Iterable[str]) -> dict[str, None]:
    """Return the layers that hold Parameters of these names, in order, as SAID counts them."""
    return dict.fromkeys(_layer_of(name) for name in names)


def _layer_of(name: str) -> str:
    return name.rpartition(".")[0]  # h.0.attn.q_proj.W is of layer h.0.attn.q_proj
