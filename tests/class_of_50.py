"""Students: wrong answers with their expected diagnosis, and correct answers unlike ours.

A wrong answer is a correct answer with some text replaced, so it is independent of the functions in
lora_np/course/misconceptions. ``python -m tests.class_of_50`` grades every answer in a process of
its own, and prints how long that took.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from lora_np.course.grade import grade_folder


class Student(NamedTuple):
    """A submission and its expected findings: none if it is correct."""

    task: str
    name: str
    source: str
    findings: tuple[str, ...]


RIGHT = {
    "linear_backward": """
def linear_backward(dy, x, W):
    g, X = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
    dx = dy @ W
    dW = g.T @ X
    db = g.sum(axis=0)
    return dx, dW, db
""",
    "numeric_gradient": """
def numeric_gradient(f, x, h):
    g = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        z = x.copy()
        z[i] = x[i] + h
        plus = f(z)
        z[i] = x[i] - h
        minus = f(z)
        g[i] = (plus - minus) / (2 * h)
    return g
""",
    "lora_linear_forward": """
def lora_linear_forward(x, W0, A, B, alpha, mask):
    scale = alpha / A.shape[0]
    u = (x * mask) @ A.T
    return x @ W0.T + scale * (u @ B.T)
""",
    "lora_linear_backward": """
def lora_linear_backward(dy, x, W0, A, B, alpha, mask):
    scale = alpha / A.shape[0]
    rows = lambda a: a.reshape(-1, a.shape[-1])
    xd = x * mask
    u = xd @ A.T
    du = scale * (dy @ B)
    dB = scale * (rows(dy).T @ rows(u))
    dA = rows(du).T @ rows(xd)
    dx = dy @ W0 + (du @ A) * mask
    return dx, dA, dB
""",
    "softmax_backward": """
def softmax_backward(dy, y):
    s = (dy * y).sum(axis=-1, keepdims=True)
    return y * (dy - s)
""",
    "attention_backward": """
def attention_backward(dy, q, k, v):
    T, d = q.shape[-2:]
    c = 1 / math.sqrt(d)
    t = lambda a: np.swapaxes(a, -1, -2)
    S = (q @ t(k)) * c
    S = np.where(np.tri(T, dtype=bool), S, -np.inf)
    E = np.exp(S - S.max(axis=-1, keepdims=True))
    P = E / E.sum(axis=-1, keepdims=True)
    dv = t(P) @ dy
    dP = dy @ t(v)
    dS = P * (dP - (P * dP).sum(axis=-1, keepdims=True))
    dq = dS @ k * c
    dk = t(dS) @ q * c
    return dq, dk, dv
""",
    "layernorm_backward": """
def layernorm_backward(dy, x, gamma, eps):
    mu = x.mean(axis=-1, keepdims=True)
    v = ((x - mu) ** 2).mean(axis=-1, keepdims=True)
    sigma = np.sqrt(v + eps)
    xhat = (x - mu) / sigma
    g = dy * gamma
    mean = lambda a: a.mean(axis=-1, keepdims=True)
    dx = (g - mean(g) - xhat * mean(g * xhat)) / sigma
    batch = tuple(range(x.ndim - 1))
    return dx, (dy * xhat).sum(axis=batch), dy.sum(axis=batch)
""",
    "cross_entropy_backward": """
def cross_entropy_backward(logits, targets):
    z, t = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    kept = t != -100
    z = z - z.max(axis=1, keepdims=True)
    p = np.exp(z)
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(t))[kept], t[kept]] -= 1
    p[~kept] = 0
    return (p / int(kept.sum())).reshape(logits.shape)
""",
    "stable_rank": """
def stable_rank(M):
    s = np.linalg.svd(M, compute_uv=False)
    return (s ** 2).sum() / s[0] ** 2
""",
    "effective_rank": """
def effective_rank(M):
    s = np.linalg.svd(M, compute_uv=False)
    q = s / s.sum()
    q = q[q > 0]
    return np.exp(-(q * np.log(q)).sum())
""",
    "energy_rank": """
def energy_rank(M, fraction):
    s = np.linalg.svd(M, compute_uv=False)
    e = np.cumsum(s ** 2)
    return int(np.argmax(e >= fraction * e[-1])) + 1
