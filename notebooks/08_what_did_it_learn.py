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
# # 8. What did it learn?
#
# **What you'll do.** Train four adapters on one base, decompose their changes, ask the questions of
# section 7 of the LoRA paper, and truncate an adapter to a lower rank.
#
# **What you'll learn.** How much of its rank an adapter uses, which directions two runs share,
# where noise begins, and why every such number must be compared with chance.
#
# **What you'll need.** Chapters 3, 5 and 7. Half a minute of computing. In a browser, a step of
# training takes several times as long. The batches are smaller there (`BATCH` in the next
# cell), so that your numbers differ from those shown here, but the claims hold.

# %%
import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

from lora_np import (
    GPT,
    GPTConfig,
    LoraConfig,
    amplification,
    copy_model,
    evaluate,
    fit,
    gavish_donoho_threshold,
    inject,
    intruder_dimensions,
    random_similarity,
    smallest_rank,
    spectrum,
    subspace_similarity,
    svd_of_factors,
)
from lora_np.backend import IN_BROWSER
from lora_np.data import encode, language_reference, sample_batch, split, standard_library, windows
from lora_np.methods import adapters
from lora_np.plots import BLUE, GREEN, ORANGE, PURPLE
from lora_np.rank import marchenko_pastur_edge, planted_matrix

threadpool_limits(1)  # products this small are not faster on two threads
BATCH = 12 if IN_BROWSER else 16  # windows of text
rng = np.random.default_rng(0)

# %% [markdown]
# ## Four adapters
#
# The base is like that of chapter 7: a small GPT, trained for a few seconds on English text about
# Python. We train ranks 4 and 16, each with its learning rate from chapter 7 but for 120 steps,
# with two seeds, which draw $A$ and the batches. For comparison, we also run one full fine-tuning.

# %%
english, python = split(encode(language_reference())), split(encode(standard_library()))
held_out = windows(python.validation, 64, 64)


def batches(tokens, seed):
    rng = np.random.default_rng(seed)
    return lambda: sample_batch(tokens, BATCH, 64, rng)


base = GPT(GPTConfig(256, 64, n_layer=2, n_head=4, d_model=48), np.random.default_rng(0))
fit(base, batches(english.train, 0), steps=600, lr=5e-3, warmup=50)


def train(model, seed, rate):
    draw = batches(python.train, [seed, 0])
    fit(model, draw, steps=120, lr=rate, warmup=12, options={"weight_decay": 0.0})


models = {}
for r, rate in ((4, 0.04), (16, 0.02)):
    for seed in (0, 1):
        config = LoraConfig(r=r, lora_alpha=r, target_modules="all-linear")
        models[r, seed] = inject(base, config, np.random.default_rng([seed, 1]))
        train(models[r, seed], seed, rate)
full = copy_model(base)
train(full, 0, 0.004)

start = evaluate(base, *held_out)
loss = {key: evaluate(model, *held_out) for key, model in models.items()}
print(f"base {start:.3f}", {key: round(value, 3) for key, value in loss.items()})
assert max(loss.values()) < start - 0.1

W0 = {path: base.parameters()[f"{path}.W"].value for path in adapters(models[4, 0])}
delta = {
    key: {path: (layer.B.value, layer.A.value) for path, layer in adapters(model).items()}
    for key, model in models.items()
}  # B (out, r) and A (r, in); the scale is 1

# %% [markdown]
# ## The spectrum of B A, without B A
#
# Chapter 3 computed ranks from singular values. This does not require forming $BA$. Write
# $B = Q_B R_B$ and $A^\top = Q_A R_A$, where each $Q$ has orthonormal columns. Then
#
# $$ BA = Q_B\,(R_B R_A^\top)\,Q_A^\top , $$
#
# and the small $r \times r$ matrix in the middle has the nonzero singular values of $BA$.

# %%
B, A = delta[16, 0]["h.0.mlp.up_proj"]
middle = np.linalg.qr(B.astype(float))[1] @ np.linalg.qr(A.T.astype(float))[1].T  # (r, r)
sigma = np.linalg.svd(middle, compute_uv=False)
dense = np.linalg.svd(B.astype(float) @ A.astype(float), compute_uv=False)  # of 192 x 48
assert np.allclose(sigma, dense[:16], rtol=1e-10) and dense[16:].max() < 1e-12
assert np.allclose(sigma, spectrum((B, A)).singular_values, rtol=1e-10)

