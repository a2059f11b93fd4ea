# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. One linear layer and its gradient
#
# [中文](zh/01_one_linear_layer.ipynb)
#
# **What you'll do.** Compute $y = Wx$ by hand, then the derivative of a loss with respect to every
# number in it, and train the layer with these gradients.
#
# **What you'll learn.** Why $dW$ is an outer product, why the gradients of a batch add up, and how
# large a step can be before training diverges.
#
# **What you'll need.** The product of a matrix and a vector, and the chain rule.

# %%
import matplotlib.pyplot as plt
import numpy as np

from lora_np.ops import linear_backward, linear_forward
from lora_np.plots import BLUE, GREEN, ORANGE

np.set_printoptions(precision=4, suppress=True)

# %% [markdown]
# ## The layer
#
# A linear layer has a matrix $W$ of shape (out, in). It sends an input $x$ of length *in* to an
# output $y$ of length *out*:
#
# $$ y_o = \sum_i W_{oi}\, x_i $$
#
# Each row of $W$ is one output's list of weights. Here *in* is 3 and *out* is 2.

# %%
W = np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])  # (out, in) = (2, 3)
x = np.array([2.0, -1.0, 1.0])  # (in,)

y = np.zeros(2)
for o in range(2):
    for i in range(3):
        y[o] += W[o, i] * x[i]
print("y =", y)

# %% [markdown]
# `W @ x` computes the same as the two loops. First row: $1\cdot2 + 2\cdot(-1) - 1\cdot1 = -1$.

# %%
assert y.tolist() == [-1.0, 4.0]
assert np.array_equal(y, W @ x)

# %% [markdown]
# ## The loss
#
# We want the output to be $t$. The loss is half the squared distance:
#
# $$ L = \tfrac12 \sum_o (y_o - t_o)^2 \qquad\Rightarrow\qquad
#    \frac{\partial L}{\partial y_o} = y_o - t_o $$
#
# In this course, `dy` always means $\partial L/\partial y$, with one number for each entry of $y$.

# %%
t = np.array([0.0, 3.0])


def loss(W, x):
    return 0.5 * ((W @ x - t) ** 2).sum()


dy = W @ x - t  # (out,)
print("L =", loss(W, x), "  dy =", dy)
assert loss(W, x) == 1.0

# %% [markdown]
# ## The gradient of the weights
#
# **Predict.** $L$ depends on six numbers $W_{oi}$. What shape does $dW$ have? If $x_2 = 0$, what can
# you say about a whole column of $dW$?

# %%
print("where input 2 is 0:\n", np.outer(dy, [2.0, -1.0, 0.0]))

# %% [markdown]
# Only $y_o$ contains $W_{oi}$, with the factor $x_i$. By the chain rule,
#
# $$ \frac{\partial L}{\partial W_{oi}}
#    = \frac{\partial L}{\partial y_o}\,\frac{\partial y_o}{\partial W_{oi}} = dy_o\, x_i
#    \qquad\text{or}\qquad dW = dy\; x^\top . $$
#
# This is an *outer product*: a column times a row. It has the shape of $W$. If an input is 0, its
# column of weights gets no gradient.

# %%
dW = np.outer(dy, x)  # (out, in)
print(dW)
assert dW.shape == W.shape

# %% [markdown]
# Is it right? Nudge one weight by $h$ both ways and watch the loss. $L$ is a parabola in each
# weight, so the only error of this central difference is rounding. We require agreement to
# $10^{-8}$.

# %%
h = 1e-4
numeric = np.zeros_like(W)
for o in range(2):
    for i in range(3):
        up, down = W.copy(), W.copy()
        up[o, i] += h
        down[o, i] -= h
        numeric[o, i] = (loss(up, x) - loss(down, x)) / (2 * h)
print(numeric)
assert np.abs(dW - numeric).max() < 1e-8

# %% [markdown]
# The next picture shows the outer product, with $dy$ down the side and $x$ along the top. Every
# entry of $dW$ is the product of its two margins.

# %% alt="A table: each entry of dW is its row's dy times its column's x"
figure, axis = plt.subplots(figsize=(5.2, 3))
table = np.zeros((3, 4))
table[1:, 0], table[0, 1:], table[1:, 1:] = dy, x, dW
axis.imshow(table, cmap="PuOr", vmin=-6, vmax=6)
for (row, column), value in np.ndenumerate(table):
    if row or column:
        axis.text(column, row, f"{value:g}", ha="center", va="center", fontsize=13)
axis.axhline(0.5, color="black")
axis.axvline(0.5, color="black")
axis.set_xticks(range(4), ["dy", "x$_0$", "x$_1$", "x$_2$"])
axis.set_yticks(range(3), ["x", "output 0", "output 1"])
axis.set_title("dW = dy x$^T$: each entry is its row's dy times its column's x")
plt.show()

# %% [markdown]
# ## The gradient of the input
#
# A layer in the middle of a network must also pass a gradient to the layer below it. $x_i$ affects
# the loss through *every* output, so the paths add:
#
# $$ dx_i = \sum_o dy_o\, W_{oi} \qquad\text{or}\qquad dx = W^\top dy $$
#
# **Predict.** Does $dx$ need $x$? Does $dW$ need $W$?

# %%
dx = W.T @ dy  # (in,)
steps = h * np.eye(3)
numeric = np.array([(loss(W, x + e) - loss(W, x - e)) / (2 * h) for e in steps])
print(dx)
assert np.abs(dx - numeric).max() < 1e-8

