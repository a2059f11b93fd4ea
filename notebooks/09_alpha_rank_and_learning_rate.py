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
# # 9. $\alpha$, $r$ and the learning rate
#
# **What you'll do.** Derive how the first step of training changes the output of a layer, for two
# optimizers and two scales, and measure it.
#
# **What you'll learn.** Which hyperparameters are redundant, and why $r$ changes the speed of
# learning.
#
# **What you'll need.** Chapter 4, and this fact: Adam's first step is the learning rate times the
# sign of the gradient.

# %%
import matplotlib.pyplot as plt
import numpy as np

from lora_np.ops import lora_linear_backward, lora_linear_forward
from lora_np.plots import BLUE, GREEN, ORANGE, PURPLE

need = (False, False, True, True, False)  # dA and dB only

# %% [markdown]
# ## The first step
#
# Training starts at $B = 0$, so the first step changes only $B$: $dB = s\,g\,u^\top$ with $u = Ax$.
# How far does the output for the same $x$ move? The output changes by $s\,\Delta B\,u$.
#
# **SGD**, $\Delta B = -\eta\, dB$:
#
# $$ \Delta h = -\eta\, s^2\, g\, (u^\top u) $$
#
# **Adam**, $\Delta B = -\eta \operatorname{sign}(dB) = -\eta \operatorname{sign}(g)\operatorname{sign}(u)^\top$:
#
# $$ \Delta h = -\eta\, s\, \operatorname{sign}(g) \textstyle\sum_k \vert u_k\vert $$
#
# The next cell verifies on a small layer that both formulas are exact.

# %%
rng = np.random.default_rng(0)
x, g, W0, A = (rng.standard_normal(shape) for shape in ((1, 8), (1, 5), (5, 8), (3, 8)))
s, rate, u = 2.0, 0.01, A @ x[0]
before, cache = lora_linear_forward(x, W0, A, np.zeros((5, 3)), scale=s)
dA, dB = lora_linear_backward(g, cache, need)[2:4]
by_sgd = lora_linear_forward(x, W0, A, -rate * dB, scale=s)[0] - before
by_adam = lora_linear_forward(x, W0, A, -rate * np.sign(dB), scale=s)[0] - before
assert not dA.any()
assert np.allclose(by_sgd, -rate * s**2 * g * (u @ u), rtol=0, atol=1e-12)
assert np.allclose(by_adam, -rate * s * np.sign(g) * np.abs(u).sum(), rtol=0, atol=1e-12)

# %% [markdown]
# $u$ has $r$ entries of similar size, so both sums grow in proportion to $r$.
#
# **Predict.** LoRA's scale is $s = \alpha/r$; rsLoRA's is $s = \alpha/\sqrt r$ (Kalajdzievski, 2023).
# With which power of $r$ does the first change of the output grow, for each scale and each
# optimizer?


# %%
def first_move(r, scale, adam, d=64, out=8, rate=1e-3, seeds=400):
    """Return the mean length of the output's move in the first step."""
    lengths = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        x, g = rng.standard_normal((1, d)), rng.standard_normal((1, out))
        W0, A = rng.standard_normal((out, d)), rng.uniform(-1, 1, (r, d)) / d**0.5
        before, cache = lora_linear_forward(x, W0, A, np.zeros((out, r)), scale=scale)
        dB = lora_linear_backward(g, cache, need)[3]
        B = -rate * (np.sign(dB) if adam else dB)
        after, _ = lora_linear_forward(x, W0, A, B, scale=scale)
        lengths.append(np.linalg.norm(after - before))
    return np.mean(lengths)


ranks = 2 ** np.arange(8)  # 1 to 128
cases = {
    "SGD, alpha / r": (False, 1.0, -1.0),
    "SGD, alpha / sqrt(r)": (False, 0.5, 0.0),
    "Adam, alpha / r": (True, 1.0, 0.0),
    "Adam, alpha / sqrt(r)": (True, 0.5, 0.5),
}
moves = {
    name: np.array([first_move(r, 16 / r**power, adam) for r in ranks])
    for name, (adam, power, _) in cases.items()
}

# %% [markdown]
# Substitute each $s$ into the two formulas:
#
# | | $s=\alpha/r$ | $s=\alpha/\sqrt r$ |
# |---|---|---|
# | SGD, $\Delta h \propto s^2 r$ | $r^{-1}$ | $r^0$ |
# | Adam, $\Delta h \propto s\, r$ | $r^0$ | $r^{1/2}$ |
#
# On double-logarithmic axes, a power of $r$ is a straight line whose slope is the power. Each
# measured slope is within 0.05 of the table.

# %% alt="First move of the output against rank: it falls for SGD with alpha / r, stays for SGD with alpha / sqrt(r) and Adam with alpha / r, grows for Adam with alpha / sqrt(r)"
figure, axis = plt.subplots(figsize=(6.8, 4))
styles = [(ORANGE, "o", "-"), (BLUE, "s", "--"), (GREEN, "^", "-."), (PURPLE, "v", ":")]
for (name, move), (colour, marker, dash) in zip(moves.items(), styles):
    axis.loglog(ranks, move / move[0], color=colour, marker=marker, linestyle=dash, label=name)
    slope = np.polyfit(np.log(ranks), np.log(move), 1)[0]
    print(f"{name:22} slope {slope:+.3f}, predicted {cases[name][2]:+.1f}")
    assert abs(slope - cases[name][2]) < 0.05
