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
# # 1. 一个线性层和它的梯度
#
# [English](../01_one_linear_layer.ipynb)
#
# **要做什么**：手算 $y = Wx$，再求损失对其中每一个数的导数，并用这些梯度训练这一层。
#
# **学到什么**：为什么 $dW$ 是外积，为什么一个批次的梯度要相加，以及步长取到多大，训练就会发散。
#
# **预备知识**：矩阵与向量的乘积，链式法则。

# %%
import matplotlib.pyplot as plt
import numpy as np

from lora_np.ops import linear_backward, linear_forward
from lora_np.plots import BLUE, GREEN, ORANGE

np.set_printoptions(precision=4, suppress=True)

# %% [markdown]
# ## 线性层
#
# 线性层有一个形状为 (out, in) 的矩阵 $W$。它把长度为 *in* 的输入 $x$ 变成长度为 *out* 的输出 $y$：
#
# $$ y_o = \sum_i W_{oi}\, x_i $$
#
# $W$ 的每一行是一个输出的全部权重。这里 *in* 为 3，*out* 为 2。

# %%
W = np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])  # (out, in) = (2, 3)
x = np.array([2.0, -1.0, 1.0])  # (in,)

y = np.zeros(2)
for o in range(2):
    for i in range(3):
        y[o] += W[o, i] * x[i]
print("y =", y)

# %% [markdown]
# `W @ x` 与这两重循环算出的结果相同。第一行：$1\cdot2 + 2\cdot(-1) - 1\cdot1 = -1$。

# %%
assert y.tolist() == [-1.0, 4.0]
assert np.array_equal(y, W @ x)

# %% [markdown]
# ## 损失
#
# 我们希望输出等于 $t$。损失取距离平方的一半：
#
# $$ L = \tfrac12 \sum_o (y_o - t_o)^2 \qquad\Rightarrow\qquad
#    \frac{\partial L}{\partial y_o} = y_o - t_o $$
#
# 在本课程中，`dy` 始终表示 $\partial L/\partial y$：$y$ 有几个元素，它就有几个数。

# %%
t = np.array([0.0, 3.0])


def loss(W, x):
    return 0.5 * ((W @ x - t) ** 2).sum()


dy = W @ x - t  # (out,)
print("L =", loss(W, x), "  dy =", dy)
assert loss(W, x) == 1.0

# %% [markdown]
# ## 权重的梯度
#
# **预测**：$L$ 依赖于六个数 $W_{oi}$。$dW$ 是什么形状？如果 $x_2 = 0$，你能说出 $dW$ 的某一整列是什么吗？

# %%
print("where input 2 is 0:\n", np.outer(dy, [2.0, -1.0, 0.0]))

# %% [markdown]
# 只有 $y_o$ 含有 $W_{oi}$，系数是 $x_i$。由链式法则，
#
# $$ \frac{\partial L}{\partial W_{oi}}
#    = \frac{\partial L}{\partial y_o}\,\frac{\partial y_o}{\partial W_{oi}} = dy_o\, x_i
#    \qquad\text{即}\qquad dW = dy\; x^\top . $$
#
# 这是一个**外积**：一列乘以一行。它的形状与 $W$ 相同。如果某个输入为 0，与它相乘的那一列权重就得不到梯度。

# %%
dW = np.outer(dy, x)  # (out, in)
print(dW)
assert dW.shape == W.shape

# %% [markdown]
# 算得对吗？把一个权重向两边各移动 $h$，看损失怎样变化。$L$ 对每个权重都是抛物线，所以这个中心差分只有舍入误差。我们要求两者之差不超过 $10^{-8}$。

# %%
h = 1e-4
numeric = np.zeros_like(W)
for o in range(2):
    for i in range(3):
        up, down = W.copy(), W.copy()
        up[o, i] += h
        down[o, i] -= h
        numeric[o, i] = (loss(up, x) - loss(down, x)) / (2 * h)
print(numeric)
assert np.abs(dW - numeric).max() < 1e-8

# %% [markdown]
# 下图画出这个外积：$dy$ 写在左边，$x$ 写在上边。$dW$ 的每个元素，都是它左边和上边这两个数的积。

# %% alt="一张表：dW 的每个元素等于所在行的 dy 乘以所在列的 x"
figure, axis = plt.subplots(figsize=(5.2, 3))
table = np.zeros((3, 4))
table[1:, 0], table[0, 1:], table[1:, 1:] = dy, x, dW
axis.imshow(table, cmap="PuOr", vmin=-6, vmax=6)
for (row, column), value in np.ndenumerate(table):
    if row or column:
        axis.text(column, row, f"{value:g}", ha="center", va="center", fontsize=13)
axis.axhline(0.5, color="black")
axis.axvline(0.5, color="black")
axis.set_xticks(range(4), ["dy", "x$_0$", "x$_1$", "x$_2$"])
axis.set_yticks(range(3), ["x", "output 0", "output 1"])
axis.set_title("dW = dy x$^T$: each entry is its row's dy times its column's x")
plt.show()

# %% [markdown]
# ## 输入的梯度
#
# 网络中间的一层，还必须把梯度传给下面的一层。$x_i$ 通过**每一个**输出影响损失，所以各条路径要相加：
#
# $$ dx_i = \sum_o dy_o\, W_{oi} \qquad\text{即}\qquad dx = W^\top dy $$
#
# **预测**：求 $dx$ 需要 $x$ 吗？求 $dW$ 需要 $W$ 吗？

# %%
dx = W.T @ dy  # (in,)
steps = h * np.eye(3)
numeric = np.array([(loss(W, x + e) - loss(W, x - e)) / (2 * h) for e in steps])
print(dx)
assert np.abs(dx - numeric).max() < 1e-8

