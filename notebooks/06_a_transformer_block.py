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
# # 6. A transformer block by hand
#
# **What you'll do.** Build a GPT with one block, forward and backward, at a size where you can
# follow every shape. Check each gradient, then get the same numbers from the library.
#
# **What you'll learn.** The gradients of LayerNorm and softmax, the effect of a mask on them, and
# why a frozen weight still costs something in the backward pass.
#
# **What you'll need.** Chapters 1, 2 (the complex step) and 4.

# %%
import matplotlib.pyplot as plt
import numpy as np

from lora_np import GPT, GPTConfig, Grads, LoraConfig, account, inject
from lora_np.ops import attention_backward, attention_forward, layernorm_backward, layernorm_forward
from lora_np.plots import BLUE, ORANGE

np.set_printoptions(precision=3, suppress=True)
rng = np.random.default_rng(0)


def numeric(L, v, h=1e-30):
    """The gradient of the number L(v), entry by entry, by the complex step of chapter 2."""
    gradient = np.zeros(v.shape)
    for index in np.ndindex(v.shape):
        z = v.astype(complex)
        z[index] += 1j * h
        gradient[index] = L(z).imag / h
    return gradient


def equal(one, other, tolerance=1e-12):
    return np.abs(one - other).max() <= tolerance * max(1.0, np.abs(other).max())


# %% [markdown]
# ## Tokens to vectors
#
# The input is a sequence of $T = 4$ tokens from a vocabulary of $V = 7$. The model has the width
# $d = 8$. Row $t$ of $E$ belongs to token $t$, and row $i$ of $P$ to position $i$. Their sum is the
# first $x$, with one row per token.
#
# All numbers are random, biases too, so that no gradient is checked at a point where something is
# zero.

# %%
V, T, d, heads = 7, 4, 8, 2
tokens, targets = np.array([3, 1, 4, 1]), np.array([1, 4, 1, 5])


def draw(*shape):
    return rng.standard_normal(shape) / shape[-1] ** 0.5


w = {"E": draw(V, d), "P": draw(T, d)}
for name, (out, in_) in {
    **dict.fromkeys("qkvo", (d, d)),
    "up": (4 * d, d),
    "down": (d, 4 * d),
}.items():
    w[f"W_{name}"], w[f"b_{name}"] = draw(out, in_), draw(out)
for name in ("1", "2", "f"):
    w[f"gamma_{name}"], w[f"beta_{name}"] = 1 + draw(d), draw(d)

x0 = w["E"][tokens] + w["P"]  # (T, d)
print(f"{sum(v.size for v in w.values()):,} numbers;  x0", x0.shape)

# %% [markdown]
# ## LayerNorm
#
# Each row is centred and scaled to variance one, then given a gain and a bias:
#
# $$ \hat x = (x - \mu)\,\rho, \qquad \rho = 1/\sqrt{v + \epsilon}, \qquad y = \gamma\,\hat x + \beta $$
#
# with $\mu$ and $v$ the row's mean and variance (Ba et al., 2016). $d\gamma$ and $d\beta$ are sums
# over rows. For $dx$, let $g = dy\,\gamma$ be the gradient at $\hat x$. $x_j$ affects $\hat x_i$ in
# three ways: directly, through $\mu$ (the term $-1/d$), and through $v$, whose derivative is
# $2(x_j - \mu)/d$:
#
# $$ \frac{\partial \hat x_i}{\partial x_j}
#    = \rho\,\Big(\delta_{ij} - \frac1d - \frac{\hat x_i \hat x_j}{d}\Big) $$
#
# Multiply by $g_i$ and sum over $i$:
#
# $$ dx = \rho\,\big(g - \operatorname{mean}(g) - \hat x \operatorname{mean}(g\,\hat x)\big) $$


# %%
def layernorm(x, gamma, beta, eps=1e-5):
    centred = x - x.mean(-1, keepdims=True)
    rho = ((centred**2).mean(-1, keepdims=True) + eps) ** -0.5  # (T, 1)
    xhat = centred * rho  # (T, d)
    return gamma * xhat + beta, (xhat, rho, gamma)


