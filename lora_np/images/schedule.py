r"""How much noise there is at time t: a picture turns into noise by an angle from 0 to pi / 2.

The time t runs from 0, the picture x0 alone, to 1, the noise eps alone::

    z_t = alpha x0 + sigma eps,    alpha = cos(pi t / 2),    sigma = sin(pi t / 2)

Since alpha^2 + sigma^2 = 1, the variance of z stays 1 if that of x0 is 1 (variance preserving). The
model predicts neither x0 nor eps but v, the velocity of z by the angle pi t / 2::

    v = alpha eps - sigma x0
    x0 = alpha z - sigma v,    eps = sigma z + alpha v

(z, v) is (x0, eps) rotated by the angle -pi t / 2, and the last line rotates back. No line divides,
so none is unsafe at either end; see ``docs/derivations/v_prediction.md``.

Sources: Nichol and Dhariwal (2021), Improved Denoising Diffusion Probabilistic Models,
arXiv:2102.09672 (cosine); Salimans and Ho (2022), Progressive Distillation for Fast Sampling of
Diffusion Models, arXiv:2202.00512, section 4 and appendix D (v-prediction).
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

from lora_np.backend import Array, get_xp

T_MAX = 0.995  # the noisiest time that is trained and sampled: alpha is 0.008 there, not yet 0
STEPS_MAX = 1000  # of a grid

Time: TypeAlias = Any  # a float, the time of all rows, or an array (n,), in the dtype of z


def alpha_sigma(t: Time) -> tuple[Any, Any]:
    """Return the weights of picture and noise at time `t`.

    Parameters
    ----------
    t : float or array, shape (n,)
        From 0 to 1.

    Returns
    -------
    alpha, sigma : float or array, shape (n, 1)
        Floats for a float: they leave float32 arrays float32. For an array, columns that scale the
        rows of z, in the array's dtype.

    Examples
    --------
    >>> from lora_np.images.schedule import alpha_sigma
    >>> alpha_sigma(0.0)
    (1.0, 0.0)
    """
    if isinstance(t, float | int):
        return math.cos(t * (math.pi / 2)), math.sin(t * (math.pi / 2))
    xp, angle = get_xp(t), t[:, None] * (math.pi / 2)  # (n, 1)
    return xp.cos(angle), xp.sin(angle)


def half_log_snr(t: float) -> float:
    """Return lambda = log(alpha / sigma), half the logarithm of the signal-to-noise ratio.

    Parameters
    ----------
    t : float
        Less than 1. At 0 the result is infinite.

    Examples
    --------
    >>> from lora_np.images.schedule import half_log_snr
    >>> half_log_snr(0.0), abs(half_log_snr(0.5)) < 1e-12
    (inf, True)
    """
    return -math.log(math.tan(t * (math.pi / 2))) if t else math.inf


def z_of(x0: Array, eps: Array, t: Time) -> Array:
    """Return the noisy picture z = alpha x0 + sigma eps at time `t`.

    Parameters
    ----------
    x0, eps : array, shape (n, k)
    t : float or array, shape (n,)

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.images.schedule import v_of, x0_of, z_of
    >>> x0, eps = np.array([[3.0, 0.0]]), np.array([[0.0, 4.0]])
    >>> z, v = z_of(x0, eps, 0.5), v_of(x0, eps, 0.5)
    >>> np.allclose(x0_of(z, v, 0.5), x0)
    True
    """
    alpha, sigma = alpha_sigma(t)
    return alpha * x0 + sigma * eps


def v_of(x0: Array, eps: Array, t: Time) -> Array:
    """Return the velocity v = alpha eps - sigma x0, which the model learns to predict.

    Parameters
    ----------
    x0, eps : array, shape (n, k)
    t : float or array, shape (n,)
    """
    alpha, sigma = alpha_sigma(t)
    return alpha * eps - sigma * x0


def x0_of(z: Array, v: Array, t: Time) -> Array:
    """Return the picture x0 = alpha z - sigma v.

    Parameters
    ----------
    z, v : array, shape (n, k)
    t : float or array, shape (n,)
    """
    alpha, sigma = alpha_sigma(t)
    return alpha * z - sigma * v


def eps_of(z: Array, v: Array, t: Time) -> Array:
    """Return the noise eps = sigma z + alpha v.

    Parameters
    ----------
    z, v : array, shape (n, k)
    t : float or array, shape (n,)
    """
    alpha, sigma = alpha_sigma(t)
    return sigma * z + alpha * v


def grid(steps: int) -> Array:
    """Return the times of a sampler: evenly spaced, from `T_MAX` down to exactly 0.

    Parameters
    ----------
    steps : int
        From 1 to `STEPS_MAX`.

    Returns
    -------
    times : array, shape (steps + 1,), float32

    Raises
    ------
    ValueError
        If `steps` is not a whole number in this range.

    Examples
    --------
    >>> from lora_np.images.schedule import grid
    >>> grid(4)
    array([0.995  , 0.74625, 0.4975 , 0.24875, 0.     ], dtype=float32)
    """
    if not isinstance(steps, int | np.integer) or not 1 <= steps <= STEPS_MAX:
        raise ValueError(f"steps is {steps!r}: give a whole number from 1 to {STEPS_MAX}")
    return np.linspace(T_MAX, 0.0, steps + 1, dtype=np.float32)