""",
    "best_rank_error": """
def best_rank_error(M, r):
    s = np.linalg.svd(M, compute_uv=False)
    return np.sqrt((s[r:] ** 2).sum() / (s ** 2).sum())
""",
    "x0_and_eps": """
def x0_and_eps(z, v, t):
    angle = math.pi / 2 * t[:, None]
    alpha, sigma = np.cos(angle), np.sin(angle)
    x0 = alpha * z - sigma * v
    eps = sigma * z + alpha * v
    return x0, eps
""",
    "ddim_step": """
def ddim_step(z, v, t, later):
    weights = lambda t: [f(math.pi / 2 * t) for f in (math.cos, math.sin)]
    (alpha, sigma), (alpha_later, sigma_later) = weights(t), weights(later)
    x0 = alpha * z - sigma * v
    eps = sigma * z + alpha * v
    return alpha_later * x0 + sigma_later * eps
""",
    "consistency_step": """
def consistency_step(z, v, t, later, noise):
    weights = lambda t: [f(math.pi / 2 * t) for f in (math.cos, math.sin)]
    (alpha, sigma), (alpha_later, sigma_later) = weights(t), weights(later)
    x0 = alpha * z - sigma * v
    return alpha_later * x0 + sigma_later * noise
""",
    "guided": """
def guided(v_none, v_words, w):
    return v_none + w * (v_words - v_none)
