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
# # 7. Rank versus loss
#
# [中文](zh/07_rank_versus_loss.ipynb)
#
# **What you'll do.** Draw the loss against the rank twice: for a task whose answer theory knows, and
# for a small GPT adapted from English to Python.
#
# **What you'll learn.** How to draw this curve so that it compares ranks and not learning rates,
# how far you can trust its points, and what you can conclude from it.
#
# **What you'll need.** Chapters 3, 4 and 6. A minute or two of computing. In a browser, a step of
# training takes several times as long. The GPT's batches are half as large there (`BATCH` in the
# next cell), so that your numbers differ from those shown here, but the claims hold.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import t as student
from threadpoolctl import threadpool_limits

from lora_np import LoraConfig, account, evaluate, fit, inject, rank_sweep
from lora_np.backend import IN_BROWSER
from lora_np.data import encode, sample_batch, split, standard_library, windows
from lora_np.experiments.rank_sweep import LinearSettings, TextSettings
from lora_np.experiments.rank_sweep.models import load_model
from lora_np.experiments.rank_sweep.report import (
    flat,
    losses_by_seed,
    summary,
    table,
    trainable_parameters,
)
from lora_np.plots import BLUE, GREEN, ORANGE

threadpool_limits(1)  # products this small are not faster on two threads
BATCH = 8 if IN_BROWSER else 16  # windows of text
store = TemporaryDirectory()  # removed with the kernel
folder = Path(store.name)

# %% [markdown]
# ## Where theory knows the answer
#
# A linear map $W_0$ must become $W_0 + \Delta W$. We choose a $\Delta W$ with the singular values
# 1, 0.8, 0.64, ... If the inputs are uncorrelated with variance one, the loss of a change $N$ is
# $\tfrac12\Vert\Delta W - N\Vert_F^2$, and chapter 3 gives the lowest loss that rank $r$ can reach:
#
# $$ \text{floor}(r) = \tfrac12 \sum_{i>r} \sigma_i^2 $$
#
# **Predict.** Each $\sigma_i^2$ is $0.64$ times the one before. By which factor does the floor fall
# from $r = 1$ to $r = 2$? And from 2 to 4?
#
# `rank_sweep` trains $A$ and $B$ with Adam at each rank.

# %%
linear = rank_sweep(
    LinearSettings(ranks=(1, 2, 4, 8), seeds=2, d_in=24, d_out=16, decay=0.8, steps=800),
    folder / "linear",
)
print(table(linear))
floors = linear["floors"]
for run in linear["runs"]:
    if run["rank"] is not None:
        assert 1 - 1e-9 < run["test_loss"] / floors[run["rank"]] < 1.01
assert abs(floors[2] / floors[1] - 0.64) < 0.01 and abs(floors[4] / floors[2] - 0.64**2) < 0.01

# %% [markdown]
# By $0.64$ and $0.64^2$, to within 0.01. (Not exactly, because the spectrum ends at the 16th
# value.) Every run ends within 1 % of its floor. Training two factors reaches the floor: the curve
# *is* the tail of the spectrum of $\Delta W$.

# %% alt="Loss against rank for a planted change: LoRA, trained at ranks 1, 2, 4 and 8, lies on the Eckart-Young floor"
ranks = np.arange(1, 9)
losses = [run for run in linear["runs"] if run["rank"] is not None]
figure, axis = plt.subplots(figsize=(6.4, 3.6))
axis.semilogy(ranks, floors[1:], "x:", color=ORANGE, label="Eckart-Young floor")
axis.semilogy(
    [run["rank"] for run in losses],
    [run["test_loss"] for run in losses],
    "o",
    color=BLUE,
    mfc="none",
    ms=9,
    label="LoRA, trained",
)
axis.set_xlabel("rank r")
axis.set_ylabel(r"loss $\frac{1}{2}\Vert\Delta W - BA\Vert_F^2$")
axis.set_title("A planted change")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## A GPT
#
# For a language model, $\Delta W$ is not known in advance, and the curve must be measured. The base
# is a GPT with two blocks and $d = 48$, trained for a few seconds on English text about Python. It
# is a poor model, but it has learned something. Now it must learn Python code: the source of the
# standard library.
#
# All linear layers get an adapter, at $r$ = 1, 4 and 16, with scale 1 at every rank ($\alpha = r$).
# We compare with full fine-tuning. Every run has 80 steps.
#
# **Predict.** Rank 16 has 16 times the parameters of rank 1. What share of full fine-tuning's gain
# does each rank reach?

# %%
settings = TextSettings(
    ranks=(1, 4, 16),
    seeds=3,
    pretrain_steps=600,
    steps=80,
    d_model=48,
    windows=64,
    batch_size=BATCH,
)
text = rank_sweep(settings, folder / "text")
print(table(text))

# %% alt="Test loss against rank: LoRA falls from rank 1 to 16, below the base model and above full fine-tuning"
points = losses_by_seed(text)  # rank -> seed -> test loss
full = [run["test_loss"] for run in text["runs"] if run["rank"] is None]
base = text["base_test_loss"]
mean = {rank: value[0] for (_, rank), value in summary(text, "test_loss").items()}  # None: full

