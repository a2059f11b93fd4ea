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
# [English](../04_lora.ipynb)
#
# **要做什么**：给一个冻结的层加上一条低秩的支路，推导它的梯度，再算一个小例子，打印出其中的每个数。
#
# **学到什么**：为什么 $B$ 从零开始；为什么这时 $A$ 的梯度是零，而 $B$ 的梯度不是零；为什么不能在这一点上检验梯度。
#
# **预备知识**：第 1 至 3 章。

# %%
import matplotlib.pyplot as plt
import numpy as np
from step_through import draw_all_steps, sliders

from lora_np import best_rank_error, check_gradients
from lora_np.ops import lora_linear_backward, lora_linear_forward
from lora_np.plots import BLUE, GREEN, ORANGE

np.set_printoptions(precision=4, suppress=True)

# %% [markdown]
# ## LoRA 层
#
# 预训练好的层有权重 $W_0$ (out, in)。LoRA 保留这个权重，再加上一个秩为 $r$ 的改变量，即 $B$ (out, r) 与 $A$ (r, in) 的乘积：
#
# $$ h = W_0 x + s\, B A x, \qquad s = \alpha / r $$
#
# （Hu 等，2021，式 3。）只训练 $A$ 和 $B$。请从右往左读这个公式：$u = Ax$ 只有 $r$ 个数，改变量只通过这些数依赖于 $x$。
#
# 这里 *in* = 3，*out* = 4，$r = 2$，$\alpha = 1$。

# %%
x = np.array([2.0, -1.0, 1.0])  # (in,)
W0 = np.array([[1.0, 0, 2], [0, 3, 1], [-1, 1, 0], [2, 2, 1]])  # (out, in)
A = np.array([[1.0, 0, -1], [2, 1, 0]])  # (r, in)
B = np.array([[1.0, 0], [0, 2], [-1, 1], [3, -1]])  # (out, r)
s = 1.0 / 2.0

# %% [markdown]
# **预测**：$u_0 = 1\cdot2 + 0 - 1\cdot1$。$u_1$ 是多少？$h_0$ 呢？

# %%
u = A @ x  # (r,)
h = W0 @ x + s * (B @ u)  # (out,)
print("u =", u, "  B u =", B @ u, "  W0 x =", W0 @ x, "  h =", h)
assert u.tolist() == [1.0, 3.0]
assert h.tolist() == [4.5, 1.0, -2.0, 3.0]

# %% alt="W0 x + s B A x 的五个步骤：每个乘积都画成带颜色的矩阵，标出其中的数和形状"
draw_all_steps(x, W0, A, B, s)

# %% [markdown]
# 如果内核正在运行，下一个单元格会显示滑块，可以调步骤、$s$ 和 $x_0$。把 $s$ 设为 0，再一步一步看：哪些部分不再起作用？

# %%
sliders(x, W0, A, B, s)

# %% [markdown]
# 样本不多时，不要算出 $BA$：按 $B(Ax)$ 的顺序，每个样本只用 $r\,(\text{in}+\text{out})$ 次乘法。先算出 $W_0 + s\,BA$，结果相同，只差舍入误差；如果有许多样本共用它，这样更快。库里的层就是这样做的（`lora_np/ops/fast/lora.py`）；本章用的那对教科书式的函数则不这样做。

# %%
assert np.allclose(h, (W0 + s * B @ A) @ x)

# %% [markdown]
# ## 梯度
#
# 记 $g = \partial L/\partial h$（在代码中叫 `dy`）。改变量由前后相接的两个线性层组成：先是 $u = Ax$，再是 $sBu$。从输出开始，套用第 1 章的规则：
#
# $$ dB = s\, g\, u^\top, \qquad du = s\, B^\top g, \qquad dA = du\; x^\top = s\, B^\top g\, x^\top $$
#
# 两条路径都用到 $x$，所以两边的贡献相加：
#
# $$ dx = W_0^\top g + A^\top du = W_0^\top g + s\, A^\top B^\top g $$
#
# **预测**：$du$、$dA$ 和 $dB$ 各是什么形状？

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
# 用中心差分检验每个梯度。$L = \sum g \cdot h$ 分别对 $A$、$B$ 和 $x$ 是线性的，所以除舍入误差外，中心差分是精确的。


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
# 库里的这对函数与第 1 章一样，一行是一个样本。给出 `need`，它就跳过 $dW_0$，因为 $W_0$ 是冻结的。但它仍然需要用 $W_0$ 来算 $dx$。

