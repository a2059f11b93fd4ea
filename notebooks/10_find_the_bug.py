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
# **What you'll do.** Test claims about LoRA from four articles that circulate on the web, one claim
# at a time and in our words.
#
# **What you'll learn.** How to find most mistakes with a shape, a count or one small example by
# hand, and which common claims about LoRA are true.
#
# **What you'll need.** Chapters 1 to 6.

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
# False. The product does not exist unless $r$ equals *in*, and then it is silently a different
# matrix. The change is $BA$.
#
# **Claim 2.** *$dA = g B^\top x^\top$ and $dB = g A$.* Chapter 4 derived $dA = s\,B^\top g\,x^\top$
# and $dB = s\,g\,(Ax)^\top$. The second formula of the claim does not contain $x$. But if $x = 0$,
# the adapter has no effect, and the gradients of $A$ and $B$ must be 0.

# %%
g = rng.standard_normal((1, 5))
_, cache = lora_linear_forward(np.zeros((1, 10)), rng.standard_normal((5, 10)), A, B, scale=1.0)
_, _, dA, dB, _ = lora_linear_backward(g, cache)
assert not dA.any() and not dB.any()

# %% [markdown]
# False.
#
# **Claim 3.** *A worked example.* $W_0 = \begin{bmatrix}1&2\\3&4\\5&6\end{bmatrix}$,
# $A = [0.1, -0.2]$, $B = [0.3, -0.4, 0.5]^\top$, $x = [1, 2]$, $g = [0.2, -0.1, 0.3]$, with $r = s = 1$.
# The article prints $y = [4.1, 14.4, 16.5]$, $dA = [0.11, 0.22]$ and $dB = [-0.07, 0.14, -0.21]$.
#
# **Predict.** Compute $u = Ax$ and the first entry of $y = W_0x + Bu$ by hand.

# %%
W0 = np.array([[1.0, 2], [3, 4], [5, 6]])
A, B = np.array([[0.1, -0.2]]), np.array([[0.3], [-0.4], [0.5]])
x, g = np.array([[1.0, 2]]), np.array([[0.2, -0.1, 0.3]])
y, cache = lora_linear_forward(x, W0, A, B, scale=1.0)
_, _, dA, dB, _ = lora_linear_backward(g, cache)
print("y =", y[0], "  dA =", dA[0], "  dB =", dB[:, 0])

assert np.allclose(y, [[4.91, 11.12, 16.85]])
assert np.allclose(B @ A, [[0.03, -0.06], [-0.04, 0.08], [0.05, -0.10]])
assert np.allclose(W0 + B @ A, [[1.03, 1.94], [2.96, 4.08], [5.05, 5.90]])
assert np.allclose(dA, [[0.25, 0.50]]) and np.allclose(dB[:, 0], [-0.06, 0.03, -0.09])
for step in ([[1e-4, 0]], [[0, 1e-4]]):  # central differences decide
    up = (g * lora_linear_forward(x, W0, A + step, B, scale=1.0)[0]).sum()
    down = (g * lora_linear_forward(x, W0, A - np.array(step), B, scale=1.0)[0]).sum()
    assert np.isclose((up - down) / 2e-4, (dA * np.array(step)).sum() / 1e-4)

# %% [markdown]
# All three are false: $y = [4.91, 11.12, 16.85]$, $dA = [0.25, 0.5]$, $dB = [-0.06, 0.03, -0.09]$.
# (The article's $BA$ is ten times too large, and its $y$ is not its own matrix times $x$.)
#
# **Claim 4.** *Its code draws $A$ and $B$ at random and leaves the base trainable* (a layer from 10
# to 5, with a bias, $r = 4$). Count the trained numbers, and compare with training the weight
# itself.

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
assert round(50 / 15, 2) == 3.33

# %% [markdown]
# 115 numbers are trained instead of 60. Even 60 is more than the 50 of the weight: here LoRA saves
# parameters only below $r = 50/15 = 3.33$. (Chapter 4 showed that a random $B$ disturbs the
# output.)
#
# **Claim 5.** *LoRA also works for convolutions.*
#
# A convolution is a linear map of patches: cut the input into windows, make each window a row, and
# multiply by one matrix. The formulas of chapter 4 hold for any $x$.

# %%
signal, kernel = rng.standard_normal((2, 12)), rng.standard_normal((3, 2, 5))  # 2 channels to 3
A, B = rng.standard_normal((1, 2 * 5)), rng.standard_normal((3, 1))
patches = np.stack([signal[:, i : i + 5].ravel() for i in range(8)])  # (8, 10), im2col
y, _ = lora_linear_forward(patches, kernel.reshape(3, 10), A, B, scale=1.0)  # (8, 3)

