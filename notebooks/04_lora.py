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
# # 4. $W_0 x + s\, B A x$
#
# [中文](zh/04_lora.ipynb)
#
# **What you'll do.** Add a low-rank path to a frozen layer, derive its gradients, and work through
# a small example with every number printed.
#
# **What you'll learn.** Why $B$ starts at zero, why the gradient of $A$ is then zero and that of
# $B$ is not, and why gradients must not be checked at this point.
#
# **What you'll need.** Chapters 1 to 3.

# %%
import matplotlib.pyplot as plt
import numpy as np
from step_through import draw_all_steps, sliders

from lora_np import best_rank_error, check_gradients
from lora_np.ops import lora_linear_backward, lora_linear_forward
from lora_np.plots import BLUE, GREEN, ORANGE

np.set_printoptions(precision=4, suppress=True)

# %% [markdown]
# ## The layer
#
# A pretrained layer has the weight $W_0$ (out, in). LoRA keeps this weight and adds a change of
# rank $r$, the product of $B$ (out, r) and $A$ (r, in):
#
# $$ h = W_0 x + s\, B A x, \qquad s = \alpha / r $$
#
# (Hu et al., 2021, equation 3.) Only $A$ and $B$ are trained. Read the formula from the right:
# $u = Ax$ has only $r$ numbers, and the change depends on $x$ only through them.
#
# Here *in* = 3, *out* = 4, $r = 2$, $\alpha = 1$.

# %%
x = np.array([2.0, -1.0, 1.0])  # (in,)
W0 = np.array([[1.0, 0, 2], [0, 3, 1], [-1, 1, 0], [2, 2, 1]])  # (out, in)
A = np.array([[1.0, 0, -1], [2, 1, 0]])  # (r, in)
B = np.array([[1.0, 0], [0, 2], [-1, 1], [3, -1]])  # (out, r)
s = 1.0 / 2.0

# %% [markdown]
# **Predict.** $u_0 = 1\cdot2 + 0 - 1\cdot1$. What is $u_1$? And $h_0$?

# %%
u = A @ x  # (r,)
h = W0 @ x + s * (B @ u)  # (out,)
print("u =", u, "  B u =", B @ u, "  W0 x =", W0 @ x, "  h =", h)
assert u.tolist() == [1.0, 3.0]
assert h.tolist() == [4.5, 1.0, -2.0, 3.0]

# %% alt="The five steps of W0 x + s B A x, each product drawn as coloured matrices with their numbers and shapes"
draw_all_steps(x, W0, A, B, s)

# %% [markdown]
# With a running kernel, the next cell shows sliders for the step, for $s$ and for $x_0$. Set $s$ to
# 0 and go through the steps: which parts no longer matter?

# %%
sliders(x, W0, A, B, s)

# %% [markdown]
# For a few samples, do not form $BA$: the order $B(Ax)$ costs $r\,(\text{in}+\text{out})$
# multiplications per sample. Forming $W_0 + s\,BA$ first gives the same numbers to rounding, and is
# faster if many samples share it. The library's layers do this (`lora_np/ops/fast/lora.py`); the
# textbook pair of this chapter does not.

# %%
assert np.allclose(h, (W0 + s * B @ A) @ x)

# %% [markdown]
# ## The gradients
#
# Let $g = \partial L/\partial h$ (called `dy` in code). The change consists of two linear layers,
# one after the other: $u = Ax$, then $sBu$. Apply the rules of chapter 1, starting at the output:
#
# $$ dB = s\, g\, u^\top, \qquad du = s\, B^\top g, \qquad dA = du\; x^\top = s\, B^\top g\, x^\top $$
#
# Both paths use $x$, so their contributions add:
#
# $$ dx = W_0^\top g + A^\top du = W_0^\top g + s\, A^\top B^\top g $$
#
# **Predict.** Which shapes do $du$, $dA$ and $dB$ have?