""",
}

# task, expected finding, old text, new text: each is one mistake of a student
WRONG = [
    ("linear_backward", "dW transposed", "g.T @ X", "X.T @ g"),
    ("linear_backward", "dx by W transposed", "dy @ W", "dy @ W.T"),
    ("linear_backward", "dW mean", "g.T @ X", "g.T @ X / len(X)"),
    ("linear_backward", "dW of the last sample", "g.T @ X", "np.outer(g[-1], X[-1])"),
    ("linear_backward", "dW not summed", "g.T @ X", "np.einsum('...o,...i->...oi', dy, x)"),
    ("linear_backward", "dW by dy T", "g.T @ X", "dy.T @ x"),
    ("linear_backward", "db not summed", "g.sum(axis=0)", "dy"),
    ("linear_backward", "db keeps the batch axis", "g.sum(axis=0)", "dy.sum(axis=0)"),
    ("linear_backward", "db mean", "g.sum(axis=0)", "g.mean(axis=0)"),
    ("linear_backward", "order", "return dx, dW", "return dW, dx"),
    ("linear_backward", "order", "return dx, dW, db", "return dW, db, dx"),
    ("linear_backward", "order", "return dx, dW, db", "return dx, db, dW"),
    ("linear_backward", "dx without dy", "dy @ W", "np.ones_like(dy) @ W"),
    ("linear_backward", "dtype", "g.sum(axis=0)", "np.zeros(len(W)) + g.sum(axis=0)"),
    ("linear_backward", "writes", "dx = dy @ W", "dx = dy @ W; x *= 2; X = X / 2"),
    ("numeric_gradient", "half the forward difference", "x[i] - h", "x[i]"),
    ("numeric_gradient", "forward difference", "minus) / (2 * h)", "f(x)) / h"),
    ("numeric_gradient", "not over two", "/ (2 * h)", "/ h"),
    ("numeric_gradient", "times h over two", "/ (2 * h)", "/ 2 * h"),
    (
        "numeric_gradient",
        "entries left moved",
        "    for i in np.ndindex(x.shape):\n        z = x.copy()",
        "    z = x.copy()\n    for i in np.ndindex(x.shape):",
    ),
    ("numeric_gradient", "own step", "z = x.copy()", "z = x.copy(); h = 1e-5"),
    ("numeric_gradient", "half the step", "for i", "h = h / 2\n    for i"),
    ("numeric_gradient", "writes", "z = x.copy()", "z = x; x = x.copy()"),
    (
        "numeric_gradient",
        "put back inexactly",
        "z = x.copy()\n        z[i] = x[i] + h\n        plus = f(z)\n"
        "        z[i] = x[i] - h\n        minus = f(z)\n",
        "x[i] += h; plus = f(x); x[i] -= 2 * h; minus = f(x); x[i] += h\n",
    ),
    ("lora_linear_forward", "scale missing", "scale * (u", "(u"),
    ("lora_linear_forward", "alpha not over r", "alpha / A.shape[0]", "alpha"),
    ("lora_linear_forward", "alpha over root r", "A.shape[0]", "A.shape[0] ** 0.5"),
    ("lora_linear_forward", "alpha floor r", "alpha / A", "alpha // A"),
    ("lora_linear_forward", "alpha over in", "A.shape[0]", "A.shape[1]"),
    ("lora_linear_forward", "factor", "alpha / A.shape[0]", "alpha ** 2 / A.shape[0]"),
    (
        "lora_linear_forward",
        "mask and scale forgotten",
        "(x * mask) @ A.T\n    return x @ W0.T + scale *",
        "x @ A.T\n    return x @ W0.T +",
    ),
    ("lora_linear_forward", "scale squared", "(x * mask)", "scale * (x * mask)"),
    ("lora_linear_forward", "mask forgotten", "(x * mask)", "x"),
    ("lora_linear_forward", "mask on both paths", "scale =", "x = x * mask; mask = 1; scale ="),
    ("lora_linear_forward", "A and B swapped", "scale =", "A, B = B, A; r = len(B); scale ="),
    ("lora_linear_forward", "W0 missing", "x @ W0.T +", ""),
    (
        "lora_linear_forward",
        "mask on the change of W",
        "scale * (u @ B.T)",
        "scale * (x @ ((B @ A) * mask.reshape(-1, x.shape[-1])[0]).T)",
    ),
    ("lora_linear_backward", "alpha over root r", "A.shape[0]", "A.shape[0] ** 0.5"),
    ("lora_linear_backward", "r over alpha", "alpha / A.shape[0]", "A.shape[0] / alpha"),
    ("lora_linear_backward", "alpha floor r", "alpha / A", "alpha // A"),
    ("lora_linear_backward", "alpha over in", "A.shape[0]", "A.shape[1]"),
    ("lora_linear_backward", "alpha throughout", "alpha / A.shape[0]", "alpha"),
    ("lora_linear_backward", "scale missing throughout", "alpha / A.shape[0]", "1.0"),
    ("lora_linear_backward", "factor", "dA = rows", "dA = len(A) ** 0.5 * rows"),
    ("lora_linear_backward", "order", "return dx, dA, dB", "return dA, dB, dx"),
    ("lora_linear_backward", "dA over scale", "rows(du).T @", "rows(dy @ B).T @"),
    ("lora_linear_backward", "dA times scale", "dA = rows", "dA = scale * rows"),
    ("lora_linear_backward", "dA by du T", "rows(du).T @ rows(xd)", "du.T @ xd"),
    ("lora_linear_backward", "dB by dy T", "(rows(dy).T @ rows(u))", "(dy.T @ u)"),
    ("lora_linear_backward", "dB over scale", "dB = scale *", "dB ="),
    ("lora_linear_backward", "dA forgets the mask", "@ rows(xd)", "@ rows(x)"),
    ("lora_linear_backward", "dB forgets the mask", "u = xd", "u = x"),
    ("lora_linear_backward", "dx without the adapter", " + (du @ A) * mask", ""),
    ("lora_linear_backward", "dx without W0", "dy @ W0 + ", ""),
    ("lora_linear_backward", "dx forgets the mask", "(du @ A) * mask", "du @ A"),
    ("lora_linear_backward", "dx masked throughout", "dy @ W0 +", "dy @ W0 * mask +"),
    ("lora_linear_backward", "order", "return dx, dA, dB", "return dx, dB, dA"),
    (
        "lora_linear_backward",
        "dW0 computed",
        "return dx, dA",
        "return dx, rows(dy).T @ rows(x), dA",
    ),
    ("softmax_backward", "jacobian diagonal", "y * (dy - s)", "dy * y * (1 - y)"),
    ("softmax_backward", "sum missing", "y * (dy - s)", "y * dy"),
    ("softmax_backward", "sum over everything", "sum(axis=-1, keepdims=True)", "sum()"),
    ("softmax_backward", "sum without keepdims", ", keepdims=True", ""),
    ("attention_backward", "mask lets the next through", "np.tri(T,", "np.tri(T, k=1,"),
    (
        "attention_backward",
        "mask of minus inf hides the query itself",
        "np.tri(T,",
        "np.tri(T, k=-1,",
    ),
    (
        "attention_backward",
        "mask hides the query itself",
        "np.where(np.tri(T, dtype=bool), S, -np.inf)",
        "np.where(np.tri(T, k=-1, dtype=bool), S, -1e9)",
    ),
    ("attention_backward", "mask upside down", "np.tri(T, dtype=bool)", "np.tri(T, dtype=bool).T"),
    ("attention_backward", "dq times root d", "dS @ k * c", "dS @ k"),
    ("attention_backward", "dk by dS not transposed", "t(dS) @ q", "dS @ q"),
    ("attention_backward", "dv by P not transposed", "t(P) @ dy", "P @ dy"),
    ("attention_backward", "mask forgotten", "-np.inf", "S"),
    ("attention_backward", "mask of zeros", "-np.inf", "0.0"),
    ("attention_backward", "scores not scaled", "1 / math.sqrt(d)", "1.0"),
    ("attention_backward", "order", "return dq, dk", "return dk, dq"),
    ("layernorm_backward", "dx without the mean term", "g - mean(g) -", "g -"),
    ("layernorm_backward", "dx without the variance term", " - xhat * mean(g * xhat)", ""),
    ("layernorm_backward", "dx without gamma", "g = dy * gamma", "g = dy"),
    ("layernorm_backward", "eps forgotten", "v + eps", "v"),
    (
        "layernorm_backward",
        "variance over d minus one",
        "v + eps",
        "v * x.shape[-1] / (x.shape[-1] - 1) + eps",
    ),
    (
        "layernorm_backward",
        "dgamma keeps the batch axis",
        "(dy * xhat).sum(axis=batch)",
        "(dy * xhat).sum(0)",
    ),
    ("cross_entropy_backward", "sum for mean", " / int(kept.sum())", ""),
    ("cross_entropy_backward", "ignored tokens counted", "int(kept.sum())", "len(t)"),
    ("cross_entropy_backward", "ignored tokens not zero", "p[~kept] = 0", ""),
    ("cross_entropy_backward", "target not subtracted", "-= 1", "-= 0"),
    (
        "cross_entropy_backward",
        "largest not subtracted",
        "z = z - z.max(axis=1, keepdims=True)",
        "",
    ),
    (
        "cross_entropy_backward",
        "ignored target as an index",
        "np.arange(len(t))[kept], t[kept]",
        "np.arange(len(t)), t",
    ),
    ("stable_rank", "not squared", "(s ** 2).sum() / s[0] ** 2", "s.sum() / s[0]"),
    ("stable_rank", "norms not squared", "(s ** 2).sum() / s[0] ** 2", "np.linalg.norm(M) / s[0]"),
    ("effective_rank", "of squares", "s / s.sum()", "s**2 / (s**2).sum()"),
    ("effective_rank", "entropy alone", "np.exp(-(q * np.log(q)).sum())", "-(q * np.log(q)).sum()"),
    ("effective_rank", "zero times log zero", "    q = q[q > 0]\n", ""),
    ("energy_rank", "energy not squared", "s ** 2", "s"),
    ("energy_rank", "one too few", " + 1", ""),
    ("best_rank_error", "not relative", " / (s ** 2).sum()", ""),
    ("best_rank_error", "one value too many", "s[r:]", "s[r + 1:]"),
    ("x0_and_eps", "alpha and sigma swapped", "alpha, sigma =", "sigma, alpha ="),
    ("x0_and_eps", "angle is t", "math.pi / 2 * ", ""),
    ("x0_and_eps", "angle is pi t", "math.pi / 2", "math.pi"),
    ("x0_and_eps", "sigma is one minus alpha", "x0 =", "sigma = 1 - alpha; x0 ="),
    ("x0_and_eps", "times along the latents", "[:, None]", ""),
    ("x0_and_eps", "time of the first row", "x0 =", "alpha, sigma = alpha[0], sigma[0]; x0 ="),
    ("x0_and_eps", "x0 divides by alpha", "alpha * z - sigma * v", "(z - sigma * v) / alpha"),
    ("x0_and_eps", "x0 adds v", "alpha * z - sigma", "alpha * z + sigma"),
    ("x0_and_eps", "eps divides by sigma", "sigma * z + alpha * v", "(z - alpha * v) / sigma"),
    ("x0_and_eps", "eps by alpha z", "sigma * z + alpha", "alpha * z + sigma"),
    ("x0_and_eps", "order", "return x0, eps", "return eps, x0"),
    ("ddim_step", "old time", "= weights(t), weights(later)", "= weights(t), weights(t)"),
    ("ddim_step", "old sigma", "sigma_later * eps", "sigma * eps"),
    ("ddim_step", "mixed the wrong way", "alpha_later, sigma_later)", "sigma_later, alpha_later)"),
    ("ddim_step", "toward noise", "(math.cos, math.sin)", "(math.sin, math.cos)"),
    ("ddim_step", "toward noise", "weights(t), weights(later)", "weights(later), weights(t)"),
    ("ddim_step", "noise left out", " + sigma_later * eps", ""),
    ("ddim_step", "v for eps", "eps = sigma * z + alpha * v", "eps = v"),
    (
        "ddim_step",
        "v is eps",
        "x0 = alpha * z - sigma * v\n    eps = sigma * z + alpha * v",
        "eps = v\n    x0 = (z - sigma * eps) / alpha",
    ),
    ("ddim_step", "step along v", "alpha_later * x0 + sigma_later * eps", "z + (later - t) * v"),
    ("ddim_step", "step by the angle t", "math.pi / 2 * ", ""),
    ("ddim_step", "dtype", "alpha_later * x0", "np.float64(alpha_later) * x0"),
    ("consistency_step", "old noise", "* noise", "* (sigma * z + alpha * v)"),
    ("consistency_step", "noise to z", "alpha_later * x0", "alpha_later * z"),
    (
        "consistency_step",
        "noise of the old time",
        "alpha_later * x0 + sigma_later",
        "alpha * x0 + sigma",
    ),
    ("consistency_step", "alpha missing", "alpha_later * x0", "x0"),
    ("consistency_step", "noise of size one", "sigma_later * noise", "noise"),
    ("consistency_step", "variance for sigma", "sigma_later * noise", "sigma_later**2 * noise"),
    ("consistency_step", "picture alone", "alpha_later * x0 + sigma_later * noise", "x0"),
    ("consistency_step", "sign of v", "- sigma * v", "+ sigma * v"),
    ("guided", "w off by one", "v_none + w", "v_words + w"),
    ("guided", "away from the words", "v_none + w * (v_words", "v_none + (1 - w) * (v_words"),
    ("guided", "difference alone", "v_none + w", "w"),
    ("guided", "weights do not sum to one", "(v_words - v_none)", "v_words"),
    ("guided", "not guided", "w * (v_words", "(v_words"),
]

# Correct, but written in another way
OTHERWISE = [
    (
        "x0_and_eps",
        "complex numbers",
        """
