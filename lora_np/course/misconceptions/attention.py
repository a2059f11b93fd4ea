"""The catalogue of softmax, attention, layer normalisation and cross-entropy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lora_np import ops
from lora_np.course.task import Draw, Task, count, samples
from lora_np.ops.activation import SoftmaxCache

# ----------------------------------------------------------------------------------------- softmax


def _softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def _softmax_backward(dy: Any, y: Any) -> Any:
    """Return dx of y = softmax(x) over the last axis."""
    return ops.softmax_backward(dy, SoftmaxCache(y))[0]


def _softmax_draws(rng: np.random.Generator) -> list[Draw]:
    n = rng.standard_normal
    return [{"dy": n(s), "y": _softmax(n(s))} for s in ((3, 4), (5,), (3, 3), (2, 3, 4))]


SOFTMAX = Task("softmax_backward", ("dx",), _softmax_backward, _softmax_draws)
SOFTMAX.usual_mistakes()


@SOFTMAX.mistake("dx")
def _jacobian_diagonal(dy: Any, y: Any) -> Any:
    """Your dx takes softmax's Jacobian as diagonal, y (1 - y): every x_j moves every y_i."""
    return dy * y * (1 - y)


@SOFTMAX.mistake("dx")
def _sum_missing(dy: Any, y: Any) -> Any:
    """Your dx lacks the sum: subtract y sum_j dy_j y_j."""
    return dy * y


@SOFTMAX.mistake("dx")
def _sum_not_weighted(dy: Any, y: Any) -> Any:
    """Your dx subtracts y sum_j dy_j: the sum is weighted by y, sum_j dy_j y_j."""
    return y * (dy - dy.sum(-1, keepdims=True))


@SOFTMAX.mistake("dx")
def _mean_for_sum(dy: Any, y: Any) -> Any:
    """Your dx subtracts a mean: it is the sum over j of dy_j y_j."""
    return y * (dy - (dy * y).mean(-1, keepdims=True))


@SOFTMAX.mistake("dx")
def _sum_not_times_y(dy: Any, y: Any) -> Any:
    """Your dx subtracts the sum without its factor y_i: dx = dy y - y sum_j dy_j y_j."""
    return dy * y - (dy * y).sum(-1, keepdims=True)


@SOFTMAX.mistake("dx")
def _y_missing(dy: Any, y: Any) -> Any:
    """Your dx lacks the factor y: dx = y (dy - sum_j dy_j y_j)."""
    return dy - (dy * y).sum(-1, keepdims=True)


@SOFTMAX.mistake("dx")
def _sum_over_everything(dy: Any, y: Any) -> Any:
    """Your dx sums over all rows: every row has its own softmax, so sum over the last axis."""
    return y * (dy - (dy * y).sum())


@SOFTMAX.mistake("dx")
def _sum_over_the_first_axis(dy: Any, y: Any) -> Any:
    """Your dx sums over the first axis: softmax runs over the last."""
    return y * (dy - (dy * y).sum(0, keepdims=True))


@SOFTMAX.mistake("dx")
def _sum_without_keepdims(dy: Any, y: Any) -> Any:
    """Your dx sums over the last axis and loses it: with keepdims=True row i meets its own sum."""
    return y * (dy - (dy * y).sum(-1))


@SOFTMAX.mistake("dx")
def _softmax_of_y(dy: Any, y: Any) -> Any:
    """Your dx takes the softmax of y once more: y holds the probabilities already."""
    p = _softmax(y)
    return p * (dy - (dy * p).sum(-1, keepdims=True))


# --------------------------------------------------------------------------------------- attention


def _attention_backward(dy: Any, q: Any, k: Any, v: Any) -> Any:
    """Return (dq, dk, dv) of causal attention."""
    _, cache = ops.attention_forward(q, k, v)
    return ops.attention_backward(dy, cache)


def _attention_draws(rng: np.random.Generator) -> list[Draw]:
    """Return inputs (..., T, d): wide, long, square, and with heads; v may be of another width."""
    n, shapes = rng.standard_normal, (((4, 3), 3), ((3, 5), 2), ((3, 3), 3), ((2, 2, 4, 2), 2))
    return [
        {"dy": n((*s[:-1], d_v)), "q": n(s), "k": n(s), "v": n((*s[:-1], d_v))} for s, d_v in shapes
    ]


