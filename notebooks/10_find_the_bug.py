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
# # 10. Find the bug
#
# **What you'll do.** Take claims about LoRA from four articles that circulate on the web, one
# claim at a time and in our words, and put each to the test.
#
# **What you'll learn.** That most mistakes show in a shape, in a count or in one small example
# worked by hand; and which of LoRA's sayings are true.
#
# **What you'll need.** Chapters 1 to 5.

# %%
import matplotlib.pyplot as plt
import numpy as np

from lora_np import best_rank_error, spectrum
from lora_np.ops import lora_linear_backward, lora_linear_forward
from lora_np.plots import BLUE, ORANGE

np.set_printoptions(precision=4, suppress=True)
rng = np.random.default_rng(0)

# %% [markdown]
# ## First article: theory with a worked example
#
# **Claim 1.** *With $A$ (r, in) and $B$ (out, r), the change is $\Delta W = BA^\top$.*
#
# **Predict.** What are the shapes of $B$ and $A^\top$? Is there a case where nobody would notice?

# %%
A, B = rng.standard_normal((4, 10)), rng.standard_normal((5, 4))
try:
    B @ A.T
    raise AssertionError("this was expected to fail")
except ValueError:
    print("B A^T: (5, 4) times (10, 4) does not conform.  B A:", (B @ A).shape)

square_A, square_B = rng.standard_normal((5, 5)), rng.standard_normal((5, 5))
assert (square_B @ square_A.T).shape == (square_B @ square_A).shape
assert not np.allclose(square_B @ square_A.T, square_B @ square_A)

# %% [markdown]
# False. It fails unless $r$ equals *in*, and then it is silently another matrix. The change is $BA$.
#
# **Claim 2.** *$dA = g B^\top x^\top$ and $dB = g A$.* Chapter 4 has the true ones,
# $dA = s\,B^\top g\,x^\top$ and $dB = s\,g\,(Ax)^\top$. Look at the second formula without any
# computing: it does not contain $x$. Yet if $x = 0$ the adapter does nothing, and no gradient of $A$
# or $B$ can be anything but 0.

# %%
g = rng.standard_normal((1, 5))
_, cache = lora_linear_forward(np.zeros((1, 10)), rng.standard_normal((5, 10)), A, B, scale=1.0)
_, _, dA, dB, _ = lora_linear_backward(g, cache)
assert not dA.any() and not dB.any()

# %% [markdown]
# **Claim 3.** *A worked example.* $W_0 = \begin{bmatrix}1&2\\3&4\\5&6\end{bmatrix}$,
# $A = [0.1, -0.2]$, $B = [0.3, -0.4, 0.5]^\top$, $x = [1, 2]$, $g = [0.2, -0.1, 0.3]$, with $r = s = 1$.
# It prints $y = [4.1, 14.4, 16.5]$, $dA = [0.11, 0.22]$ and $dB = [-0.07, 0.14, -0.21]$.
#
# **Predict.** Work out $u = Ax$ and the first entry of $y = W_0x + Bu$ by hand.

# %%
W0 = np.array([[1.0, 2], [3, 4], [5, 6]])
A, B = np.array([[0.1, -0.2]]), np.array([[0.3], [-0.4], [0.5]])
x, g = np.array([[1.0, 2]]), np.array([[0.2, -0.1, 0.3]])
y, cache = lora_linear_forward(x, W0, A, B, scale=1.0)
_, _, dA, dB, _ = lora_linear_backward(g, cache)
print("y =", y[0], "  dA =", dA[0], "  dB =", dB[:, 0])

assert np.allclose(y, [[4.91, 11.12, 16.85]])
assert np.allclose(dA, [[0.25, 0.50]]) and np.allclose(dB[:, 0], [-0.06, 0.03, -0.09])
for step in ([[1e-4, 0]], [[0, 1e-4]]):  # the nudge has the last word
    up = (g * lora_linear_forward(x, W0, A + step, B, scale=1.0)[0]).sum()
    down = (g * lora_linear_forward(x, W0, A - np.array(step), B, scale=1.0)[0]).sum()
    assert np.isclose((up - down) / 2e-4, (dA * np.array(step)).sum() / 1e-4)