def x0_and_eps(z, v, t):
    turned = (z + 1j * v) * np.exp(0.5j * math.pi * t).astype(np.result_type(z, 1j))[:, None]
    return turned.real, turned.imag
""",
    ),
    (
        "ddim_step",
        "a turn by the difference of the angles",
        """
def ddim_step(z, v, t, later):
    angle = (t - later) * math.pi / 2
    return math.cos(angle) * z - math.sin(angle) * v
""",
    ),
    (
        "consistency_step",
        "row by row",
        """
def consistency_step(z, v, t, later, noise):
    out = np.empty_like(z)
    c = lambda t: math.sqrt((1 + math.cos(math.pi * t)) / 2)
    for i in range(len(z)):
        out[i] = c(later) * (c(t) * z[i] - c(1 - t) * v[i]) + c(1 - later) * noise[i]
    return out
""",
    ),
    (
        "guided",
        "as a weighted mean",
        """
def guided(v_none, v_words, w):
    return w * v_words + (1 - w) * v_none
""",
    ),
    (
        "linear_backward",
        "einsum",
        """
def linear_backward(dy, x, W):
    g, X = (a.reshape(-1, a.shape[-1]) for a in (dy, x))
    return (np.einsum('...o,oi->...i', dy, W), np.einsum('no,ni->oi', g, X),
            np.einsum('no->o', g))
