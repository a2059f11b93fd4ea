"""One step of two samplers, from the time t to the time `later`, which is smaller.

    x0 = alpha z - sigma v,    eps = sigma z + alpha v
    DDIM:           z' = alpha' x0 + sigma' eps
    consistency:    z' = alpha' x0 + sigma' noise

Shapes: z, v, noise (n, k). A prime marks what belongs to `later`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lora_np.course.misconceptions.v_prediction import SHAPES
from lora_np.course.task import Draw, Task
from lora_np.images.schedule import alpha_sigma, eps_of, x0_of, z_of

TIMES = ((0.9, 0.6), (0.7, 0.2), (0.35, 0.15), (0.8, 0.55), (0.6, 0.0))  # t and later


def _steps(rng: np.random.Generator, **more: Any) -> list[Draw]:
    """Return inputs with one time for all rows, as samplers have it."""
    n = rng.standard_normal
    return [
        {"z": n(s), "v": n(s), "t": t, "later": later, **{name: n(s) for name in more}}
        for s, (t, later) in zip(SHAPES, TIMES)
    ]


def _parts(z: Any, v: Any, t: Any, later: Any) -> dict[str, Any]:
    """Return x0, eps, the weights at t, a and s, and those at `later`, a1 and s1."""
    (a, s), (a1, s1) = alpha_sigma(t), alpha_sigma(later)
    return {"x0": x0_of(z, v, t), "eps": eps_of(z, v, t), "a": a, "s": s, "a1": a1, "s1": s1}


def _ddim_step(z: Any, v: Any, t: Any, later: Any) -> Any:
    """Return z'."""
    return z_of(x0_of(z, v, t), eps_of(z, v, t), later)


DDIM = Task("ddim_step", ("z_later",), _ddim_step, _steps, _parts)
DDIM.usual_mistakes(but=("transposed",))


@DDIM.mistake("z_later")
def _old_time(z: Any) -> Any:
    """Your step returns z: mix x0 and eps with alpha and sigma of the time `later`, not of t."""
    return z


@DDIM.mistake("z_later")
def _old_sigma(x0: Any, eps: Any, a1: Any, s: Any) -> Any:
    """Your step takes sigma at t: both weights belong to the time `later`."""
    return a1 * x0 + s * eps


@DDIM.mistake("z_later")
def _old_alpha(x0: Any, eps: Any, a: Any, s1: Any) -> Any:
    """Your step takes alpha at t: both weights belong to the time `later`."""
    return a * x0 + s1 * eps


@DDIM.mistake("z_later")
def _mixed_the_wrong_way(x0: Any, eps: Any, a1: Any, s1: Any) -> Any:
    """Your step mixes sigma x0 + alpha eps: alpha belongs to x0 and sigma to eps."""
    return s1 * x0 + a1 * eps


@DDIM.mistake("z_later")
def _toward_noise(z: Any, v: Any, t: Any, later: Any) -> Any:
    """Your step goes toward more noise: it starts at t, and x0 = alpha z - sigma v."""
    return z_of(x0_of(z, -v, t), eps_of(z, -v, t), later)


@DDIM.mistake("z_later")
def _noise_left_out(x0: Any, a1: Any) -> Any:
    """Your step leaves eps out: at the time `later`, z still has sigma eps in it."""
    return a1 * x0


@DDIM.mistake("z_later")
def _whole_way(x0: Any) -> Any:
    """Your step returns x0, the end of the way: mix it with eps for the time `later`."""
    return x0


@DDIM.mistake("z_later")
def _alpha_forgotten(x0: Any, eps: Any, s1: Any) -> Any:
    """Your step returns x0 + sigma eps: multiply x0 by alpha at the time `later`."""
    return x0 + s1 * eps


@DDIM.mistake("z_later")
def _v_for_eps(x0: Any, v: Any, a1: Any, s1: Any) -> Any:
    """Your step mixes x0 with v: mix it with eps = sigma z + alpha v."""
    return a1 * x0 + s1 * v


@DDIM.mistake("z_later")
def _z_for_eps(x0: Any, z: Any, a1: Any, s1: Any) -> Any:
    """Your step mixes x0 with z, which holds x0 already: mix it with eps."""
    return a1 * x0 + s1 * z


