"""Layer normalisation and its short form, root-mean-square normalisation (RMSNorm).

Layer normalisation centres every sample, scales it to variance one, and applies a gain and a bias.
Shapes: x (..., d), gamma and beta (d,), y (..., d). Means are over the last axis::

    mu = mean(x)    v = mean((x - mu)^2)    rstd = 1 / sqrt(v + eps)    xhat = (x - mu) rstd
    y = gamma xhat + beta

Derivation. Sums over samples: dgamma = sum dy xhat, dbeta = sum dy. For x, let g = dy gamma =
dL/dxhat. A change of x_j changes xhat_i directly (if i = j), through mu, and through v::

    dxhat_i / dx_j = rstd (1[i = j] - 1 / d - xhat_i xhat_j / d)
    dx_j = sum_i g_i dxhat_i / dx_j,  that is  dx = rstd (g - mean(g) - xhat mean(g xhat))

RMSNorm neither centres nor has a bias: it divides by the root of the mean square alone::

    r = 1 / sqrt(mean(x^2) + eps)    xhat = x r    y = gamma xhat
    dgamma = sum dy xhat             dx = r (g - xhat mean(g xhat)),  g = dy gamma

This is the derivation above without mu: dxhat_i / dx_j = r (1[i = j] - xhat_i xhat_j / d).

Sources: Ba, Kiros and Hinton (2016), arXiv:1607.06450, equation 4; Zhang and Sennrich (2019),
arXiv:1910.07467, equation 4.
"""

from __future__ import annotations

from typing import NamedTuple

from lora_np.backend import Array
from lora_np.ops.contract import Need, expect_shape, expect_some, wanted
from lora_np.ops.linear import mean_last, sum_rows


class LayernormCache(NamedTuple):
    """What :func:`layernorm_backward` reads."""

    xhat: Array  # (..., d)
    rstd: Array  # (..., 1)
    gamma: Array  # (d,)


def layernorm_forward(
    x: Array, gamma: Array, beta: Array, eps: float = 1e-5
) -> tuple[Array, LayernormCache]:
    """Normalise the last axis of `x`, then scale by gamma and shift by beta.

    Parameters
    ----------
    x : array, shape (..., d)
    gamma, beta : arrays, shape (d,)
    eps : float
        Added to the variance.

    Returns
    -------
    y : array, shape (..., d)
    cache : LayernormCache

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import layernorm_backward, layernorm_forward
    >>> x = np.array([[2.0, 4.0, 6.0, 8.0]])
    >>> y, cache = layernorm_forward(x, np.ones(4), np.zeros(4))
    >>> y.round(2).tolist()  # (x - 5) / sqrt(5)
    [[-1.34, -0.45, 0.45, 1.34]]
    >>> dx, dgamma, dbeta = layernorm_backward(np.ones((1, 4)), cache)
    >>> bool(abs(dx).max() < 1e-12)  # no change of x shifts all entries of y alike
    True
    """
    expect_some("x", x)
    expect_shape("gamma", gamma, *x.shape[-1:])
    expect_shape("beta", beta, *x.shape[-1:])
    xhat, rstd = standardised(x, eps)
    return gamma * xhat + beta, LayernormCache(xhat, rstd, gamma)


def layernorm_backward(
    dy: Array, cache: LayernormCache, need: Need = None
) -> tuple[Array | None, Array | None, Array | None]:
    """Return (dx, dgamma, dbeta) of :func:`layernorm_forward`."""
    xhat, rstd, gamma = cache
    need_x, need_gamma, need_beta = wanted(need, 3)
    expect_shape("dy", dy, *xhat.shape)
    dx = standardised_backward(dy * gamma, xhat, rstd) if need_x else None  # (..., d)
    dgamma = sum_rows(dy * xhat) if need_gamma else None  # (d,)
    dbeta = sum_rows(dy) if need_beta else None  # (d,)
    return dx, dgamma, dbeta


def standardised(x: Array, eps: float) -> tuple[Array, Array]:
    """Return xhat, which is `x` (..., d) with mean 0 and variance 1, and rstd (..., 1)."""
    centred = x - mean_last(x)  # (..., d)
    # Not np.var, which conjugates and would break the complex step.
    variance = mean_last(centred * centred)  # (..., 1)
    rstd = (variance + float(eps)) ** -0.5  # an np.float64 would turn float32 into float64
    return rstd * centred, rstd


def standardised_backward(g: Array, xhat: Array, rstd: Array) -> Array:
    """Return dx (..., d) for g = dL/dxhat (..., d)."""
    return rstd * (g - mean_last(g) - xhat * mean_last(g * xhat))


class RmsnormCache(NamedTuple):
    """What :func:`rmsnorm_backward` reads."""

    xhat: Array  # (..., d)
    r: Array  # (..., 1)
    gamma: Array  # (d,)


def rmsnorm_forward(x: Array, gamma: Array, eps: float = 1e-6) -> tuple[Array, RmsnormCache]:
    """Divide the last axis of `x` by the root of its mean square, then scale by gamma.

    Parameters
    ----------
    x : array, shape (..., d)
    gamma : array, shape (d,)
    eps : float
        Added to the mean square.

    Returns
    -------
    y : array, shape (..., d)
    cache : RmsnormCache

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import rmsnorm_backward, rmsnorm_forward
    >>> y, cache = rmsnorm_forward(np.array([[1.0, 7.0]]), np.ones(2))
    >>> y.round(2).tolist()  # the mean square is 25
    [[0.2, 1.4]]
    >>> dx, dgamma = rmsnorm_backward(np.array([[1.0, 7.0]]), cache)
    >>> bool(abs(dx).max() < 1e-6)  # stretching x does not change y
    True
    """
    expect_some("x", x)
    expect_shape("gamma", gamma, *x.shape[-1:])
    r = (mean_last(x * x) + float(eps)) ** -0.5  # (..., 1)
    xhat = x * r
    return gamma * xhat, RmsnormCache(xhat, r, gamma)


def rmsnorm_backward(
    dy: Array, cache: RmsnormCache, need: Need = None
) -> tuple[Array | None, Array | None]:
    """Return (dx, dgamma) of :func:`rmsnorm_forward`."""
    xhat, r, gamma = cache
    need_x, need_gamma = wanted(need, 2)
    expect_shape("dy", dy, *xhat.shape)
    dx = None
    if need_x:
        dx = dy * gamma  # g
        dx -= xhat * mean_last(dx * xhat)
        dx *= r
    dgamma = sum_rows(dy * xhat) if need_gamma else None  # (d,)
    return dx, dgamma