""",
    ),
    (
        "linear_backward",
        "loops",
        """
def linear_backward(dy, x, W):
    dx, dW, db = np.zeros_like(x), np.zeros_like(W), np.zeros_like(W[:, 0])
    for n in np.ndindex(x.shape[:-1]):
        for o in range(W.shape[0]):
            for i in range(W.shape[1]):
                dx[n + (i,)] += dy[n + (o,)] * W[o, i]
                dW[o, i] += dy[n + (o,)] * x[n + (i,)]
            db[o] += dy[n + (o,)]
    return dx, dW, db
""",
    ),
    (
        "linear_backward",
        "tensordot, a list",
        """
def linear_backward(dy, x, W):
    axes = list(range(x.ndim - 1))
    return [np.tensordot(dy, W, 1), np.tensordot(dy, x, (axes, axes)), dy.sum(tuple(axes))]
""",
    ),
    (
        "linear_backward",
        "longdouble inside",
        """
def linear_backward(dy, x, W):
    d = W.dtype
    g, X = (a.astype(np.longdouble).reshape(-1, a.shape[-1]) for a in (dy, x))
    dx = (g @ W.astype(np.longdouble)).reshape(x.shape)
    return dx.astype(d), (g.T @ X).astype(d), g.sum(0).astype(d)