figure, axis = plt.subplots(figsize=(6.6, 4))
for rank, losses in points.items():
    axis.plot([rank] * 3, list(losses.values()), "o", color=BLUE, ms=5)
axis.plot(list(points), [mean[r] for r in points], "-", color=BLUE, label="LoRA: seeds, and mean")
axis.axhline(base, color="black", linestyle=":", label="base, not adapted")
for loss in full:
    axis.axhline(loss, color=ORANGE, linewidth=0.8, linestyle="--")
axis.plot([], [], color=ORANGE, linestyle="--", label="full fine-tuning, each seed")
axis.set_xscale("log", base=2)
axis.set_xticks(list(points), [str(r) for r in points])
axis.set_xlabel("rank r")
axis.set_ylabel("test loss [nats a byte]")
axis.set_title("Every rank at its own best learning rate, 80 steps")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# The base is the worst, each higher rank is better by more than 0.02, and rank 16 reaches more than
# 60 % of full fine-tuning's gain. Rank 1 already reaches more than a quarter.

# %%
gain = {r: (base - mean[r]) / (base - mean[None]) for r in points}
print({r: f"{share:.0%}" for r, share in gain.items()})
assert base - 0.05 > mean[1] > mean[4] + 0.02 and mean[4] > mean[16] + 0.02
assert 0.6 < gain[16] < 1.1 and gain[1] > 0.25

# %% [markdown]
# ## Why every rank needs its own learning rate
#
# The column *lr* of the table is not the same in all rows. For each row, the sweep searched for the
# rate with the lowest validation loss on the first seed, in factors of two. Chapter 9 derives why
# one rate does not suit all ranks.
#
# How much does it matter? We add the runs that the sweep left out, so that we have four rates for
# all three ranks. The next cell also shows how to write one adaptation by hand.
#
# **Predict.** One person uses the rate 0.01 for all ranks, and another uses 0.08. What will each of
# them conclude about the rank?

# %% alt="Validation loss against learning rate at ranks 1, 4 and 16: at the largest rate rank 16 is far above the base model, the others are not"
model0 = load_model(folder / "text", "base")
python = split(encode(standard_library()))
held_out = windows(python.validation, settings.block_size, settings.windows)


def adapt(r, rate, steps=80, seed=0):
    """Adapt the base once; return the validation loss."""
    config = LoraConfig(r=r, lora_alpha=r, target_modules="all-linear")
    model = inject(model0, config, np.random.default_rng([seed, 1]))
    rng = np.random.default_rng([seed, 0])

    def batch():
        return sample_batch(python.train, settings.batch_size, settings.block_size, rng)

    fit(model, batch, steps=steps, lr=rate, warmup=steps // 10, options={"weight_decay": 0.0})
    return evaluate(model, *held_out)


rates = [0.01, 0.02, 0.04, 0.08]
tried = {
    (t["rank"], t["lr"]): t["validation_loss"]
    for t in text["trials"]
    if t["rank"] and t["seed"] == 0 and t["validation_loss"] is not None
}
for r in points:
    for rate in rates:
        if (r, rate) not in tried:
            tried[r, rate] = adapt(r, rate)

figure, axis = plt.subplots(figsize=(6.6, 4))
for r, colour, marker in zip(points, (BLUE, ORANGE, GREEN), "os^"):
    axis.plot(
        rates, [tried[r, rate] for rate in rates], f"{marker}-", color=colour, label=f"r = {r}"
    )
top = text["base_validation_loss"]
axis.axhline(top, color="black", linestyle=":", label="base, not adapted")
for r in points:
    for rate in rates:
        if tried[r, rate] > top + 0.05:
            axis.text(rate, top + 0.01, f"r = {r}: {tried[r, rate]:.2f}", ha="right")
axis.set_ylim(top=top + 0.05)
axis.set_xscale("log", base=2)
axis.set_xticks(rates, [str(rate) for rate in rates])
axis.set_xlabel("learning rate")
axis.set_ylabel("validation loss [nats a byte]")
axis.set_title("One seed")
axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.87))
plt.show()

# %%
best = {r: min(tried[r, rate] for rate in rates) for r in points}
for rate in rates:
    print(f"rate {rate}:", "  ".join(f"r = {r} {tried[r, rate]:.3f}" for r in points))
print("each at its best:", "  ".join(f"r = {r} {best[r]:.3f}" for r in points))

low, high = (tried[1, rate] - tried[16, rate] for rate in (0.01, 0.08))
fair = best[1] - best[16]
print(f"what rank 16 gains on rank 1: {low:+.3f} at 0.01, {high:+.3f} at 0.08, {fair:+.3f} fairly")
assert low > fair + 0.005 and high < fair - 0.03

