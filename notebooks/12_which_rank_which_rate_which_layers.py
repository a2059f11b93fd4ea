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
# # 12. Which rank, which rate, which layers?
#
# **What you'll do.** Tune alpha, the rank and the learning rate together, compare LoRA's best rate
# with that of full fine-tuning, choose layers at equal parameters, let the data grow, and get every
# rank out of one training.
#
# **What you'll learn.** Which of these choices matter, which only seem to, and how to tell.
#
# **What you'll need.** Chapters 7 and 9. Half a minute of computing.

# %%
import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

from lora_np import (
    GPT,
    GPTConfig,
    Linear,
    LoraConfig,
    copy_model,
    evaluate,
    fit,
    inject,
    svd_of_factors,
)
from lora_np.data import encode, language_reference, sample_batch, split, standard_library, windows
from lora_np.experiments.rank_sweep.linear import Regression
from lora_np.methods import adapters, at_rank, make_method
from lora_np.plots import BLUE, GREEN, ORANGE, PURPLE

one_thread = threadpool_limits(1)  # products this small are not faster on two threads

# %% [markdown]
# ## A task with a known answer
#
# As in chapter 7, a linear map $W_0$ must become $W_0 + \Delta W$, and the inputs are uncorrelated
# with variance one. $\Delta W$ has the singular values 1, 0.8, 0.64, ... The loss of a change $N$
# is $\tfrac12\Vert\Delta W - N\Vert_F^2$, and no change of rank $r$ can be below
#
# $$ \text{floor}(r) = \tfrac12 \sum_{i>r} \sigma_i^2 . $$
#
# So we know how far each run is from the best that its rank allows: its *excess* over the floor. It
# has only 50 steps of Adam.

# %%
OUT, IN, STEPS = 16, 24, 50
rng = np.random.default_rng(0)
base = Regression(Linear(IN, OUT, rng, bias=False, dtype=np.float64))
U = np.linalg.qr(rng.standard_normal((OUT, OUT)))[0]
V = np.linalg.qr(rng.standard_normal((IN, OUT)))[0]
sigma = 0.8 ** np.arange(OUT)
change = U * sigma @ V.T  # (out, in)
inputs, targets = np.eye(IN), (base.linear.W.value + change).T  # the moments of the inputs suffice
floor = [0.5 * (sigma[r:] ** 2).sum() for r in range(OUT + 1)]


def loss_of(N):
    return 0.5 * ((change - N) ** 2).sum()


def train(config, rate, seed=0, steps=STEPS, batch=(inputs, targets)):
    """Adapt the linear layer; return the adapted layer."""
    model = inject(base, config, np.random.default_rng([seed, 0]))
    draws = np.random.default_rng([seed, 1])  # for methods that draw in every step
    recipe = {"warmup": steps // 20, "optimizer": "adam", "clip": None}
    fit(model, lambda: batch, steps=steps, lr=rate, rng=draws, **recipe)
    return model


# %% [markdown]
# ## Alpha, rank and rate
#
# We train every combination of three ranks, three values of $\alpha$ and 13 learning rates, with
# four draws of $A$.
#
# **Predict.** Two people compare $\alpha = 2, 8, 32$. One uses the learning rate 0.01 for all, the
# other 0.32. Which $\alpha$ will each of them recommend? And which one will a third person
# recommend, who tunes the rate for each $\alpha$?

# %%
ranks, alphas = (1, 4, 8), (2, 8, 32)
rates = 0.01 * 2 ** (np.arange(13) / 2)  # 0.01 to 0.64


def excess(r, alpha, rate):
    """Return the geometric mean over four seeds of the loss less the floor."""
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules="all-linear")
    found = [loss_of(train(config, rate, seed).linear.delta()) - floor[r] for seed in range(4)]
    return np.exp(np.mean(np.log(found)))


grid = np.array([[[excess(r, a, rate) for rate in rates] for a in alphas] for r in ranks])

