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
# # 2. Checking a gradient
#
# **What you'll do.** Differentiate a function numerically in three ways, find the best step size
# for each, and build a checker that finds planted mistakes.
#
# **What you'll learn.** Why a smaller step is not always better, why the complex step is exact, and
# which mistakes no checker can find.
#
# **What you'll need.** Chapter 1, and Taylor series up to the third derivative.

# %%
import matplotlib.pyplot as plt
import numpy as np

from lora_np import check_gradients
from lora_np.ops import linear_backward, linear_forward
from lora_np.plots import BLUE, GREEN, ORANGE

# %% [markdown]
# ## Three ways to differentiate
#
# Our test function is $f(x) = e^{\sin x}$, whose derivative we know: $f'(x) = \cos x\; e^{\sin x}$.
# By Taylor's theorem $f(x+h) = f(x) + h f'(x) + \tfrac{h^2}{2} f''(x) + \tfrac{h^3}{6} f'''(x) + \dots$


# %%
def f(x):
    return np.exp(np.sin(x))


x = 1.0
exact = np.cos(x) * np.exp(np.sin(x))

# %% [markdown]
# **Forward difference.** Solve the series for $f'$. The remainder is about $\tfrac{h}{2} f''$: a
# ten times smaller $h$ makes it ten times smaller.
#
# $$ f'(x) = \frac{f(x+h) - f(x)}{h} + O(h) $$


# %%
def forward_difference(f, x, h):
    return (f(x + h) - f(x)) / h


# %% [markdown]
# **Central difference.** Subtract the series at $-h$. The even terms cancel, and the remainder is
# $\tfrac{h^2}{6} f'''$: a ten times smaller $h$ makes it a hundred times smaller.
#
# $$ f'(x) = \frac{f(x+h) - f(x-h)}{2h} + O(h^2) $$


# %%
def central_difference(f, x, h):
    return (f(x + h) - f(x - h)) / (2 * h)


# %% [markdown]
# **Complex step.** Take a step of length $h$ along the imaginary axis:
# $f(x+ih) = f(x) + ih f'(x) - \tfrac{h^2}{2} f''(x) - \dots$ Its imaginary part is
# $h f'(x) - \tfrac{h^3}{6} f'''(x) + \dots$, so
#
# $$ f'(x) = \frac{\operatorname{Im} f(x+ih)}{h} + O(h^2) $$
#
# Nothing is subtracted. (Squire and Trapp, 1998.)


# %%
def complex_step(f, x, h):
    return f(x + 1j * h).imag / h


# %% [markdown]
# **Predict.** Float64 keeps about 16 digits. How large is the error of each method at
# $h = 10^{-3}$? And at $h = 10^{-12}$?

# %%
print(f"{'':18}{'h = 1e-3':>12}{'h = 1e-12':>12}")
for method in (forward_difference, central_difference, complex_step):
    errors = [abs(method(f, x, h) - exact) for h in (1e-3, 1e-12)]
    print(f"{method.__name__:18}{errors[0]:12.1e}{errors[1]:12.1e}")

# %% [markdown]
# At $10^{-12}$ both differences are inaccurate: $f(x+h)$ and $f(x)$ agree in their first 12 digits,
# these digits cancel, and only the last 4 are left. The rounding error of $f$, about
# $\varepsilon = 2\cdot10^{-16}$, is divided by $h$.
#
# ## Error against step
#
# There are two errors: the remainder of the series grows with $h$, and the rounding error falls
# with $h$. Their sum is smallest where the two are about equal:
#
# | | remainder | rounding | best step | error at that step |
# |---|---|---|---|---|
# | forward | $h$ | $\varepsilon/h$ | $\varepsilon^{1/2} \approx 10^{-8}$ | $\varepsilon^{1/2} \approx 10^{-8}$ |
# | central | $h^2$ | $\varepsilon/h$ | $\varepsilon^{1/3} \approx 6\cdot10^{-6}$ | $\varepsilon^{2/3} \approx 4\cdot10^{-11}$ |
# | complex | $h^2$ | $\varepsilon$ | any below $10^{-8}$ | $\varepsilon$ |

# %% alt="Error of the derivative against step h: forward and central differences make a V, the complex step falls and stays at rounding"
steps = 10.0 ** np.arange(-16, 0.25, 0.25)
methods = {"forward": forward_difference, "central": central_difference, "complex": complex_step}
errors = {k: np.array([abs(m(f, x, h) - exact) for h in steps]) for k, m in methods.items()}

figure, axis = plt.subplots(figsize=(6.8, 4.2))
styles = [(ORANGE, "o", ":"), (BLUE, "s", "--"), (GREEN, "^", "-")]
for (name, error), (colour, marker, dash) in zip(errors.items(), styles):
    shown = np.maximum(error, 1e-17)  # an error of exactly 0 has no logarithm
    axis.loglog(steps, shown, color=colour, marker=marker, ms=4, linestyle=dash, label=name)
axis.set_xlabel("step h")
axis.set_ylabel("error of the derivative")
axis.set_title(r"$f(x) = e^{\sin x}$ at $x = 1$; errors of 0 are drawn at $10^{-17}$")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# The picture shows three facts. The forward difference with its best step, $10^{-8}$, has an error
# below $10^{-7}$, and no step on the grid brings it below $10^{-10}$. The central difference with
# its best step, $6\cdot10^{-6}$, has an error below $10^{-9}$. The complex step's error is below
# $10^{-15}$ for every step below $10^{-8}$.

# %%
assert errors["forward"].min() > 1e-10
assert abs(forward_difference(f, x, 1e-8) - exact) < 1e-7
assert abs(central_difference(f, x, 6e-6) - exact) < 1e-9
assert errors["complex"][steps < 1e-8].max() < 1e-15

