"""Solutions of docs/guides/rivals_exercises.md: eight pairs, each of at most 15 lines."""

import numpy as np


def fourierft_forward(c, *, W0, locations, scale):
    (rows, columns), (out, in_) = locations, W0.shape
    turns = np.multiply.outer(rows, np.arange(out))[:, :, None] / out  # (n, out, 1)
    turns = turns + np.multiply.outer(columns, np.arange(in_))[:, None] / in_  # (n, out, in)
    waves, s = np.cos(2 * np.pi * turns), scale / (out * in_)
    return W0 + s * np.einsum("n,noi->oi", c, waves), (waves, s)


def fourierft_backward(dW, cache):
    waves, s = cache
    return (s * np.einsum("noi,oi->n", waves, dW),)


def c3a_forward(w, *, W0):
    k = np.arange(w.shape[2])
    circulant = w[:, :, (k - k[:, None]) % len(k)]  # (out/b, in/b, b, b)
    return W0 + circulant.swapaxes(1, 2).reshape(W0.shape) / W0.shape[1], w.shape


def c3a_backward(dW, cache):
    m, n, b = cache  # the shape of w
    k, s = np.arange(b)[:, None], np.arange(b)
    d = dW.reshape(m, b, n, b).swapaxes(1, 2) / (n * b)  # (out/b, in/b, b, b)
    return (d[:, :, k, (k + s) % b].sum(axis=2),)


def road_forward(theta, alpha, *, W0, group):
    V = W0.reshape(-1, 2, group // 2, W0.shape[1])  # (groups, 2, group/2, in)
    c, s = (alpha * f(theta) for f in (np.cos, np.sin))  # (out/2,)
    C, S = (f.reshape(-1, group // 2, 1) for f in (c, s))
    W = np.stack([C * V[:, 0] - S * V[:, 1], S * V[:, 0] + C * V[:, 1]], axis=1)
    return W.reshape(W0.shape), (V, theta, alpha)


def road_backward(dW, cache):
    V, theta, alpha = cache
    d = dW.reshape(V.shape)
    dc = (d * V).sum(axis=(1, 3)).reshape(-1)  # (out/2,)
    ds = (d[:, 1] * V[:, 0] - d[:, 0] * V[:, 1]).sum(axis=-1).reshape(-1)
    dtheta = alpha * (np.cos(theta) * ds - np.sin(theta) * dc)
    return dtheta, np.cos(theta) * dc + np.sin(theta) * ds


def randlora_forward(lam, gamma, *, W0, A, B, scale):
    left, right = scale * B * lam[:, None], A * gamma[:, None]  # (n, out, r), (n, r, in)
    return W0 + (left @ right).sum(axis=0), (left, right, A, B, scale)


def randlora_backward(dW, cache):
    left, right, A, B, scale = cache
    dlam = scale * ((dW @ right.mT) * B).sum(axis=1)  # (n, r)
    return dlam, ((left.mT @ dW) * A).sum(axis=1)  # (n, in)


def delora_forward(lam, A, B, *, W0):
    a, b, w = (np.sqrt((M * M).sum(axis=i)) for M, i in ((A, 1), (B, 0), (W0, 0)))
    A1, B1, strength = A / a[:, None], B / b, lam * w / len(A)  # directions; (in,)
    return W0 + (B1 @ A1) * strength, (A1, B1, a, b, w, strength)


def delora_backward(dW, cache):
    A1, B1, a, b, w, strength = cache
    dlam = (dW * (B1 @ A1) * w).sum(keepdims=True)[0] / len(A1)  # (1,)
    dA1, dB1 = B1.T @ (dW * strength), (dW * strength) @ A1.T
    dA = (dA1 - (dA1 * A1).sum(axis=1, keepdims=True) * A1) / a[:, None]
    return dlam, dA, (dB1 - (dB1 * B1).sum(axis=0) * B1) / b


def hra_forward(U, *, W0):
    W = [W0]
    for u in U.T:
        W.append(W[-1] - np.outer(W[-1] @ u, u) * (2 / (u @ u)))
    return W[-1], (U, W)


def hra_backward(dW, cache):
    U, W = cache
    dU = np.empty_like(U)
    for i, u in reversed(list(enumerate(U.T))):
        p, q, c = W[i] @ u, dW @ u, 2 / (u @ u)  # (out,), (out,), a number
        dU[:, i] = c * (c * (p @ q) * u - W[i].T @ q - dW.T @ p)
        dW = dW - c * np.outer(q, u)
    return (dU,)


def gralora_forward(A, B, *, W0, scale):
    blocks = scale * (B @ A)  # (k, k, out/k, in/k)
    return W0 + blocks.swapaxes(1, 2).reshape(W0.shape), (A, B, scale)


def gralora_backward(dW, cache):
    A, B, scale = cache
    k, _, rows, _ = B.shape
    d = scale * dW.reshape(k, rows, k, -1).swapaxes(1, 2)  # (k, k, out/k, in/k)
    return B.mT @ d, d @ A.mT


def boft_forward(R, *, W0, columns):
    M = np.linalg.inv(np.eye(R.shape[-1]) + (R - R.mT) / 2)  # (m, blocks, b, b)
    Q, X = 2 * M - np.eye(R.shape[-1]), [W0.T]  # each of X (in, out)
    for q, c in zip(Q, columns):
        X.append((q @ X[-1][c]).reshape(W0.T.shape)[np.argsort(c, axis=None)])
    return X[-1].T, (M, Q, X, columns)


def boft_backward(dW, cache):
    M, Q, X, columns = cache
    dX, dQ = dW.T, np.empty_like(Q)
    for i in reversed(range(len(Q))):
        c = columns[i]
        dQ[i] = dX[c] @ X[i][c].mT
        dX = (Q[i].mT @ dX[c]).reshape(dX.shape)[np.argsort(c, axis=None)]
    dS = -2 * M.mT @ dQ @ M.mT
    return ((dS - dS.mT) / 2,)
