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
# # 5. Merge, unmerge, and what it costs
#
# **What you'll do.** Merge an adapter into its weight, subtract it again, combine two adapters, and
# count parameters and operations.
#
# **What you'll learn.** Which results are exact and which are rounded, why a small change can
# vanish in bfloat16, and why the sum of factors is not the sum of changes.
#
# **What you'll need.** Chapter 4, and the spacing of floating-point numbers.

# %%
import matplotlib.pyplot as plt
import numpy as np

from lora_np import Linear, LoraConfig, inject, merge, spectrum, unmerge
from lora_np.forms import in_bfloat16
from lora_np.plots import BLUE, GREEN, ORANGE

rng = np.random.default_rng(0)

# %% [markdown]
# ## Merge
#
# Since $W_0 x + s\,BAx = (W_0 + s\,BA)\,x$, the adapter can be merged into one matrix of the same
# shape. The merged layer costs the same as the layer without LoRA.
#
# `inject` does not change the base and returns an adapted layer; `merge` returns a plain layer.

# %%
base = Linear(256, 256, rng, bias=False, std=1 / 16)  # float32
adapted = inject(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"), rng)
adapted.B.value[:] = rng.standard_normal((256, 8)) * 0.01  # as if it had been trained
merged = merge(adapted)

x = rng.standard_normal((32, 256)).astype(np.float32)
y_adapted, y_merged = adapted.forward(x)[0], merged.forward(x)[0]
difference = np.abs(y_adapted - y_merged).max() / np.abs(y_adapted).max()
print(f"largest difference / largest output: {difference:.1e}")
assert difference < 2e-6 and merged.W.shape == base.W.shape

# %% [markdown]
# **Predict.** Float32 has a relative spacing of $1.2\cdot10^{-7}$. We merge a change and subtract
# it again. Do we get $W_0$ back, bit for bit?

# %%
change = adapted.delta()
back = unmerge(merged, adapted)
size = np.linalg.norm(change) / np.linalg.norm(base.W.value)
differ = np.mean(back.W.value != base.W.value)
print(f"the change is {size:.3f} of W0; after unmerging {differ:.1%} of the entries differ")
assert 0 < differ < 0.5 and np.abs(back.W.value - base.W.value).max() < 1e-7

# %% [markdown]
# Not quite. $W_0 + \Delta W$ was rounded, and the rounding error remains. The errors are below
# $10^{-7}$, but not zero. If every bit matters, keep $W_0$: `base` still has it.
#
# ## Switching a thousand times
#
# A server can switch adapters by subtracting one change from an array and adding the next, again
# and again.
#
# **Predict.** Errors of both signs add like the steps of a random walk. After 100 times as many
# switches, how many times larger is the error?


# %% alt="Relative error of W0 against merges and unmerges: it grows in every dtype; bfloat16 is worst, float32 best"
def drift(rounded, switches, size=0.1, n=64):
    """Return, after each switch, the relative error of W0 and the share of entries it moved."""
    rng = np.random.default_rng(1)
    W0 = rounded(rng.standard_normal((n, n)))
    W, errors, moved = W0.copy(), [], []
    for _ in range(switches):
        BA = rng.standard_normal((n, 4)) @ rng.standard_normal((4, n)) * (size / 2)
        change = rounded(BA)
        before = W
        W = rounded(W + change)
        W = rounded(W - change)
        moved.append(np.mean(before != W))
        error = W.astype(np.float64) - W0.astype(np.float64)
        errors.append(np.linalg.norm(error) / np.linalg.norm(W0.astype(np.float64)))
    return np.array(errors), np.array(moved)


kinds = {"bfloat16": in_bfloat16, "float16": np.float16, "float32": np.float32}  # how to round
runs = {name: drift(rounded, 1000) for name, rounded in kinds.items()}
drifts = {name: errors for name, (errors, _) in runs.items()}

figure, axis = plt.subplots(figsize=(6.6, 4))
for (name, errors), colour, dash in zip(drifts.items(), (ORANGE, GREEN, BLUE), (":", "--", "-")):
    axis.loglog(np.arange(1, 1001), errors, color=colour, linestyle=dash, label=name)
axis.set_xlabel("merges and unmerges")
axis.set_ylabel(r"relative error of $W_0$")
axis.set_title("Every switch leaves its rounding behind")
axis.legend(frameon=False)
plt.show()

growth = {name: errors[999] / errors[9] for name, errors in drifts.items()}
for name, errors in drifts.items():
    print(
        f"{name:9} after 1: {errors[0]:.1e}   after 1000: {errors[-1]:.1e}   growth {growth[name]:.1f}"
    )

# %% [markdown]
# A random walk would grow $\sqrt{100} = 10$ times from 10 to 1000 switches. Here the growth is
# smaller, between 5 and 8. An entry that was rounded once has zeros in its last digits, so the next
# switch often has nothing to round, and later switches change fewer entries. In float32 the error
# stays below $10^{-6}$. In bfloat16 it ends above 1 %.

# %%
assert all(5 < g < 8 for g in growth.values())
for name, (_, moved) in runs.items():
    first, last = moved[:10].mean(), moved[-100:].mean()
    print(f"{name:9} entries moved by a switch: {first:.1%} at first, {last:.1%} in the end")
    assert last < 0.9 * first
assert drifts["float32"][-1] < 1e-6 and drifts["bfloat16"][-1] > 0.01

# %% [markdown]
# ## A change that vanishes
#
# Bfloat16 keeps 8 binary digits: the numbers next to $w$ are about $w/200$ away.
#
# **Predict.** $W_0$ is stored in bfloat16, and the change is a thousandth of its size. After
# merging into bfloat16, what share of the entries has changed?

# %%
W0 = in_bfloat16(rng.standard_normal((256, 256)))
BA = rng.standard_normal((256, 4)) @ rng.standard_normal((4, 256)) / 2 * 1e-3
exact = W0.astype(np.float64) + BA
for name, rounded in kinds.items():
    stored = rounded(exact).astype(np.float64)
    unchanged = np.mean(stored == W0.astype(np.float64))
    lost = np.linalg.norm(stored - exact) / np.linalg.norm(BA)
    print(f"{name:9} unchanged {unchanged:6.1%}   error / size of the change {lost:.4f}")
    if name == "bfloat16":
        assert 0.75 < unchanged < 0.85 and lost > 0.75
    if name == "float32":
        assert unchanged < 0.01 and lost < 1e-4

# %% [markdown]
# In bfloat16, about four entries in five do not change at all, and the error is more than three
# quarters of the change itself. In float32 the error is below a ten-thousandth of the change. The
# same adapter works unmerged, or merged in float32. Merge in a wider type than the stored one, and
# measure the error of rounding to the stored type.
#
# ## Two adapters at once
#
# Take two changes $B_1A_1$ and $B_2A_2$ on the same $W_0$. We want their sum.
#
# * **cat**: concatenate the factors, $[B_1\; B_2]$ and $\begin{bmatrix}A_1\\A_2\end{bmatrix}$. This
#   is exact, with rank $r_1+r_2$.
# * **linear**: add the factors. But
#   $(B_1+B_2)(A_1+A_2) = B_1A_1 + B_2A_2 + \underbrace{B_1A_2 + B_2A_1}_{\text{nobody asked for}}$.
#
# **Predict.** With four independent random factors, how large are the two unwanted terms compared
# with the two wanted ones?

# %%
B1, B2 = rng.standard_normal((2, 256, 8))
A1, A2 = rng.standard_normal((2, 8, 256))
wanted = B1 @ A1 + B2 @ A2

cat = np.hstack([B1, B2]) @ np.vstack([A1, A2])
linear = (B1 + B2) @ (A1 + A2)
for name, made in (("cat", cat), ("linear", linear)):
    error = np.linalg.norm(made - wanted) / np.linalg.norm(wanted)
    print(f"{name:7} relative error {error:.2e}   rank {np.linalg.matrix_rank(made)}")
assert np.allclose(cat, wanted) and np.linalg.matrix_rank(cat) == 16
assert 0.9 < np.linalg.norm(linear - wanted) / np.linalg.norm(wanted) < 1.1
assert np.allclose(linear - wanted, B1 @ A2 + B2 @ A1)

# %% [markdown]
# They are equally large: the error is close to 100 %. If the rank must be 8, truncate the exact sum
# with the SVD of chapter 3 (method *svd*). No other matrix of rank 8 is nearer, so *linear* cannot
# be nearer.

# %%
sigma = spectrum((np.hstack([B1, B2]), np.vstack([A1, A2]))).singular_values
svd_error = np.sqrt((sigma[8:] ** 2).sum() / (sigma**2).sum())
print(f"svd     relative error {svd_error:.2f}   rank 8")
assert svd_error < np.linalg.norm(linear - wanted) / np.linalg.norm(wanted)

# %% [markdown]
# For files, use `lora-np combine --method cat`, `svd` or `linear`; each prints its error.
#
# ## What it costs
#
# Count the operations of one $d \times d$ layer for one token, with 2 operations for each
# multiplication and addition:
#
# | | full fine-tuning | LoRA |
# |---|---|---|
# | forward | $2d^2$ | $2d^2 + 4dr$ |
# | $dx$ | $2d^2$ | $2d^2 + 4dr$ |
# | gradients of the weights | $2d^2$ | $4dr$ |
#
# The last row has no $d^2$ for LoRA, because $dW_0$ is not formed. The second row keeps it, because
# $dx$ passes through $W_0$.
#
# **Predict.** LoRA trains 0.4 % of the numbers. Does a step cost 0.4 % of the operations?


# %%
def share_of_numbers(d, r):
    return 2 * d * r / d**2


def share_of_operations(d, r):
    return (4 * d**2 + 12 * d * r) / (6 * d**2)  # = 2/3 + 2 r / d


print(
    f"d = 4096, r = 8: numbers {share_of_numbers(4096, 8):.2%}, operations {share_of_operations(4096, 8):.1%}"
)
assert round(100 * share_of_numbers(4096, 8), 2) == 0.39
assert round(share_of_operations(4096, 8), 2) == 0.67

counted, full = adapted.flops(T=1), Linear(256, 256, rng, bias=False).flops(T=1)
ratio = (counted.forward + counted.backward) / (full.forward + full.backward)
assert np.isclose(ratio, share_of_operations(256, 8))

# %% [markdown]
# No: two thirds at best. LoRA saves memory instead: gradients, optimizer state and the file of each
# task hold only 0.39 % of the numbers.
#
# Both shares grow with $r$. Above $r = d/2$ the factors hold more numbers than the matrix, and
# above $r = d/6$ LoRA needs more operations than full fine-tuning.

# %% alt="Trained numbers and operations of a step against rank, in % of full fine-tuning: operations pass 100% near rank 43, numbers at 128"
d = 256
assert share_of_numbers(d, d // 2) == 1.0
assert share_of_operations(d, d // 6) < 1.0 < share_of_operations(d, d // 6 + 1)

r = np.arange(1, 129)
figure, axis = plt.subplots(figsize=(6.4, 3.8))
axis.plot(r, 100 * share_of_numbers(d, r), color=BLUE, label="trained numbers")
axis.plot(
    r, 100 * share_of_operations(d, r), color=ORANGE, linestyle="--", label="operations of a step"
)
axis.axhline(100, color="black", linewidth=0.8, label="full fine-tuning")
axis.set_xlabel("rank r")
axis.set_ylabel("% of full fine-tuning")
axis.set_title("One 256 x 256 layer")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Exercises
#
# 1. Merge into bfloat16 again, with changes of 0.1, 0.01 and 0.001 of $W_0$. For which of them is
#    the error below a tenth of the change?
# 2. *linear* is exact for some pairs of adapters. Find a condition on the factors under which the two
#    unwanted terms vanish, and build such a pair.
# 3. A layer with 1024 inputs and 4096 outputs: derive the ranks at which numbers and operations break
#    even.
