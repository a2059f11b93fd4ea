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
# # 11. The rivals
#
# **What you'll do.** Meet the rivals of LoRA, one idea and one equation at a time, check each on a
# small layer, and plant changes to see which method can reach which.
#
# **What you'll learn.** What a method assumes about the change of a weight, when this costs, and
# which methods cannot be merged.
#
# **What you'll need.** Chapters 2, 4 and 5. Half a minute of computing.

# %%
import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

from lora_np import (
    GPT,
    GPTConfig,
    Linear,
    account,
    best_rank_error,
    check_gradients,
    check_method,
    copy_model,
    fit,
    inject,
    merge,
)
from lora_np.experiments.rank_sweep.linear import Regression
from lora_np.forms.nf4 import Q as LEVELS
from lora_np.layers import Layer
from lora_np.methods import adapters, make_method, quantise
from lora_np.methods.dora import dora_backward, dora_forward
from lora_np.ops.linear import row_lengths
from lora_np.parameters import Grads
from lora_np.plots import BLUE, GREY, ORANGE
from lora_np.selfcheck import at_random

one_thread = threadpool_limits(1)  # products this small are not faster on two threads
OUT, IN = 12, 16
rng = np.random.default_rng(0)
linear = Linear(IN, OUT, rng, dtype=np.float64)
W0 = linear.W.value = rng.standard_normal((OUT, IN)) / 4


def adapted(name, base=linear, **options):
    """Return a layer or model with this method on all its linear layers, and at its start."""
    method = make_method(name, **{"target_modules": "all-linear", **options})
    return inject(base, method, np.random.default_rng(1))


def moved(name, **options):
    """Return the adapted layer with all that it trains at random values."""
    layer, rng = adapted(name, **options), np.random.default_rng(2)
    for p in layer.parameters().values():
        if p.trainable:
            p.value = p.value + rng.standard_normal(p.shape)
    return layer


def trainable(model):
    return sum(p.size for p in model.parameters().values() if p.trainable)


# %% [markdown]
# ## Lengths apart from directions: DoRA
#
# LoRA changes the lengths and the directions of the rows of $W$ together. DoRA (Liu et al., 2024)
# trains the lengths on their own: with $V = W_0 + sBA$ and its rows' lengths
# $n_o = \Vert V_o\Vert$,
#
# $$ W = \operatorname{diag}(m / n)\, V . $$
#
# Row $o$ of $W$ has the length $m_o$, whatever $BA$ does.

# %%
dora = moved("dora", r=2)
assert np.allclose(row_lengths(merge(dora).W.value), np.abs(dora.m.value))

# %% [markdown]
# $n$ depends on $A$ and $B$. The paper treats it as a constant in the backward pass, to save
# memory, and so does PEFT.
#
# **Predict.** For which of $x, W_0, A, B, m$ and $b$ is this "gradient" not the gradient of the
# loss? What will the checker of chapter 2 say?


# %%
def as_the_paper(x, W0, A, B, m, b):
    """DoRA whose backward does not see that n depends on W0, A and B."""
    n = row_lengths(W0 + 2.0 * B @ A)
    return dora_forward(x, W0, A, B, m, b, scale=2.0, n=n)


shapes = {"x": (5, IN), "W0": (OUT, IN), "A": (2, IN), "B": (OUT, 2), "m": (OUT,), "b": (OUT,)}
given = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
report = check_gradients(as_the_paper, dora_backward, given, method="complex")
print(report)
wrong = {row.name for row in report.rows if row.error > report.tolerance}
exact = check_gradients(dora_forward, dora_backward, given, method="complex", scale=2.0)
print(f"\nwrong: {', '.join(sorted(wrong))};  largest error if n is differentiated: ", end="")
print(f"{exact.max_error:.0e}")
assert wrong == {"W0", "A", "B"} and exact.ok and exact.max_error < 1e-12

# %% [markdown]
# $W_0$, $A$ and $B$ fail, because these are the inputs of $n$. With $n$ differentiated
# (`exact=True`), every gradient is right to 12 digits.
#
# What does the missing part do? If a row of $V$ grows in length, $W$ does not change. So the true
# gradient of $V$ has no component along the rows of $V$.