def _t(x: np.ndarray) -> np.ndarray:
    return x.swapaxes(-1, -2)


def _weights(q: Any, k: Any, scale: float, causal: bool = True) -> np.ndarray:
    s = q @ _t(k) * scale  # (..., T, T)
    return _softmax(np.where(np.tri(s.shape[-1], dtype=bool), s, -np.inf) if causal else s)


def _masked(q: Any, k: Any, scale: float, seen: np.ndarray, hidden: float = -1e9) -> np.ndarray:
    """Return the weights where the scores not `seen` are `hidden`."""
    return _softmax(np.where(seen > 0, q @ _t(k) * scale, hidden))


def _through(dy: Any, q: Any, k: Any, v: Any, P: Any, scale: float) -> tuple[Any, Any, Any]:
    """Return (dq, dk, dv) given the attention weights P."""
    dP = dy @ _t(v)
    dS = P * (dP - (P * dP).sum(-1, keepdims=True))
    return dS @ k * scale, _t(dS) @ q * scale, _t(P) @ dy


def _attention_quantities(dy: Any, q: Any, k: Any, v: Any) -> dict[str, Any]:
    """Return sqrt(d), the weights P, and dP."""
    root = math.sqrt(q.shape[-1])
    return {"root": root, "P": _weights(q, k, 1 / root), "dP": dy @ _t(v)}


ATTENTION = Task(
    "attention_backward",
    ("dq", "dk", "dv"),
    _attention_backward,
    _attention_draws,
    _attention_quantities,
)
ATTENTION.usual_mistakes()


@ATTENTION.mistake("dq")
def _dq_times_root_d(dq: Any, root: Any) -> Any:
    """Your dq equals the right one times sqrt(d): the factor 1/sqrt(d) of the scores is missing."""
    return dq * root


@ATTENTION.mistake("dq")
def _dq_over_root_d(dq: Any, root: Any) -> Any:
    """Your dq equals the right one times 1/sqrt(d): that factor is in it twice."""
    return dq / root


@ATTENTION.mistake("dk")
def _dk_times_root_d(dk: Any, root: Any) -> Any:
    """Your dk equals the right one times sqrt(d): the factor 1/sqrt(d) of the scores is missing."""
    return dk * root


@ATTENTION.mistake("dk")
def _dk_over_root_d(dk: Any, root: Any) -> Any:
    """Your dk equals the right one times 1/sqrt(d): that factor is in it twice."""
    return dk / root


@ATTENTION.mistake("dq")
def _dq_with_a_diagonal_jacobian(P: Any, dP: Any, k: Any, root: Any) -> Any:
    """Your dq takes softmax's Jacobian as diagonal, P (1 - P): the row's sum belongs to it."""
    return (P * (1 - P) * dP) @ k / root


@ATTENTION.mistake("dk")
def _dk_with_a_diagonal_jacobian(P: Any, dP: Any, q: Any, root: Any) -> Any:
    """Your dk takes softmax's Jacobian as diagonal, P (1 - P): the row's sum belongs to it."""
    return _t(P * (1 - P) * dP) @ q / root


@ATTENTION.mistake("dq")
def _dq_without_the_row_sum(P: Any, dP: Any, k: Any, root: Any) -> Any:
    """Your dq lacks softmax's sum: dS = P * (dP - rowsum(P * dP))."""
    return (P * dP) @ k / root


@ATTENTION.mistake("dk")
def _dk_without_the_row_sum(P: Any, dP: Any, q: Any, root: Any) -> Any:
    """Your dk lacks softmax's sum: dS = P * (dP - rowsum(P * dP))."""
    return _t(P * dP) @ q / root


@ATTENTION.mistake("dq")
def _dq_through_no_softmax(dP: Any, k: Any, root: Any) -> Any:
    """Your dq goes past the softmax: dP is not dS."""
    return dP @ k / root


@ATTENTION.mistake("dk")
def _dk_by_dS_not_transposed(P: Any, dP: Any, q: Any, root: Any) -> Any:
    """Your dk is dS q: key j is looked at by the rows of column j, so dk = dS^T q."""
    return (P * (dP - (P * dP).sum(-1, keepdims=True))) @ q / root


@ATTENTION.mistake("dq")
def _dq_by_dS_transposed(P: Any, dP: Any, k: Any, root: Any) -> Any:
    """Your dq is dS^T k: query i looks along row i, so dq = dS k."""
    return _t(P * (dP - (P * dP).sum(-1, keepdims=True))) @ k / root