# %% [markdown]
# 求 $dx$ 需要 $W$，不需要 $x$；求 $dW$ 需要 $x$，不需要 $W$。请记住这一点，第 4 章要用。如果 $W$ 被冻结，就不必算 $dW$，但仍然需要用 $W$ 来算 $dx$。
#
# ## 批次
#
# 把 $N$ 个样本排成矩阵 $X$ 的各行，形状是 (N, in)。这样，$Y = X W^\top$ 的每一行就是一个样本的输出，损失是各个样本的损失之和。和的导数等于导数的和：
#
# $$ dW = \sum_n dy_n\, x_n^\top = dY^\top X, \qquad dX = dY\, W $$

# %%
rng = np.random.default_rng(0)
X = rng.standard_normal((5, 3))  # (N, in)
T = rng.standard_normal((5, 2))  # (N, out)
dY = X @ W.T - T  # (N, out)

one_by_one = sum(np.outer(dY[n], X[n]) for n in range(5))
assert np.allclose(dY.T @ X, one_by_one, rtol=0, atol=1e-14)
print(dY.T @ X)

# %% [markdown]
# 库在 `lora_np/ops/linear.py` 中计算的就是这三个公式。`linear_backward` 按输入的顺序返回 `dx`、`dW` 和 `db`。我们没有传入偏置，所以 `db` 是 None。

# %%
Y, cache = linear_forward(X, W)
dX, dW, db = linear_backward(dY, cache)
assert np.allclose(Y, X @ W.T) and np.allclose(dX, dY @ W) and np.allclose(dW, dY.T @ X)
assert db is None

# %% [markdown]
# 参数 `need` 指明需要哪些梯度，其余的不计算。库就是这样冻结权重的。

# %%
dX, dW, db = linear_backward(dY, cache, need=(True, False, False))
assert dW is None and dX.shape == X.shape

# %% [markdown]
# ## 训练，以及步长可以取多大
#
# 梯度下降反复执行 $W \leftarrow W - \eta\, dW$。为了让这一层能够达到目标，我们用另一个层 $W^\star$ 的输出作为目标。
#
# 记误差为 $E = W - W^\star$。于是 $dW = E\,X^\top X$，走一步得到 $E \leftarrow E\,(I - \eta X^\top X)$。在 $X^\top X$ 的特征值为 $\lambda$ 的特征向量方向上，误差变为原来的 $1 - \eta\lambda$ 倍。如果 $\vert 1-\eta\lambda\vert < 1$，误差就缩小。要对所有特征值都成立，只需
#
# $$ \eta < 2 / \lambda_{\max} . $$
#
# 收敛的快慢由最慢的方向决定：记 $\rho = \max \vert 1-\eta\lambda\vert$，则无论哪一步，损失至多变为原来的 $\rho^2$ 倍。
#
# **预测**：学习率取这个上限的十分之九，损失会下降吗？取上限的 1.05 倍呢？

# %%
X = rng.standard_normal((20, 3))
T = X @ rng.standard_normal((2, 3)).T
eigenvalues = np.linalg.eigvalsh(X.T @ X)
limit = 2 / eigenvalues.max()


def train(eta, steps=100):
    W, losses = np.zeros((2, 3)), []
    for _ in range(steps):
        Y, cache = linear_forward(X, W)
        losses.append(0.5 * ((Y - T) ** 2).sum())
        _, dW, _ = linear_backward(Y - T, cache, need=(False, True, False))
        W = W - eta * dW
    return losses


curves = {factor: train(factor * limit) for factor in (0.1, 0.9, 1.05)}
for factor, losses in curves.items():
    print(f"eta = {factor:<4} x limit: from {losses[0]:.3g} to {losses[-1]:.3g}")

# %% [markdown]
# 低于上限时，损失下降：走 $k$ 步之后，至多剩下初始损失的 $\rho^{2k}$。取上限的十分之一时，$\rho$ 由**最小**的特征值决定，所以 100 步能下降多少，要看数据。只比上限高 5 %，损失就涨到初始值的 1000 倍以上。

# %% alt="损失随步数的变化：学习率为上限的 0.1 和 0.9 时降到几乎为零，为上限的 1.05 时发散"
for factor in (0.1, 0.9):
    losses, rho = np.array(curves[factor]), np.abs(1 - factor * limit * eigenvalues).max()
    bound = losses[0] * rho ** (2 * np.arange(100))
    assert rho < 1 and np.all(losses <= 1.001 * bound + 1e-20)  # 1e-20：舍入误差
assert curves[1.05][-1] > 1000 * curves[1.05][0]

figure, axis = plt.subplots(figsize=(6.4, 3.6))
styles = [(BLUE, "--"), (GREEN, "-"), (ORANGE, ":")]
for (factor, losses), (colour, dash) in zip(curves.items(), styles):
    axis.semilogy(losses, color=colour, linestyle=dash, label=rf"$\eta$ = {factor} of the limit")
axis.set_xlabel("step")
axis.set_ylabel("loss (squared output units)")
axis.set_ylim(1e-16, 1e8)
axis.set_title("One linear layer, three learning rates")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 练习
#
# 1. 加上偏置：$y = Wx + b$。分别对一个样本和一个批次推导 $db$，并与 `linear_backward(dY, linear_forward(X, W, b)[1])` 比较。
# 2. 两层，$y = W_2 W_1 x$。只用本章的规则写出 $dW_1$ 和 $dW_2$，再用中心差分各检验一个元素。
# 3. 步数很多时，$\eta$ 取多少，损失下降得最快？用 $X^\top X$ 的最小特征值和最大特征值来回答，再用 `train` 检验你的答案。
