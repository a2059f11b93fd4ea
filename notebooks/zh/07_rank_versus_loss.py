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
# # 7. 秩与损失
#
# [English](../07_rank_versus_loss.ipynb)
#
# **要做什么**：画两次损失随秩变化的曲线：一次用理论知道答案的任务，一次用一个先学英文、再适应 Python 的小 GPT。
#
# **学到什么**：怎样画这条曲线，才能让它比较的是秩，而不是学习率；曲线上的点有多可信；从曲线能得出什么结论。
#
# **预备知识**：第 3、4 和 6 章。运行需要一两分钟。在浏览器里，训练一步的时间是平时的好几倍，所以 GPT 的批次减半（见下一个单元格的 `BATCH`）：你得到的数与这里显示的不同，但各个论断仍然成立。

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

threadpool_limits(1)  # 这么小的乘积，用两个线程不会更快
BATCH = 8 if IN_BROWSER else 16  # 一个批次的文本窗口数
store = TemporaryDirectory()  # 随内核一起删除
folder = Path(store.name)

# %% [markdown]
# ## 理论知道答案的任务
#
# 一个线性映射 $W_0$ 要变成 $W_0 + \Delta W$。我们选取一个 $\Delta W$，它的奇异值是 1、0.8、0.64……如果输入互不相关，方差为一，那么取改变量 $N$ 时，损失是 $\tfrac12\Vert\Delta W - N\Vert_F^2$。第 3 章给出了秩 $r$ 能达到的最低损失：
#
# $$ \text{floor}(r) = \tfrac12 \sum_{i>r} \sigma_i^2 $$
#
# **预测**：每个 $\sigma_i^2$ 都是前一个的 $0.64$ 倍。从 $r = 1$ 到 $r = 2$，这个下界变为原来的多少倍？从 2 到 4 呢？
#
# `rank_sweep` 在每个秩上用 Adam 训练 $A$ 和 $B$。

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
# $0.64$ 倍和 $0.64^2$ 倍，误差在 0.01 以内。（不是恰好相等，因为奇异值谱到第 16 个值就结束了。）每次训练结束时，损失与下界相差不到 1 %。训练两个因子，确实能达到下界：这条曲线**就是** $\Delta W$ 的奇异值谱的尾部。

# %% alt="植入的改变量，损失随秩的变化：在秩 1、2、4 和 8 上训练的 LoRA 都落在 Eckart-Young 下界上"
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
# ## GPT
#
# 对语言模型来说，$\Delta W$ 事先并不知道，曲线只能靠实验测出来。基座是一个有两个块、$d = 48$ 的 GPT，在讲 Python 的英文上训练了几秒钟。它是个很差的模型，但已经学到了一些东西。现在它要学 Python 代码，也就是标准库的源代码。
#
# 所有线性层都装上适配器，$r$ = 1、4 和 16，每个秩的缩放系数都是 1（$\alpha = r$）。我们与全量微调比较。每次训练都走 80 步。
#
# **预测**：秩 16 有 16 倍于秩 1 的参数。每个秩能达到全量微调收益的几成？

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

# %% alt="测试损失随秩的变化：LoRA 从秩 1 到 16 逐渐下降，低于基座模型，高于全量微调"
points = losses_by_seed(text)  # 秩 -> 种子 -> 测试损失
full = [run["test_loss"] for run in text["runs"] if run["rank"] is None]
base = text["base_test_loss"]
mean = {rank: value[0] for (_, rank), value in summary(text, "test_loss").items()}  # None：全量微调

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
# 基座最差；秩每高一档，损失都再低 0.02 以上；秩 16 达到全量微调收益的 60 % 以上。秩 1 就已经超过四分之一。

# %%
gain = {r: (base - mean[r]) / (base - mean[None]) for r in points}
print({r: f"{share:.0%}" for r, share in gain.items()})
assert base - 0.05 > mean[1] > mean[4] + 0.02 and mean[4] > mean[16] + 0.02
assert 0.6 < gain[16] < 1.1 and gain[1] > 0.25

# %% [markdown]
# ## 为什么每个秩都要有自己的学习率
#
# 表中 *lr* 一列的值，各行不全相同。对每一行，扫描都用第一个种子搜索验证损失最低的学习率，相邻的候选值之比为二。第 9 章会推导，为什么一个学习率不能适合所有的秩。
#
# 这有多大影响？我们补上扫描没有做的训练，使三个秩都有四个学习率的结果。下一个单元格也示范了怎样自己写一次适配。
#
# **预测**：一个人对所有的秩都用学习率 0.01，另一个人都用 0.08。关于秩，他们各会得出什么结论？