# %% [markdown]
# False, all three: $y = [4.91, 11.12, 16.85]$, $dA = [0.25, 0.5]$, $dB = [-0.06, 0.03, -0.09]$.
#
# **Claim 4.** *Its code draws $A$ and $B$ at random and leaves the base trainable* (a layer from 10 to
# 5, with a bias, $r = 4$). Count what trains, and compare with training the weight itself.

# %%
base_numbers, adapter_numbers = 10 * 5 + 5, 4 * (10 + 5)
print(
    "trainable:",
    base_numbers + adapter_numbers,
    "  if frozen:",
    adapter_numbers,
    "  the weight:",
    10 * 5,
)
assert base_numbers + adapter_numbers == 115 and adapter_numbers == 60 > 50

# %% [markdown]
# 115 numbers train instead of 60. And even 60 are more than the weight's 50: LoRA saves only below
# $r = 50/15 = 3.33$ here. (That a random $B$ disturbs the output was chapter 4.)
#
# ## Second article: interview questions
#
# **Claim 5.** *Dropout belongs on $\Delta W$.*
#
# **Predict.** $\Delta W$ is 48 x 48 of rank 4. We set a tenth of its entries to zero. Its rank?

# %%
change = rng.standard_normal((48, 4)) @ rng.standard_normal((4, 48))
dropped = change * (rng.random(change.shape) > 0.1)
on_x = change * (rng.random(48) > 0.1)  # dropping entries of x drops columns
print("rank", *(np.linalg.matrix_rank(M) for M in (change, dropped, on_x)))
assert np.linalg.matrix_rank(change) == 4 == np.linalg.matrix_rank(on_x)
assert np.linalg.matrix_rank(dropped) == 48

figure, axis = plt.subplots(figsize=(6.4, 3.6))
axis.plot(
    range(1, 49),
    spectrum(dropped).singular_values,
    "o-",
    ms=4,
    color=ORANGE,
    label=r"dropout on $\Delta W$",
)
axis.plot(
    range(1, 49), spectrum(on_x).singular_values, "s--", ms=4, color=BLUE, label="dropout on x"
)
axis.set_xlabel("i")
axis.set_ylabel(r"singular value $\sigma_i$")
axis.set_title("What dropout makes of a change of rank 4")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# False: the rank goes from 4 to 48, so the layer is no longer low-rank. It would also use one mask for
# the whole batch. Dropout belongs on $x$, in the adapter's path only.
#
# **Claim 6.** *LoRA at $r = 8$ trains about 1 % of the parameters.* Compute it. LLaMA-7B has 32 layers,
# $d = 4096$, and 6.74 billion parameters.

# %%
one_matrix = 8 * (4096 + 4096) / 4096**2
llama = 32 * 4 * 8 * (4096 + 4096) / 6.738e9  # q, k, v and o of every layer
print(f"one 4096 x 4096 matrix: {one_matrix:.2%}   LLaMA-7B, four matrices a layer: {llama:.2%}")
assert round(100 * one_matrix, 2) == 0.39 and round(100 * llama, 2) == 0.12

# %% [markdown]
# False, by a factor of 2.6 for one matrix and of 8 for the model.
#
# **Claim 7.** *A grid search over $r \in \{4..32\}$ and $\alpha \in \{16..128\}$ finds the best rank;
# keep the run with the highest `eval_loss`.* The second half picks the worst run. The first half is
# subtler: which scales $s = \alpha/r$ does the grid contain?

# %%
scales = {alpha / r for alpha in (16, 32, 64, 128) for r in (4, 8, 16, 32)}
print(sorted(scales))
assert min(scales) == 0.5 and max(scales) == 32

# %% [markdown]
# The scale varies 64-fold along with the rank, so the grid cannot tell which of the two helped.
#
# **Claim 8.** *$\alpha$ controls the learning rate.* Compare one step with $s$ and with $2s$ from the
# same start, $B = 0$. Under SGD, $dB$ has a factor $s$, and $\Delta W = sBA$ one more. Adam's first
# step has the size of the learning rate, whatever the gradient's.
#
# **Predict.** By which factor does the change after one step grow when $s$ doubles, under each?

# %%
W0, A, X = rng.standard_normal((6, 8)), rng.standard_normal((2, 8)), rng.standard_normal((20, 8))
G = rng.standard_normal((20, 6))


