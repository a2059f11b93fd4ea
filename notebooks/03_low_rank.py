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
# # 3. Low rank
#
# **What you'll do.** Build matrices from a few outer products, decompose them with the singular
# value decomposition, and approximate a picture by a few of its directions.
#
# **What you'll learn.** What a rank is, why a truncated SVD is the best approximation, and why "the
# rank" of a measured matrix depends on how much you want to keep.
#
# **What you'll need.** Chapter 1, orthogonal vectors, and the length of a vector.

# %%
import matplotlib.pyplot as plt
import numpy as np

from lora_np import best_rank_error, smallest_rank, spectrum
from lora_np.plots import BLUE, GREEN, ORANGE

rng = np.random.default_rng(0)

# %% [markdown]
# ## Rank one
#
# An outer product $b\,a^\top$ is a matrix made of one column and one row. Every row is a multiple
# of $a^\top$; every column is a multiple of $b$. As a map, it reads its input along only one
# direction, and its output always has the direction $b$:
#
# $$ (b\,a^\top)\,x = b\,(a^\top x) $$

# %%
a, b = np.array([1.0, 2.0, -1.0]), np.array([3.0, 0.0, 1.0, -2.0])
M = np.outer(b, a)  # (4, 3)
print(M)
x = rng.standard_normal(3)
assert np.allclose(M @ x, b * (a @ x))

# %% [markdown]
# ## Rank r
#
# Add $r$ outer products. With the columns in $B$ (out, r) and the rows in $A$ (r, in), the sum is
# one product:
#
# $$ \sum_{k=1}^{r} b_k a_k^\top = B A $$
#
# **Predict.** $BA$ is $60 \times 40$ with $r = 3$. How many of its 60 rows are independent? How many
# numbers do you need to store it?

# %%
out, in_, r = 60, 40, 3
B, A = rng.standard_normal((out, r)), rng.standard_normal((r, in_))
assert np.allclose(B @ A, sum(np.outer(B[:, k], A[k]) for k in range(r)))
print("rank", np.linalg.matrix_rank(B @ A), "  numbers", B.size + A.size, "of", out * in_)
assert np.linalg.matrix_rank(B @ A) == 3 and B.size + A.size == 300

# %% [markdown]
# Three: each row of $BA$ is a combination of the three rows of $A$. The factors hold
# $r\,(\text{in} + \text{out}) = 300$ numbers instead of 2400. They hold fewer numbers than the
# matrix only if $r < \dfrac{\text{in}\cdot\text{out}}{\text{in}+\text{out}}$, here 24.

# %%
assert out * in_ / (out + in_) == 24.0
sizes = [r * (out + in_) for r in (23, 24, 25)]
print("numbers at r = 23, 24, 25:", sizes, "  the matrix itself:", out * in_)
assert sizes[0] < out * in_ == sizes[1] < sizes[2]

# %% [markdown]
# **Predict.** Are the factors of a matrix unique? Take any invertible $r \times r$ matrix $R$.
#
# $$ (B R)\,(R^{-1} A) = \;? $$

# %%
R = rng.standard_normal((r, r))
B2, A2 = B @ R, np.linalg.inv(R) @ A
assert np.allclose(B2 @ A2, B @ A) and not np.allclose(A2, A)

# %% [markdown]
# They are not unique: $R R^{-1}$ cancels. Two training runs may find the same change with quite
# different $A$ and $B$. Compare products, never factors.
#
# ## The singular value decomposition
#
# Every matrix is a sum of outer products of *orthonormal* directions with weights
# $\sigma_1 \ge \sigma_2 \ge \dots \ge 0$:
#
# $$ M = \sum_i \sigma_i\, u_i v_i^\top = U \operatorname{diag}(\sigma)\, V^\top $$
#
# $M$ takes the direction $v_i$ to the direction $u_i$ and stretches it by $\sigma_i$. The rank is
# the number of $\sigma_i$ that are not zero, and because the directions are orthonormal, the squares
# add up: $\sum_{oi} M_{oi}^2 = \sum_i \sigma_i^2$. We call this sum the *energy*, and its root is
# the (Frobenius) norm.

