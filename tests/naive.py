"""The slow obvious twins of lora_np.ops, of Adam and of generation: loops, and nothing clever.

Every twin of a pair has two functions, called with the pair's own arguments::

    y = linear_forward(x, W, b)
    dx, dW, db = linear_backward(dy, x, W, b)      # no cache: what it needs is computed again

They are written from the definitions (a Jacobian is formed and multiplied, a sum is a loop), not
from the formulas that the fast ones use, so that an error is not made twice.
"""

import math

import numpy as np

from lora_np.models import sample_token


def rows(x):
    """(..., d) as (N, d)."""
    return x.reshape(-1, x.shape[-1])


# --- linear maps -----------------------------------------------------------------------------


def linear_forward(x, W, b=None):
    y = np.zeros((len(rows(x)), W.shape[0]), x.dtype)
    for n, sample in enumerate(rows(x)):
        for o in range(W.shape[0]):
            y[n, o] = sum(sample[i] * W[o, i] for i in range(W.shape[1]))
            if b is not None:
                y[n, o] += b[o]
    return y.reshape(*x.shape[:-1], W.shape[0])


def linear_backward(dy, x, W, b=None):
    dx, dW, db = np.zeros_like(rows(x)), np.zeros_like(W), np.zeros_like(W[:, 0])
    for n, (g, sample) in enumerate(zip(rows(dy), rows(x))):
        for o in range(W.shape[0]):
            dx[n] += g[o] * W[o]
            dW[o] += g[o] * sample
            db[o] += g[o]
    return dx.reshape(x.shape), dW, None if b is None else db


def lora_linear_forward(x, W0, A, B, b=None, *, scale, mask=None):
    """Form the dense change of the weight, which the fast version never does."""
    seen = x if mask is None else x * mask
    return linear_forward(x, W0, b) + linear_forward(seen, scale * (B @ A))


def lora_linear_backward(dy, x, W0, A, B, b=None, *, scale, mask=None):
    seen = x if mask is None else x * mask
    dx, dW0, db = linear_backward(dy, x, W0, b)
    dseen, dchange, _ = linear_backward(dy, seen, scale * (B @ A))  # dchange is out x in
    dx = dx + (dseen if mask is None else dseen * mask)
    return dx, dW0, scale * (B.T @ dchange), scale * (dchange @ A.T), db


def lora_rows_forward(x, W0, adapters, ids, b=None, *, scale):
    """One call for each row."""
    y = np.zeros((*x.shape[:-1], len(W0)), x.dtype)
    for n, a in enumerate(ids):
        if a == -1:
            y[n] = linear_forward(x[n], W0, b)
        else:
            y[n] = lora_linear_forward(x[n], W0, *adapters[a], b, scale=np.resize(scale, 99)[a])
    return y


def lora_rows_backward(dy, x, W0, adapters, ids, b=None, *, scale):
    dx, dW0, db = np.zeros_like(x), np.zeros_like(W0), None if b is None else np.zeros_like(b)
    dA, dB = ([np.zeros_like(pair[i]) if a in ids else None for a, pair in enumerate(adapters)]
              for i in (0, 1))  # fmt: skip
    for n, a in enumerate(ids):
        if a == -1:
            dx[n], part, part_b = linear_backward(dy[n], x[n], W0, b)
        else:
            s = np.resize(scale, 99)[a]
            found = lora_linear_backward(dy[n], x[n], W0, *adapters[a], b, scale=s)
            dx[n], part, part_A, part_B, part_b = found
            dA[a] += part_A
            dB[a] += part_B
        dW0 += part
        if b is not None:
            db += part_b
    return dx, dW0, dA, dB, db


def embedding_forward(tokens, W):
    y = np.array([W[token] for token in tokens.reshape(-1)])
    return y.reshape(*tokens.shape, W.shape[1])


def embedding_backward(dy, tokens, W):
    dW = np.zeros_like(W)
    np.add.at(dW, tokens.reshape(-1), rows(dy))  # equal tokens add up
    return (dW,)


def dropout_forward(x, mask):
    return np.array([a * m for a, m in zip(x.flat, mask.flat)]).reshape(x.shape)


def dropout_backward(dy, x, mask):
    return (dropout_forward(dy, mask),)


# --- activations -----------------------------------------------------------------------------


def entrywise(f, x):
    return np.array([f(float(a)) for a in x.flat], x.dtype).reshape(x.shape)


def gelu(a):
    return 0.5 * a * (1 + math.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))


def dgelu(a):
    u = math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)
    du = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * a**2)
    return 0.5 * (1 + math.tanh(u)) + 0.5 * a * du / math.cosh(u) ** 2


def silu(a):
    return a / (1 + math.exp(-a))


