"""Causal attention, backward.

    S = q k^T / sqrt(d) + mask        P = softmax(S)        y = P v

Shapes: q, k (..., T, d), v, y (..., T, d_v), S, P (..., T, T).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lora_np import ops
from lora_np.course.misconceptions.softmax import softmax
from lora_np.course.task import Draw, Task


def _attention_backward(dy: Any, q: Any, k: Any, v: Any) -> Any:
    """Return (dq, dk, dv) of causal attention."""
    _, cache = ops.attention_forward(q, k, v)
    return ops.attention_backward(dy, cache)


def _attention_draws(rng: np.random.Generator) -> list[Draw]:
    """Return inputs (..., T, d): long, wide, square, and with heads; v may have another width."""
    n, shapes = rng.standard_normal, (((4, 3), 3), ((3, 5), 2), ((3, 3), 3), ((2, 2, 4, 2), 2))
    return [
        {"dy": n((*s[:-1], d_v)), "q": n(s), "k": n(s), "v": n((*s[:-1], d_v))} for s, d_v in shapes
    ]


def _t(x: np.ndarray) -> np.ndarray:
    return x.swapaxes(-1, -2)


def _weights(q: Any, k: Any, scale: float, causal: bool = True) -> np.ndarray:
    s = q @ _t(k) * scale  # (..., T, T)
    return softmax(np.where(np.tri(s.shape[-1], dtype=bool), s, -np.inf) if causal else s)


def _masked(q: Any, k: Any, scale: float, seen: np.ndarray, hidden: float = -1e9) -> np.ndarray:
    """Return the weights where the scores not `seen` are `hidden`."""
    return softmax(np.where(seen > 0, q @ _t(k) * scale, hidden))


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
    """Your dq equals the correct dq times sqrt(d): the factor 1/sqrt(d) is missing."""
    return dq * root


@ATTENTION.mistake("dq")
def _dq_over_root_d(dq: Any, root: Any) -> Any:
    """Your dq equals the correct dq times 1/sqrt(d): apply that factor once."""
    return dq / root


@ATTENTION.mistake("dk")
def _dk_times_root_d(dk: Any, root: Any) -> Any:
    """Your dk equals the correct dk times sqrt(d): the factor 1/sqrt(d) is missing."""
    return dk * root


@ATTENTION.mistake("dk")
def _dk_over_root_d(dk: Any, root: Any) -> Any:
    """Your dk equals the correct dk times 1/sqrt(d): apply that factor once."""
    return dk / root


@ATTENTION.mistake("dq")
def _dq_with_a_diagonal_jacobian(P: Any, dP: Any, k: Any, root: Any) -> Any:
    """Your dq uses only the diagonal of softmax's Jacobian, P (1 - P): the row sum is missing."""
    return (P * (1 - P) * dP) @ k / root


@ATTENTION.mistake("dk")
def _dk_with_a_diagonal_jacobian(P: Any, dP: Any, q: Any, root: Any) -> Any:
    """Your dk uses only the diagonal of softmax's Jacobian, P (1 - P): the row sum is missing."""
    return _t(P * (1 - P) * dP) @ q / root


@ATTENTION.mistake("dq")
def _dq_without_the_row_sum(P: Any, dP: Any, k: Any, root: Any) -> Any:
    """Your dq lacks the row sum of softmax: dS = P * (dP - rowsum(P * dP))."""
    return (P * dP) @ k / root


@ATTENTION.mistake("dk")
def _dk_without_the_row_sum(P: Any, dP: Any, q: Any, root: Any) -> Any:
    """Your dk lacks the row sum of softmax: dS = P * (dP - rowsum(P * dP))."""
    return _t(P * dP) @ q / root


@ATTENTION.mistake("dq")
def _dq_through_no_softmax(dP: Any, k: Any, root: Any) -> Any:
    """Your dq skips the softmax: compute dS from dP first."""
    return dP @ k / root


@ATTENTION.mistake("dk")
def _dk_by_dS_not_transposed(P: Any, dP: Any, q: Any, root: Any) -> Any:
    """Your dk is dS q: key j is used in column j of S, so dk = dS^T q."""
    return (P * (dP - (P * dP).sum(-1, keepdims=True))) @ q / root


@ATTENTION.mistake("dq")
def _dq_by_dS_transposed(P: Any, dP: Any, k: Any, root: Any) -> Any:
    """Your dq is dS^T k: query i is used in row i of S, so dq = dS k."""
    return _t(P * (dP - (P * dP).sum(-1, keepdims=True))) @ k / root