def layernorm_back(dy, cache):
    xhat, rho, gamma = cache
    g = dy * gamma
    mean_g, mean_gx = g.mean(-1, keepdims=True), (g * xhat).mean(-1, keepdims=True)  # (T, 1)
    return rho * (g - mean_g - xhat * mean_gx), (dy * xhat).sum(0), dy.sum(0)


gamma, beta, dy = w["gamma_1"], w["beta_1"], rng.standard_normal((T, d))
y, cache = layernorm(x0, gamma, beta)
dx, dgamma, dbeta = layernorm_back(dy, cache)
assert equal(dx, numeric(lambda v: (dy * layernorm(v, gamma, beta)[0]).sum(), x0))
assert equal(dgamma, numeric(lambda v: (dy * layernorm(x0, v, beta)[0]).sum(), gamma))
assert equal(dbeta, numeric(lambda v: (dy * layernorm(x0, gamma, v)[0]).sum(), beta))

y_library, cache_library = layernorm_forward(x0, gamma, beta)
assert equal(y, y_library)
assert all(equal(a, b) for a, b in zip((dx, dgamma, dbeta), layernorm_backward(dy, cache_library)))

# %% [markdown]
# **Predict.** Add 5 to every entry of a row of $x$. How does the output of LayerNorm change? What
# must the sum of a row of $dx$ therefore be?

# %%
assert equal(layernorm(x0 + 5, gamma, beta)[0], y)
assert np.abs(dx.sum(-1)).max() < 1e-13

_, no_epsilon = layernorm(x0, gamma, beta, eps=0.0)
assert np.abs((layernorm_back(dy, no_epsilon)[0] * no_epsilon[0]).sum(-1)).max() < 1e-12

# %% [markdown]
# The output does not change, so the sum is zero. Scaling a row does not change the output either
# (except for $\epsilon$), so $dx$ is also orthogonal to $\hat x$. The two mean terms remove these
# two directions from $g$.
#
# **Predict.** Someone forgets both terms and writes $dx = \rho\,g$. How large is the error at
# $d = 8$? And at GPT-2's $d = 768$? (What share of the squared length of a random $g$ lies in two
# of $d$ directions?)


# %% alt="Relative error of dx without the mean terms against width: the measured points lie on sqrt(2/(d-2)), near 0.6 at width 8 and 0.05 at 768"
def relative_error_of_forgetting(d, samples=400):
    x, g = rng.standard_normal((2, samples, d))
    _, cache = layernorm(x, np.ones(d), np.zeros(d), eps=0.0)
    right = layernorm_back(g, cache)[0]
    wrong = cache[1] * g  # rho g
    return np.sqrt(((wrong - right) ** 2).sum() / (right**2).sum())


widths = np.array([8, 16, 32, 64, 128, 256, 768])
errors = np.array([relative_error_of_forgetting(width) for width in widths])
theory = np.sqrt(2 / (widths - 2))

figure, axis = plt.subplots(figsize=(6.4, 3.6))
axis.loglog(widths, errors, "o", color=ORANGE, label="measured")
axis.loglog(widths, theory, "-", color=BLUE, label=r"$\sqrt{2/(d-2)}$")
axis.set_xlabel("width d")
axis.set_ylabel("relative error of dx")
axis.set_title("LayerNorm's gradient without its mean terms")
axis.legend(frameon=False)
plt.show()
print(f"d = 8: {errors[0]:.0%}   d = 768: {errors[-1]:.1%}")
assert np.all(np.abs(errors / theory - 1) < 0.15)
assert 0.5 < errors[0] < 0.7 and 0.04 < errors[-1] < 0.06