# %%
dy = rng.standard_normal((5, OUT))
V = given["W0"] + 2.0 * given["B"] @ given["A"]
along = {}
for name, n in (("exact", None), ("lengths constant", row_lengths(V))):
    _, cache = dora_forward(**given, scale=2.0, n=n)
    dV = dora_backward(dy, cache)[1]  # that of W0
    along[name] = np.abs((dV * V).sum(axis=1)).max()
    print(f"{name:<17} largest product of a row of dV with the row of V: {along[name]:.1e}")
assert along["exact"] < 1e-12 and along["lengths constant"] > 0.1

# %% [markdown]
# With the lengths held constant, steps also go along the rows: they lengthen or shorten $V$, to no
# effect. That is not a bug, but it is not gradient descent either.
#
# ## Gains only: IA3
#
# IA3 (Liu et al., 2022) multiplies outputs by trained gains: $W = \operatorname{diag}(g)\, W_0$. In
# front of the second layer of an MLP, it multiplies inputs: $W = W_0 \operatorname{diag}(g)$.
#
# **Predict.** What is the rank of the change $W - W_0$? How many numbers does it take?

# %%
gains = moved("ia3", feedforward_modules=())
change = merge(gains).W.value - W0
print("rank", np.linalg.matrix_rank(change), " numbers", trainable(gains))
assert np.linalg.matrix_rank(change) == 12 and trainable(gains) == 12
assert np.allclose(merge(gains).W.value, gains.g.value.reshape(-1, 1) * W0)

# %% [markdown]
# 12 numbers make a change of rank 12. "High rank" does not mean "many possibilities": the change
# can only be $W_0$ with its rows scaled. Remember this when a method is advertised by its rank.
#
# ## Random and frozen: VeRA
#
# VeRA (Kopiczko et al., 2023) draws one pair $A$, $B$ for all layers and never trains it. A layer
# trains two vectors,
#
# $$ W = W_0 + \operatorname{diag}(c)\, B \operatorname{diag}(d)\, A . $$
#
# **Predict.** How many numbers does it train for a 4096 x 4096 matrix at $r = 256$? How many does
# LoRA train at $r = 8$?

# %%
vera, lora = 256 + 4096, 8 * (4096 + 4096)
print(f"VeRA {vera:,}, LoRA {lora:,}: {lora / vera:.0f} times as many")
assert (vera, lora) == (4352, 65_536) and round(lora / vera) == 15
layer = moved("vera", r=64)
A, B, c, d = (layer.parameters()[name].value for name in ("A", "B", "c", "d"))
formed = W0 + c[:, None] * (B * d) @ A
assert trainable(layer) == 64 + 12 and np.allclose(merge(layer).W.value, formed)

# %% [markdown]
# 4,352 against 65,536. But a step does not become cheaper in the same way: the two products with
# $A$ and $B$ cost as much as those of LoRA at $r = 256$.
#
# ## A penalty and a budget: AdaLoRA
#
# LoRA has the same rank in all layers. AdaLoRA (Zhang et al., 2023) writes the change like an SVD,
#
# $$ W = W_0 + s\,B \operatorname{diag}(e)\, A , $$
#
# keeps $A$ and $B$ nearly orthonormal by a penalty,
# $\Vert AA^\top - I\Vert_F^2 + \Vert B^\top B - I\Vert_F^2$, and sets the entries of $e$ that
# matter least to zero while it trains, over all layers together. The gradient of the penalty for
# $A$ is $4\,(AA^\top - I)\,A$.

# %%
layer = moved("adalora", init_r=3, target_r=2, total_step=10, orth_reg_weight=1.0)
grads = Grads()
value = layer.method.penalty(layer, grads)
A, B = layer.A.value, layer.B.value
C = A @ A.T - np.eye(3)
assert np.isclose(value, (C**2).sum() + ((B.T @ B - np.eye(3)) ** 2).sum())
assert np.allclose(grads.get(layer.A), 4 * C @ A)

# %% [markdown]
# Now the budget. Two layers learn two tasks: the change of one has rank 3, that of the other rank
# 1. Each starts with 4 triplets; in the end, 4 of the 8 may remain.
#
# **Predict.** Where will they be?