axis.set_xlabel("rank r")
axis.set_ylabel("first move of the output / that at r = 1")
axis.set_xticks(ranks, [str(r) for r in ranks])
axis.minorticks_off()
axis.set_title("The first step at one learning rate")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# A comparison of ranks at one fixed learning rate is therefore not fair: under SGD with $\alpha/r$,
# rank 128 starts 128 times more slowly than rank 1, on average. Tune the learning rate for each
# rank, as `lora-np sweep` does.

# %%
slower = moves["SGD, alpha / r"][0] / moves["SGD, alpha / r"][-1]
print(f"r = 1 moves {slower:.0f} times as far as r = 128")
assert abs(slower / 128 - 1) < 0.25  # a mean of 400 draws

# %% [markdown]
# ## Alpha under SGD is redundant
#
# Let $A' = \sqrt s\, A$ and $B' = \sqrt s\, B$. Then $sBA = B'A'$, which is a layer with scale 1.
# By the chain rule, $dA = \sqrt s\, dA'$, so a step on $A$ changes $A'$ by
#
# $$ \sqrt s\,\eta\, dA = s\,\eta\; dA' , $$
#
# and the same holds for $B'$. Training with scale $s$ and rate $\eta$ **is** training with scale 1
# and rate $s\eta$, from an $A$ that is $\sqrt s$ times as large.
#
# **Predict.** How different are the two products after 30 steps?


# %%
def problem():
    rng = np.random.default_rng(0)
    X, W0 = rng.standard_normal((40, 12)), rng.standard_normal((8, 12))
    T = X @ (W0 + 0.3 * rng.standard_normal((8, 12))).T
    return X, W0, T, rng.uniform(-1, 1, (3, 12)) / 12**0.5


def sgd(s, rate, start=1.0, steps=30):
    X, W0, T, A = problem()
    A, B = start * A, np.zeros((8, 3))
    for _ in range(steps):
        y, cache = lora_linear_forward(X, W0, A, B, scale=s)
        _, _, dA, dB, _ = lora_linear_backward((y - T) / len(X), cache, need)
        A, B = A - rate * dA, B - rate * dB
    return s * B @ A


s = 4.0
one, other = sgd(s, rate=0.02), sgd(1.0, rate=s * 0.02, start=s**0.5)
plain = sgd(1.0, rate=s * 0.02)  # without the larger start
print(
    f"equal to {np.abs(one - other).max():.1e}; without the larger start it differs by {np.abs(one - plain).max():.2f}"
)
assert np.abs(one - other).max() < 1e-13 and np.abs(one - plain).max() > 0.05

# %% [markdown]
# They are equal to rounding. Under SGD, $\alpha$ is not a new hyperparameter: it acts as a factor
# of the learning rate and of the size of the random start.
#
# ## Alpha under Adam: a learning rate for B alone
#
# Adam divides a gradient by its own running size, so a constant factor of the gradient has no
# effect. Put the whole scale into $B$: $B' = sB$, $A' = A$. A step changes $B$ by about $\eta$,
# hence $B'$ by $s\eta$, and $A$ by $\eta$.
#
# **Predict.** Which two learning rates with scale 1 reproduce training with $s = 4$ and
# $\eta = 0.01$?


# %%
def adam(s, rate_A, rate_B, steps=30, b1=0.9, b2=0.999):
    X, W0, T, A = problem()
    factors, rates = [A, np.zeros((8, 3))], (rate_A, rate_B)
    m, v = [0.0, 0.0], [0.0, 0.0]
    for t in range(1, steps + 1):
        y, cache = lora_linear_forward(X, W0, *factors, scale=s)
        gradients = lora_linear_backward((y - T) / len(X), cache, need)[2:4]
        for k, gradient in enumerate(gradients):
            m[k] = b1 * m[k] + (1 - b1) * gradient
            v[k] = b2 * v[k] + (1 - b2) * gradient**2
            size = np.sqrt(v[k] / (1 - b2**t)) + 1e-30  # 0 / 1e-30 = 0 while B is zero
            factors[k] = factors[k] - rates[k] * (m[k] / (1 - b1**t)) / size
    A, B = factors
    return s * B @ A


one, other = adam(4.0, 0.01, 0.01), adam(1.0, 0.01, 0.04)
both = adam(1.0, 0.04, 0.04)  # the rate of A raised as well
print(
    f"equal to {np.abs(one - other).max():.1e}; with both rates raised it differs by {np.abs(one - both).max():.2f}"
)
assert np.abs(one - other).max() < 1e-12 and np.abs(one - both).max() > 0.01

# %% [markdown]
# 0.01 for $A$ and 0.04 for $B$. Under Adam, $\alpha$ is a factor of the learning rate of $B$ alone.
# (Adam's usual $\epsilon$ of $10^{-8}$ breaks this slightly for tiny gradients; here it is
# $10^{-30}$.)
#
# In practice: choose one scale, keep it, and tune the learning rate for each rank.
#
# ## Exercises
#
# 1. How does the *norm of the change*, $\Vert s\,\Delta B\,A\Vert_F$, grow with $r$ in the four cases?
#    Derive it for one sample and $1 \ll r \ll d$, then measure. By which power of $r$ does each
#    case differ from that of the output?
# 2. Find the power $p$ for which $s = \alpha/r^p$ makes Adam's first change of the *output* the
#    same for all $r$, and the power that does so for SGD.
# 3. Weight decay multiplies $A$ and $B$ by $1 - \eta\lambda$ in each step. Does the equality of the
#    SGD section still hold? With which $\lambda$?