# %% [markdown]
# The slopes show the order. On the right, the forward line falls by a factor of 10 for each decade
# of $h$, and the central line by a factor of 100.

# %%
ratio = {k: abs(m(f, x, 1e-2) - exact) / abs(m(f, x, 1e-3) - exact) for k, m in methods.items()}
print({name: round(float(r), 1) for name, r in ratio.items()})
assert 9 < ratio["forward"] < 11 and 95 < ratio["central"] < 105 and 95 < ratio["complex"] < 105

# %% [markdown]
# ## From one number to a layer
#
# The output of a layer is an array. To get a single number, weight the outputs with random numbers
# $dy$: $L = \sum dy \cdot y$. Then $\partial L/\partial y$ is $dy$. Given this $dy$, backward must
# return the derivative of $L$ with respect to every entry of every input.


# %%
def numeric_gradient(L, v, h=6e-6):
    gradient = np.zeros_like(v)
    for index in np.ndindex(v.shape):
        step = np.zeros_like(v)
        step[index] = h
        gradient[index] = (L(v + step) - L(v - step)) / (2 * h)
    return gradient


rng = np.random.default_rng(0)
X, W = rng.standard_normal((5, 3)), rng.standard_normal((4, 3))
dY = rng.standard_normal((5, 4))

_, cache = linear_forward(X, W)
dX, dW, _ = linear_backward(dY, cache)
error_X = np.abs(dX - numeric_gradient(lambda v: (dY * linear_forward(v, W)[0]).sum(), X)).max()
error_W = np.abs(dW - numeric_gradient(lambda v: (dY * linear_forward(X, v)[0]).sum(), W)).max()
print(f"dX: {error_X:.1e}   dW: {error_W:.1e}")
assert max(error_X, error_W) < 1e-8

# %% [markdown]
# `check_gradients` does this for any pair of functions. Its error is relative for large gradients
# and absolute for small ones: $\max\vert a - n\vert \,/\, \max(1, \max \vert n\vert)$.

# %%
print(check_gradients(linear_forward, linear_backward, (X, W), method="central"))
print(check_gradients(linear_forward, linear_backward, (X, W), method="complex"))
assert check_gradients(linear_forward, linear_backward, (X, W), method="complex").max_error < 1e-12

# %% [markdown]
# ## Plant a mistake
#
# **Predict.** Suppose backward sums over only the first four of five samples. All shapes are right.
# Will the program raise an error? Will training fail?


# %%
def forgets_a_sample(dy, cache, need=None):
    dx, _, db = linear_backward(dy, cache)
    return dx, dy[:-1].T @ cache.x[:-1], db


def twice(dy, cache, need=None):
    dx, dW, db = linear_backward(dy, cache)
    return dx, 2 * dW, db


for wrong in (forgets_a_sample, twice):
    report = check_gradients(linear_forward, wrong, (X, W))
    print(f"{wrong.__name__}\n{report}\n")
    assert not report.ok and report.rows[0].error < 1e-7 and report.rows[1].error > 1e-3

# %% [markdown]
# Both run without an error, and training with either of them would still reduce the loss. Only the
# check finds the mistakes, and it reports which gradient is wrong: dX passes, dW does not. It also
# reports that the second dW is 2 times the right one.
#
# ## One number for a whole array
#
# Checking entry by entry costs two evaluations per entry. For a large array, use a random direction
# $v$: the derivative of $L$ along $v$ must be $\sum v \cdot dW$. This costs two evaluations in
# total.
#
# **Predict.** One entry of 40,000 is wrong by 0.01. Does one random direction detect this?

# %%
X, W = rng.standard_normal((5, 200)), rng.standard_normal((200, 200))


def one_entry_off(dy, cache, need=None):
    dx, dW, db = linear_backward(dy, cache)
    dW = dW.copy()
    dW[17, 4] += 0.01
    return dx, dW, db


right = check_gradients(linear_forward, linear_backward, (X, W), method="directional")
wrong = check_gradients(linear_forward, one_entry_off, (X, W), method="directional")
print(right, wrong, sep="\n\n")
assert right.ok and not wrong.ok

# %% [markdown]
# It does. The direction gives this entry a weight $v$ of order 1, so the two sums differ by about
# 0.01, and the sums themselves are a few hundred. The relative difference is far above the
# tolerance of $10^{-7}$.
#
# ## What a checker cannot find
#
# **A kink.** $\max(0, x)$ has no derivative at 0. The central difference returns the middle, 0.5,
# and is wrong on both sides. Draw test points away from kinks.
#
# **A function that is not analytic.** The complex step needs an $f$ that accepts complex numbers
# and is analytic. `abs` drops the imaginary part, and the result is 0.
#
# **A wrong forward.** A checker compares backward with forward. If both are wrong in the same way,
# the check passes. Forward needs a separate test.

# %%
assert central_difference(lambda x: max(0.0, x), 0.0, 1e-6) == 0.5
assert complex_step(lambda x: np.abs(x), 2.0, 1e-30) == 0.0  # the true derivative is 1
mine = check_gradients(
    lambda X, W: (X @ W, X), lambda dy, X, need=None: (dy @ W.T, X.T @ dy), (X, W)
)
assert mine.ok  # yet it computes X W where we wanted X W^T

# %% [markdown]
# ## Exercises
#
# 1. Repeat the error picture in float32. What is the best step now, and how small is the error?
#    First predict both from the table with $\varepsilon = 1.2\cdot10^{-7}$.
# 2. Derive the four-point formula with a remainder of $O(h^4)$, and add it to the picture.
# 3. Write a backward for $y = \tanh(XW^\top)$ with one mistake that is invisible if all entries of
#    $X$ are positive. Which test points would find it?