# %%
class TwoTasks(Layer):
    """Two linear layers side by side, each with its half of the inputs."""

    def __init__(self, rng):
        self.hard, self.easy = (Linear(IN, OUT, rng, bias=False, dtype=np.float64) for _ in "ab")

    def forward(self, x, rng=None):
        parts = [self.hard.forward(x[..., :IN]), self.easy.forward(x[..., IN:])]
        return np.concatenate([y for y, _ in parts], axis=-1), [cache for _, cache in parts]

    def backward(self, dy, cache, grads, need_dx=True):
        for part, d, c in zip((self.hard, self.easy), (dy[..., :OUT], dy[..., OUT:]), cache):
            part.backward(d, c, grads, need_dx=False)


def product(r):
    return rng.standard_normal((OUT, r)) @ rng.standard_normal((r, IN)) / r**0.5


two = Regression(TwoTasks(rng))
targets = [part.W.value + product(r) for part, r in ((two.linear.hard, 3), (two.linear.easy, 1))]
x = np.eye(2 * IN)
y = np.zeros((2 * IN, 2 * OUT))
y[:IN, :OUT], y[IN:, OUT:] = targets[0].T, targets[1].T
options = {"init_r": 4, "target_r": 2, "tinit": 100, "tfinal": 300, "total_step": 600}
budget = adapted("adalora", two, orth_reg_weight=0.01, **options)
fit(budget, lambda: (x, y), steps=600, lr=0.05, optimizer="adam", clip=None)
kept = {path: int((layer.E.value != 0).sum()) for path, layer in adapters(budget).items()}
print(kept)
assert kept == {"linear.hard": 3, "linear.easy": 1}

# %% [markdown]
# Three in one layer, one in the other: the budget finds the ranks that were planted.
#
# ## Products of another kind: LoHa and LoKr
#
# LoHa multiplies two low-rank matrices entry by entry (Hadamard's product), LoKr takes blocks
# (Kronecker's product):
#
# $$ W = W_0 + s\,(B_1A_1) \odot (B_2A_2), \qquad W = W_0 + s\,W_1 \otimes W_2 . $$
#
# **Predict.** Which rank can the change of LoHa have at $r = 2$? And that of LoKr, if $W_1$ is 4 x
# 4 and $W_2$ is 3 x 4?

# %%
loha, lokr = moved("loha", r=2, alpha=2), moved("lokr", r=8, alpha=8, decompose_factor=4)
change = {"loha": loha.delta(), "lokr": lokr.delta()}
rank = {name: int(np.linalg.matrix_rank(N)) for name, N in change.items()}
print(rank, "numbers", {"loha": trainable(loha), "lokr": trainable(lokr)})
assert rank == {"loha": 4, "lokr": 12}
assert trainable(loha) == 4 * (12 + 16) and trainable(lokr) == 4 * 4 + 3 * 4

# %% [markdown]
# $r^2 = 4$ for LoHa, from twice LoRA's numbers. The rank of a Kronecker product is the product of
# the ranks, $4 \cdot 3 = 12$, from only 28 numbers.
#
# ## Rotations: OFT
#
# OFT (Qiu et al., 2023) multiplies $W_0$ by rotations of blocks of the inputs. A rotation is made
# of a skew-symmetric $Q = -Q^\top$ by Cayley's map, and moves no singular value:
#
# $$ R = (I - Q)(I + Q)^{-1}, \qquad R^\top R = I . $$
#
# By default, PEFT replaces the inverse by the first terms of its series.
#
# **Predict.** Which of the two keeps the singular values of $W_0$?

# %%
before = np.linalg.svd(W0, compute_uv=False)
shift = {}
for series in (False, True):
    oft = moved("oft", oft_block_size=4, use_cayley_neumann=series)
    after = np.linalg.svd(merge(oft).W.value, compute_uv=False)
    shift[series] = np.abs(after / before - 1).max()
    print(f"series: {series}   singular values move by up to {shift[series]:.1e}")
assert shift[False] < 1e-12 and shift[True] > 0.1

# %% [markdown]
# Cayley's map does, to rounding. The series does so only while $Q$ is small; ours has entries of
# size 1, and the "rotation" stretches.
#
# ## Biases only: BitFit
#
# BitFit (Ben Zaken et al., 2021) trains the biases. The weight does not change, and the output
# moves by the same vector for every $x$.

# %%
shifted = inject(linear, make_method("bitfit"), rng)
shifted.b.value = rng.standard_normal(OUT)
X = rng.standard_normal((5, IN))
difference = shifted.forward(X)[0] - linear.forward(X)[0]
assert np.allclose(difference, difference[0]) and np.ptp(difference[0]) > 0.1

