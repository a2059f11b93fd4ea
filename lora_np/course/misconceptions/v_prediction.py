"""v-prediction: x0 = alpha z - sigma v and eps = sigma z + alpha v, with a time for each row.

    alpha = cos(pi t / 2)        sigma = sin(pi t / 2)

Shapes: z, v, x0, eps (n, k), t (n,).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_np.course.task import Draw, Task
from lora_np.images.schedule import alpha_sigma, eps_of, x0_of

SHAPES = ((4, 3), (3, 3), (2, 5), (4, 4), (1, 3))  # of z; square ones let a wrong axis pass


def _x0_and_eps(z: Any, v: Any, t: Any) -> Any:
    """Return (x0, eps)."""
    return x0_of(z, v, t), eps_of(z, v, t)


def _draws(rng: np.random.Generator) -> list[Draw]:
    """Return inputs with a time for each row."""
    n = rng.standard_normal
    return [{"z": n(s), "v": n(s), "t": 0.1 + 0.8 * rng.random(s[0])} for s in SHAPES]


def _weights(t: Any) -> dict[str, Any]:
    alpha, sigma = alpha_sigma(t)
    return {"alpha": alpha, "sigma": sigma}


TURN = Task("x0_and_eps", ("x0", "eps"), _x0_and_eps, _draws, _weights)
TURN.usual_mistakes(but=("transposed",))


def _turned(z: Any, v: Any, alpha: Any, sigma: Any) -> Any:
    """Return what stands for (x0, eps) if these are the weights."""
    return alpha * z - sigma * v, sigma * z + alpha * v


@TURN.mistake()
def _alpha_and_sigma_swapped(z: Any, v: Any, alpha: Any, sigma: Any) -> Any:
    """Your alpha and sigma are swapped: alpha is the cosine, 1 at t = 0, and sigma the sine."""
    return _turned(z, v, sigma, alpha)


@TURN.mistake()
def _angle_is_t(z: Any, v: Any, t: Any) -> Any:
    """Your angle is t: it should be pi t / 2, a quarter of a circle at t = 1."""
    return _turned(z, v, np.cos(t)[:, None], np.sin(t)[:, None])


@TURN.mistake()
def _angle_is_pi_t(z: Any, v: Any, t: Any) -> Any:
    """Your angle is pi t, half a circle at t = 1: it should be pi t / 2."""
    return _turned(z, v, np.cos(np.pi * t)[:, None], np.sin(np.pi * t)[:, None])


@TURN.mistake()
def _straight_line(z: Any, v: Any, t: Any) -> Any:
    """Your alpha is 1 - t and your sigma t: they are the cosine and the sine of pi t / 2."""
    return _turned(z, v, (1 - t)[:, None], t[:, None])


@TURN.mistake()
def _sigma_is_one_minus_alpha(z: Any, v: Any, alpha: Any) -> Any:
    """Your sigma is 1 - alpha: alpha^2 + sigma^2 = 1, so sigma is the sine."""
    return _turned(z, v, alpha, 1 - alpha)


@TURN.mistake()
def _weights_squared(z: Any, v: Any, alpha: Any, sigma: Any) -> Any:
    """Your weights are alpha^2 and sigma^2: these are variances, and z is mixed with the roots."""
    return _turned(z, v, alpha**2, sigma**2)


@TURN.mistake()
def _times_along_the_latents(z: Any, v: Any, alpha: Any, sigma: Any) -> Any:
    """Your times run along the last axis: each row of z has its own time, so write t[:, None]."""
    return _turned(z, v, alpha[:, 0], sigma[:, 0])


@TURN.mistake()
def _time_of_the_first_row(z: Any, v: Any, alpha: Any, sigma: Any) -> Any:
    """Your function gives the time of the first row to all rows: each row has its own."""
    return _turned(z, v, alpha[0], sigma[0])


@TURN.mistake("x0")
def _x0_divides_by_alpha(z: Any, v: Any, alpha: Any, sigma: Any) -> Any:
    """Your x0 is (z - sigma v) / alpha, as if v were eps: nothing is divided, alpha z - sigma v."""
    return (z - sigma * v) / alpha


@TURN.mistake("x0")
def _x0_adds_v(z: Any, v: Any, alpha: Any, sigma: Any) -> Any:
    """Your x0 adds sigma v: v points from the picture to the noise, so subtract it."""
    return alpha * z + sigma * v


@TURN.mistake("x0")
def _x0_is_that_of_noise(eps: Any) -> Any:
    """Your x0 is the correct eps: x0 = alpha z - sigma v."""
    return eps


@TURN.mistake("x0")
def _x0_subtracts_z_from_v(z: Any, v: Any, alpha: Any, sigma: Any) -> Any:
    """Your x0 is alpha v - sigma z: this is how v is made of eps and x0; x0 = alpha z - sigma v."""
    return alpha * v - sigma * z


@TURN.mistake("eps")
def _eps_divides_by_sigma(z: Any, v: Any, alpha: Any, sigma: Any) -> Any:
    """Your eps is (z - alpha v) / sigma, as if v were x0: nothing is divided, sigma z + alpha v."""
    return (z - alpha * v) / sigma


@TURN.mistake("eps")
def _eps_subtracts_v(z: Any, v: Any, alpha: Any, sigma: Any) -> Any:
    """Your eps subtracts alpha v: v points from the picture to the noise, so add it."""
    return sigma * z - alpha * v


@TURN.mistake("eps")
def _eps_is_the_picture(x0: Any) -> Any:
    """Your eps is the correct x0: eps = sigma z + alpha v."""
    return x0


@TURN.mistake("eps")
def _eps_by_alpha_z(z: Any, v: Any, alpha: Any, sigma: Any) -> Any:
    """Your eps is alpha z + sigma v: at t = 1, where z is all noise, it must be z."""
    return alpha * z + sigma * v