# %% alt="秩 1、4 和 16 的验证损失随学习率的变化：学习率最大时，秩 16 远高于基座模型，其余的没有"
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
# 用 0.01 时，秩 16 看起来比实际更好，因为秩 1 学得太慢。用 0.08 时，秩 16 看起来比实际差得多，因为这个学习率对它太大。只用一个学习率画出的曲线，显示的是这个学习率适合哪个秩。
#
# ## 曲线上的点有多可信？
#
# 三个种子的差别，在于 $A$ 和批次不同。种子相同，每个秩抽到的批次就相同，所以要逐个种子比较：取差 $\delta_1, \delta_2, \delta_3$ 的均值，以及均值的标准误 $s_\delta / \sqrt 3$。

# %%
for low_rank, high_rank in ((1, 4), (4, 16)):
    delta = np.array([points[low_rank][seed] - points[high_rank][seed] for seed in range(3)])
    error = delta.std(ddof=1) / 3**0.5
    print(f"r = {low_rank} to {high_rank}: gains {delta.mean():.3f} +- {error:.3f}")
    assert delta.mean() > 2 * error
print(*flat(text))
assert "not flat yet" in flat(text)[0]

# %% [markdown]
# 两处收益都大于两倍标准误：曲线到 16 时还在下降。只有三个种子，这只是一条经验法则：假如十个秩都没有任何收益，也会有一个能通过（自由度为二的 Student t 分布）。

# %%
assert round(student.sf(2, df=2), 1) == 0.1

# %% [markdown]
# ## 步数相同
#
# 每次训练都走 80 步。秩 16 与全量微调的差距，是秩造成的吗？
#
# **预测**：让秩 16 走两倍的步数。差距还剩几成？

# %%
rate16 = next(run["lr"] for run in text["runs"] if run["rank"] == 16)
runs = [run for run in text["runs"] if run["seed"] == 0]
full0 = next(run["validation_loss"] for run in runs if run["rank"] is None)
once, twice = tried[16, rate16], adapt(16, rate16, steps=160)
print(f"rank 16: {once:.3f} after 80 steps, {twice:.3f} after 160;  full after 80: {full0:.3f}")
assert once - twice > 0.75 * (once - full0)

# %% [markdown]
# 不到 25 %：步数加倍，就补上了差距的其余部分。全量微调多走几步，也会更好。在步数相同的条件下比较，能看出哪种方法更快，看不出哪种方法能达到更低的损失。这条曲线并没有说明，秩 16 达不到全量微调的损失。
#
# ## 可训练参数
#
# 秩相同，代价不一定相同。加在 $W$ (out, in) 上的适配器有 $r\,(\text{out} + \text{in})$ 个数，所以矩阵越大，秩每加一就越贵。如果秩超过临界秩（break-even）
#
# $$ r^* = \frac{\text{out}\cdot\text{in}}{\text{out}+\text{in}} $$
#
# 适配器的参数就比 $W$ 本身还多。
#
# **预测**：48 x 48 的矩阵，$r^*$ 是多少？MLP 的 192 x 48 呢？

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
# 在这个小模型里，秩 16 的适配器的参数量是整个模型的 38 %。全量微调还训练嵌入和层归一化，这些适配器的秩再高，也改变不了它们。当 $d = 4096$ 时，秩 16 的适配器只占一个矩阵的 0.8 %：秩的高低是**相对于宽度**来说的，小模型的曲线不能照搬到大模型上。
#
# ## 能得出什么结论
#
# * 在这里，走 80 步，每个秩用自己的学习率：秩越高越好，一直到 16。
# * 不能说：秩越高总是越好。在线性任务上，秩每加一，得到的是相应的那个奇异值的能量；过了最后一个奇异值，就什么也得不到。
# * 不能说：LoRA 比全量微调差这么多。步数和嵌入也是造成差距的原因。
# * 也不能由此知道：**你的**任务需要多大的秩。`lora-np sweep` 可以测出来；`docs/rank_vs_loss.md` 里有一次更大的扫描。

# %%
assert round(100 * 16 * (4096 + 4096) / 4096**2, 1) == 0.8

# %% [markdown]
# ## 练习
#
# 1. 差距是嵌入造成的吗？复制基座（`copy_model`），用 `freeze` 冻结线性层的 `W` 和 `b` 以外的所有 Parameter，训练剩下的这些，看损失落在秩 16 与全量微调之间的什么位置。
# 2. 在**参数量**相同的条件下比较：一种是只在 q 和 v 上用秩 12（`target_modules`），另一种是在 q、k、v 和 o 上。第二种的秩该是多少？哪一种更好，相差几个标准误？
# 3. 在线性任务里植入一个 $\Delta W$，取 `decay=0.98`。先预测秩 1 和秩 8 的下界，再运行这个任务。“低秩就够了”，这是 LoRA 的性质，还是任务的性质？