""",
    ),
    (
        "numeric_gradient",
        "moves x itself and puts it back",
        """
def numeric_gradient(f, x, h):
    g = np.empty(x.shape)
    for i in range(x.size):
        old = x.flat[i]
        x.flat[i] = old + h
        plus = f(x)
        x.flat[i] = old - h
        g.flat[i] = (plus - f(x)) / 2 / h
        x.flat[i] = old
    return g
""",
    ),
    (
        "numeric_gradient",
        "rows of the identity",
        """
def numeric_gradient(f, x, h):
    steps = h * np.eye(x.size).reshape(x.size, *x.shape)
    return np.array([(f(x + s) - f(x - s)) / (2 * h) for s in steps]).reshape(x.shape)
""",
    ),
    (
        "lora_linear_forward",
        "merged where nothing is masked away",
        """
def lora_linear_forward(x, W0, A, B, alpha, mask):
    change = B @ A * (alpha / len(A))
    return np.einsum('...i,oi->...o', x, W0) + np.einsum('...i,...i,oi->...o', x, mask, change)
""",
    ),
    (
        "lora_linear_forward",
        "stacked",
        """
def lora_linear_forward(x, W0, A, B, alpha, mask):
    both = np.concatenate([x, (x * mask) @ A.T], axis=-1)
    return both @ np.concatenate([W0, B * (alpha / A.shape[0])], axis=1).T
""",
    ),
    (
        "lora_linear_forward",
        "sample by sample",
        """
def lora_linear_forward(x, W0, A, B, alpha, mask):
    y = np.zeros(x.shape[:-1] + (len(W0),), x.dtype)
    for n in np.ndindex(x.shape[:-1]):
        y[n] = W0 @ x[n] + alpha / len(A) * (B @ (A @ (mask[n] * x[n])))
    return y
""",
    ),
    (
        "lora_linear_backward",
        "through the dense change",
        """
def lora_linear_backward(dy, x, W0, A, B, alpha, mask):
    s = alpha / len(A)
    pairs = dy[..., :, None] * (x * mask)[..., None, :]
    G = pairs.reshape(-1, *W0.shape).sum(0) * s
    return dy @ W0 + dy @ (s * B @ A) * mask, B.T @ G, G @ A.T
""",
    ),
    (
        "lora_linear_backward",
        "sample by sample",
        """
def lora_linear_backward(dy, x, W0, A, B, alpha, mask):
    s = alpha / len(A)
    dx, dA, dB = np.zeros_like(x), np.zeros_like(A), np.zeros_like(B)
    for n in np.ndindex(x.shape[:-1]):
        seen, du = x[n] * mask[n], s * (B.T @ dy[n])
        dA += np.outer(du, seen)
        dB += s * np.outer(dy[n], A @ seen)
        dx[n] = W0.T @ dy[n] + (A.T @ du) * mask[n]
    return dx, dA, dB