# %% alt="Three heat maps of the excess over rank and alpha: at the rate 0.01 alpha = 32 is lowest at r = 4 and 8, at 0.32 alpha = 32 is far the highest, and with the best rate for each cell all nine are alike"
panels = {
    "all at the rate 0.01": grid[:, :, 0],
    "all at the rate 0.32": grid[:, :, 10],
    "each at its best rate": grid.min(axis=2),
}
figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharey=True, layout="constrained")
for axis, (title, cells) in zip(axes, panels.items()):
    image = axis.imshow(np.log10(cells), vmin=-3, vmax=0, cmap="viridis")
    for i, j in np.ndindex(3, 3):
        colour = "white" if cells[i, j] < 0.05 else "black"
        axis.text(j, i, f"{cells[i, j]:.3f}", ha="center", va="center", color=colour)
    axis.set_xticks(range(3), [str(a) for a in alphas])
    axis.set_yticks(range(3), [str(r) for r in ranks])
    axis.set_xlabel(r"$\alpha$")
    axis.set_title(title)
axes[0].set_ylabel("rank r")
figure.colorbar(image, ax=axes, label="log10 of the excess", shrink=0.8)
plt.show()

# %%
spread = {title: np.ptp(cells, axis=1) for title, cells in panels.items()}  # by rank
for title, by_rank in spread.items():
    print(f"{title:<24}alpha moves the loss by", *(f"{value:.4f}" for value in by_rank))
low, high, best = panels.values()
assert (low[1:].argmin(axis=1) == 2).all() and (high.argmin(axis=1) == 0).all()
assert min(by_rank[1:].min() for by_rank in list(spread.values())[:2]) > 0.2
assert max(spread["each at its best rate"]) < 0.01

# %% [markdown]
# At 0.01, the first person recommends $\alpha = 32$ for ranks 4 and 8; at 0.32, the second
# recommends $\alpha = 2$ for every rank. At these two ranks, $\alpha$ moves the loss by more than
# 0.2 in either comparison. The third finds less than 0.01: with the rate tuned, $\alpha$ hardly
# matters. `lora-np grid` measures the same on the text task, with five seeds.
#
# ## The best rate
#
# Chapter 9 showed that Adam with scale $s$ and rate $\eta$ is Adam with scale 1, the rate $\eta$
# for $A$ and $s\eta$ for $B$. After $t$ steps in one direction, an entry of $B$ has moved by
# $s\eta t$, and an entry of $A$ from $a_0$ to about $a_0 + \eta t$. Their product has moved by
#
# $$ s\eta t\,(a_0 + \eta t) . $$
#
# While $A$ is still near its start, only $s\eta$ matters, and the best rate goes as $1/s$. Once $A$
# has moved further than its start was from zero, $s\eta^2$ matters, and the best rate goes as
# $1/\sqrt s$.
#
# **Predict.** $\alpha$ grows from 2 to 32 at a fixed rank, 16-fold. By which factor does the best
# rate fall, if the second case holds?

# %% alt="Best learning rate against alpha for ranks 1, 4 and 8, on logarithmic axes: the points fall along lines with the slope -1/2"
best_rate = rates[grid.argmin(axis=2)]  # (ranks, alphas)
slopes = [np.polyfit(np.log(alphas), np.log(row), 1)[0] for row in best_rate]
print("best rates", *(f"{row.round(3)}" for row in best_rate))
print("slopes", np.round(slopes, 2), f"mean {np.mean(slopes):.2f}")
assert (np.diff(best_rate, axis=1) < 0).all() and abs(np.mean(slopes) + 0.5) < 0.15

figure, axis = plt.subplots(figsize=(6.4, 3.8))
for r, row, colour, marker in zip(ranks, best_rate, (BLUE, ORANGE, GREEN), "os^"):
    axis.loglog(alphas, row, marker, color=colour, mfc="none", ms=9, label=f"r = {r}")