@ATTENTION.mistake("dv")
def _dv_by_P_not_transposed(P: Any, dy: Any) -> Any:
    """Your dv is P dy: value j is read by the rows of column j, so dv = P^T dy."""
    return P @ dy


@ATTENTION.mistake("dv")
def _dv_without_P(dy: Any) -> Any:
    """Your dv is dy: the values are mixed by P on the way, so dv = P^T dy."""
    return dy


@ATTENTION.mistake()
def _mask_forgotten(dy: Any, q: Any, k: Any, v: Any, root: Any) -> Any:
    """Your gradients are those of attention without the causal mask: query i sees keys 0 .. i."""
    return _through(dy, q, k, v, _weights(q, k, 1 / root, causal=False), 1 / root)


@ATTENTION.mistake()
def _mask_after_the_softmax(dy: Any, q: Any, k: Any, v: Any, root: Any) -> Any:
    """Your mask comes after the softmax, so rows do not sum to 1: add -inf to the scores before."""
    full = _weights(q, k, 1 / root, causal=False)
    seen = np.tri(q.shape[-2])
    dP = (dy @ _t(v)) * seen
    dS = full * (dP - (full * dP).sum(-1, keepdims=True))
    return dS @ k / root, _t(dS) @ q / root, _t(full * seen) @ dy


@ATTENTION.mistake()
def _mask_of_zeros(dy: Any, q: Any, k: Any, v: Any, root: Any) -> Any:
    """Your mask sets future scores to 0, and exp(0) = 1 still looks there: set them to -inf."""
    P = _softmax(np.where(np.tri(q.shape[-2], dtype=bool), q @ _t(k) / root, 0.0))
    return _through(dy, q, k, v, P, 1 / root)


@ATTENTION.mistake()
def _mask_lets_the_next_through(dy: Any, q: Any, k: Any, v: Any, root: Any) -> Any:
    """Your mask lets query i see key i + 1 as well: it sees keys 0 .. i, so j <= i."""
    return _through(dy, q, k, v, _masked(q, k, 1 / root, np.tri(q.shape[-2], k=1)), 1 / root)


@ATTENTION.mistake()
def _mask_hides_the_query_itself(dy: Any, q: Any, k: Any, v: Any, root: Any) -> Any:
    """Your mask hides key i from query i: it sees keys 0 .. i, so j <= i and not j < i."""
    return _through(dy, q, k, v, _masked(q, k, 1 / root, np.tri(q.shape[-2], k=-1)), 1 / root)


@ATTENTION.mistake()
def _mask_of_minus_inf_hides_the_query_itself(dy: Any, q: Any, k: Any, v: Any, root: Any) -> Any:
    """Your mask leaves row 0 nothing to see, hence nan: query i sees keys 0 .. i, so j <= i."""
    seen = np.tri(q.shape[-2], k=-1)
    return _through(dy, q, k, v, _masked(q, k, 1 / root, seen, -np.inf), 1 / root)


@ATTENTION.mistake()
def _mask_upside_down(dy: Any, q: Any, k: Any, v: Any, root: Any) -> Any:
    """Your mask is upside down, and query i sees keys i .. T - 1: it sees keys 0 .. i."""
    return _through(dy, q, k, v, _masked(q, k, 1 / root, np.tri(q.shape[-2]).T), 1 / root)


@ATTENTION.mistake()
def _scores_not_scaled(dy: Any, q: Any, k: Any, v: Any) -> Any:
    """Your scores have no 1/sqrt(d), forward and backward: S = q k^T / sqrt(d)."""
    return _through(dy, q, k, v, _weights(q, k, 1.0), 1.0)


@ATTENTION.mistake()
def _scores_over_d(dy: Any, q: Any, k: Any, v: Any, root: Any) -> Any:
    """Your scores are divided by d: S = q k^T / sqrt(d)."""
    return _through(dy, q, k, v, _weights(q, k, 1 / root**2), 1 / root**2)


@ATTENTION.mistake()
def _softmax_over_queries(dy: Any, q: Any, k: Any, v: Any, root: Any) -> Any:
    """Your softmax runs over the queries: each query's weights sum to 1 over the keys, axis -1."""
    s = np.where(np.tri(q.shape[-2], dtype=bool), q @ _t(k) / root, -np.inf)
    P, dP = _softmax(s, axis=-2), dy @ _t(v)
    dS = P * (dP - (P * dP).sum(-2, keepdims=True))
    return dS @ k / root, _t(dS) @ q / root, _t(P) @ dy