gpt = GPT(GPTConfig(50, 32, n_layer=2, n_head=4, d_model=32), rng)
share = account(inject(gpt, make_method("bitfit"), rng)).share
print(f"of a tiny GPT, {share:.1%}")
assert 0.01 < share < 0.05

# %% [markdown]
# These are a few per cent of a tiny GPT. (The share falls with the width $d$, as biases have $d$
# numbers and weights $d^2$.)
#
# ## Which change can each method reach?
#
# So far you have seen what a method *is*. Now we plant six changes in a layer and train every
# method on each, without noise, until it hardly moves:
#
# | planted | equation |
# |---|---|
# | rank 2 | $W_0 + BA$ |
# | gains | $\operatorname{diag}(g)\,W_0$ |
# | rotation | $W_0 R^\top$, of blocks of 4 inputs |
# | Kronecker | $W_0 + W_1 \otimes W_2$ |
# | Hadamard | $W_0 + (B_1A_1) \odot (B_2A_2)$, each of rank 2 |
# | bias | $b + \Delta b$ |
#
# HiRA, $W_0 + W_0 \odot (BA)$, joins the methods from above.
#
# **Predict.** For each column, which methods bring the loss to zero? Which of them do so in two
# columns?

# %%
blocks = [rng.standard_normal((4, 4)) for _ in range(4)]
rotation = np.zeros((IN, IN))
for i, block in enumerate(blocks):
    Q, part = 0.25 * (block - block.T), slice(4 * i, 4 * i + 4)
    rotation[part, part] = np.linalg.solve(np.eye(4) + Q, np.eye(4) - Q)
planted = {
    "rank 2": product(2),
    "gains": 0.5 * rng.standard_normal((OUT, 1)) * W0,
    "rotation": W0 @ rotation.T - W0,
    "Kronecker": np.kron(rng.standard_normal((4, 4)), rng.standard_normal((3, 4))) / 3,
    "Hadamard": product(2) * product(2),
    "bias": rng.standard_normal(OUT),
}
methods = {
    "lora": {"r": 2, "lora_alpha": 2},
    "dora": {"r": 2, "lora_alpha": 2, "exact": True},
    "ia3": {"feedforward_modules": ()},
    "vera": {"r": 64},
    "loha": {"r": 2, "alpha": 2},
    "lokr": {"r": 8, "alpha": 8, "decompose_factor": 4},
    "oft": {"oft_block_size": 4, "use_cayley_neumann": False},
    "hira": {"r": 2},
    "bitfit": {"target_modules": ".*"},
}
base = Regression(linear)
X = np.concatenate([np.eye(IN), -np.eye(IN)]) / 2**0.5  # mean 0, X^T X = I


def left(name, N):
    """Return the share of the loss that is left, the best of two rates, and what is trained."""
    Y = X @ (W0 + N).T if N.ndim == 2 else X @ W0.T + N  # the bias of the base is 0
    at_start, found = float(base.loss(X, Y)[0]), []
    for rate in (0.02, 0.1):
        model = adapted(name, base, **methods[name]) if name in methods else copy_model(base)
        fit(model, lambda: (X, Y), steps=600, lr=rate, optimizer="adam", clip=None)
        found.append(float(model.loss(X, Y)[0]) / at_start)
    return min(found), trainable(model)


share, numbers = {}, {}
for name in ("full", *methods):
    for plant, N in planted.items():
        share[name, plant], numbers[name] = left(name, N)
reached = {cell for cell, value in share.items() if value < 1e-3 and cell[0] != "full"}
assert all(share["full", plant] < 1e-3 for plant in planted)
assert min(value for value in share.values() if value >= 1e-3) > 0.02
assert reached == {
    *(("lora", "rank 2"), ("dora", "rank 2"), ("dora", "gains"), ("ia3", "gains")),
    *(("loha", "rank 2"), ("lokr", "Kronecker"), ("oft", "rotation")),
    *(("hira", "gains"), ("bitfit", "bias")),
}

# %% alt="Share of the loss that is left, for ten methods and six planted changes: full fine-tuning is zero everywhere, every other method only in the columns made for it, DoRA for rank 2 and gains"
values = np.array([[share[name, plant] for plant in planted] for name in numbers])
figure, axis = plt.subplots(figsize=(7.8, 4.6))
image = axis.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
for i, j in np.ndindex(values.shape):
    colour = "black" if values[i, j] > 0.6 else "white"
    axis.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color=colour)