# %%
y, cache = lora_linear_forward(x[None], W0, A, B, scale=s)
need = (True, False, True, True, False)  # x, W0, A, B, bias
grad_x, grad_W0, grad_A, grad_B, _ = lora_linear_backward(g[None], cache, need)
assert np.allclose(y[0], h) and grad_W0 is None
assert np.allclose(grad_x[0], dx) and np.allclose(grad_A, dA) and np.allclose(grad_B, dB)

# %% [markdown]
# ## 第 0 步
#
# LoRA 开始训练时，$A$ 是随机的，$B = 0$。
#
# **预测**：这时 $h$ 是什么？$dA$ 和 $dB$ 中哪一个是零？把 $B = 0$ 代入上面的公式。

# %%
zero = np.zeros_like(B)
y, cache = lora_linear_forward(x[None], W0, A, zero, scale=s)
_, _, dA0, dB0, _ = lora_linear_backward(g[None], cache, need)
print("dA =\n", dA0, "\ndB =\n", dB0)
assert np.array_equal(y[0], W0 @ x)
assert not dA0.any() and dB0.any()

# %% [markdown]
# 一开始，这一层的输出与预训练的层完全相同。$dA = s\,B^\top g\,x^\top$ 含有因子 $B$，所以是零。$dB = s\,g\,(Ax)^\top$ 含有的是因子 $A$，所以不是零。因此第一步只改变 $B$；从第二步起，两者都改变。

# %%
moved = zero - 0.1 * dB0
_, cache = lora_linear_forward(x[None], W0, A, moved, scale=s)
_, _, dA1, _, _ = lora_linear_backward(g[None], cache, need)
assert dA1.any()

# %% [markdown]
# **预测**：再看另外两种初始化：两个因子都是零，以及两个因子都随机。它们各有什么问题？

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
# 如果都是零，那么两个梯度就都含有一个为零的因子，什么也不会改变。如果都随机，还没有开始训练，输出就被打乱了。
#
# ## 离开起点再检验梯度
#
# **预测**：有人忘了把缩放系数 $s$ 乘进 $dA$。在 $B = 0$ 处做梯度检验，能发现这个错误吗？


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
# 在 $B = 0$ 处，错误的那对函数也能通过：有没有缩放系数，$dA$ 都是零。请在随机的 $B$ 处检验梯度，再另外测试从零开始的情形。
#
# ## 训练这一层
#
# 现在让这一层学习一个秩为 2 的改变量 $\Delta W$。我们用单位矩阵的各列作为输入，所以损失是 $\tfrac12\Vert sBA - \Delta W\Vert_F^2$。
#
# **预测**：$r = 1$、2 和 3 时，哪些损失会降到零？其余的会剩下多少？

# %%
target = rng.standard_normal((12, 2)) @ rng.standard_normal((2, 10)) / 3  # Delta W，秩为 2
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
# 秩为 1 时，损失停在第 3 章的 Eckart-Young 下界。秩为 2 和 3 时，损失降到 $10^{-20}$ 以下：只要 $r$ 达到改变量的秩，再提高秩，最终的损失也不会更低。

# %% alt="损失随步数的变化：秩 1 停在自己的下界，秩 2 和 3 降到舍入误差"
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
# ## 练习
#
# 1. 反过来，从 $A = 0$ 和随机的 $B$ 开始。推导哪个梯度是零，再训练。最终的损失相同吗？
# 2. 推导一个批次的梯度，其中样本是 $X$ 和 $G$ 的各行，并与 `lora_linear_backward` 比较。
# 3. 把 $A$ 乘以 2，把 $B$ 除以 2。$h$ 不变。$dA$ 和 $dB$ 会怎样变，梯度下降走一步的结果又会怎样变？