# %% [markdown]
# At 0.01, rank 16 looks better than it is, because rank 1 learns too slowly. At 0.08, rank 16 looks
# far worse than it is, because the rate is too high for it. A curve at a single rate shows which
# rank this rate suits.
#
# ## How far can you trust the points?
#
# The three seeds differ in $A$ and in the batches. Equal seeds draw equal batches at every rank, so
# compare seed by seed: take the mean of the differences $\delta_1, \delta_2, \delta_3$ and its
# standard error $s_\delta / \sqrt 3$.

# %%
for low_rank, high_rank in ((1, 4), (4, 16)):
    delta = np.array([points[low_rank][seed] - points[high_rank][seed] for seed in range(3)])
    error = delta.std(ddof=1) / 3**0.5
    print(f"r = {low_rank} to {high_rank}: gains {delta.mean():.3f} +- {error:.3f}")
    assert delta.mean() > 2 * error
print(*flat(text))
assert "not flat yet" in flat(text)[0]

# %% [markdown]
# Both gains are larger than two standard errors: the curve still falls at 16. With three seeds this
# is a rule of thumb: of ten ranks without any gain, one would pass (Student's t, two degrees of
# freedom).

# %%
assert round(student.sf(2, df=2), 1) == 0.1

# %% [markdown]
# ## Equal steps
#
# All runs had 80 steps. Is the gap between rank 16 and full fine-tuning due to the rank?
#
# **Predict.** Give rank 16 twice the steps. What share of the gap remains?

# %%
rate16 = next(run["lr"] for run in text["runs"] if run["rank"] == 16)
runs = [run for run in text["runs"] if run["seed"] == 0]
full0 = next(run["validation_loss"] for run in runs if run["rank"] is None)
once, twice = tried[16, rate16], adapt(16, rate16, steps=160)
print(f"rank 16: {once:.3f} after 80 steps, {twice:.3f} after 160;  full after 80: {full0:.3f}")
assert once - twice > 0.75 * (once - full0)

# %% [markdown]
# Less than 25 %: twice the steps close the rest of the gap. Full fine-tuning would also gain from
# more steps. A comparison at equal steps shows which method is faster, not which one can reach a
# lower loss. The curve does not show that rank 16 cannot reach the loss of full fine-tuning.
#
# ## Trainable parameters
#
# The same rank does not always cost the same. An adapter on $W$ (out, in) has
# $r\,(\text{out} + \text{in})$ numbers, so each rank costs more on a larger matrix. Above the
# break-even rank
#
# $$ r^* = \frac{\text{out}\cdot\text{in}}{\text{out}+\text{in}} $$
#
# it has more numbers than $W$ itself.
#
# **Predict.** What is $r^*$ of a 48 x 48 matrix? Of the MLP's 192 x 48?

# %%
for out, in_ in ((48, 48), (192, 48)):
    print(
        f"{out} x {in_}: one rank costs {out + in_}, break-even at r = {out * in_ / (out + in_):.1f}"
    )
assert 48 * 48 / (48 + 48) == 24 and round(192 * 48 / (192 + 48), 1) == 38.4

trainable = {rank: count for (_, rank), count in trainable_parameters(text).items()}
for r in (*points, None):
    name = "full" if r is None else f"r = {r}"
    print(f"{name:<7}{trainable[r]:>8,} trainable, {trainable[r] / trainable[None]:.0%} of full")
assert trainable[16] == 16 * trainable[1] and 0.3 < trainable[16] / trainable[None] < 0.5

one = inject(model0, LoraConfig(r=1, target_modules="all-linear"), np.random.default_rng(0))
assert account(one).adapter == trainable[1] == 2 * (4 * (48 + 48) + 2 * (192 + 48))

# %% [markdown]
# In this small model, the adapters of rank 16 have 38 % as many parameters as the whole model. Full
# fine-tuning also trains the embeddings and LayerNorms, which these adapters cannot change at any
# rank. At $d = 4096$, rank 16 is 0.8 % of a matrix: a rank is low *relative to the width*, and the
# curves of small models do not carry over to large ones.
#
# ## What you can conclude
#
# * Here, with 80 steps and a learning rate for each rank, a higher rank is better up to 16.
# * Not: that a higher rank is always better. On the linear task, each rank gains the energy of its
#   singular value, and nothing after the last one.
# * Not: that LoRA is worse than full fine-tuning by this much. The number of steps and the
#   embeddings contribute to the gap.
# * Not: which rank *your* task needs. `lora-np sweep` measures it; `docs/rank_vs_loss.md` shows a
#   larger sweep.

# %%
assert round(100 * 16 * (4096 + 4096) / 4096**2, 1) == 0.8

# %% [markdown]
# ## Exercises
#
# 1. Is it the embeddings? Copy the base (`copy_model`), `freeze` all Parameters but the linear layers'
#    `W` and `b`, train these, and see where the loss ends between rank 16 and full fine-tuning.
# 2. Compare at equal *parameters*: rank 12 on q and v (`target_modules`) against q, k, v and o.
#    Which rank must the second one have? Which one is better, and by how many standard errors?
# 3. Plant a $\Delta W$ with `decay=0.98` in the linear task. Predict the floors of ranks 1 and 8,
#    then run the task. Is "a low rank suffices" a property of LoRA or of the task?