""",
    ),
    (
        "lora_linear_backward",
        "a class and a helper",
        """
class Rows:
    def __init__(self, a):
        self.a = a.reshape(-1, a.shape[-1])
    def outer(self, other):
        return self.a.T @ other.a

def lora_linear_backward(dy, x, W0, A, B, alpha, mask):
    B = B * (alpha / len(A))
    seen = x * mask
    return (dy @ W0 + mask * (dy @ B @ A), Rows(dy @ B).outer(Rows(seen)),
            alpha / len(A) * Rows(dy).outer(Rows(seen @ A.T)))
""",
    ),
    (
        "softmax_backward",
        "the whole Jacobian",
        """
def softmax_backward(dy, y):
    J = y[..., None] * (np.eye(y.shape[-1], dtype=y.dtype) - y[..., None, :])
    return (J @ dy[..., None])[..., 0]
""",
    ),
    (
        "softmax_backward",
        "float64 inside",
        """
def softmax_backward(dy, y):
    a, b = dy.astype(float), y.astype(float)
    return (a * b - b * np.einsum('...i,...i->...', a, b)[..., None]).astype(y.dtype)
""",
    ),
    (
        "attention_backward",
        "query by query",
        """
def attention_backward(dy, q, k, v):
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    c = q.shape[-1] ** -0.5
    for n in np.ndindex(q.shape[:-2]):
        for i in range(q.shape[-2]):
            s = k[n][: i + 1] @ q[n][i] * c
            p = np.exp(s - s.max())
            p /= p.sum()
            dp = v[n][: i + 1] @ dy[n][i]
            ds = (np.diag(p) - np.outer(p, p)) @ dp * c
            dq[n][i] += ds @ k[n][: i + 1]
            dk[n][: i + 1] += np.outer(ds, q[n][i])
            dv[n][: i + 1] += np.outer(p, dy[n][i])
    return dq, dk, dv
""",
    ),
    (
        "attention_backward",
        "delta from the output",
        """
def attention_backward(dy, q, k, v):
    q = q / math.sqrt(q.shape[-1])
    P = np.exp(np.einsum('...id,...jd->...ij', q, k)) * np.tri(q.shape[-2], dtype=q.dtype)
    P = P / P.sum(-1, keepdims=True)
    delta = (dy * (P @ v)).sum(-1, keepdims=True)
    dS = P * (np.einsum('...id,...jd->...ij', dy, v) - delta)
    dk = np.einsum('...ij,...id->...jd', dS, q)
    return dS @ k / math.sqrt(q.shape[-1]), dk, np.einsum('...ij,...id->...jd', P, dy)
""",
    ),
    (
        "layernorm_backward",
        "the whole Jacobian",
        """
def layernorm_backward(dy, x, gamma, eps):
    d = x.shape[-1]
    c = x - x.mean(-1, keepdims=True)
    sigma = np.sqrt(x.var(-1, keepdims=True) + eps)
    h = c / sigma
    J = (np.eye(d, dtype=x.dtype) - 1 / d - h[..., None] * h[..., None, :] / d) / sigma[..., None]
    dx = np.einsum('...ij,...i->...j', J, dy * gamma)
    g = dy.reshape(-1, d)
    return dx, np.einsum('ni,ni->i', g, h.reshape(-1, d)), g.sum(0)
""",
    ),
    (
        "layernorm_backward",
        "step by step through the graph",
        """
def layernorm_backward(dy, x, gamma, eps):
    d, axes = x.shape[-1], tuple(range(x.ndim - 1))
    c = x - x.mean(-1, keepdims=True)
    var = (c * c).mean(-1, keepdims=True)
    inv = (var + eps) ** -0.5
    dh = dy * gamma
    dvar = (dh * c).sum(-1, keepdims=True) * -0.5 * inv ** 3
    dc = dh * inv + dvar * 2 * c / d
    dmu = -dc.sum(-1, keepdims=True)
    return dc + dmu / d, np.sum(dy * c * inv, axes), np.sum(dy, axes)
""",
    ),
    (
        "cross_entropy_backward",
        "one-hot",
        """