axis.set_xticks(range(len(planted)), list(planted))
axis.set_yticks(range(len(numbers)), [f"{name} ({count})" for name, count in numbers.items()])
axis.set_xlabel("planted change")
axis.set_ylabel("method (numbers that it trains)")
axis.set_title("Share of the loss that is left")
figure.colorbar(image, ax=axis)
plt.show()

# %% [markdown]
# Most methods are perfect on the change that they were made for, and DoRA on two: rank 2 and gains,
# for which $BA = 0$. LoHa reaches rank 2 because one of its two matrices may be constant. VeRA has
# no column: what it can reach depends on its draw. Elsewhere, at least 2 % of the loss is left.
# Full fine-tuning reaches everything, with 204 numbers.
#
# So "method X beats LoRA" says something about the change that a task needs, and not about X alone.
# What LoRA leaves over is known (chapter 3): the tail of the singular values.

# %%
for plant, N in planted.items():
    if N.ndim == 2:
        tail = best_rank_error(np.linalg.svd(N, compute_uv=False), 2) ** 2
        print(f"{plant:<10} LoRA {share['lora', plant]:.4f}, tail beyond rank 2 {tail:.4f}")
        assert abs(share["lora", plant] - tail) < 1e-3
assert numbers["full"] == 204 and numbers["lora"] == 56

# %% [markdown]
# LoHa misses the column that was planted for it. Can it not write the change, or did training not
# find it?
#
# **Predict.** We train LoHa from four random starts, at a low rate and for five times as many
# steps. Does every start reach zero?

# %%
N = planted["Hadamard"]
targets = X @ (W0 + N).T
at_start, ends = float(base.loss(X, targets)[0]), []
for seed in range(4):
    config = make_method("loha", target_modules="all-linear", **methods["loha"])
    model = inject(base, config, np.random.default_rng(seed))
    fit(model, lambda: (X, targets), steps=3000, lr=0.005, optimizer="adam", clip=None)
    ends.append(float(model.loss(X, targets)[0]) / at_start)
print("left of the loss:", *(f"{value:.4f}" for value in ends))
assert min(ends) < 1e-3 and max(ends) > 0.01

# %% [markdown]
# Not every start: some reach zero, others stop in a local minimum, with more than 1 % left. What a
# method can write and what training finds are two questions. (LoRA's $BA$ had no such trouble: it
# reached its tail in every column.)
#
# ## Depth: bottleneck adapters
#
# A bottleneck adapter (Houlsby et al., 2019) is a small network with a nonlinearity $f$, behind or
# beside a sublayer:
#
# $$ h(x) = U f(Dx + c) + e . $$
#
# **Predict.** Can $h$ be merged into a plain linear layer? What would have to be true of
# $h(x) + h(-x) - 2\,h(0)$?

# %%
bottleneck = inject(gpt, make_method("bottleneck", placement="parallel", r=4), rng)
at_random(bottleneck, np.random.default_rng(2))
layer = adapters(bottleneck)["h.0.mlp"]
x = rng.standard_normal((5, 32))


def h(x):
    return layer.forward(x)[0] - layer.base.forward(x)[0]


bend = np.abs(h(x) + h(-x) - 2 * h(0 * x)).max()
print(f"largest entry: {bend:.1f}")
assert bend > 0.1
try:
    merge(bottleneck)
    raise AssertionError("this was expected to fail")
except ValueError as error:
    print(error)

# %% [markdown]
# It would have to be zero. It is not, so no weight can take $h$ in. A merged LoRA costs nothing
# when the model is used. A bottleneck stays, as two more products *in a row* that wait for each
# other.
#
# ## More to attend to: prefix and prompt
#
# Prefix tuning (Li and Liang, 2021) gives every attention layer $n$ trained keys $P_k$ and values
# $P_v$. No weight changes at all. For one query, let $\lambda$ be the share of the softmax that the
# prefix receives. Then
#
# $$ \text{attention}(q, [P_k; K], [P_v; V])
#    = (1 - \lambda)\,\text{attention}(q, K, V) + \lambda\,\text{attention}(q, P_k, P_v) . $$
#
# A prefix mixes something into each output. It cannot change how the text's tokens weigh each other
# (He et al., 2021).

# %%
q, K, values, P_k, P_v = (rng.standard_normal(size) for size in (8, (6, 8), (6, 8), (3, 8), (3, 8)))