middle = np.exp(np.log(best_rate).mean())
axis.loglog(alphas, middle * (np.array(alphas) / 8) ** -0.5, "--k", label=r"$\alpha^{-1/2}$")
axis.set_xlabel(r"$\alpha$")
axis.set_ylabel("best learning rate")
axis.set_xticks(alphas, [str(a) for a in alphas])
axis.set_yticks([0.05, 0.1, 0.2], ["0.05", "0.1", "0.2"])
axis.minorticks_off()
axis.set_title("The best rate falls with alpha")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# By a factor of 4, the square root of 16. The fitted slopes are within 0.15 of $-1/2$ in the mean
# of the three ranks. Whoever changes $\alpha$ and keeps the rate has changed the rate.
#
# ## The first step of a whole model
#
# Chapter 9 derived for one layer that the first step moves the weights with $s^2$ under SGD and
# with $s$ under Adam. A model has many layers, but at $B = 0$ the gradients of all of them are
# those of the base model, whatever $s$ is. We test it on a GPT like that of chapter 7, but smaller:
# two blocks and $d = 32$, trained on English text about Python.

# %%
english, python = split(encode(language_reference())), split(encode(standard_library()))
held_out = windows(python.validation, 32, 64)


def batches(tokens, seed):
    rng = np.random.default_rng(seed)
    return lambda: sample_batch(tokens, 16, 32, rng)


gpt = GPT(GPTConfig(256, 32, n_layer=2, n_head=4, d_model=32), np.random.default_rng(0))
fit(gpt, batches(english.train, 0), steps=400, lr=5e-3, warmup=40)
start = evaluate(gpt, *held_out)


def adapted(r, alpha, seed=0, target="all-linear"):
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=target)
    return inject(gpt, config, np.random.default_rng([seed, 1]))


def first_step(optimizer, s):
    """Return the norm of the change of all weights after one step."""
    model, batch = adapted(4, 4 * s), batches(python.train, 0)
    recipe = {"optimizer": optimizer, "schedule": "constant", "clip": None}
    fit(model, batch, steps=1, lr=1e-3, **recipe)
    return sum((layer.delta() ** 2).sum() for layer in adapters(model).values()) ** 0.5


scales = np.array([0.5, 1, 2, 4, 8])
for optimizer, power in (("sgd", 2), ("adam", 1)):
    moved = [first_step(optimizer, s) for s in scales]
    slope = np.polyfit(np.log(scales), np.log(moved), 1)[0]
    print(f"{optimizer:<5} the change grows as s^{slope:.3f}")
    assert abs(slope - power) < 0.02

# %% [markdown]
# ## LoRA's rate and that of full fine-tuning
#
# "LoRA Without Regret" (Schulman et al., 2025) reports that LoRA's best learning rate is about ten
# times that of full fine-tuning, and nearly the same at every rank. One reason is visible in the
# first step. For one sample $x$, Adam moves output $o$ by
#
# $$ -\eta \operatorname{sign}(g_o) \textstyle\sum_i \vert x_i\vert \quad\text{(full)}, \qquad
#    -\eta\, s \operatorname{sign}(g_o) \textstyle\sum_k \vert u_k\vert \quad\text{(LoRA)}, $$
#
# with $u = Ax$. If $x$ is Gaussian and $A$ uniform between $\pm 1/\sqrt{\text{in}}$, then each
# $u_k$ is $\sqrt 3$ times as small as an $x_i$. There are *in* entries $x_i$ and $r$ entries $u_k$,
# and $s = \alpha/r$. At one rate, the first step of full fine-tuning is therefore larger by the
# factor
#
# $$ \sqrt 3\;\text{in}/\alpha , $$
#
# which does not contain $r$.
#
# **Predict.** What is the factor for in = 32 and $\alpha = 8$?