# %% [markdown]
# The two directions hold $2/d$ of the squared length, and the other $d - 2$ directions hold the
# rest, so the relative error is $\sqrt{2/(d-2)}$. It is more than half at $d = 8$ and about 5 % at
# $d = 768$, where training would still work and nobody would notice. A gradient check detects the
# mistake immediately, because its tolerance is far below 5 %.
#
# ## Softmax
#
# $p_i = e^{s_i} / \sum_k e^{s_k}$. Raising $s_j$ raises $p_j$. The sum of all $p_i$ is one, so the
# others fall, each in proportion to its size:
#
# $$ \frac{\partial p_i}{\partial s_j} = p_i\,(\delta_{ij} - p_j), \qquad
#    ds = p\,\big(dp - \textstyle\sum_i p_i\,dp_i\big) $$
#
# The first formula is a matrix, $J = \operatorname{diag}(p) - p\,p^\top$. The second is its product
# with $dp$, computed without forming the matrix.


# %%
def softmax(s):
    e = np.exp(s - s.real.max(-1, keepdims=True))  # the largest exponent is 0: nothing overflows
    return e / e.sum(-1, keepdims=True)


def softmax_back(dp, p):
    return p * (dp - (p * dp).sum(-1, keepdims=True))


s, dp = rng.standard_normal((2, 5))
p = softmax(s)
J = np.diag(p) - np.outer(p, p)
assert equal(J @ dp, softmax_back(dp, p))
assert equal(softmax_back(dp, p), numeric(lambda v: (dp * softmax(v)).sum(), s))
assert np.abs(J.sum(0)).max() < 1e-15  # p adds up to 1 and stays so

# %% [markdown]
# ## Causal attention
#
# Every token has a query $q$, a key $k$ and a value $v$. Each is the output of a linear layer of
# the normalised $x$. Position $i$ reads a weighted mean of the values at positions $j \le i$:
#
# $$ S_{ij} = \frac{q_i \cdot k_j}{\sqrt{d_h}} + M_{ij}, \qquad P = \operatorname{softmax}(S),
#    \qquad \text{head} = P\,v $$
#
# with $M_{ij} = 0$ for $j \le i$ and $-\infty$ for $j > i$, because $e^{-\infty} = 0$ (Vaswani et
# al., 2017).
#
# Two heads of $d_h = 4$ need no new operation. Row $t$ of $q$ has 8 numbers, and the first head
# takes the first four: $(T, d) \to (T, \text{heads}, d_h) \to (\text{heads}, T, d_h)$.