changed = kernel + (B @ A).reshape(3, 2, 5)
slow = [
    sum(np.correlate(signal[c], changed[o, c], mode="valid") for c in range(2)) for o in range(3)
]
assert np.allclose(y.T, slow)

# %% [markdown]
# True.
#
# ## Second article: interview questions
#
# **Claim 6.** *Dropout belongs on $\Delta W$.*
#
# **Predict.** $\Delta W$ is 48 x 48 and has rank 4. We set a tenth of its entries to zero. What is
# its rank now?

# %% alt="Singular values of a change of rank 4: with dropout on the change all 48 are above zero, with dropout on x only 4"
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
# False: the rank rises from 4 to 48, so the change is no longer low-rank. The whole batch would
# also share one mask. Dropout belongs on $x$, in the path of the adapter only.
#
# **Claim 7.** *LoRA at $r = 8$ trains about 1 % of the parameters.* Compute the share. LLaMA-7B has
# 32 layers, $d = 4096$, and 6.74 billion parameters.

# %%
one_matrix = 8 * (4096 + 4096) / 4096**2
llama = 32 * 4 * 8 * (4096 + 4096) / 6.738e9  # q, k, v and o of every layer
print(f"one 4096 x 4096 matrix: {one_matrix:.2%}   LLaMA-7B, four matrices a layer: {llama:.2%}")
assert round(100 * one_matrix, 2) == 0.39 and round(100 * llama, 2) == 0.12
assert round(0.01 / one_matrix, 1) == 2.6 and round(0.01 / llama) == 8

# %% [markdown]
# False, by a factor of 2.6 for one matrix and of 8 for the model.
#
# **Claim 8.** *Prefix tuning trains 0.5 %.* A prefix has a key and a value of length $d$ in every
# layer for each of its tokens: $2 L d$ numbers per token.
#
# **Predict.** How many tokens make up 0.5 % of BERT-base ($L = 12$, $d = 768$, 110 million
# parameters)? And of LLaMA-7B?

# %%
tokens = {
    "BERT-base": 0.005 * 109_482_240 / (2 * 12 * 768),
    "LLaMA-7B": 0.005 * 6_738_415_616 / (2 * 32 * 4096),
}
print({name: f"{count:.0f} tokens" for name, count in tokens.items()})
assert [round(count) for count in tokens.values()] == [30, 129]

# %% [markdown]
# False as a property of the method: 0.5 % means 30 tokens for one model and 129 for the other.
#
# **Claim 9.** *A grid search over $r \in \{4..32\}$ and $\alpha \in \{16..128\}$ finds the best rank;
# keep the run with the highest `eval_loss`.* The second half selects the worst run. For the first
# half, ask: which scales $s = \alpha/r$ does the grid contain?

# %%
scales = {alpha / r for alpha in (16, 32, 64, 128) for r in (4, 8, 16, 32)}
print(sorted(scales))
assert min(scales) == 0.5 and max(scales) == 32

# %% [markdown]
# False: the scale varies 64-fold along with the rank, so the grid cannot show which of the two
# helped.
#
# **Claim 10.** *$\alpha$ controls the learning rate.* Compare one step with $s$ and one with $2s$
# from the same start, $B = 0$. Under SGD, $dB$ has a factor $s$, and $\Delta W = sBA$ has another.
# Adam's first step has the size of the learning rate, whatever the size of the gradient.
#
# **Predict.** By which factor does the change after one step grow if $s$ doubles, under each
# optimizer?

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
# Half true: under Adam, doubling $\alpha$ doubles the first change, as doubling the learning rate
# would. Under SGD, the first change is four times as large.
#
# **Claim 11.** *One model per task: wrap the base for each task in turn, train, keep the result.*
# In the article's code, all wrapped models share the same arrays. Two tasks need two different
# changes:

# %%
eye, wants = np.eye(8), rng.standard_normal((2, 8, 8))  # each task's change


def loss_of(A, B, task):
    return 0.5 * ((B @ A - wants[task]) ** 2).sum()


def trained(A, B, task):
    for _ in range(300):
        y, cache = lora_linear_forward(eye, 0 * wants[0], A, B, scale=1.0)
        dA, dB = lora_linear_backward(y - wants[task].T, cache)[2:4]
        A -= 0.02 * dA  # in place: every holder of these arrays sees the change
        B -= 0.02 * dB
    return A, B


def new():
    return rng.standard_normal((4, 8)) / 8**0.5, np.zeros((8, 4))


shared = new()
model_0 = trained(*shared, task=0)
before = loss_of(*model_0, task=0)
model_1 = trained(*shared, task=1)
after = loss_of(*model_0, task=0)
own_0, own_1 = trained(*new(), task=0), trained(*new(), task=1)
print(f"task 0: {before:.2f}, after training task 1 {after:.2f}; ", end="")
print(f"with arrays of its own {loss_of(*own_0, task=0):.2f}")
assert after > 3 * before and abs(loss_of(*own_0, task=0) / before - 1) < 0.2