# %%
rng = np.random.default_rng(1)
factor = {}
for r in (1, 8):
    X = rng.standard_normal((4000, 32))
    A = rng.uniform(-1, 1, (4000, r, 32)) / 32**0.5
    u = np.einsum("nri,ni->nr", A, X)
    factor[r] = np.abs(X).sum() / (8 / r * np.abs(u).sum())
print({r: f"{value:.2f}" for r, value in factor.items()}, f"predicted {3**0.5 * 32 / 8:.2f}")
assert round(3**0.5 * 32 / 8, 1) == 6.9
assert all(abs(value / (3**0.5 * 32 / 8) - 1) < 0.1 for value in factor.values())

# %% [markdown]
# 6.9, at rank 1 as at rank 8. But this is the first step only. Later, $A$ moves too, and LoRA
# catches up.
#
# **Predict.** Is the best rate of LoRA over the whole training more than 6.9 times that of full
# fine-tuning, or less?
#
# We train the GPT for 60 steps of Python code at each rate, and estimate the best rate by a
# parabola through the lowest point and its neighbours.


# %%
def adapt(model, rate, seed=0, steps=60):
    """Train the model on Python code; return its validation loss."""
    batch = batches(python.train, [seed, 0])
    fit(model, batch, steps=steps, lr=rate, warmup=6, options={"weight_decay": 0.0})
    return evaluate(model, *held_out)


def lowest(rates, losses):
    """Return where the parabola through the lowest point and its neighbours is lowest."""
    i = int(np.argmin(losses))
    a, b, _ = np.polyfit(np.log(rates[i - 1 : i + 2]), losses[i - 1 : i + 2], 2)
    return np.exp(-b / (2 * a))


tried = {"full": np.array([0.0025, 0.005, 0.01, 0.02])}
tried |= dict.fromkeys((1, 8), np.array([0.01, 0.02, 0.04, 0.08]))
curves = {
    name: [adapt(copy_model(gpt) if name == "full" else adapted(name, 8), rate) for rate in rates]
    for name, rates in tried.items()
}
minimum = {name: lowest(tried[name], curves[name]) for name in tried}
print(f"base {start:.3f}; best rates", {name: f"{rate:.4f}" for name, rate in minimum.items()})
print(*(f"r = {r}: {minimum[r] / minimum['full']:.1f} times full's" for r in (1, 8)), sep="; ")
assert all(0 < np.argmin(losses) < 3 for losses in curves.values())
assert all(1.5 < minimum[r] / minimum["full"] < 6.9 for r in (1, 8))
assert 0.5 < minimum[8] / minimum[1] < 2

# %% alt="Validation loss against learning rate: full fine-tuning is lowest near 0.008, LoRA of ranks 1 and 8 near 0.02 to 0.03"
figure, axis = plt.subplots(figsize=(6.6, 3.9))
for (name, losses), colour, marker in zip(curves.items(), (ORANGE, BLUE, GREEN), "so^"):
    label = "full fine-tuning" if name == "full" else f"LoRA, r = {name}"
    axis.plot(tried[name], losses, f"{marker}-", color=colour, label=label)
axis.axhline(start, color="black", linestyle=":", label="base, not adapted")
axis.set_ylim(top=start + 0.05)
axis.set_xscale("log")
axis.set_xticks([0.0025, 0.005, 0.01, 0.02, 0.04], ["0.0025", "0.005", "0.01", "0.02", "0.04"])
axis.minorticks_off()
axis.set_xlabel("learning rate")
axis.set_ylabel("validation loss [nats a byte]")
axis.set_title(r"LoRA needs a larger rate ($\alpha$ = 8, 60 steps)")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# Less than 6.9 times, but more than 1.5 times. The best rates of ranks 1 and 8 differ by less than
# a factor of 2: the second half of their claim holds here. ($\alpha$ is the same at every rank,
# here and there.) The factor itself depends on $\alpha$ and on the width, as you saw above. Do not
# carry it from one model to another.
#
# ## Which layers?
#
# The LoRA paper adapts q and v only. A fair comparison gives every choice equally many parameters.
# A rank costs $4 \cdot (32 + 32) = 256$ numbers in the attention of a block and
# $2 \cdot (32 + 128) = 320$ in its MLP.
#
# **Predict.** All layers at $r = 4$ train 4,608 numbers. Which rank may the attention alone have,
# and which rank the MLP alone? Which of the three will be the best?