def first_change(s, adam):
    _, cache = lora_linear_forward(X, W0, A, np.zeros((6, 2)), scale=s)
    dB = lora_linear_backward(G, cache)[3]
    step = np.sign(dB) if adam else dB  # Adam's first step is g / sqrt(g^2)
    return np.linalg.norm(s * (-0.01 * step) @ A)


sgd, adam = (first_change(2.0, kind) / first_change(1.0, kind) for kind in (False, True))
print(f"SGD: {sgd:.2f}   Adam: {adam:.2f}")
assert np.isclose(sgd, 4) and np.isclose(adam, 2)

# %% [markdown]
# Half true: under Adam doubling $\alpha$ doubles the first change, as doubling the learning rate
# would. Under SGD it is fourfold.
#
# ## Third article: W = R G
#
# **Claim 9.** *LoRA writes the pretrained $W$ as a low-rank $R$ times a Gaussian $G$, and trains $R$.*
#
# **Predict.** From chapter 3: how much of a random 64 x 64 matrix is lost at $r = 8$ by the best
# approximation there is? With $G$ fixed at random it can only be worse: $\sqrt{1 - 8/64} = 0.935$.

# %%
W = rng.standard_normal((64, 64))
gaussian = rng.standard_normal((8, 64))
R = W @ np.linalg.pinv(gaussian)  # the best R for this G
best = best_rank_error(spectrum(W).singular_values, 8)
fixed = np.linalg.norm(W - R @ gaussian) / np.linalg.norm(W)
print(f"lost by the SVD {best:.3f}, with G fixed {fixed:.3f}")
assert 0.75 < best < 0.82 and abs(fixed - (1 - 8 / 64) ** 0.5) < 0.01

# %% [markdown]
# False. That would be compression of $W$, and a bad one. LoRA factors the *change*, trains both
# factors, and the merged model is as large as before.
#
# ## Fourth article: principle and use
#
# **Claim 10.** *Subtracting $BA$ restores $W_0$.* To rounding only: chapter 5.
#
# **Claim 11.** *GPT-3's checkpoint shrinks from 350 GB to 35 MB.* 96 layers, $d = 12288$, $q$ and $v$
# at $r = 4$, 2 bytes a number:

# %%
numbers = 96 * 2 * 4 * (12288 + 12288)
print(f"{numbers:,} numbers, {2 * numbers / 1e6:.1f} MB")
assert numbers == 18_874_368 and round(2 * numbers / 1e6, 1) == 37.7

# %% [markdown]
# True as an order of magnitude: 37.7 MB.
#
# **Claim 12.** *A batch whose samples belong to different tasks must be processed task by task.*
#
# **Predict.** $u = Ax$ with another $A$ for each sample: can one product do that?

# %%
tasks = np.array([0, 2, 1, 0, 2])  # which adapter each sample wants
As, Bs = rng.standard_normal((3, 4, 64)), rng.standard_normal((3, 64, 4))
X = rng.standard_normal((5, 64))

one_by_one = np.stack([W @ x + Bs[t] @ (As[t] @ x) for x, t in zip(X, tasks)])
u = np.einsum("nri,ni->nr", As[tasks], X)  # (N, r), each sample with its own A
together = X @ W.T + np.einsum("nor,nr->no", Bs[tasks], u)
print(f"largest difference {np.abs(one_by_one - together).max():.1e}")
assert np.allclose(one_by_one, together, rtol=0, atol=1e-10)

# %% [markdown]
# False: $W_0$ is shared, and the small factors are gathered, one pair a sample.
#
# ## The score
#
# Of twelve claims one holds (11), one holds half (8), and ten do not. A shape (1), a thought about
# $x = 0$ (2), an example by hand (3), a count (4, 6, 7) and a few lines of NumPy (5, 9, 12, and
# chapter 5 for 10) were enough. The articles also name true things that are not tested here.
#
# ## Exercises
#
# 1. Claim: *prefix tuning trains 0.5 % of the parameters.* A prefix adds two vectors of length $d$
#    for each layer and token. How many tokens is that for BERT-base (12 layers, $d = 768$, 110 million
#    parameters)?
# 2. Claim: *large $r$ works better.* Use chapter 4's `train` on a change of rank 2 with noise added:
#    does the distance to the change without noise keep falling with $r$?
# 3. Find one claim about LoRA in a text of your own, and write the assertion that decides it.