# %%
g = np.array([1.0, 0.0, -1.0, 2.0])  # (out,)
du = s * B.T @ g  # (r,)
dB = s * np.outer(g, u)  # (out, r)
dA = np.outer(du, x)  # (r, in)
dx = W0.T @ g + A.T @ du  # (in,)
print("du =", du, "\ndA =\n", dA, "\ndB =\n", dB, "\ndx =", dx)
assert (du.shape, dA.shape, dB.shape) == ((2,), (2, 3), (4, 2))
assert du.tolist() == [4.0, -1.5]

# %% [markdown]
# Check each gradient with central differences. $L = \sum g \cdot h$ is linear in each of $A$, $B$
# and $x$, so the central difference is exact except for rounding.


# %%
def numeric(L, v, step=1e-3):
    gradient = np.zeros_like(v)
    for index in np.ndindex(v.shape):
        e = np.zeros_like(v)
        e[index] = step
        gradient[index] = (L(v + e) - L(v - e)) / (2 * step)
    return gradient


def L(x, A, B):
    return g @ (W0 @ x + s * (B @ (A @ x)))


assert np.allclose(dA, numeric(lambda v: L(x, v, B), A), atol=1e-9)
assert np.allclose(dB, numeric(lambda v: L(x, A, v), B), atol=1e-9)
assert np.allclose(dx, numeric(lambda v: L(v, A, B), x), atol=1e-9)

# %% [markdown]
# The library's pair takes samples in rows, as in chapter 1. With `need`, it skips $dW_0$, because
# $W_0$ is frozen. It still needs $W_0$ to compute $dx$.

# %%
y, cache = lora_linear_forward(x[None], W0, A, B, scale=s)
need = (True, False, True, True, False)  # x, W0, A, B, bias
grad_x, grad_W0, grad_A, grad_B, _ = lora_linear_backward(g[None], cache, need)
assert np.allclose(y[0], h) and grad_W0 is None
assert np.allclose(grad_x[0], dx) and np.allclose(grad_A, dA) and np.allclose(grad_B, dB)

# %% [markdown]
# ## Step 0
#
# LoRA starts with a random $A$ and with $B = 0$.
#
# **Predict.** What is $h$ at the start? Which of $dA$ and $dB$ is zero? Put $B = 0$ into the
# formulas above.

# %%
zero = np.zeros_like(B)
y, cache = lora_linear_forward(x[None], W0, A, zero, scale=s)
_, _, dA0, dB0, _ = lora_linear_backward(g[None], cache, need)
print("dA =\n", dA0, "\ndB =\n", dB0)
assert np.array_equal(y[0], W0 @ x)
assert not dA0.any() and dB0.any()

# %% [markdown]
# The layer starts with exactly the output of the pretrained layer. $dA = s\,B^\top g\,x^\top$ has
# the factor $B$, so it is zero. $dB = s\,g\,(Ax)^\top$ has the factor $A$ instead, and is not zero.
# The first step therefore changes only $B$; from the second step on, both change.

# %%
moved = zero - 0.1 * dB0
_, cache = lora_linear_forward(x[None], W0, A, moved, scale=s)
_, _, dA1, _, _ = lora_linear_backward(g[None], cache, need)
assert dA1.any()

# %% [markdown]
# **Predict.** Consider two other starts: both factors zero, and both random. What goes wrong with
# each?

# %%
_, cache = lora_linear_forward(x[None], W0, 0 * A, zero, scale=s)
_, _, dA_stuck, dB_stuck, _ = lora_linear_backward(g[None], cache, need)
assert not dA_stuck.any() and not dB_stuck.any()

rng = np.random.default_rng(0)
big_x, big_W0 = rng.standard_normal(64), rng.standard_normal((64, 64)) / 8
both = rng.standard_normal((64, 8)) @ (rng.standard_normal((8, 64)) @ big_x)
disturbed = np.linalg.norm(both) / np.linalg.norm(big_W0 @ big_x)
print(f"both random (standard normal): the change is {disturbed:.0f} times the output")
assert disturbed > 10

# %% [markdown]
# If both are zero, both gradients have a zero factor, and nothing ever changes. If both are random,
# the output is disturbed before any training.
#
# ## Check gradients away from the start
#
# **Predict.** Someone forgets the scale $s$ in $dA$. Does a gradient check at $B = 0$ find the
# mistake?