# %%
choices = {
    "all layers": (4, "all-linear"),
    "attention": (9, ["q_proj", "k_proj", "v_proj", "o_proj"]),
    "MLP": (7, ["up_proj", "down_proj"]),
}
layers = {}
for name, (r, target) in choices.items():
    model = adapted(r, r, target=target)
    size = sum(p.size for p in model.parameters().values() if p.trainable)
    found = {rate: adapt(adapted(r, r, 0, target), rate) for rate in (0.02, 0.04, 0.08)}
    rate = min(found, key=found.get)
    assert rate == 0.04  # not at an edge of the search
    rest = [adapt(adapted(r, r, seed, target), rate, seed) for seed in (1, 2)]
    layers[name] = np.array([found[rate], *rest])
    print(f"{name:<11}r = {r}  {size:,} numbers  rate {rate}  losses {layers[name].round(3)}")
    assert size == {"all layers": 4608, "attention": 4608, "MLP": 4480}[name]
for name in ("attention", "MLP"):
    difference = layers[name] - layers["all layers"]  # seed by seed
    print(f"{name} less all layers: {difference.mean():.3f}")
    assert difference.mean() > 0.01

# %% [markdown]
# 9 and 7 (which costs 4,480). All layers are best, by more than 0.01 in the mean of three seeds: a
# low rank everywhere is better here than a higher rank in some places. Schulman et al. also find
# the attention alone to be worse. They find the MLP alone as good as all layers, which is not so
# here. Three seeds of a small model are a hint; `lora-np regret` takes five and decides by a rule.
# On its text, the attention alone is worse too, and whether the MLP alone is as good is not decided.
#
# ## Which rank, for how much data?
#
# So far, the data were unlimited. Now the linear task has $n$ samples with noise of variance one in
# every output. Full fine-tuning fits all $\text{out}\cdot\text{in}$ numbers by least squares, and
# its loss is
#
# $$ \frac{\text{out}\cdot\text{in}}{2\,(n - \text{in} - 1)} $$
#
# on average: noise only, which vanishes as $n$ grows. LoRA's minimum is least squares among the
# changes of rank $r$. It has fewer numbers, so it fits less noise, but it never falls below its
# floor. It needs no training either: project the fitted outputs on their first $r$ principal
# directions (reduced-rank regression).
#
# **Predict.** Which of $r = 1, 4, 8$ and full is the best for few samples? And for many?


# %%
def fitted(n, seed):
    """Return the least-squares changes (full, then r = 1, 4, 8), and the samples."""
    rng = np.random.default_rng([n, seed])
    X = rng.standard_normal((n, IN))
    Y = X @ change.T + rng.standard_normal((n, OUT))
    full = np.linalg.lstsq(X, Y, rcond=None)[0].T  # (out, in)
    Vt = np.linalg.svd(X @ full.T, full_matrices=False)[2]
    return [full, *(Vt[:r].T @ Vt[:r] @ full for r in ranks)], (X, Y)


samples = 2 ** np.arange(6, 13)  # 64 to 4096
losses = np.array(
    [[[loss_of(N) for N in fitted(n, seed)[0]] for seed in range(20)] for n in samples]
)
mean = losses.mean(axis=1)  # (samples, contenders)
names = ("full", "r = 1", "r = 4", "r = 8")
for n, row in zip(samples, mean):
    print(f"n = {n:<6}", *(f"{name} {value:.3f}  " for name, value in zip(names, row)), end="")
    print("  best:", names[row.argmin()])