def attention(q, K, V):
    weights = np.exp(K @ q)
    return weights @ V / weights.sum()


of_prefix, of_text = np.exp(P_k @ q).sum(), np.exp(K @ q).sum()
mix = of_prefix / (of_prefix + of_text)  # lambda
together = attention(q, np.concatenate([P_k, K]), np.concatenate([P_v, values]))
assert np.allclose(together, (1 - mix) * attention(q, K, values) + mix * attention(q, P_k, P_v))

# %% [markdown]
# Prompt tuning (Lester et al., 2021) puts $n$ trained rows before the embedded text, and nothing
# else.
#
# **Predict.** How many numbers do 5 virtual tokens cost in our GPT with 2 blocks and $d = 32$, as a
# prompt and as a prefix? The GPT has 32 positions. How long may a text be?

# %%
virtual = {
    name: inject(gpt, make_method(name, num_virtual_tokens=5), rng) for name in ("prompt", "prefix")
}
print({name: trainable(model) for name, model in virtual.items()})
assert trainable(virtual["prompt"]) == 5 * 32 == 160
assert trainable(virtual["prefix"]) == 5 * 2 * 2 * 32 == 640
for model in virtual.values():
    model.forward(np.zeros((1, 27), dtype=int))
    try:
        model.forward(np.zeros((1, 28), dtype=int))
        raise AssertionError("this was expected to fail")
    except ValueError as error:
        print(error)

# %% [markdown]
# 160 and 640. A text may have 27 tokens, because the virtual ones take up room. (The LoRA paper
# counts this against prefixes.) Neither can be merged.
#
# ## 4 bits: QLoRA
#
# QLoRA (Dettmers et al., 2023) is not another change, but another base: $W_0$ is stored in 4 bits a
# number, as one of 16 levels times the largest entry of its block of 64, and decoded when it is
# used. LoRA's equations stay as they are, with the decoded weight in the place of $W_0$. The
# levels, *NF4*, lie where a Gaussian has its quantiles.
#
# **Predict.** How much of a Gaussian weight's norm is lost? More or less than with 16 equally
# spaced levels?

# %%
wide = Linear(256, 256, rng, bias=False, dtype=np.float64)
wide.W.value = rng.standard_normal((256, 256))
packed = quantise(wide)
blocks = wide.W.value.reshape(-1, 64)
largest = np.abs(blocks).max(axis=1, keepdims=True)
uniform = np.round((blocks / largest + 1) * 7.5) / 7.5 - 1  # 16 levels from -1 to 1
lost = {
    "NF4": np.linalg.norm(packed.W.value - wide.W.value) / np.linalg.norm(wide.W.value),
    "uniform": np.linalg.norm(uniform * largest - blocks) / np.linalg.norm(blocks),
}
bits = 8 * account(packed).weight_bytes / wide.W.size
print({name: f"{value:.1%}" for name, value in lost.items()}, f" {bits:.2f} bits a number")
assert [round(100 * value) for value in lost.values()] == [9, 10] and round(bits, 2) == 4.13

# %% alt="Histogram of the entries of a Gaussian weight over the largest of their block of 64, with the 16 levels of NF4, dense near zero and sparse outside, and 16 equally spaced levels"
figure, axis = plt.subplots(figsize=(6.6, 3.4))
axis.hist((blocks / largest).ravel(), bins=101, color=GREY, alpha=0.5, density=True)
axis.plot(LEVELS, 0 * LEVELS - 0.08, "o", color=BLUE, ms=5, label="levels of NF4")
axis.plot(np.arange(16) / 7.5 - 1, 0 * LEVELS - 0.2, "x", color=ORANGE, ms=6, label="equal steps")
axis.set_xlabel("entry / largest entry of its block")
axis.set_ylabel("density")
axis.set_yticks([0, 0.5, 1])
axis.set_title("Where NF4 puts its 16 levels")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# 9 %, against 10 % with equal steps, for 4.13 bits a number (beyond 4, the largest entries of the
# blocks): NF4 spends its levels where the entries are. Backward reads the decoded weight, too: $dx$
# is $dy$ times $\operatorname{decode}(W_0) + sBA$.