@ATTENTION.mistake("dv")
def _dv_by_P_not_transposed(P: Any, dy: Any) -> Any:
    """Your dv is P dy: value j is weighted by column j of P, so dv = P^T dy."""
    return P @ dy


@ATTENTION.mistake("dv")
def _dv_without_P(dy: Any) -> Any:
    """Your dv is dy: P mixes the values, y = P v, so dv = P^T dy."""
    return dy


@ATTENTION.mistake()
def _mask_forgotten(dy: Any, q: Any, k: Any, v: Any, root: Any) -> Any:
    """Your gradients are those of attention without the causal mask: query i sees keys 0 .. i."""
    return _through(dy, q, k, v, _weights(q, k, 1 / root, causal=False), 1 / root)


@ATTENTION.mistake()
def _mask_after_the_softmax(dy: Any, q: Any, k: Any, v: Any, root: Any) -> Any:
    """Your mask comes after the softmax, so rows do not sum to 1: mask the scores with -inf."""
    full = _weights(q, k, 1 / root, causal=False)
    seen = np.tri(q.shape[-2])
    dP = (dy @ _t(v)) * seen
    dS = full * (dP - (full * dP).sum(-1, keepdims=True))
    return dS @ k / root, _t(dS) @ q / root, _t(full * seen) @ dy


@ATTENTION.mistake()
def _mask_of_zeros(dy: Any, q: Any, k: Any, v: Any, root: Any) -> Any:
    """Your mask sets future scores to 0, which still have the weight exp(0) = 1: use -inf."""
    P = softmax(np.where(np.tri(q.shape[-2], dtype=bool), q @ _t(k) / root, 0.0))
    return _through(dy, q, k, v, P, 1 / root)


@ATTENTION.mistake()
def _mask_lets_the_next_through(dy: Any, q: Any, k: Any, v: Any, root: Any) -> Any:
    """Your mask lets query i see key i + 1: query i sees only the keys j <= i."""
    return _through(dy, q, k, v, _masked(q, k, 1 / root, np.tri(q.shape[-2], k=1)), 1 / root)


@ATTENTION.mistake()
def _mask_hides_the_query_itself(dy: Any, q: Any, k: Any, v: Any, root: Any) -> Any:
    """Your mask hides key i from query i: query i sees the keys j <= i, not j < i."""
    return _through(dy, q, k, v, _masked(q, k, 1 / root, np.tri(q.shape[-2], k=-1)), 1 / root)


@ATTENTION.mistake()
def _mask_of_minus_inf_hides_the_query_itself(dy: Any, q: Any, k: Any, v: Any, root: Any) -> Any:
    """Your mask leaves query 0 no key, so its weights are nan: query i sees the keys j <= i."""
    seen = np.tri(q.shape[-2], k=-1)
    return _through(dy, q, k, v, _masked(q, k, 1 / root, seen, -np.inf), 1 / root)


@ATTENTION.mistake()
def _mask_upside_down(dy: Any, q: Any, k: Any, v: Any, root: Any) -> Any:
    """Your mask is transposed, so query i sees the keys j >= i: it must see the keys j <= i."""
    return _through(dy, q, k, v, _masked(q, k, 1 / root, np.tri(q.shape[-2]).T), 1 / root)


@ATTENTION.mistake()
def _scores_not_scaled(dy: Any, q: Any, k: Any, v: Any) -> Any:
    """Your scores lack the factor 1/sqrt(d), forward and backward: S = q k^T / sqrt(d)."""
    return _through(dy, q, k, v, _weights(q, k, 1.0), 1.0)


@ATTENTION.mistake()
def _scores_over_d(dy: Any, q: Any, k: Any, v: Any, root: Any) -> Any:
    """Your scores are divided by d: S = q k^T / sqrt(d)."""
    return _through(dy, q, k, v, _weights(q, k, 1 / root**2), 1 / root**2)


@ATTENTION.mistake()
def _softmax_over_queries(dy: Any, q: Any, k: Any, v: Any, root: Any) -> Any:
    """Your softmax runs over the queries: it must run over the keys, axis -1."""
    s = np.where(np.tri(q.shape[-2], dtype=bool), q @ _t(k) / root, -np.inf)
    P, dP = softmax(s, axis=-2), dy @ _t(v)
    dS = P * (dP - (P * dP).sum(-2, keepdims=True))
    return dS @ k / root, _t(dS) @ q / root, _t(P) @ dy