def dsilu(a):
    return 1 / (1 + math.exp(-a)) + a * math.exp(-a) / (1 + math.exp(-a)) ** 2


def gelu_forward(x):
    return entrywise(gelu, x)


def gelu_backward(dy, x):
    return (dy * entrywise(dgelu, x),)


def relu_forward(x):
    return entrywise(lambda a: max(a, 0.0), x)


def relu_backward(dy, x):
    return (dy * entrywise(lambda a: 1.0 if a > 0 else 0.0, x),)


def silu_forward(x):
    return entrywise(silu, x)


def silu_backward(dy, x):
    return (dy * entrywise(dsilu, x),)


def swiglu_forward(gate, up):
    return silu_forward(gate) * up


def swiglu_backward(dy, gate, up):
    return dy * up * entrywise(dsilu, gate), dy * silu_forward(gate)


def softmax_forward(x):
    y = []
    for sample in rows(x):
        e = [math.exp(a - max(sample)) for a in sample]
        y.append([a / sum(e) for a in e])
    return np.array(y, x.dtype).reshape(x.shape)


def softmax_backward(dy, x):
    """Multiply by the whole Jacobian diag(y) - y y^T."""
    p = rows(softmax_forward(x))
    dx = [(np.diag(y) - np.outer(y, y)) @ g for g, y in zip(rows(dy), p)]
    return (np.array(dx).reshape(x.shape),)


# --- normalisation and attention -------------------------------------------------------------


def _standardised(sample, eps):
    d = len(sample)
    mu = sum(sample) / d
    sigma = math.sqrt(sum((a - mu) ** 2 for a in sample) / d + eps)
    return np.array([(a - mu) / sigma for a in sample]), sigma


def layernorm_forward(x, gamma, beta, eps=1e-5):
    y = [_standardised(sample, eps)[0] * gamma + beta for sample in rows(x)]
    return np.array(y, x.dtype).reshape(x.shape)


def layernorm_backward(dy, x, gamma, beta, eps=1e-5):
    """Multiply by the Jacobian d xhat_i/d x_j = (1[i=j] - 1/d - xhat_i xhat_j / d) / sigma."""
    d, dx, dgamma, dbeta = len(gamma), [], np.zeros_like(gamma), np.zeros_like(beta)
    for g, sample in zip(rows(dy), rows(x)):
        xhat, sigma = _standardised(sample, eps)
        dgamma += g * xhat
        dbeta += g
        jacobian = (np.eye(d) - 1 / d - np.outer(xhat, xhat) / d) / sigma
        dx.append(jacobian.T @ (g * gamma))
    return np.array(dx).reshape(x.shape), dgamma, dbeta


def modulated_norm_forward(x, shift, scale, eps=1e-6):
    """Copy the shift and the scale for every sample that shares them."""
    shift, scale = (rows(np.broadcast_to(a, x.shape)) for a in (shift, scale))
    y = [_standardised(a, eps)[0] * (1 + s) + t for a, t, s in zip(rows(x), shift, scale)]
    return np.array(y, x.dtype).reshape(x.shape)


def modulated_norm_backward(dy, x, shift, scale, eps=1e-6):
    """Every sample is a layer normalisation of its own; what they share adds up."""
    dx, dshift, dscale = np.zeros_like(x), np.zeros_like(shift), np.zeros_like(scale)
    for place in np.ndindex(x.shape[:-1]):
        shared = tuple(i if size > 1 else 0 for i, size in zip(place, scale.shape))
        gamma, beta = 1 + scale[shared], shift[shared]
        found = layernorm_backward(dy[place][None], x[place][None], gamma, beta, eps)
        dx[place] = found[0][0]
        dscale[shared] += found[1]
        dshift[shared] += found[2]
    return dx, dshift, dscale


def _rms(sample, eps):
    return math.sqrt(sum(float(a) ** 2 for a in sample) / len(sample) + eps)


def rmsnorm_forward(x, gamma, eps=1e-6):
    y = [[c * a / _rms(sample, eps) for a, c in zip(sample, gamma)] for sample in rows(x)]
    return np.array(y, x.dtype).reshape(x.shape)


def rmsnorm_backward(dy, x, gamma, eps=1e-6):
    """Multiply by the Jacobian d (x_i / rms) / d x_j = 1[i=j] / rms - x_i x_j / (d rms^3)."""
    dx, dgamma = [], np.zeros_like(gamma)
    for g, sample in zip(rows(dy), rows(x)):
        rms = _rms(sample, eps)
        dgamma += g * sample / rms
        jacobian = np.eye(len(sample)) / rms - np.outer(sample, sample) / (len(sample) * rms**3)
        dx.append(jacobian.T @ (g * gamma))
    return np.array(dx).reshape(x.shape), dgamma