# %% [markdown]
# ## How much of its rank does it use?
#
# **Predict.** An adapter of rank 16 has 16 nonzero singular values. Is the change spread evenly
# over them? How many of them hold 90 % of the squared norm?

# %% alt="Singular values of three changes of rank 16, relative to the first: they fall without a step, to a few per cent at the 16th"
print(f"{'r = 16, seed 0':<20}{'stable rank':>12}{'effective':>11}{'90 %':>6}{'99 %':>6}")
found = {path: spectrum(pair) for path, pair in delta[16, 0].items()}
for path, s in found.items():
    row = f"{s.stable_rank:>12.1f}{s.effective_rank:>11.1f}"
    print(f"{path:<20}{row}{s.energy_rank(0.9):>6}{s.energy_rank(0.99):>6}")
assert all(s.numerical_rank == 16 for s in found.values())
assert all(s.stable_rank < 6 and s.energy_rank(0.9) < 12 for s in found.values())

figure, axis = plt.subplots(figsize=(6.6, 3.8))
for (path, s), colour, marker in zip(
    [(p, found[p]) for p in ("h.0.attn.q_proj", "h.0.attn.v_proj", "h.1.mlp.down_proj")],
    (BLUE, ORANGE, GREEN),
    "os^",
):
    shares = s.singular_values / s.singular_values[0]
    axis.plot(range(1, 17), shares, f"{marker}-", ms=5, color=colour, label=path)
axis.set_xlabel("i")
axis.set_ylabel(r"$\sigma_i / \sigma_1$")
axis.set_title("Singular values of three changes, r = 16")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# All 16 are nonzero, but not equal: in every matrix, fewer than 12 hold 90 %, and the stable rank
# is below 6. The spectrum falls smoothly, without a cliff, so the rank to keep depends on the error
# that you accept.
#
# ## Where noise begins
#
# For a *full* change $W - W_0$ there is another question: how many directions are more than noise?
# Noise fills every direction, and its singular values are not small. For an (m, n) matrix of
# independent entries with standard deviation $s$, they reach up to the edge
#
# $$ s\,(\sqrt m + \sqrt n) $$
#
# (Marchenko and Pastur, 1967). Their median determines $s$. The threshold above which a direction
# is worth keeping is somewhat higher (Gavish and Donoho, 2014). We test both on a known case: a
# matrix of rank 5 plus noise.
#
# **Predict.** What is the numerical rank of a 96 x 64 matrix of rank 5 plus noise?

# %% alt="Singular values of a planted change of rank 5 in noise: 5 stand above the noise's edge and the Gavish-Donoho threshold, the rest below"
noisy, signal = planted_matrix((96, 64), k=5, signal_to_noise=1.5, rng=rng)
s = spectrum(noisy)
edge, threshold = marchenko_pastur_edge(1.0, (96, 64)), gavish_donoho_threshold((96, 64), noise=1.0)

figure, axis = plt.subplots(figsize=(6.6, 3.8))
axis.plot(range(1, 65), s.singular_values, "o", ms=4, color=BLUE, label="planted and noise")
axis.plot(
    range(1, 65), spectrum(signal).singular_values, "x", ms=5, color=ORANGE, label="planted alone"
)
axis.axhline(edge, color="black", linestyle="--", label="edge of the noise")
axis.axhline(threshold, color=PURPLE, linestyle="-.", label="Gavish-Donoho")
axis.set_xlabel("i")
axis.set_ylabel(r"singular value $\sigma_i$")
axis.set_title("Rank 5 under noise")
axis.legend(frameon=False)
plt.show()
print("numerical rank", s.numerical_rank, "  above the edge", s.bulk_rank, end="")
print("  above Gavish-Donoho", s.hard_threshold_rank, f"  noise {s.noise:.2f} (true: 1)")
assert s.numerical_rank == 64 and s.hard_threshold_rank == 5 and abs(s.noise - 1) < 0.15

# %% [markdown]
# 64: the numerical rank counts noise. The threshold finds the five directions. A weaker signal is
# lost in the noise:

# %%
weak = [planted_matrix((96, 64), 5, 0.5, np.random.default_rng(i))[0] for i in range(20)]
counts = [spectrum(matrix).hard_threshold_rank for matrix in weak]
print("a third as strong, 20 times:", counts)
assert np.mean(counts) < 4

# %% [markdown]
# **Predict.** What is the noise floor of $BA$, an adapter?

# %%
print({s.noise for s in found.values()})
assert all(s.noise is None and s.hard_threshold_rank is None for s in found.values())