# %%
M = B @ A
U, sigma, Vt = np.linalg.svd(M, full_matrices=False)
print("first five singular values:", sigma[:5])
assert np.allclose(M @ Vt[0], sigma[0] * U[:, 0])
assert np.allclose(U.T @ U, np.eye(40)) and np.allclose(Vt @ Vt.T, np.eye(40))
assert np.isclose((M**2).sum(), (sigma**2).sum())
assert sigma[2] > 1 and sigma[3] < 1e-12  # rank 3

# %% [markdown]
# The fourth value is not exactly 0: it is a rounding error below $10^{-12}$. A numerical rank is
# always the number of singular values above a threshold.
#
# ## The best approximation
#
# Keep the first $r$ terms: $M_r = \sum_{i \le r} \sigma_i u_i v_i^\top$. The lost energy is that of
# the other terms. **Eckart and Young (1936):** no matrix of rank $r$ is closer to $M$.
#
# $$ \min_{\operatorname{rank} N \le r} \Vert M - N\Vert_F
#    = \Vert M - M_r \Vert_F = \sqrt{\textstyle\sum_{i>r} \sigma_i^2} $$

# %%
M = rng.standard_normal((30, 20)) * 0.9 ** np.arange(20)  # columns that get smaller
U, sigma, Vt = np.linalg.svd(M, full_matrices=False)


def truncated(r):
    return (U[:, :r] * sigma[:r]) @ Vt[:r]


for r in range(21):
    lost = np.linalg.norm(M - truncated(r))
    assert np.isclose(lost, np.sqrt((sigma[r:] ** 2).sum()), atol=1e-12)
    assert np.isclose(lost, best_rank_error(sigma, r, relative=False), atol=1e-12)

# %% [markdown]
# **Predict.** We search for a rank-4 approximation by gradient descent on $B$ and $A$, as LoRA
# does, from a random start. Will the result be worse than the SVD, equally good, or better?
#
# With $E = BA - M$ and the loss $\tfrac12\Vert E\Vert_F^2$, chapter 1's rules give
# $dB = E A^\top$ and $dA = B^\top E$.

# %%
B, A = 0.1 * rng.standard_normal((30, 4)), 0.1 * rng.standard_normal((4, 20))
errors = []
for _ in range(4000):
    E = B @ A - M
    errors.append(np.linalg.norm(E))
    B, A = B - 0.01 * E @ A.T, A - 0.01 * B.T @ E

floor = best_rank_error(sigma, 4, relative=False)
print(f"gradient descent {errors[-1]:.12f}\nEckart-Young     {floor:.12f}")
assert min(errors) >= floor - 1e-12 and errors[-1] < 1.01 * floor

# %% [markdown]
# Equally good to within 1 %, and never better. The loss is not convex in $B$ and $A$ together, but
# gradient descent found the floor. (The speed depends on the gap: the closer $\sigma_5$ is to
# $\sigma_4$, the more steps it takes to separate them.)

# %% alt="Left: 20 singular values, the first 4 kept. Right: gradient descent falls to the Eckart-Young floor"
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6))
left.bar(np.arange(1, 21), sigma, color=[BLUE] * 4 + ["lightgrey"] * 16, edgecolor="black")
left.set_xlabel("i")
left.set_xticks(range(1, 21, 3))
left.set_ylabel(r"singular value $\sigma_i$")
left.set_title("kept at r = 4 (blue) and lost (grey)")
right.semilogx(np.arange(1, 4001), errors, color=BLUE, label="gradient descent on B and A")
right.axhline(floor, color=ORANGE, linestyle="--", label="Eckart-Young floor")
right.set_xlabel("step")
right.set_ylabel(r"$\Vert M - BA \Vert_F$")
right.set_title("rank 4")
right.legend(frameon=False, loc="upper right")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## A picture of low rank
#
# A picture is a matrix of brightness values. This one has two smooth bumps, a slanted edge and some
# noise.

# %% alt="One picture at ranks 1, 2, 5, 15 and 96: a blur at rank 1, hard to tell from the original at rank 15"
v, h = np.mgrid[0:1:96j, 0:1:96j]
bumps = np.exp(-30 * ((v - 0.3) ** 2 + (h - 0.3) ** 2)) + np.exp(
    -60 * (v - 0.7) ** 2 - 20 * (h - 0.6) ** 2
)
picture = bumps + 0.5 * (v + 0.6 * h > 1.1) + 0.03 * rng.standard_normal((96, 96))
U, sigma, Vt = np.linalg.svd(picture, full_matrices=False)

