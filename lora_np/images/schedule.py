r"""How much noise there is at time t: a picture turns into noise along a quarter of a circle.

The time t runs from 0, the picture x0 alone, to 1, the noise eps alone::

    z_t = alpha x0 + sigma eps,    alpha = cos(pi t / 2),    sigma = sin(pi t / 2)

Since alpha^2 + sigma^2 = 1, the variance of z stays 1 if that of x0 is 1 (variance preserving). The
model predicts neither x0 nor eps but the velocity v, along which z moves on its circle::

    v = alpha eps - sigma x0
    x0 = alpha z - sigma v,    eps = sigma z + alpha v

(z, v) is (x0, eps) rotated by the angle pi t / 2, and the last line rotates back. No line divides,
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


def alpha(t: Time) -> Time:
    """Return the weight of the picture at time `t`, cos(pi t / 2).

    Parameters
    ----------
    t : float or array, shape (n,)
        From 0 to 1. The weight of a float is a float, which leaves float32 arrays float32; that
        of an array has the array's shape and dtype.

    Examples
    --------
    >>> from lora_np.images.schedule import alpha, sigma
    >>> alpha(0.0), sigma(0.0)
    (1.0, 0.0)
    """
    angle = t * (math.pi / 2)
    return math.cos(angle) if isinstance(angle, float) else get_xp(angle).cos(angle)


def sigma(t: Time) -> Time:
    """Return the weight of the noise at time `t`, sin(pi t / 2).

    Parameters
    ----------
    t : float or array, shape (n,)
        As for :func:`~lora_np.images.schedule.alpha`.
    """
    angle = t * (math.pi / 2)
    return math.sin(angle) if isinstance(angle, float) else get_xp(angle).sin(angle)


def column(weight: Time) -> Time:
    """Return weights (n,) as a column (n, 1), which scales rows; a float stays a float.

    Parameters
    ----------
    weight : float or array, shape (n,)
    """
    return weight if isinstance(weight, float | int) else weight[:, None]


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


def noised(x0: Array, eps: Array, t: Time) -> Array:
    """Return the noisy picture z = alpha x0 + sigma eps at time `t`.

    Parameters
    ----------
    x0, eps : array, shape (n, k)
    t : float or array, shape (n,)

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.images.schedule import noised, v_of, x0_of
    >>> x0, eps = np.array([[3.0, 0.0]]), np.array([[0.0, 4.0]])
    >>> z, v = noised(x0, eps, 0.5), v_of(x0, eps, 0.5)
    >>> np.allclose(x0_of(z, v, 0.5), x0)
    True
    """
    return column(alpha(t)) * x0 + column(sigma(t)) * eps


def v_of(x0: Array, eps: Array, t: Time) -> Array:
    """Return the velocity v = alpha eps - sigma x0, which the model learns to predict.

    Parameters
    ----------
    x0, eps : array, shape (n, k)
    t : float or array, shape (n,)
    """
    return column(alpha(t)) * eps - column(sigma(t)) * x0


def x0_of(z: Array, v: Array, t: Time) -> Array:
    """Return the picture x0 = alpha z - sigma v.

    Parameters
    ----------
    z, v : array, shape (n, k)
    t : float or array, shape (n,)
    """
    return column(alpha(t)) * z - column(sigma(t)) * v


def eps_of(z: Array, v: Array, t: Time) -> Array:
    """Return the noise eps = sigma z + alpha v.

    Parameters
    ----------
    z, v : array, shape (n, k)
    t : float or array, shape (n,)
    """
    return column(sigma(t)) * z + column(alpha(t)) * v


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