# %% [markdown]
# $dx$ needs $W$ and not $x$; $dW$ needs $x$ and not $W$. Remember this for chapter 4. If $W$ is
# frozen, $dW$ is never formed, but $W$ is still needed to compute $dx$.
#
# ## A batch
#
# Put $N$ samples in the rows of $X$, of shape (N, in). Then each row of $Y = X W^\top$ is the
# output for one sample, and the loss is the sum over samples. The derivative of a sum is the sum of
# the derivatives:
#
# $$ dW = \sum_n dy_n\, x_n^\top = dY^\top X, \qquad dX = dY\, W $$

# %%
rng = np.random.default_rng(0)
X = rng.standard_normal((5, 3))  # (N, in)
T = rng.standard_normal((5, 2))  # (N, out)
dY = X @ W.T - T  # (N, out)

one_by_one = sum(np.outer(dY[n], X[n]) for n in range(5))
assert np.allclose(dY.T @ X, one_by_one, rtol=0, atol=1e-14)
print(dY.T @ X)

# %% [markdown]
# The library computes the same three formulas in `lora_np/ops/linear.py`. `linear_backward` returns
# `dx`, `dW` and `db` in the order of the inputs. We passed no bias, so `db` is None.

# %%
Y, cache = linear_forward(X, W)
dX, dW, db = linear_backward(dY, cache)
assert np.allclose(Y, X @ W.T) and np.allclose(dX, dY @ W) and np.allclose(dW, dY.T @ X)
assert db is None

# %% [markdown]
# The argument `need` says which gradients you want. The others are not computed. This is how the
# library freezes a weight.

# %%
dX, dW, db = linear_backward(dY, cache, need=(True, False, False))
assert dW is None and dX.shape == X.shape

# %% [markdown]
# ## Training, and how large a step may be
#
# Gradient descent repeats $W \leftarrow W - \eta\, dW$. So that the layer can reach the target, we
# use the output of another layer $W^\star$ as the target.
#
# Let $E = W - W^\star$ be the error. Then $dW = E\,X^\top X$, and one step gives
# $E \leftarrow E\,(I - \eta X^\top X)$. Along an eigenvector of $X^\top X$ with eigenvalue
# $\lambda$ the error is multiplied by $1 - \eta\lambda$. It shrinks if
# $\vert 1-\eta\lambda\vert < 1$. This holds for all eigenvalues if
#
# $$ \eta < 2 / \lambda_{\max} . $$
#
# The slowest direction sets the pace: with $\rho = \max \vert 1-\eta\lambda\vert$, no step multiplies
# the loss by more than $\rho^2$.
#
# **Predict.** Does the loss fall at nine tenths of this limit? And at 1.05 times the limit?

# %%
X = rng.standard_normal((20, 3))
T = X @ rng.standard_normal((2, 3)).T
eigenvalues = np.linalg.eigvalsh(X.T @ X)
limit = 2 / eigenvalues.max()


def train(eta, steps=100):
    W, losses = np.zeros((2, 3)), []
    for _ in range(steps):
        Y, cache = linear_forward(X, W)
        losses.append(0.5 * ((Y - T) ** 2).sum())
        _, dW, _ = linear_backward(Y - T, cache, need=(False, True, False))
        W = W - eta * dW
    return losses


curves = {factor: train(factor * limit) for factor in (0.1, 0.9, 1.05)}
for factor, losses in curves.items():
    print(f"eta = {factor:<4} x limit: from {losses[0]:.3g} to {losses[-1]:.3g}")

# %% [markdown]
# Below the limit the loss falls: after $k$ steps, at most $\rho^{2k}$ of the initial loss is left.
# At a tenth of the limit, $\rho$ belongs to the *smallest* eigenvalue, so the progress in 100 steps
# depends on the data. Only 5 % above the limit, the loss grows to more than 1000 times its initial
# value.

# %% alt="Loss against step: 0.1 and 0.9 of the limiting learning rate fall to nothing, 1.05 of it blows up"
for factor in (0.1, 0.9):
    losses, rho = np.array(curves[factor]), np.abs(1 - factor * limit * eigenvalues).max()
    bound = losses[0] * rho ** (2 * np.arange(100))
    assert rho < 1 and np.all(losses <= 1.001 * bound + 1e-20)  # 1e-20: rounding
assert curves[1.05][-1] > 1000 * curves[1.05][0]

figure, axis = plt.subplots(figsize=(6.4, 3.6))
styles = [(BLUE, "--"), (GREEN, "-"), (ORANGE, ":")]
for (factor, losses), (colour, dash) in zip(curves.items(), styles):
    axis.semilogy(losses, color=colour, linestyle=dash, label=rf"$\eta$ = {factor} of the limit")
axis.set_xlabel("step")
axis.set_ylabel("loss (squared output units)")
axis.set_ylim(1e-16, 1e8)
axis.set_title("One linear layer, three learning rates")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Exercises
#
# 1. Add a bias: $y = Wx + b$. Derive $db$ for one sample and for a batch, and compare with
#    `linear_backward(dY, linear_forward(X, W, b)[1])`.
# 2. Two layers, $y = W_2 W_1 x$. Write down $dW_1$ and $dW_2$ with only the rules of this chapter,
#    and check one entry of each with a central difference.
# 3. At which $\eta$ does the loss fall fastest after many steps? Use the smallest and the largest
#    eigenvalue of $X^\top X$, then test your answer with `train`.