figure, axes = plt.subplots(1, 5, figsize=(12, 2.9))
for axis, r in zip(axes, (1, 2, 5, 15, 96)):
    axis.imshow(truncated(r), cmap="gray", vmin=0, vmax=1.5)
    axis.set_title(
        f"r = {r}: {best_rank_error(sigma, r):.1%} off\n{r * 192:,} numbers", fontsize=10
    )
    axis.axis("off")
plt.show()

# %% [markdown]
# **Predict.** What is the rank of this picture?

# %%
found = spectrum(picture)
print(found)
assert found.numerical_rank == 96

# %% [markdown]
# Strictly, it is 96, because of the noise. This number is not useful. Ask instead for the smallest
# rank that keeps 99 % of the energy (an error of 0.1), or use a smooth measure:
#
# * *stable rank* $\;\sum\sigma_i^2/\sigma_1^2$: the energy in units of the largest $\sigma_i^2$;
# * *effective rank* $\;e^{H}$, with $H$ the entropy of $p_i = \sigma_i/\sum_j\sigma_j$: the number
#   of equal values with the same entropy.

# %%
p = sigma / sigma.sum()
assert np.isclose(found.stable_rank, (sigma**2).sum() / sigma[0] ** 2)
assert np.isclose(found.effective_rank, np.exp(-(p * np.log(p)).sum()))
assert found.stable_rank < 2
assert smallest_rank(sigma, error=0.1) == found.energy_ranks[0.99] == 10

# %% [markdown]
# Ten directions hold 99 % of the energy of a matrix of rank 96. `lora-np analyse` answers the same
# question for a trained *change* of weights: which rank does it need?
#
# ## Weights are not low-rank; changes may be
#
# **Predict.** We truncate a random $64 \times 64$ matrix, like the weights at the start of
# training, to $r = 8$. How much of its norm is lost?

# %%
W0 = rng.standard_normal((64, 64))
change = rng.standard_normal((64, 4)) @ rng.standard_normal((4, 64)) / 8
lost_W0 = best_rank_error(spectrum(W0).singular_values, 8)
lost_change = best_rank_error(spectrum(change).singular_values, 8)
print(f"relative error at r = 8: W0 {lost_W0:.3f}, the change {lost_change:.1e}")
assert 0.75 < lost_W0 < 0.82 and lost_change < 1e-14

# %% [markdown]
# More than three quarters. LoRA does not compress $W_0$: it keeps $W_0$ and gives the *change* a
# low rank. The sum $W_0 + \Delta W$ still has full rank.

# %% alt="Singular values: the change has 4 that are not zero; random W0, alone or with the change, falls slowly to the 64th"
assert np.linalg.matrix_rank(W0 + change) == 64 and np.linalg.matrix_rank(change) == 4

figure, axis = plt.subplots(figsize=(6.4, 3.6))
for matrix, colour, marker, name in (
    (W0, ORANGE, "o", "random $W_0$"),
    (W0 + change, GREEN, "^", r"$W_0 + \Delta W$"),
    (change, BLUE, "s", r"$\Delta W$ of rank 4"),
):
    axis.plot(
        range(1, 65),
        spectrum(matrix).singular_values,
        color=colour,
        marker=marker,
        ms=4,
        label=name,
    )
axis.set_xlabel("i")
axis.set_ylabel(r"singular value $\sigma_i$")
axis.set_title("The change is low-rank, the sum is not")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Exercises
#
# 1. `spectrum((B, A))` returns the singular values of $BA$ without forming it. Find out how from
#    $B = Q_B R_B$ and $A^\top = Q_A R_A$ (`np.linalg.qr`), and check against `spectrum(B @ A)`.
# 2. The rank of a sum: show that $\operatorname{rank}(M+N) \le \operatorname{rank} M +
#    \operatorname{rank} N$, and find two matrices for which it is smaller.
# 3. Fix $A$ to a random $r \times 64$ matrix and fit only $B$ to a random $W_0$ by least squares.
#    How much is lost at $r = 8$? Compare with $\sqrt{1 - r/64}$ and with the SVD.