def rope_forward(x, cos, sin):
    """Multiply the complex number x1 + i x2 by cos + i sin."""
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * (cos + 1j * sin)
    return np.concatenate([turned.real, turned.imag], axis=-1).astype(x.dtype)


def rope_backward(dy, x, cos, sin):
    """Multiply by the transpose of each position's whole matrix (d, d)."""
    d, dx = x.shape[-1], np.zeros_like(x)
    cos, sin = (np.broadcast_to(a, (*x.shape[:-1], d // 2)) for a in (cos, sin))
    for place in np.ndindex(x.shape[:-1]):
        matrix = np.zeros((d, d))
        for i, j in zip(range(d // 2), range(d // 2, d)):
            matrix[i, i] = matrix[j, j] = cos[(*place, i)]
            matrix[i, j], matrix[j, i] = -sin[(*place, i)], sin[(*place, i)]
        dx[place] = matrix.T @ dy[place]
    return (dx,)


def _attention_row(q, k, v, i, causal):
    """Weights of query i over all keys, or over the keys 0 .. i + Tk - Tq."""
    allowed = i + len(k) - len(q) + 1 if causal else len(k)
    scores = [float(q[i] @ k[j]) / math.sqrt(q.shape[1]) for j in range(allowed)]
    return softmax_forward(np.array([scores]))[0]


def _heads(*arrays):
    return zip(*(a.reshape(-1, *a.shape[-2:]) for a in arrays))


def attention_forward(q, k, v, causal=True):
    y = np.zeros((*q.shape[:-1], v.shape[-1]), q.dtype)
    for y_head, *head in _heads(y, q, k, v):
        for i in range(q.shape[-2]):
            for j, weight in enumerate(_attention_row(*head, i, causal)):
                y_head[i] += weight * head[2][j]
    return y


def attention_backward(dy, q, k, v, causal=True):
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    root = math.sqrt(q.shape[-1])
    for g, dqh, dkh, dvh, qh, kh, vh in _heads(dy, dq, dk, dv, q, k, v):
        for i in range(len(qh)):
            p = _attention_row(qh, kh, vh, i, causal)
            dp = [float(g[i] @ vh[j]) for j in range(len(p))]
            for j, weight in enumerate(p):
                ds = weight * (dp[j] - sum(p[m] * dp[m] for m in range(len(p))))
                dqh[i] += ds * kh[j] / root
                dkh[j] += ds * qh[i] / root
                dvh[j] += weight * g[i]
    return dq, dk, dv


def gqa_forward(q, k, v):
    """Copy the keys and values for every head."""
    every = [np.stack([a] * q.shape[-3], axis=-3) for a in (k, v)]
    return attention_forward(q, *every)


def gqa_backward(dy, q, k, v):
    every = [np.stack([a] * q.shape[-3], axis=-3) for a in (k, v)]
    dq, dk, dv = attention_backward(dy, q, *every)
    return dq, dk.sum(axis=-3), dv.sum(axis=-3)


# --- convolution and recurrence --------------------------------------------------------------


def _places(x, kernel, stride=(1, 1), padding=(0, 0), dilation=(1, 1)):
    """Return the output's sides, and for each entry of the patches the place in x that it holds."""
    (H, W, C), (kh, kw), sides = x.shape[-3:], kernel, [0, 0]
    for axis, n in enumerate((H, W)):  # count the places where the whole kernel fits
        last = n + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1)
        sides[axis] = len(range(0, last, stride[axis]))
    found = {}
    for a, b, c, i, j in np.ndindex(*sides, C, kh, kw):
        row = a * stride[0] + i * dilation[0] - padding[0]
        column = b * stride[1] + j * dilation[1] - padding[1]
        if 0 <= row < H and 0 <= column < W:
            found[a, b, (c * kh + i) * kw + j] = row, column, c
    return (*sides, C * kh * kw), found


def im2col_forward(x, **options):
    shape, places = _places(x, **options)
    y = np.zeros((*x.shape[:-3], *shape), x.dtype)
    for to, place in places.items():
        y[(..., *to)] = x[(..., *place)]
    return y


def im2col_backward(dy, x, **options):
    dx = np.zeros_like(x)
    for to, place in _places(x, **options)[1].items():
        dx[(..., *place)] += dy[(..., *to)]
    return (dx,)


def rnn_cell_forward(gx, gh):
    return entrywise(math.tanh, gx + gh)


def rnn_cell_backward(dy, gx, gh):
    slope = entrywise(lambda a: 1 / math.cosh(a) ** 2, gx + gh)
    return dy * slope, dy * slope


def sigma(a):
    return 1 / (1 + math.exp(-a))


def gru_unit(xr, xz, xn, hr, hz, hn, h):
    """Return the new state of one unit, and its derivatives by all seven numbers."""
    r, z, u = sigma(xr + hr), sigma(xz + hz), xn + sigma(xr + hr) * hn
    n, by_u = math.tanh(u), (1 - z) / math.cosh(u) ** 2
    by_r = by_u * hn * math.exp(-xr - hr) * r**2
    by_z = (h - n) * math.exp(-xz - hz) * z**2
    return (1 - z) * n + z * h, (by_r, by_z, by_u, by_r, by_z, by_u * r, z)


def _gru_units(gx, gh, h):
    """Yield every unit's place among the samples and in the state, and what gru_unit returns."""
    H = h.shape[-1]
    for s, (x, g, state) in enumerate(zip(rows(gx), rows(gh), rows(h))):
        for k in range(H):
            yield s, k, gru_unit(*(float(a) for a in (*x[k::H], *g[k::H], state[k])))


def gru_cell_forward(gx, gh, h):
    y = np.zeros_like(rows(h))
    for s, k, (new, _) in _gru_units(gx, gh, h):
        y[s, k] = new
    return y.reshape(h.shape)


def gru_cell_backward(dy, gx, gh, h):
    H, found = h.shape[-1], [np.zeros_like(rows(a)) for a in (gx, gh, h)]
    for s, k, (_, slopes) in _gru_units(gx, gh, h):
        g = rows(dy)[s, k]
        for array, part in zip(found, (slopes[:3], slopes[3:6], slopes[6:])):
            array[s, k::H] = [g * slope for slope in part]
    return tuple(array.reshape(a.shape) for array, a in zip(found, (gx, gh, h)))


# --- losses ----------------------------------------------------------------------------------


def cross_entropy_forward(logits, targets, ignore_index=-100, count=None):
    total, kept = 0.0, 0
    for z, target in zip(rows(logits), targets.reshape(-1)):
        if target != ignore_index:
            total -= math.log(softmax_forward(z[None])[0, target])
            kept += 1
    return np.array(total / (count or kept), logits.dtype)


def cross_entropy_backward(dy, logits, targets, ignore_index=-100, count=None):
    kept = sum(1 for target in targets.reshape(-1) if target != ignore_index)
    dz = np.zeros_like(rows(logits))
    for n, (z, target) in enumerate(zip(rows(logits), targets.reshape(-1))):
        if target != ignore_index:
            dz[n] = softmax_forward(z[None])[0]
            dz[n, target] -= 1.0
    return (dy * dz.reshape(logits.shape) / (count or kept),)


def head_loss_forward(x, W, targets, ignore_index=-100, count=None):
    return cross_entropy_forward(linear_forward(x, W), targets, ignore_index, count)


def head_loss_backward(dy, x, W, targets, ignore_index=-100, count=None):
    logits = linear_forward(x, W)
    (dz,) = cross_entropy_backward(dy, logits, targets, ignore_index, count)
    return linear_backward(dz, x, W)[:2]


def mse_forward(y, target):
    return np.array(sum((a - t) ** 2 for a, t in zip(y.flat, target.flat)) / y.size, y.dtype)


def mse_backward(dy, y, target):
    return dy * 2 * (y - target) / y.size, dy * 2 * (target - y) / y.size


# --- Adam and generation ---------------------------------------------------------------------


def adam(w, gradients, lr, betas=(0.9, 0.999), eps=1e-8, decay=None):
    """Return the list `w` of floats after one Adam step for each of `gradients`.

    `decay`, if given, has AdamW's weight decay of each entry (0 for biases and gains).
    """
    w = [float(value) for value in w]
    b1, b2 = betas
    m, v = [0.0] * len(w), [0.0] * len(w)
    for t, gradient in enumerate(gradients, start=1):
        for i, g in enumerate(float(g) for g in gradient):
            if decay is not None:
                w[i] -= lr * decay[i] * w[i]
            m[i] = b1 * m[i] + (1 - b1) * g
            v[i] = b2 * v[i] + (1 - b2) * g * g
            w[i] -= lr * (m[i] / (1 - b1**t)) / (math.sqrt(v[i] / (1 - b2**t)) + eps)
    return w


def generate_without_cache(model, tokens, n, temperature=1.0, top_k=None, rng=None):
    """Continue `tokens` (T,) or (B, T) by n: the whole window is computed again at every step."""
    text = np.atleast_2d(tokens)
    for _ in range(n):
        logits, _ = model.forward(text[:, -model.config.block_size :])
        new = sample_token(logits[:, -1], temperature, top_k, rng)
        text = np.concatenate([text, new[:, None]], axis=1)
    return text if np.ndim(tokens) == 2 else text[0]