# %%
def forgets_scale(dy, cache, need=None):
    dx, dW0, dA, dB, db = lora_linear_backward(dy, cache)
    return dx, dW0, dA / cache.scale, dB, db


X, random_B = rng.standard_normal((2, 3)), rng.standard_normal((4, 2))
for name, some_B in (("B = 0", zero), ("random B", random_B)):
    inputs = {"x": X, "W0": W0, "A": A, "B": some_B}
    right = check_gradients(lora_linear_forward, lora_linear_backward, inputs, scale=s)
    wrong = check_gradients(lora_linear_forward, forgets_scale, inputs, scale=s)
    print(f"{name}: the right pair passes: {right.ok}, the wrong one passes: {wrong.ok}")
    assert right.ok and wrong.ok == (name == "B = 0")

# %% [markdown]
# At $B = 0$ the wrong pair passes: $dA$ is zero with and without the scale. Check gradients at a
# random $B$, and test the zero start separately.
#
# ## Training it
#
# Now let the layer learn a change $\Delta W$ of rank 2. We use the columns of the identity as
# inputs, so the loss is $\tfrac12\Vert sBA - \Delta W\Vert_F^2$.
#
# **Predict.** Which of the losses at $r = 1$, 2 and 3 go to zero? What is left of the others?

# %%
target = rng.standard_normal((12, 2)) @ rng.standard_normal((2, 10)) / 3  # Delta W, of rank 2
sigma = np.linalg.svd(target, compute_uv=False)
frozen, eye = rng.standard_normal((12, 10)), np.eye(10)


def train(r, steps=3000, rate=0.05):
    A, B, losses = rng.uniform(-1, 1, (r, 10)) / 10**0.5, np.zeros((12, r)), []
    for _ in range(steps):
        y, cache = lora_linear_forward(eye, frozen, A, B, scale=1.0)
        dy = y - eye @ (frozen + target).T
        losses.append(0.5 * (dy**2).sum())
        _, _, dA, dB, _ = lora_linear_backward(dy, cache, (False, False, True, True, False))
        A, B = A - rate * dA, B - rate * dB
    return losses


curves = {r: train(r) for r in (1, 2, 3)}
floors = {r: 0.5 * best_rank_error(sigma, r, relative=False) ** 2 for r in curves}
for r, losses in curves.items():
    print(f"r = {r}: loss {losses[-1]:.3e}   Eckart-Young floor {floors[r]:.3e}")
assert abs(curves[1][-1] - floors[1]) < 1e-9
assert curves[2][-1] < 1e-20 and curves[3][-1] < 1e-20

# %% [markdown]
# Rank 1 stops at the Eckart-Young floor of chapter 3. The losses at ranks 2 and 3 fall below
# $10^{-20}$: once $r$ reaches the rank of the change, a higher rank does not lower the final loss.

# %% alt="Loss against step: rank 1 stays at its floor, ranks 2 and 3 fall to rounding"
figure, axis = plt.subplots(figsize=(6.4, 3.8))
for (r, losses), colour, dash in zip(curves.items(), (ORANGE, BLUE, GREEN), (":", "-", "--")):
    axis.semilogy(losses[:600], color=colour, linestyle=dash, label=f"r = {r}")
axis.axhline(floors[1], color="black", linewidth=0.8, label="floor of r = 1")
axis.set_xlabel("step")
axis.set_ylabel(r"loss $\frac{1}{2}\Vert sBA - \Delta W\Vert_F^2$")
axis.set_ylim(1e-31, 1e2)
axis.set_title("A change of rank 2, learned at three ranks")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Exercises
#
# 1. Start with $A = 0$ and a random $B$ instead. Derive which gradient is zero, and train. Is the
#    final loss the same?
# 2. Derive the gradients for a batch, with samples in the rows of $X$ and $G$, and compare with
#    `lora_linear_backward`.
# 3. Multiply $A$ by 2 and divide $B$ by 2. $h$ does not change. What happens to $dA$ and $dB$, and
#    to one step of gradient descent?