assert np.allclose(mean[:, 0], OUT * IN / 2 / (samples - IN - 1), rtol=0.1)
for i, r in enumerate(ranks, start=1):
    far = mean[:, 0] > 3 * floor[r]
    assert far.any() and (mean[far, i] < mean[far, 0]).all()
winners = [names[i] for i in mean.argmin(axis=1)]
assert all(mean[-1, i] < 1.15 * floor[r] for i, r in ((1, 1), (2, 4)))
assert winners[0] == "r = 1" and winners[2] == "r = 4" and winners[-1] == "full"

# %% alt="Loss against the number of samples for ranks 1, 4, 8 and full: rank 1 is lowest at 64 samples and flattens at its floor, rank 4 at 256, full falls below all of them in the end"
figure, axis = plt.subplots(figsize=(6.6, 4))
for name, curve, colour, style in zip(
    names, mean.T, (ORANGE, BLUE, GREEN, PURPLE), ("s-", "o--", "^-.", "v:")
):
    axis.loglog(samples, curve, style, color=colour, label=name)
for r, colour in zip(ranks, (BLUE, GREEN, PURPLE)):
    axis.axhline(floor[r], color=colour, linewidth=0.6)
axis.set_xlabel("number of samples n")
axis.set_ylabel("loss (thin lines: the floors)")
axis.set_xticks(samples, [str(n) for n in samples])
axis.minorticks_off()
axis.set_title("A rank is better than full until it nears its floor")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# Rank 1 is best at 64 samples, rank 4 at 256, and full fine-tuning at 4096. Each rank is better
# than full as long as full's loss is more than three times the rank's floor. Later it *falls off*:
# at 4096 samples, ranks 1 and 4 are within 15 % of their floors. Here, a low rank is not a
# compromise when data are few. When data are many, its capacity is used up.
#
# On the text task, `lora-np regret` finds the second end of this picture, and `lora-np small-data`
# does not find the first: on the shortest text, full fine-tuning at its best rate is still better
# than LoRA (`docs/studies.md`). Its search for a rate lets it take small steps there. At one rate
# for all lengths it overfits more than LoRA.
#
# Does training arrive at these minima? We train LoRA of rank 4 on 512 samples.

# %%
minima, batch = fitted(512, 0)
X, Y = batch
batch = X, Y + X @ base.linear.W.value.T  # the targets of W0 + change
config = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear")
reached = train(config, 0.02, steps=800, batch=batch).linear.delta()
print(f"trained {loss_of(reached):.4f}, reduced-rank regression {loss_of(minima[2]):.4f}")
assert abs(loss_of(reached) / loss_of(minima[2]) - 1) < 0.01

# %% [markdown]
# Yes, to within 1 %.
#
# ## Every rank from one training
#
# Must we train once for every rank to compare ranks? Chapter 8 truncated a trained adapter by its
# SVD. DyLoRA (Valipour et al., 2022) draws a rank $k$ in every step and trains only the first $k$
# rows of $A$ and columns of $B$, so that the first $k$ can be used alone.
#
# We train one LoRA of $r = 8$ on the linear task and cut it in two ways, by its SVD and *naively*
# to its first $k$ rows and columns. And we train two DyLoRAs: one computes with the *constant*
# scale $\alpha/r$ at every $k$, the other with the scale of the *drawn* rank, $\alpha/k$.
#
# **Predict.** Which of the four reaches the floor at every rank? For DyLoRA: at $k = 1$, the first
# direction of the change has the weight $\alpha/k = \alpha$; which weight does it have at $k = 8$?

