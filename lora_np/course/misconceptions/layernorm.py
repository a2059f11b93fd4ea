"""Layer normalisation, backward.

    xhat = (x - mu) / sqrt(v + eps)        y = gamma xhat + beta

mu and v are the mean and the variance of the last axis of x.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_np import ops
from lora_np.course.task import Draw, Task, count, samples


def _layernorm_backward(dy: Any, x: Any, gamma: Any, eps: Any) -> Any:
    """Return (dx, dgamma, dbeta)."""
    _, cache = ops.layernorm_forward(x, gamma, np.zeros_like(gamma), eps)
    return ops.layernorm_backward(dy, cache)


def _layernorm_draws(rng: np.random.Generator) -> list[Draw]:
    n, shapes = (
        rng.standard_normal,
        (((3, 4), 1e-2), ((3, 3), 1e-1), ((6, 3), 0.3), ((2, 3, 5), 1e-3)),
    )
    return [{"dy": n(s), "x": n(s) + 1, "gamma": n(s[-1]), "eps": eps} for s, eps in shapes]


def _layernorm_quantities(dy: Any, x: Any, gamma: Any, eps: Any) -> dict[str, Any]:
    """Return what the equation for dx is made of."""
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    rstd = 1 / np.sqrt(variance + eps)
    xhat, g = centred * rstd, dy * gamma
    parts = {"mean_g": g.mean(-1, keepdims=True), "mean_gx": (g * xhat).mean(-1, keepdims=True)}
    return {"variance": variance, "rstd": rstd, "xhat": xhat, "g": g, "N": count(x), **parts}


def _with_rstd(dy: Any, x: Any, gamma: Any, rstd: Any) -> tuple[Any, Any, Any]:
    """Return the three gradients with another 1 / sigma."""
    xhat, g = (x - x.mean(-1, keepdims=True)) * rstd, dy * gamma
    dx = rstd * (g - g.mean(-1, keepdims=True) - xhat * (g * xhat).mean(-1, keepdims=True))
    return dx, samples(dy * xhat).sum(0), samples(dy).sum(0)


LAYERNORM = Task(
    "layernorm_backward",
    ("dx", "dgamma", "dbeta"),
    _layernorm_backward,
    _layernorm_draws,
    _layernorm_quantities,
)
LAYERNORM.usual_mistakes(but=("dgamma transposed", "dbeta transposed"))


@LAYERNORM.mistake("dx")
def _dx_without_the_mean_term(g: Any, xhat: Any, rstd: Any, mean_gx: Any) -> Any:
    """Your dx lacks the term of the mean: mu depends on x too, so subtract mean(g)."""
    return rstd * (g - xhat * mean_gx)


@LAYERNORM.mistake("dx")
def _dx_without_the_variance_term(g: Any, rstd: Any, mean_g: Any) -> Any:
    """Your dx lacks the term of the variance, which depends on x: subtract xhat mean(g xhat)."""
    return rstd * (g - mean_g)


@LAYERNORM.mistake("dx")
def _dx_with_constant_statistics(g: Any, rstd: Any) -> Any:
    """Your dx treats the mean and the variance as constants: both depend on x."""
    return rstd * g


@LAYERNORM.mistake("dx")
def _dx_without_gamma(dy: Any, x: Any, rstd: Any) -> Any:
    """Your dx lacks gamma: start from g = dy gamma."""
    return _with_rstd(dy, x, np.ones(x.shape[-1]), rstd)[0]


@LAYERNORM.mistake("dx")
def _dx_times_gamma_last(dy: Any, x: Any, gamma: Any, rstd: Any) -> Any:
    """Your dx multiplies by gamma at the end: gamma goes inside the means, g = dy gamma."""
    return gamma * _with_rstd(dy, x, np.ones_like(gamma), rstd)[0]


@LAYERNORM.mistake("dx")
def _dx_with_sums(g: Any, xhat: Any, rstd: Any) -> Any:
    """Your dx has sums instead of means: divide both sums by d."""
    return rstd * (g - g.sum(-1, keepdims=True) - xhat * (g * xhat).sum(-1, keepdims=True))


@LAYERNORM.mistake("dx")
def _dx_without_rstd(dx: Any, rstd: Any) -> Any:
    """Your dx lacks the factor 1/sigma."""
    return dx / rstd


@LAYERNORM.mistake("dx")
def _dx_over_the_variance(dx: Any, rstd: Any) -> Any:
    """Your dx is divided by the variance: divide by its square root sigma, once."""
    return dx * rstd


@LAYERNORM.mistake("dx")
def _dx_with_x_for_xhat(g: Any, x: Any, rstd: Any, mean_g: Any) -> Any:
    """Your dx has x where xhat belongs."""
    return rstd * (g - mean_g - x * (g * x).mean(-1, keepdims=True))


@LAYERNORM.mistake("dgamma")
def _dgamma_with_x_for_xhat(dy: Any, x: Any) -> Any:
    """Your dgamma is the sum of dy x: gamma multiplies xhat, so sum dy xhat."""
    return samples(dy * x).sum(0)


@LAYERNORM.mistake("dgamma")
def _dgamma_without_xhat(dy: Any) -> Any:
    """Your dgamma is the sum of dy, which is dbeta: multiply by xhat first."""
    return samples(dy).sum(0)


@LAYERNORM.mistake("dgamma")
def _dgamma_not_summed(dy: Any, xhat: Any) -> Any:
    """Your dgamma has one row per sample: sum over the samples."""
    return dy * xhat


@LAYERNORM.mistake("dgamma")
def _dgamma_mean(dgamma: Any, N: Any) -> Any:
    """Your dgamma equals the correct dgamma times 1/N: sum over the samples, do not average."""
    return dgamma / N


@LAYERNORM.mistake("dgamma")
def _dgamma_keeps_the_batch_axis(dy: Any, xhat: Any) -> Any:
    """Your dgamma sums over the first axis only: sum over all batch axes of x."""
    return (dy * xhat).sum(0)


@LAYERNORM.mistake("dbeta")
def _dbeta_not_summed(dy: Any) -> Any:
    """Your dbeta is dy itself: beta is added to every sample, so sum over the samples."""
    return dy


@LAYERNORM.mistake("dbeta")
def _dbeta_mean(dbeta: Any, N: Any) -> Any:
    """Your dbeta equals the correct dbeta times 1/N: sum over the samples, do not average."""
    return dbeta / N


@LAYERNORM.mistake("dbeta")
def _dbeta_keeps_the_batch_axis(dy: Any) -> Any:
    """Your dbeta sums over the first axis only: sum over all batch axes of x."""
    return dy.sum(0)


@LAYERNORM.mistake()
def _eps_forgotten(dy: Any, x: Any, gamma: Any, variance: Any) -> Any:
    """Your sigma lacks eps: sigma = sqrt(v + eps)."""
    return _with_rstd(dy, x, gamma, 1 / np.sqrt(variance))


@LAYERNORM.mistake()
def _eps_outside_the_root(dy: Any, x: Any, gamma: Any, variance: Any, eps: Any) -> Any:
    """Your sigma is sqrt(v) + eps: eps belongs under the root, sigma = sqrt(v + eps)."""
    return _with_rstd(dy, x, gamma, 1 / (np.sqrt(variance) + eps))


@LAYERNORM.mistake()
def _variance_over_d_minus_one(dy: Any, x: Any, gamma: Any, variance: Any, eps: Any) -> Any:
    """Your variance is divided by d - 1: layer normalisation divides by d."""
    d = x.shape[-1]
    return _with_rstd(dy, x, gamma, 1 / np.sqrt(variance * d / (d - 1) + eps))


@LAYERNORM.mistake()
def _statistics_of_the_batch(dy: Any, x: Any, gamma: Any, eps: Any) -> Any:
    """Your mean and variance run over the samples: that is batch normalisation; use axis -1."""
    axes = tuple(range(x.ndim - 1))
    rstd = 1 / np.sqrt(x.var(axis=axes, keepdims=True) + eps)
    xhat, g = (x - x.mean(axis=axes, keepdims=True)) * rstd, dy * gamma
    mean_g, mean_gx = g.mean(axes, keepdims=True), (g * xhat).mean(axes, keepdims=True)
    return rstd * (g - mean_g - xhat * mean_gx), samples(dy * xhat).sum(0), samples(dy).sum(0)