# %% [markdown]
# There is none: beyond $r$, its singular values are exactly zero. The library returns None. The
# change of full fine-tuning has a floor, but this floor is not necessarily *noise*: the estimate
# only assumes entries that look independent.

# %%
change = {
    path: full.parameters()[f"{path}.W"].value.astype(float) - weight for path, weight in W0.items()
}
above = {path: spectrum(D).hard_threshold_rank for path, D in change.items()}
print("full fine-tuning, directions above the threshold:", *above.values())
assert all(4 <= count <= 30 for count in above.values())

# %% [markdown]
# ## Do two runs find the same directions?
#
# Let the columns of $U$ be the first $i$ directions of one run, and those of $V$ the first $j$
# directions of another. Their similarity (Hu et al., 2021, equation 4)
#
# $$ \phi(i, j) = \frac{\Vert U^\top V \Vert_F^2}{\min(i, j)} $$
#
# is 1 if one space contains the other, and 0 if they are orthogonal.
#
# **Predict.** What is $\phi$ for two random spaces in $d = 48$ dimensions with $i = j = 16$?


# %%
def directions(matrix):
    return np.linalg.svd(np.asarray(matrix, dtype=float), full_matrices=False)[2].T  # (in, r)


drawn = [
    subspace_similarity(*(directions(rng.standard_normal((16, 48))) for _ in "ab"))
    for _ in range(200)
]
print(f"phi(16, 16), mean of 200 random pairs: {np.mean([grid[15, 15] for grid in drawn]):.3f}")
assert abs(np.mean([grid[15, 15] for grid in drawn]) - 16 / 48) < 0.01
assert random_similarity(48, 16, 16) == 16 / 48

# %% [markdown]
# Not 0. The squared component of a random unit vector along any direction is $1/d$ on average, so
# the mean of $\phi$ is $\max(i, j)/d$, here one third.
#
# Like the paper, we use the right singular vectors of $A$: the input directions of the adapter.


# %% alt="Similarity of the first i directions of two seeds' A: four layers, above chance i / d at nearly every i"
def phi(path, one, other):
    return subspace_similarity(*(directions(delta[key][path][1]) for key in (one, other)))


QV = ["h.0.attn.q_proj", "h.0.attn.v_proj", "h.1.attn.q_proj", "h.1.attn.v_proj"]
i = np.arange(1, 17)
figure, axis = plt.subplots(figsize=(6.8, 4))
for path, colour, marker in zip(QV, (BLUE, ORANGE, GREEN, PURPLE), "os^v"):
    axis.plot(i, np.diag(phi(path, (16, 0), (16, 1))), f"{marker}-", ms=5, color=colour, label=path)
axis.plot(i, i / 48, color="black", linestyle="--", label="chance, i / d")
axis.set_xlabel("i, number of directions of each")
axis.set_ylabel(r"similarity $\phi(i, i)$")
axis.set_ylim(0, 0.6)
axis.set_title("A of two seeds, r = 16")
axis.legend(frameon=False)
plt.show()

# %%
at8 = {path: phi(path, (16, 0), (16, 1))[7, 7] for path in QV}
for path, value in at8.items():
    print(f"{path}: phi(8, 8) = {value:.2f}, chance {8 / 48:.2f}")
spread = np.std([grid[7, 7] for grid in drawn])
print(f"mean {np.mean(list(at8.values())):.2f}; of random pairs {8 / 48:.2f} +- {spread:.2f}")
assert np.mean(list(at8.values())) > max(1.2 * 8 / 48, 8 / 48 + 2 * spread)
assert max(at8.values()) < 0.5
assert all(0.6 * phi(path, (16, 0), (16, 1))[15, 15] < 16 / 48 for path in QV)

# %% [markdown]
# Averaged over these matrices, the runs share more than by chance: at $i = 8$, at least 1.2 times
# as much. They share less than half. At $i = 16$, most of the similarity *is* chance: without the
# dashed line, the rising curves would be misleading.
#
# According to the paper's figure 3, a low and a high rank share their top direction,
# $\phi(1, 1) > 0.5$. We compare rank 4 of one seed with rank 16 of the other, because equal seeds
# would start from related $A$.

# %%
top = {}
for path in QV:
    top[path] = (phi(path, (4, 0), (16, 1)) + phi(path, (4, 1), (16, 0))) / 2  # (4, 16)
    print(f"{path}: phi(1, 1) {top[path][0, 0]:.2f}   phi(4, 16) {top[path][3, 15]:.2f}", end="")
    print(f"   chance {1 / 48:.2f} and {16 / 48:.2f}")