@DDIM.mistake("z_later")
def _v_is_eps(z: Any, v: Any, a: Any, s: Any, a1: Any, s1: Any) -> Any:
    """Your step takes v for eps and divides by alpha: x0 = alpha z - sigma v."""
    return a1 * (z - s * v) / a + s1 * v


@DDIM.mistake("z_later")
def _step_along_v(z: Any, v: Any, t: Any, later: Any) -> Any:
    """Your step goes straight along v, by later - t: DDIM goes to alpha x0 + sigma eps."""
    return z + (later - t) * v


@DDIM.mistake("z_later")
def _step_along_v_by_the_angle(z: Any, v: Any, t: Any, later: Any) -> Any:
    """Your step goes straight along v, by the angle (Euler): DDIM goes to alpha x0 + sigma eps."""
    return z + math.pi / 2 * (later - t) * v


@DDIM.mistake("z_later")
def _step_by_the_angle_t(z: Any, v: Any, t: Any, later: Any) -> Any:
    """Your angle is t: it should be pi t / 2, a quarter of a circle at t = 1."""
    return math.cos(t - later) * z - math.sin(t - later) * v


# --------------------------------------------------------------------------------- consistency


def _consistency_step(z: Any, v: Any, t: Any, later: Any, noise: Any) -> Any:
    """Return z'."""
    return z_of(x0_of(z, v, t), noise, later)


CONSISTENCY = Task(
    "consistency_step",
    ("z_later",),
    _consistency_step,
    lambda rng: _steps(rng, noise=True),
    _parts,
)
CONSISTENCY.usual_mistakes(but=("transposed",))


@CONSISTENCY.mistake("z_later")
def _old_noise(x0: Any, eps: Any, a1: Any, s1: Any) -> Any:
    """Your step puts the old noise back, which is DDIM's step: use the fresh `noise`."""
    return a1 * x0 + s1 * eps


@CONSISTENCY.mistake("z_later")
def _noise_to_z(z: Any, noise: Any, a1: Any, s1: Any) -> Any:
    """Your step adds noise to z: remove the old noise first, with x0 = alpha z - sigma v."""
    return a1 * z + s1 * noise


@CONSISTENCY.mistake("z_later")
def _noise_of_the_old_time(x0: Any, noise: Any, a: Any, s: Any) -> Any:
    """Your step returns to the time t: take alpha and sigma of the time `later`."""
    return a * x0 + s * noise


@CONSISTENCY.mistake("z_later")
def _alpha_missing(x0: Any, noise: Any, s1: Any) -> Any:
    """Your step returns x0 + sigma noise: multiply x0 by alpha at the time `later`."""
    return x0 + s1 * noise


@CONSISTENCY.mistake("z_later")
def _noise_of_size_one(x0: Any, noise: Any, a1: Any) -> Any:
    """Your step adds the noise without its weight: multiply it by sigma at the time `later`."""
    return a1 * x0 + noise


@CONSISTENCY.mistake("z_later")
def _variance_for_sigma(x0: Any, noise: Any, a1: Any, s1: Any) -> Any:
    """Your step multiplies the noise by its variance, sigma^2: multiply it by sigma."""
    return a1 * x0 + s1**2 * noise


@CONSISTENCY.mistake("z_later")
def _picture_and_noise_swapped(x0: Any, noise: Any, a1: Any, s1: Any) -> Any:
    """Your step mixes sigma x0 + alpha noise: alpha belongs to x0 and sigma to the noise."""
    return s1 * x0 + a1 * noise


@CONSISTENCY.mistake("z_later")
def _no_noise_again(x0: Any, a1: Any) -> Any:
    """Your step adds no noise: z at the time `later` is alpha x0 + sigma noise."""
    return a1 * x0


@CONSISTENCY.mistake("z_later")
def _picture_alone(x0: Any) -> Any:
    """Your step returns x0: add noise again for the time `later`, unless it is 0."""
    return x0


@CONSISTENCY.mistake("z_later")
def _both_noises(x0: Any, eps: Any, noise: Any, a1: Any, s1: Any) -> Any:
    """Your step adds fresh noise to the old: x0 takes the fresh noise alone."""
    return a1 * x0 + s1 * (eps + noise)


@CONSISTENCY.mistake("z_later")
def _sign_of_v(z: Any, v: Any, t: Any, later: Any, noise: Any) -> Any:
    """Your step removes noise with x0 = alpha z + sigma v: it is alpha z - sigma v."""
    return z_of(x0_of(z, -v, t), noise, later)