# %% [markdown]
# False: training the second task destroyed the result of the first. Tasks can share the frozen
# base, but each task needs its own $A$ and $B$, which `inject` creates.
#
# **Claim 12.** *The share of trained parameters is trainable / total*, both counted after wrapping.
# Consider a layer from 20 to 16 with a bias, and $r = 4$.

# %%
layer, adapter = 20 * 16 + 16, 4 * (20 + 16)
print(
    f"original {layer}, after wrapping {layer + adapter}: {adapter / (layer + adapter):.0%}, ",
    end="",
)
print(f"of the original {adapter / layer:.0%}")
assert (layer, layer + adapter) == (336, 480)
assert round(100 * adapter / layer) == 43 and round(100 * adapter / (layer + adapter)) == 30

# %% [markdown]
# False as a share of the original model: the total includes LoRA's own parameters. Here the share
# is 43 %, not 30 %. At $d = 4096$ the two hardly differ, so the mistake is easily missed.
#
# **Claim 13.** *LoRA trains 0.4 % of the parameters, so training is faster by the same ratio.*
# Chapter 5 counted the operations of a step at $d = 4096$, $r = 8$:

# %%
operations = (4 * 4096**2 + 12 * 4096 * 8) / (6 * 4096**2)
print(f"trained numbers {one_matrix:.2%}, operations {operations:.0%}")
assert round(operations, 2) == 0.67

# %% [markdown]
# Half true: LoRA saves a third of the operations, not 99.6 %. $dx$ still passes through $W_0$
# (chapter 6).
#
# ## Third article: W = R G
#
# **Claim 14.** *LoRA writes the pretrained $W$ as a low-rank $R$ times a Gaussian $G$, and trains $R$.*
#
# **Predict.** As in chapter 3: how much of a random 64 x 64 matrix does the best approximation at
# $r = 8$ lose? And an approximation with a fixed random $G$?

# %%
W = rng.standard_normal((64, 64))
gaussian = rng.standard_normal((8, 64))
R = W @ np.linalg.pinv(gaussian)  # the best R for this G
best = best_rank_error(spectrum(W).singular_values, 8)
fixed = np.linalg.norm(W - R @ gaussian) / np.linalg.norm(W)
print(f"lost by the SVD {best:.3f}, with G fixed {fixed:.3f}")
assert 0.75 < best < 0.82 and abs(fixed - (1 - 8 / 64) ** 0.5) < 0.01

# %% [markdown]
# False. This would be a compression of $W$, and a bad one: a fixed $G$ loses the part of $W$
# outside the span of its eight rows, $\sqrt{1 - 8/64} = 0.935$ of the norm. LoRA factors the
# *change* and trains both factors, and the merged model is as large as before.
#
# **Claim 15.** *An SVD gives such a Gaussian factor.* Are the rows of the right factor of an SVD
# orthogonal to each other? And the rows of a Gaussian matrix?

# %%
Vt = np.linalg.svd(W)[2][:8]
off = {
    name: np.abs(M @ M.T / (M @ M.T)[0, 0] - np.eye(8)).max()
    for name, M in (("SVD", Vt), ("Gaussian", gaussian))
}
print({name: f"{value:.1e}" for name, value in off.items()})
assert off["SVD"] < 1e-14 and off["Gaussian"] > 0.1

# %% [markdown]
# False: the rows from the SVD are orthonormal, and Gaussian rows are not.
#
# **Claim 16.** *LoRA does not work for recurrent networks.* An RNN applies one matrix $U$ at every
# step. With an adapter on $U$, the gradients are those of chapter 4, summed over the steps.

# %%
X, g = rng.standard_normal((5, 6)), rng.standard_normal(6)  # five inputs; L = g . h at the end
U, A, B = rng.standard_normal((6, 6)) / 3, rng.standard_normal((2, 6)), rng.standard_normal((6, 2))


def states(A, B):
    h = [np.zeros(6)]
    for x in X:
        h.append(np.tanh(x + U @ h[-1] + B @ (A @ h[-1])))
    return h


h, dh, dA, dB = states(A, B), g, 0 * A, 0 * B
for now, before in zip(h[:0:-1], h[-2::-1]):  # from the last step to the first
    dz = dh * (1 - now**2)
    dA, dB = dA + np.outer(B.T @ dz, before), dB + np.outer(dz, A @ before)
    dh = U.T @ dz + A.T @ (B.T @ dz)