assert np.mean([grid[0, 0] for grid in top.values()]) < 0.5
assert np.mean([grid[3, 15] for grid in top.values()]) > 16 / 48 + 0.03

# %% [markdown]
# Not here: the average is below 0.5. But the space of rank 16 contains more of the space of rank 4
# than by chance.
#
# ## Does the change repeat W0?
#
# Project $W_0$ on the top $r$ directions of the change, $\Vert U^\top W_0 V^\top\Vert_F$, and
# compare with the top directions of $W_0$ itself (the largest possible value) and with random ones.
# The *factor* $\Vert\Delta W\Vert_F / \Vert U^\top W_0 V^\top\Vert_F$ says how much the change
# amplifies the part of $W_0$ in its directions (table 7 of the paper: 21.6 at $r = 4$, 1.9 at
# $r = 64$).
#
# **Predict.** More directions hold more of $W_0$, whatever they are. Does the factor rise or fall
# with $r$?

# %%
table7 = {}
for r in (4, 16):
    print(f"r = {r:<14}{'change':>8}{'own':>8}{'random':>8}{'factor':>8}")
    for path in QV:
        rows = [amplification(W0[path], delta[r, seed][path], r) for seed in (0, 1)]
        names = ("in_delta", "in_W0", "in_random", "factor")
        table7[r, path] = means = [np.mean([getattr(row, name) for row in rows]) for name in names]
        print(f"{path:<18}" + "".join(f"{value:8.2f}" for value in means))
for path in QV:
    in_delta, own, chance, factor = table7[4, path]
    assert in_delta < 0.5 * own and factor > 1.5 * table7[16, path][3] > 1.5

# %% [markdown]
# At $r = 4$, the norm of $W_0$ in the directions of the change is less than half of the norm in its
# own top directions: the change does not repeat $W_0$. The factor is above 1 and falls with $r$, as
# in the paper. But look at the column *random*. The norm in the directions of the change is less
# than 4 times the norm in random directions, and the norm in the top directions of $W_0$ is more
# than 6 times.

# %%
ratio = {path: table7[4, path][0] / table7[4, path][2] for path in QV}
print({path: f"{value:.1f} times random" for path, value in ratio.items()})
assert np.mean(list(ratio.values())) > 1.1 and max(ratio.values()) < 4
assert all(table7[4, path][1] > 6 * table7[4, path][2] for path in QV)

# %% [markdown]
# ## Intruders
#
# Add the change to $W_0$, and take the ten top left singular vectors of the sum. A vector that
# resembles none of $W_0$'s (every |cosine| below 0.5) is called an *intruder*. Shuttleworth et al.
# (2024) report that LoRA creates many intruders and full fine-tuning few.
#
# **Predict.** Replace the trained directions by random ones, with the same singular values. Are
# there fewer intruders, or more?


# %%
def shuffled(pair):
    """A change with the same singular values and random directions."""
    U, sigma, Vt = svd_of_factors(*pair)
    Q, P = (np.linalg.qr(rng.standard_normal(shape))[0] for shape in (U.shape, Vt.T.shape))
    return Q * sigma, P.T


def intruders(changes):
    return sum(intruder_dimensions(W0[path], changes[path], k=10).count for path in W0)


finished = {path: full.parameters()[f"{path}.W"].value for path in W0}
counts = {"full": intruders(finished)}
for r in (4, 16):
    counts[f"r = {r}"] = intruders(delta[r, 0])
    counts[f"r = {r}, random"] = intruders({p: shuffled(pair) for p, pair in delta[r, 0].items()})
squares = {
    "full": [(D**2).sum() for D in change.values()],
    "r = 4": [(spectrum(pair).singular_values ** 2).sum() for pair in delta[4, 0].values()],
}
size = {name: sum(parts) ** 0.5 for name, parts in squares.items()}
print("of 120 top directions:", counts)
print("norm of all changes:", {name: f"{value:.1f}" for name, value in size.items()})
assert counts["r = 4"] > 2 * counts["full"] and size["r = 4"] > 2 * size["full"]
assert all(0.5 < counts[f"r = {r}"] / counts[f"r = {r}, random"] < 2 for r in (4, 16))

# %% [markdown]
# LoRA has more than twice as many as full fine-tuning. But random directions with the same singular
# values have about as many (within a factor of two). So the count says less about *what* was
# learned than about *how large* the change is along a few directions: at these learning rates,
# LoRA's change is more than twice as large as that of full fine-tuning.
#
# ## Truncate the adapter
#
# For each matrix, keep the fewest directions that leave a relative error of at most 0.1 (99 % of
# the squared norm), or of 0.3. By Eckart and Young, no approximation of this rank is better. For
# files, use `lora-np resize --error 0.1`.
#
# **Predict.** What share of the parameters remains at 0.1? What share of the gain in loss is lost?