# %%
layer = adapted("lora", packed, r=4)
layer.B.value = rng.standard_normal(layer.B.shape)
x, dy = rng.standard_normal((2, 3, 256))
decoded = packed.W.value + layer.scale * layer.B.value @ layer.A.value
y, cache = layer.forward(x)
assert np.allclose(y, x @ decoded.T)
assert np.allclose(layer.backward(dy, cache, Grads()), dy @ decoded)

# %% [markdown]
# That is all that QLoRA changes. Training starts at the rounded model, not at the original one.
# `lora-np precision` measures what this costs on text.
#
# ## Not a rival: W = R G
#
# One article calls it LoRA to write the pretrained $W$ as a thin $R$ times a Gaussian $G$, and to
# train $R$. Chapter 10 refuted this (claims 14 and 15). Here the method stands beside LoRA, so that
# you can see what it does.
#
# **Predict.** We take a 64 x 64 Gaussian $W_0$ and $r = 8$. Which share of its norm does the best
# product of rank 8 lose? And one with a fixed random $G$, which keeps only the part of each row in
# 8 random directions of 64?

# %%
square = Linear(64, 64, rng, bias=False, dtype=np.float64)
square.W.value = np.random.default_rng(0).standard_normal((64, 64))
lost = {}
for factor in ("svd", "gaussian"):
    gone = adapted("wrg", square, r=8, factor=factor).delta()
    lost[factor] = np.linalg.norm(gone) / np.linalg.norm(square.W.value)
print({name: f"{value:.3f}" for name, value in lost.items()})
assert round(lost["svd"], 3) == 0.785 and round((1 - 8 / 64) ** 0.5, 3) == 0.935
assert abs(lost["gaussian"] - 0.935) < 0.01

# %% [markdown]
# 0.785 even for the SVD, and $\sqrt{1 - 8/64} = 0.935$ with a random $G$: nearly everything. This
# is compression of $W_0$, before any training. LoRA's low rank is that of the *change*. If the
# change has rank 4, LoRA of rank 4 finds it:


# %%
def of_rank_4():
    left, right = rng.standard_normal((64, 4)), rng.standard_normal((4, 64))
    return left @ right / 8


N, task = of_rank_4(), Regression(square)
batch = np.eye(64), (square.W.value + N).T
lora = adapted("lora", task, r=4, lora_alpha=4)
fit(lora, lambda: batch, steps=1500, lr=0.05, optimizer="adam", clip=None)
missed = np.linalg.norm(lora.linear.delta() - N) / np.linalg.norm(N)
print(f"relative error of the change: {missed:.1e}")
assert missed < 1e-6

# %% [markdown]
# ## One contract
#
# All of these methods are used like LoRA: `inject`, `fit`, `merge` where it is possible,
# `save_adapter`. `check_method` holds every one of them to the same claims, gradients at random
# parameters first.

# %%
table = {**methods, "adalora": {"init_r": 3, "target_r": 2, "total_step": 10}, "wrg": {"r": 2}}
table |= {"vera": {"r": 5}, "oft": {"oft_block_size": 4}, "lokr": {"r": 2}}
print(f"{'':<11}{'claims':>7}  merges  starts at the base")
for name, options in table.items():
    target = {} if name == "bitfit" else {"target_modules": "all-linear"}
    if name == "ia3":
        target = {"target_modules": ["down_proj"], "feedforward_modules": ()}
    config = make_method(name, **{**options, **target})
    held = check_method(config)
    print(f"{name:<11}{len(held):>7}  {config.merges!s:<6}  {config.starts_at_base}")
    assert len(held) >= 10

# %% [markdown]
# Which method is the best on a text? `lora-np compare` tunes each one's learning rate, runs several
# seeds, and names no winner that the seeds do not separate. Its table is in `docs/rivals.md`.
#
# ## Exercises
#
# 1. OFT leaves all of the loss of the planted gains. Show that its first gradient is zero. (The
#    change to first order is $W_0 Q$ with a skew-symmetric $Q$. Is
#    $W_0^\top \operatorname{diag}(g)\,W_0$ symmetric?) Then plant gains of the *inputs*,
#    $W_0 \operatorname{diag}(v)$. Can DoRA reach them?
# 2. Train DoRA with `exact=False` and with `exact=True` on the rotation, at their best learning
#    rates. Does the missing part of the gradient matter for the loss at the end?
# 3. Give LoRA the number of parameters of each rival (round the rank up) and repeat the table of
#    planted changes. Which of the rivals' columns does LoRA win?