# %%
def split(x):
    return x.reshape(T, heads, d // heads).swapaxes(0, 1)  # (heads, T, d_h)


def join(x):
    return x.swapaxes(0, 1).reshape(T, d)


M = np.where(np.arange(T) > np.arange(T)[:, None], -np.inf, 0.0)  # (T, T)


def attention(q, k, v):
    root = (d // heads) ** 0.5
    P = softmax(q @ k.swapaxes(-1, -2) / root + M)  # (heads, T, T)
    return P @ v, (q, k, v, P, root)


def attention_back(dy, cache):
    q, k, v, P, root = cache
    dv = P.swapaxes(-1, -2) @ dy  # (heads, T, d_h)
    dP = dy @ v.swapaxes(-1, -2)  # (heads, T, T)
    dS = softmax_back(dP, P)  # (heads, T, T)
    return dS @ k / root, dS.swapaxes(-1, -2) @ q / root, dv, dS


q, k, v, dy = rng.standard_normal((4, heads, T, d // heads))
y, cache = attention(q, k, v)
dq, dk, dv, dS = attention_back(dy, cache)
assert equal(split(join(q)), q, 0.0)
assert equal(dq, numeric(lambda z: (dy * attention(z, k, v)[0]).sum(), q))
assert equal(dk, numeric(lambda z: (dy * attention(q, z, v)[0]).sum(), k))
assert equal(dv, numeric(lambda z: (dy * attention(q, k, z)[0]).sum(), v))

y_library, cache_library = attention_forward(q, k, v)
assert equal(y, y_library)
assert all(equal(a, b) for a, b in zip((dq, dk, dv), attention_backward(dy, cache_library)))

# %% [markdown]
# ## What a mask means for the gradient
#
# **Predict.** Which entries of $dS$ are zero? What is $dq$ at the first position? Which gradient do
# the key and the value of the last position get from the first three rows of $dy$?

# %% alt="P and dS of the first head as 4 x 4 tables with their numbers: every entry above the diagonal is zero in both"
P = cache[3]
figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.5))
for axis, picture, name in zip(axes, (P[0], dS[0].round(2)), ("P", "dS")):
    image = axis.imshow(picture, cmap="PuOr_r", vmin=-1, vmax=1)
    for (i, j), value in np.ndenumerate(picture):
        ink = "white" if value > 0.7 else "black"
        axis.text(j, i, f"{value + 0.0:.2f}", ha="center", va="center", fontsize=9, color=ink)
    axis.set_xticks(range(T))
    axis.set_yticks(range(T))
    axis.set_xlabel("position j that is read")
    axis.set_ylabel("position i that reads")
    axis.set_title(f"{name}, first head")
figure.colorbar(image, ax=axes, shrink=0.85)
plt.show()

future = np.isneginf(M)
assert not dS[:, future].any()
assert np.abs(dq[:, 0]).max() < 1e-15

early = dy.copy()
early[:, -1] = 0  # a loss of the first three positions only
_, dk_early, dv_early, _ = attention_back(early, cache)
assert not dk_early[:, -1].any() and not dv_early[:, -1].any()

# %% [markdown]
# $dS = P\,(\ldots)$ is zero where $P$ is zero: above the diagonal. Backward needs no mask. The
# first position has only one key, so $P_{00} = 1$ for any $q_0$, and $dq_0 = 0$. The loss at early
# positions gives no gradient to later keys and values; a model that looks ahead would fail this
# check.
#
# The sum of each row of $dS$ is zero. A bias $b_k$ of the keys adds the same number to a whole row
# of $S$, so its gradient is always zero.

# %%
assert np.abs(dS.sum(-1)).max() < 1e-14

# %% [markdown]
# ## GELU
#
# The MLP has a linear layer to width $4d$, an activation, and a linear layer back to $d$. The
# activation is GELU, in the tanh form (Hendrycks and Gimpel, 2016):
#
# $$ y = \tfrac12 x\,(1 + t), \quad t = \tanh u, \quad u = c\,(x + k x^3), \qquad
#    y' = \tfrac12 (1 + t) + \tfrac12 x\,(1 - t^2)\, c\,(1 + 3 k x^2) $$

# %%
c, kappa = (2 / np.pi) ** 0.5, 0.044715


def gelu(x):
    t = np.tanh(c * (x + kappa * x**3))
    slope = 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * c * (1 + 3 * kappa * x**2)
    return 0.5 * x * (1 + t), slope


x = rng.standard_normal(20)
assert equal(gelu(x)[1], numeric(lambda v: gelu(v)[0].sum(), x))

# %% [markdown]
# ## Forward
#
# Now the whole model. A block adds to $x$ twice, each time a function of a normalised copy. A last
# LayerNorm and the same $E$ as at the input give the logits, and the loss is the mean of
# $-\log p(\text{target})$.
#
# **Predict.** Which line below creates the largest array? Which line would do so at GPT-2's size,
# $d = 768$ and $V = 50257$?


# %%
def linear(x, w, name):
    return x @ w[f"W_{name}"].T + w[f"b_{name}"]


def forward(w):
    a = {"x0": w["E"][tokens] + w["P"]}
    a["n1"], a["c_1"] = layernorm(a["x0"], w["gamma_1"], w["beta_1"])
    a["q"], a["k"], a["v"] = (linear(a["n1"], w, name) for name in "qkv")
    a["y"], a["c_attention"] = attention(split(a["q"]), split(a["k"]), split(a["v"]))
    a["heads"] = join(a["y"])
    a["x1"] = a["x0"] + linear(a["heads"], w, "o")
    a["n2"], a["c_2"] = layernorm(a["x1"], w["gamma_2"], w["beta_2"])
    a["up"] = linear(a["n2"], w, "up")
    a["bent"], a["slope"] = gelu(a["up"])
    a["x2"] = a["x1"] + linear(a["bent"], w, "down")
    a["nf"], a["c_f"] = layernorm(a["x2"], w["gamma_f"], w["beta_f"])
    a["logits"] = a["nf"] @ w["E"].T
    a["p"] = softmax(a["logits"])
    loss = -np.log(a["p"][np.arange(T), targets]).mean()
    return loss, a


loss, a = forward(w)
for name, value in a.items():
    if isinstance(value, np.ndarray):
        print(f"{name:<8}{value.shape!s}")
print(f"loss {loss:.4f} nats a token; guessing: {np.log(V):.4f}")
largest = max(value.size for value in a.values() if isinstance(value, np.ndarray))
assert largest == a["up"].size == T * 4 * d and 50257 > 4 * 768

# %% [markdown]
# Here the largest arrays are `up`, (T, 4 d), and the outputs of GELU. At GPT-2's size the logits
# are the largest: 50257 numbers per token against 3072.
#
# ## Backward
#
# Read `forward` from bottom to top. Every line has a counterpart in backward:
#
# * loss and softmax together: $dz = (p - \text{onehot}) / T$;
# * a linear layer: $dW = dy^\top x$, $db = \sum dy$, $dx = dy\,W$ (chapter 1);
# * a sum $x + f(x)$: the gradient takes both paths, $dx = dy$ plus the $dx$ of $f$;
# * a value that is used more than once: its gradients add. This holds for $n_1$, which q, k and v
#   use, and for $E$, which is used at both ends.


# %%
def linear_back(dy, x, w, name, g):
    g[f"W_{name}"], g[f"b_{name}"] = dy.T @ x, dy.sum(0)
    return dy @ w[f"W_{name}"]  # dx


def backward(w, a):
    g = {}
    dz = (a["p"] - np.eye(V)[targets]) / T  # (T, V)
    g["E"] = dz.T @ a["nf"]  # (V, d), the head's share
    dx2, g["gamma_f"], g["beta_f"] = layernorm_back(dz @ w["E"], a["c_f"])

    dbent = linear_back(dx2, a["bent"], w, "down", g)  # (T, 4 d)
    dn2 = linear_back(dbent * a["slope"], a["n2"], w, "up", g)  # (T, d)
    dx, g["gamma_2"], g["beta_2"] = layernorm_back(dn2, a["c_2"])
    dx1 = dx2 + dx

    dheads = linear_back(dx1, a["heads"], w, "o", g)
    *dqkv, _ = attention_back(split(dheads), a["c_attention"])
    dqkv = dict(zip("qkv", map(join, dqkv)))
    dn1 = sum(linear_back(dqkv[name], a["n1"], w, name, g) for name in "qkv")
    dx, g["gamma_1"], g["beta_1"] = layernorm_back(dn1, a["c_1"])
    dx0 = dx1 + dx

    g["P"] = dx0
    np.add.at(g["E"], tokens, dx0)  # the embedding's share; token 1 occurs twice
    return g, dqkv, dx0


g, dqkv, dx0 = backward(w, a)
worst = {n: np.abs(g[n] - numeric(lambda z, n=n: forward({**w, n: z})[0], w[n])).max() for n in w}
print(f"{len(worst)} arrays, largest difference from the complex step: {max(worst.values()):.1e}")
assert max(worst.values()) < 1e-14

# %% [markdown]
# All differences are below $10^{-14}$, down to the first weight. The next cell shows that $db_k$ is
# zero.
#
# **Predict.** Tokens 0, 2 and 6 do not occur in the text. Are their rows of $dE$ zero?

# %%
assert np.abs(g["b_k"]).max() < 1e-16
unused = [0, 2, 6]
assert np.abs(g["E"][unused]).min() > 0
dz = (a["p"] - np.eye(V)[targets]) / T
assert equal(g["E"][unused], (dz.T @ a["nf"])[unused])

# %% [markdown]
# No: $E$ is also the head, and the loss lowers the logits of all tokens that are not the target.
# Only the embedding's share is zero.
#
# ## The same from the library
#
# A `GPT` with one block is this model. We copy our weights into it.

# %%
OURS = {"attn.q_proj": "q", "attn.k_proj": "k", "attn.v_proj": "v", "attn.o_proj": "o"}
OURS |= {"mlp.up_proj": "up", "mlp.down_proj": "down"}
names = {"wte.W": "E", "wpe.W": "P"}
names |= {f"h.0.{path}.{kind}": f"{kind}_{ours}" for path, ours in OURS.items() for kind in "Wb"}
for path, ours in (("h.0.ln_1", "1"), ("h.0.ln_2", "2"), ("ln_f", "f")):
    names |= {f"{path}.{kind}": f"{kind}_{ours}" for kind in ("gamma", "beta")}

model = GPT(GPTConfig(V, T, n_layer=1, n_head=heads, d_model=d), rng, dtype=np.float64)
parameters = model.parameters()
assert set(names) == set(parameters)
for path, ours in names.items():
    parameters[path].value[...] = w[ours]

loss_library, cache = model.loss(tokens, targets)
grads = Grads()
model.backward(1.0, cache, grads)
difference = max(np.abs(grads[parameters[path]] - g[ours]).max() for path, ours in names.items())
print(f"loss {loss_library:.4f}, largest difference of a gradient {difference:.1e}")
assert abs(loss_library - loss) < 1e-14 and difference < 1e-14

x2, _ = model.h[0].forward(x0)  # the block alone
assert equal(x2, a["x2"])

# %% [markdown]
# ## Where does LoRA go?
#
# LoRA can adapt any of the linear layers; the paper adapts q and v. All other Parameters are frozen
# and get no $dW$.
#
# **Predict.** Only $A$ and $B$ of q and v are trained. Which lines of `backward` are no longer
# needed? What share of its operations does this save?
#
# At the start, $B = 0$, chapter 4 gives $dB_q = s\,dq^\top (n_1 A^\top)$. We have computed this
# $dq$ above.

# %%
adapted = inject(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]), rng)
loss_adapted, cache = adapted.loss(tokens, targets)
grads = Grads()
adapted.backward(1.0, cache, grads)
assert loss_adapted == loss_library and len(grads) == 4  # A and B, of q and of v
for name in "qv":
    layer = adapted.modules()[f"h.0.attn.{name}_proj"]
    assert equal(grads[layer.B], layer.scale * dqkv[name].T @ (a["n1"] @ layer.A.value.T))
    assert not grads[layer.A].any()