# %%
def cut(model, keep):
    """A copy with `keep(sigma)` directions left in each adapter, and their number."""
    small, kept = copy_model(model), 0
    for layer in adapters(small).values():
        U, sigma, Vt = svd_of_factors(layer.B.value, layer.A.value)
        k = keep(sigma)
        layer.B.value = (U[:, :k] * sigma[:k]).astype(np.float32)  # (out, k)
        layer.A.value = Vt[:k].astype(np.float32)  # (k, in)
        kept += layer.A.size + layer.B.size
    return small, kept


whole = cut(models[16, 0], lambda sigma: 16)[1]
lost = {}
for error in (0.1, 0.3):
    small, kept = cut(models[16, 0], lambda sigma, error=error: smallest_rank(sigma, error))
    now = evaluate(small, *held_out)
    lost[error] = (now - loss[16, 0]) / (start - loss[16, 0])
    print(f"error {error}: {kept / whole:.0%} of the parameters, loss {now:.3f}, ", end="")
    print(f"{lost[error]:.1%} of the gain lost")
    assert kept < 0.8 * whole
assert lost[0.1] < 0.03 and 0.03 < lost[0.3] < 0.2

# %% [markdown]
# At an error of 0.1, less than 3 % of the gain is lost, with fewer than 80 % of the parameters. At
# 0.3, between 3 and 20 % of the gain is lost. The error is an error of the *weights*; its effect on
# the loss must be measured, as here.
#
# **Predict.** Truncate rank 16 to rank 4. Is the result as good as an adapter trained at rank 4?

# %% alt="Validation loss against the rank that is left: an adapter cut from rank 16 loses as it is cut; at 4 it is above one trained at 4"
ranks = (1, 2, 3, 4, 6, 8, 12, 16)
curve = [evaluate(cut(models[16, 0], lambda sigma, k=k: k)[0], *held_out) for k in ranks]

figure, axis = plt.subplots(figsize=(6.6, 3.8))
axis.plot(ranks, curve, "o-", color=BLUE, label="trained at r = 16, then cut")
axis.plot([4, 4], [loss[4, 0], loss[4, 1]], "s", color=ORANGE, label="trained at r = 4, two seeds")
axis.axhline(start, color="black", linestyle=":", label="base, not adapted")
axis.set_xscale("log", base=2)
axis.set_xticks(ranks, [str(r) for r in ranks])
axis.minorticks_off()
axis.set_xlabel("rank that is left")
axis.set_ylabel("validation loss [nats a byte]")
axis.set_title("An adapter cut to lower ranks")
axis.legend(frameon=False)
plt.show()
print(f"cut to 4: {curve[3]:.3f}   trained at 4: {loss[4, 0]:.3f}, {loss[4, 1]:.3f}")
assert max(loss[4, 0], loss[4, 1]) < curve[3] - 0.005 and curve[0] < start

# %% [markdown]
# Not quite: the adapters trained at rank 4 are better by more than 0.005. Training at rank 4 must
# put the most important part of the change into four directions; training at rank 16 need not.
# Truncation shows how small a *finished* adapter can be. A sweep shows which rank to train.
#
# ## Section 7, at this size
#
# | the paper | here |
# |---|---|
# | a very low rank suffices | no: in chapter 7, the loss falls up to rank 16 |
# | low and high rank share their top direction | not on average, but their spaces share more than
# by chance |
# | two seeds share directions, random matrices do not | yes, weakly |
# | the change does not repeat $W_0$'s top directions | yes, at $r = 4$ |
# | it amplifies its directions of $W_0$, more so at a low rank | yes, but random directions hold a
# good part of $W_0$ too |
#
# Two seeds of one small model prove nothing about large models. `docs/paper.md` asks the same
# questions with five seeds, and states the rule for each verdict.
#
# ## Exercises
#
# 1. Take the right singular vectors of $BA$ (`svd_of_factors`) instead of those of $A$. Which
#    similarities change most, and why can $A$ have large directions that the adapter does not use?
# 2. Multiply a trained $B$ by $t$ from 0 to 2. How do the number of intruders and the loss change?
# 3. Which rank would you train next, given this chapter's and chapter 7's pictures? Write down what you
#    expect, then run it.