def cross_entropy_backward(logits, targets):
    hot = (targets[..., None] == np.arange(logits.shape[-1])).astype(logits.dtype)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    return (p - hot) * hot.sum(-1, keepdims=True) / hot.sum()
""",
    ),
    (
        "cross_entropy_backward",
        "token by token, log-sum-exp",
        """
def cross_entropy_backward(logits, targets):
    out = np.zeros_like(logits)
    kept = [n for n in np.ndindex(targets.shape) if targets[n] >= 0]
    for n in kept:
        z = logits[n]
        lse = z.max() + np.log(np.sum(np.exp(z - z.max())))
        out[n] = np.exp(z - lse) / len(kept)
        out[n + (targets[n],)] -= 1 / len(kept)
    return out
""",
    ),
    (
        "stable_rank",
        "two norms, a 0-d array",
        """
def stable_rank(M):
    return np.array((np.linalg.norm(M) / np.linalg.norm(M, 2)) ** 2)
""",
    ),
    (
        "effective_rank",
        "a product of powers, Python floats",
        """
def effective_rank(M):
    s = [float(v) for v in np.linalg.svd(M)[1] if v > 1e-14]
    return math.prod((v / sum(s)) ** (-v / sum(s)) for v in s)
""",
    ),
    (
        "energy_rank",
        "a loop, numpy integer",
        """
def energy_rank(M, fraction):
    s = np.linalg.svd(M, compute_uv=False)
    total, kept, k = np.sum(M * M), 0.0, 0
    while kept < fraction * total:
        kept += s[k] ** 2
        k += 1
    return np.int64(k)
""",
    ),
    (
        "best_rank_error",
        "the matrix itself",
        """
def best_rank_error(M, r):
    U, s, Vt = np.linalg.svd(M, full_matrices=False)
    return np.linalg.norm(M - U[:, :r] * s[:r] @ Vt[:r]) / np.linalg.norm(M)
""",
    ),
    (
        "best_rank_error",
        "scipy",
        """
from scipy.linalg import svdvals

def best_rank_error(M, r):
    s = svdvals(M)
    return math.sqrt(1 - sum(s[:r] ** 2) / sum(s ** 2))
""",
    ),
]


def replaced(task: str, old: str, new: str) -> str:
    """Return the correct source with one thing changed."""
    assert RIGHT[task].count(old) == 1, (task, old)
    return RIGHT[task].replace(old, new)


def students() -> list[Student]:
    """Return the class."""
    wrong = [
        Student(task, finding, replaced(task, old, new), (finding,))
        for task, finding, old, new in WRONG
    ]
    right = [Student(task, "like ours", source, ()) for task, source in RIGHT.items()]
    return [*wrong, *right, *(Student(task, name, source, ()) for task, name, source in OTHERWISE)]


def write_class(folder: Path) -> dict[tuple[str, str], Student]:
    """Write ``folder/TASK/NAME.py`` for everyone; return the students by task and name."""
    found = {}
    for student in students():
        folder_of_task = folder / student.task
        folder_of_task.mkdir(parents=True, exist_ok=True)
        name = student.name.replace(" ", "-")
        namesakes = len(list(folder_of_task.glob(f"{name}*.py")))
        path = folder_of_task / f"{name}{namesakes + 1 if namesakes else ''}.py"
        path.write_text(student.source, encoding="utf-8")
        found[student.task, path.stem] = student
    return found


def main() -> int:
    """Grade the class and compare every diagnosis with the expected one."""
    with TemporaryDirectory() as name:
        expected = write_class(Path(name))
        start = time.perf_counter()
        graded = grade_folder(Path(name))
        seconds = time.perf_counter() - start
    missed = 0
    for (task, student), report in graded.items():
        found = tuple(finding.name for finding in report.findings)
        ok = found == expected[task, student].findings
        missed += not ok
        print(f"{'' if ok else 'MISSED '}{task:<24}{student:<36}{'; '.join(found) or 'right'}")
    n, wrong = len(graded), sum(not report.passed for report in graded.values())
    print(f"{n} submissions in {seconds:.1f} s: {wrong} wrong, {n - wrong} right")
    print(f"{missed} diagnoses missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