# %% [markdown]
# Not needed are the `dW` and `db` of `linear_back`, all $d\gamma$ and $d\beta$, $dP$ and both
# shares of $dE$. Most `dx` are needed: the path to $dq$ goes through $E$, the last LayerNorm,
# $W_\text{down}$, GELU, $W_\text{up}$, the second LayerNorm, $W_o$ and the softmax, and all weights
# on it are frozen. Below the adapters no gradient is needed, so the `dx` of q, k and v and of the
# first LayerNorm can be left out, and so can $dk$.
#
# The cost of the backward pass, in operations of matrix products for one token:

# %%
full, lora = account(model), account(adapted)
for name, of in (("full", full), ("LoRA, q and v", lora)):
    print(f"{name:<14} trainable {of.trainable:>5}   forward {of.flops.forward:>5}   "
          f"backward {of.flops.backward:>5}")  # fmt: skip
ratio = lora.flops.backward / full.flops.backward
print(f"backward of LoRA / backward of full: {ratio:.2f}")
assert lora.trainable / full.trainable < 0.07 and 0.4 < ratio < 0.6

# %% [markdown]
# Fewer than 7 % of the numbers are trained, but backward still costs about half. The other half was
# the cost of `dW`. The cost that remains is `dx`, which passes through frozen weights.
#
# ## Exercises
#
# 1. Put a single adapter on $W_\text{down}$. Which lines of `backward` are not needed now? Compare
#    `account` for `down_proj` and for `q_proj`, and explain the difference.
# 2. In `attention`, remove the mask, but do not change backward. Does the gradient check still
#    pass? Which of this chapter's assertions fail?
# 3. Derive the gradient of RMSNorm, $y = \gamma\,x / \sqrt{\operatorname{mean}(x^2) + \epsilon}$.
#    Which of the two mean terms remains? How large is the error without it, as a function of $d$?