# %%
ks = range(1, 9)
lora = train(LoraConfig(r=8, lora_alpha=8, target_modules="all-linear"), 0.02, steps=1600).linear
U8, s8, Vt8 = svd_of_factors(lora.B.value, lora.A.value)  # the scale is 1
over = {
    "LoRA, cut by SVD": [loss_of(U8[:, :k] * s8[:k] @ Vt8[:k]) / floor[k] for k in ks],
    "LoRA, cut naively": [loss_of(lora.B.value[:, :k] @ lora.A.value[:k]) / floor[k] for k in ks],
}
for scale in ("constant", "drawn"):
    options = {"r": 8, "lora_alpha": 8, "target_modules": "all-linear", "scale": scale}
    dylora = train(make_method("dylora", **options), 0.02, steps=1600)
    cuts = [at_rank(dylora, k).linear.delta() for k in ks]
    over[f"DyLoRA, {scale} scale"] = [loss_of(N) / floor[k] for k, N in zip(ks, cuts)]
for name, row in over.items():
    print(f"{name:<24}", *(f"{value:6.3f}" for value in row))
assert max(over["LoRA, cut by SVD"]) < 1.001 and max(over["DyLoRA, constant scale"]) < 1.05
assert min(over["LoRA, cut naively"][:7]) > 1.2 and over["DyLoRA, drawn scale"][7] > 2

# %% alt="Loss over floor against the rank that is kept: LoRA cut by SVD and DyLoRA with a constant scale stay at 1, the naive cut and DyLoRA with the drawn scale lie above"
figure, axis = plt.subplots(figsize=(6.6, 4))
for (name, row), colour, style in zip(
    over.items(), (BLUE, ORANGE, GREEN, PURPLE), ("o-", "s--", "^-.", "v:")
):
    axis.semilogy(ks, row, style, color=colour, mfc="none", label=name)
axis.set_xlabel("rank that is kept")
axis.set_ylabel("loss / floor")
axis.set_yticks([1, 2, 5], ["1", "2", "5"])
axis.minorticks_off()
axis.set_title("One training, every rank")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# The SVD of one LoRA reaches the floor at every rank, and DyLoRA with a constant scale comes within
# 5 %. The naive cut is at least 20 % above the floor at every lower rank, because training spread
# the change over all rows without an order.
#
# With the drawn scale, the first direction has the weight $\alpha$ at $k = 1$ and $\alpha/8$ at
# $k = 8$. Both cannot be right. At rank 8, the loss is more than twice the floor: longer training
# does not help, because the eight losses contradict each other.
#
# Here the inputs are uncorrelated, so the nearest weights give the lowest loss. On a GPT, chapter 8
# found that rank 16 cut to 4 is worse than an adapter trained at rank 4. `lora-np dylora`
# (`docs/dylora.md`) compares the four with LoRA trained at every rank, on text.
#
# ## What to do
#
# * Keep one $\alpha$ and tune the learning rate. Tune it again for each method, and if you change
#   $\alpha$.
# * Search around a rate some times larger than that of full fine-tuning, and go on if the best one
#   is at the edge of your search.
# * Adapt all layers, and pay with a lower rank.
# * Choose the rank for the amount of data: many data need many numbers. Do not expect LoRA to beat
#   full fine-tuning because data are few: that was so on the linear task, and not on text.
# * To compare ranks, train the largest one and cut it by its SVD, then train the rank that you
#   chose.
#
# Each line was measured on one small task. `lora-np sweep`, `grid`, `small-data`, `regret` and
# `dylora` measure it on a text of yours.
#
# ## Exercises
#
# 1. Give the first experiment 400 steps instead of 50. Does $\alpha$ matter more or less at one
#    rate for all? Predict the best rates first.
# 2. Train the DyLoRAs with `update="frozen"`, which moves only row and column $k$. At which ranks
#    is the result worse than before after 1600 steps? How often is rank $k$ trained under each
#    rule?
# 3. Plant a $\Delta W$ of exact rank 4 (set the other singular values to 0). At how many samples
#    does full fine-tuning overtake rank 4? Predict, run it, and explain the answer by counting
#    numbers.