# ----------------------------------------------------------------------------- layer normalisation


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
    """Your dx lacks the mean's term: x_j moves mu too, so subtract mean(g)."""
    return rstd * (g - xhat * mean_gx)


@LAYERNORM.mistake("dx")
def _dx_without_the_variance_term(g: Any, rstd: Any, mean_g: Any) -> Any:
    """Your dx lacks the variance's term: x_j moves v too, so subtract xhat mean(g xhat)."""
    return rstd * (g - mean_g)


@LAYERNORM.mistake("dx")
def _dx_with_constant_statistics(g: Any, rstd: Any) -> Any:
    """Your dx takes mean and variance as constants: both depend on x."""
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
    """Your dx has sums for means: divide both sums by d."""
    return rstd * (g - g.sum(-1, keepdims=True) - xhat * (g * xhat).sum(-1, keepdims=True))


@LAYERNORM.mistake("dx")
def _dx_without_rstd(dx: Any, rstd: Any) -> Any:
    """Your dx lacks the factor 1/sigma in front."""
    return dx / rstd


@LAYERNORM.mistake("dx")
def _dx_over_the_variance(dx: Any, rstd: Any) -> Any:
    """Your dx is divided by the variance: divide by its root, once."""
    return dx * rstd


@LAYERNORM.mistake("dx")
def _dx_with_x_for_xhat(g: Any, x: Any, rstd: Any, mean_g: Any) -> Any:
    """Your dx has x where xhat belongs."""
    return rstd * (g - mean_g - x * (g * x).mean(-1, keepdims=True))


@LAYERNORM.mistake("dgamma")
def _dgamma_with_x_for_xhat(dy: Any, x: Any) -> Any:
    """Your dgamma is the sum of dy x: gamma multiplies xhat, so it is the sum of dy xhat."""
    return samples(dy * x).sum(0)


@LAYERNORM.mistake("dgamma")
def _dgamma_without_xhat(dy: Any) -> Any:
    """Your dgamma is the sum of dy, which is dbeta: multiply by xhat first."""
    return samples(dy).sum(0)


@LAYERNORM.mistake("dgamma")
def _dgamma_not_summed(dy: Any, xhat: Any) -> Any:
    """Your dgamma has one row a sample: the sum over the samples is missing."""
    return dy * xhat


@LAYERNORM.mistake("dgamma")
def _dgamma_mean(dgamma: Any, N: Any) -> Any:
    """Your dgamma equals the right one times 1/N: samples are summed, not averaged."""
    return dgamma / N


@LAYERNORM.mistake("dgamma")
def _dgamma_keeps_the_batch_axis(dy: Any, xhat: Any) -> Any:
    """Your dgamma sums over the first axis alone: x may have several batch axes; sum over all."""
    return (dy * xhat).sum(0)


@LAYERNORM.mistake("dbeta")
def _dbeta_not_summed(dy: Any) -> Any:
    """Your dbeta is dy itself: beta reaches every sample, so sum over the samples."""
    return dy


@LAYERNORM.mistake("dbeta")
def _dbeta_mean(dbeta: Any, N: Any) -> Any:
    """Your dbeta equals the right one times 1/N: samples are summed, not averaged."""
    return dbeta / N


@LAYERNORM.mistake("dbeta")
def _dbeta_keeps_the_batch_axis(dy: Any) -> Any:
    """Your dbeta sums over the first axis alone: x may have several batch axes; sum over all."""
    return dy.sum(0)


@LAYERNORM.mistake()
def _eps_forgotten(dy: Any, x: Any, gamma: Any, variance: Any) -> Any:
    """Your sigma lacks eps: sigma = sqrt(v + eps)."""
    return _with_rstd(dy, x, gamma, 1 / np.sqrt(variance))


@LAYERNORM.mistake()
def _eps_outside_the_root(dy: Any, x: Any, gamma: Any, variance: Any, eps: Any) -> Any:
    """Your sigma is sqrt(v) + eps: eps goes under the root, sigma = sqrt(v + eps)."""
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


# ----------------------------------------------------------------------------------- cross-entropy