for index in np.ndindex(2, 6):  # the complex step of chapter 2
    nudge = np.zeros((2, 6), dtype=complex)
    nudge[index] = 1e-30j
    assert np.isclose((g @ states(A + nudge, B)[-1]).imag / 1e-30, dA[index], rtol=1e-10)
    assert np.isclose((g @ states(A, B + nudge.T)[-1]).imag / 1e-30, dB.T[index], rtol=1e-10)

# %% [markdown]
# False: every matrix product can have an adapter.
#
# ## Fourth article: principle and use
#
# **Claim 17.** *$W_0$ is $d \times k$; $\Delta W$ is the product of $A$, $d \times r$, and $B$,
# $r \times k$; and $h = W_0x + BAx$.*
#
# **Predict.** What is the shape of this $BA$ for $d = k = 6$ and $r = 2$?

# %%
A, B = rng.standard_normal((6, 2)), rng.standard_normal((2, 6))
print("B A:", (B @ A).shape, "  A B:", (A @ B).shape)
assert (B @ A).shape == (2, 2) and (A @ B).shape == (6, 6)

# %% [markdown]
# False: the names are swapped halfway. An $r \times r$ matrix is not a change of $W_0$, and for
# $d \ne k$ the product does not exist.
#
# **Claim 18.** *With more parameters LoRA converges to the original model.* Which changes can LoRA
# represent at $r = \min(\text{in}, \text{out})$?

# %%
wanted = rng.standard_normal((6, 9))  # an arbitrary change
left, sigma, right = np.linalg.svd(wanted, full_matrices=False)
B, A = left * sigma, right  # (6, 6), (6, 9)
assert A.shape[0] == 6 and np.allclose(B @ A, wanted)

# %% [markdown]
# False as stated, but nearly right: at full rank, $BA$ can be any change, so *training with LoRA*
# approaches training the original model. The result is not the original model.
#
# **Claim 19.** *Subtracting $BA$ restores $W_0$.* Only to rounding, as chapter 5 showed.
#
# **Claim 20.** *GPT-3's checkpoint shrinks from 350 GB to 35 MB.* 96 layers, $d = 12288$, $q$ and $v$
# at $r = 4$, 2 bytes a number:

# %%
numbers = 96 * 2 * 4 * (12288 + 12288)
print(f"{numbers:,} numbers, {2 * numbers / 1e6:.1f} MB")
assert numbers == 18_874_368 and round(2 * numbers / 1e6, 1) == 37.7

# %% [markdown]
# True as an order of magnitude: 37.7 MB.
#
# **Claim 21.** *A batch whose samples belong to different tasks must be processed task by task.*
#
# **Predict.** Can one product compute $u = Ax$ with a different $A$ for each sample?

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
# False: all samples share $W_0$, and the small factors are gathered, one pair per sample.
#
# ## The score
#
# Of the 21 claims, two are true (5, 20), two are half true (10, 13), and 17 are false. A shape (1,
# 17), a thought about $x = 0$ (2), an example by hand (3), a count (4, 7, 8, 9, 12) and a few lines
# of NumPy (6, 11, 14, 15, 16, 18, 21, and chapter 5 for 19) were enough.
#
# Further statements of the articles, which arithmetic does not decide:
#
# | the article | correct |
# |---|---|
# | LoRA's paper is called "... of Pretrained Models" | "Low-Rank Adaptation of Large Language Models", arXiv:2106.09685 |
# | take a large $r$ | measure it: chapter 7 |
# | $\alpha$ should be 2 to 4 times $r$ | its own example has $r = 4$, $\alpha = 32$, 8 times; chapter 9 |
# | adapter layers: fast inference | the paper's table 1, batch 1: LoRA 19.8 ms, adapter layers 23.9 and 25.8 ms |
# | code calls `weight(x)` with a matrix, `load_adapter` without a name, `evaluation_strategy`, `Trainer(tokenizer=...)` | all raise with today's PyTorch, PEFT 0.21 and transformers 5.23 |
# | memory falls by two thirds | the paper's figure for GPT-3: from 1.2 TB to 350 GB |
# | DyLoRA is 4 to 7 times faster than LoRA | it is faster than a search that trains LoRA once for
# each rank |
# | the link to LCM-LoRA | links to LCM, arXiv:2310.04378; LCM-LoRA is 2311.05556 |
# | S-LoRA's "PageAttention" | Unified Paging: KV cache and adapters in one pool of pages, arXiv:2311.03285 |
#
# ## Exercises
#
# 1. Compare a prefix of $n$ tokens on every layer with LoRA of rank $r$ on q and v. At which $n$ do
#    they train equally many numbers?
# 2. Claim: *large $r$ works better.* Use `train` of chapter 4 on a change of rank 2 plus noise:
#    does the distance to the change without noise keep falling with $r$?
# 3. Find one claim about LoRA in a text of your choice, and write an assertion that decides it.