def _cross_entropy_backward(logits: Any, targets: Any) -> Any:
    """Return dlogits of the mean over the tokens whose target is not -100."""
    _, cache = ops.cross_entropy_forward(logits, targets)
    return ops.cross_entropy_backward(1.0, cache)[0]


def _cross_entropy_draws(rng: np.random.Generator) -> list[Draw]:
    """Return logits, some large, and targets, some ignored."""
    draws = []
    for shape, size in (((5, 4), 1.0), ((4, 4), 1.0), ((2, 3, 5), 1.0), ((3, 6), 900.0)):
        logits = size * rng.standard_normal(shape)
        draws.append({"logits": logits, "targets": rng.integers(0, shape[-1], shape[:-1])})
    draws[0]["targets"][1] = -100
    draws[2]["targets"][0, 1:] = -100
    return draws


def _cross_entropy_quantities(logits: Any, targets: Any) -> dict[str, Any]:
    """Return softmax, which tokens are kept, how many, N, and the one-hot targets."""
    kept = targets != -100
    hot = (targets[..., None] == np.arange(logits.shape[-1])).astype(np.float64)
    p = _softmax(logits)
    return {"p": p, "hot": hot, "kept": kept[..., None], "M": int(kept.sum()), "N": kept.size}


ENTROPY = Task(
    "cross_entropy_backward",
    ("dlogits",),
    _cross_entropy_backward,
    _cross_entropy_draws,
    _cross_entropy_quantities,
)
ENTROPY.usual_mistakes()


@ENTROPY.mistake("dlogits")
def _target_not_subtracted(p: Any, kept: Any, M: Any) -> Any:
    """Your dlogits is the softmax alone: subtract 1 at the target."""
    return p * kept / M


@ENTROPY.mistake("dlogits")
def _softmax_missing(hot: Any, M: Any) -> Any:
    """Your dlogits is -1 at the target and 0 elsewhere: the softmax's term is missing."""
    return -hot / M


@ENTROPY.mistake("dlogits")
def _sum_for_mean(dlogits: Any, M: Any) -> Any:
    """Your dlogits equals the right one times the number of tokens: the loss is their mean."""
    return dlogits * M


@ENTROPY.mistake("dlogits")
def _ignored_tokens_counted(dlogits: Any, M: Any, N: Any) -> Any:
    """Your dlogits is divided by all tokens: divide by those whose target is not -100."""
    return dlogits * M / N


@ENTROPY.mistake("dlogits")
def _over_the_first_axis(dlogits: Any, M: Any, logits: Any) -> Any:
    """Your dlogits is divided by the length of the first axis: divide by the kept tokens."""
    return dlogits * M / len(logits)


@ENTROPY.mistake("dlogits")
def _over_the_vocabulary_too(dlogits: Any, logits: Any) -> Any:
    """Your dlogits is a mean over the entries: divide by the tokens, not by the vocabulary too."""
    return dlogits / logits.shape[-1]


@ENTROPY.mistake("dlogits")
def _ignored_tokens_not_zero(p: Any, hot: Any, M: Any) -> Any:
    """Your dlogits is not zero for ignored tokens: their loss is 0, so is their gradient."""
    return (p - hot) / M


@ENTROPY.mistake()
def _ignored_target_as_an_index(dlogits: Any, N: Any, M: Any) -> Any:
    """Your code fails where targets hold -100: that is no index; leave those tokens out."""
    if N != M:
        raise IndexError("-100 is out of bounds")
    return dlogits


@ENTROPY.mistake("dlogits")
def _largest_not_subtracted(logits: Any, hot: Any, kept: Any, M: Any) -> Any:
    """Your exp overflows: subtract each row's largest logit first, which changes no softmax."""
    e = np.exp(logits)
    return (e / e.sum(-1, keepdims=True) - hot) * kept / M


@ENTROPY.mistake("dlogits")
def _softmax_over_the_first_axis(logits: Any, hot: Any, kept: Any, M: Any) -> Any:
    """Your softmax runs over the first axis: it runs over the vocabulary, the last."""
    return (_softmax(logits, 0) - hot) * kept / M


@ENTROPY.mistake("dlogits")
def _softmax_over_everything(logits: Any, hot: Any, kept: Any, M: Any) -> Any:
    """Your softmax is normalised over all tokens at once: sum over the last axis, keepdims=True."""
    e = np.exp(logits - logits.max())
    return (e / e.sum() - hot) * kept / M
