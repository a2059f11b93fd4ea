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
# # 15. Images: a diffusion model, a style, and fewer steps
#
# **What you'll do.** Train a diffusion model that draws points of a letter in the plane, then slant
# the letter with LoRA and distill the model into one that draws in a single step. Then do the same
# with images of letters, and add a style and an acceleration that never met in training.
#
# **What you'll learn.** What v-prediction, DDIM and guidance are, what LCM-LoRA is, and which
# measurements show that a picture is good.
#
# **What you'll need.** Chapters 3, 4 and 5. Less than a minute of computing.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

from lora_np import LoraConfig, fit, inject, merge
from lora_np.images import (
    BaseSettings,
    Consistency,
    DistilSettings,
    StyleSettings,
    SvdCodec,
    VPrediction,
    consistency,
    ddim,
    ddpm,
    distil,
    dpm_solver,
    frechet,
    letters,
    mlp_denoiser,
    spread,
    train_base,
    train_judge,
    train_style,
    words_of,
)
from lora_np.images.folder import load_base
from lora_np.images.judge import load_judge
from lora_np.images.schedule import eps_of, v_of, x0_of, z_of
from lora_np.images.training import Mixed, Neighbours
from lora_np.layers import Layer, copy_model
from lora_np.methods import adapters
from lora_np.plots import BLUE, GREY, ORANGE
from lora_np.train import MovingAverage

one_thread = threadpool_limits(1)  # products this small are not faster on two threads

# %% [markdown]
# ## A letter in the plane
#
# Our first "images" have two numbers each: they are points $x_0$ of the plane that lie on the ink
# of a letter R. A model of these images is a way to draw more such points, and we can see all of
# it.

# %%
drawn = letters(np.random.default_rng(3), 1, "bold", size=64, of="R", families=["sans"])
ink = drawn.images[0] > 0  # (64, 64)
rows, columns = np.nonzero(ink)
centre = np.array([columns.mean() + 0.5, -rows.mean() - 0.5])
unit = np.sqrt((columns.var() + rows.var()) / 2)  # pixels, so that the points have variance 1


def points(rng, n):
    """Return n points (n, 2) on the ink."""
    i = rng.integers(0, len(rows), n)
    xy = np.stack([columns[i] + rng.random(n), -rows[i] - rng.random(n)], axis=1)
    return ((xy - centre) / unit).astype(np.float32)


def share_on_ink(z):
    """Return the share of points that lie on the ink."""
    x, y = np.floor((z * unit + centre) * (1, -1)).astype(int).T
    inside = (x >= 0) & (x < 64) & (y >= 0) & (y < 64)
    return ink[y[inside], x[inside]].sum() / len(z)


x0 = points(np.random.default_rng(0), 20_000)
noise = np.random.default_rng(1).standard_normal(x0.shape, np.float32)
print(f"on the ink: data {share_on_ink(x0):.2f}, noise {share_on_ink(noise):.2f}")
assert share_on_ink(x0) == 1 and 0.5 < share_on_ink(noise) < 0.65

# %% [markdown]
# The letter covers much of the place where noise falls: 0.58 is the floor of this measure.
#
# ## A quarter of a circle
#
# Noise is easy to draw. A diffusion model learns the way from noise $\epsilon$ back to $x_0$. At
# the time $t$, from 0 to 1, both are mixed:
#
# $$ z = \alpha x_0 + \sigma \epsilon , \qquad
#    \alpha = \cos\frac{\pi t}{2} , \quad \sigma = \sin\frac{\pi t}{2} . $$
#
# Since $\alpha^2 + \sigma^2 = 1$, the weights $(\alpha, \sigma)$ run along a quarter of a circle,
# and $z$ runs from $x_0$ to $\epsilon$. Its velocity by the angle is
# $v = \alpha \epsilon - \sigma x_0$. From $z$ and $v$ one turns back, $x_0 = \alpha z - \sigma v$
# and $\epsilon = \sigma z + \alpha v$, with no division.
#
# **Predict.** The points and the noise both have variance 1. What is the variance of $z$ at
# $t = 0.5$, and that of $v$?

# %%
for t in (0.0, 0.25, 0.5, 0.75, 1.0):
    z, v = z_of(x0, noise, t), v_of(x0, noise, t)
    print(f"t = {t:.2f}  variance of z {z.var():.2f}, of v {v.var():.2f}")
    assert abs(z.var() - 1) < 0.03 and abs(v.var() - 1) < 0.03
    assert np.allclose(x0_of(z, v, t), x0, atol=1e-5)
    assert np.allclose(eps_of(z, v, t), noise, atol=1e-5)

# %% [markdown]
# Both are 1 at all times: picture and noise are independent, so the variances of their parts add up
# to $\alpha^2 + \sigma^2$. A network whose inputs and targets always have the same size is easy to
# train.


# %% alt="Four clouds of points: at t = 0 the letter R, at 0.3 a blurred R, at 0.6 a cloud that shows it faintly, at 1 noise. Five points are followed over all times on arcs from the letter into the noise"
def panels():
    """Return a figure and four axes beside each other."""
    return plt.subplots(1, 4, figsize=(8, 2.6), layout="constrained", sharex=True, sharey=True)


def dots(axis, z, title, color=BLUE):
    """Draw the first points of z."""
    axis.plot(*z[:900].T, ".", color=color, markersize=1.5)
    axis.set(title=title, xlim=(-3.1, 3.1), ylim=(-3.1, 3.1), aspect="equal")


_, axes = panels()
times = np.linspace(0, 1, 50)
for axis, t in zip(axes, (0.0, 0.3, 0.6, 1.0)):
    dots(axis, z_of(x0, noise, t), f"t = {t}")
    for i in range(5):
        way = np.array([z_of(x0[i], noise[i], float(s)) for s in times])
        axis.plot(*way.T, color=ORANGE, linewidth=1)
        axis.plot(*z_of(x0[i], noise[i], t), "o", color=ORANGE, markeredgecolor="black")
plt.show()

# %% [markdown]
# ## A denoiser
#
# The denoiser sees $z$ and $t$, and is trained to predict $v$ by least squares. It is a residual
# network of three blocks. The time steers each block: a small network turns $t$ into a scale, a
# shift and a gate (adaLN-zero). The library's denoiser also sees the words of a prompt, which we
# leave out for now: the words (26, 3) name no letter and no family.
#
# Every block normalises its input first, and a normalised vector forgets its length: without
# biases, all points on a ray from the origin would look alike. So we draw large biases for the
# first layer.


# %%
def denoiser_of_points(rng):
    """Return an untrained denoiser for points of the plane."""
    denoiser = mlp_denoiser(rng, k=2, d=64, d_hidden=128, n_block=3, d_c=32)
    first = denoiser.body.in_proj
    first.W.value *= 3
    first.b.value[...] = 3 * rng.standard_normal(first.b.shape)
    return denoiser


no_words = np.tile([26, 3], (20_000, 1))
rng = np.random.default_rng(0)
model = denoiser_of_points(rng)
batches = Mixed(x0, no_words, 512, rng)  # draws points, noise and times
history = fit(VPrediction(model), batches, steps=1500, lr=6e-3, warmup=50, clip=None)
print(f"loss: {history.loss[0]:.3f} at first, {np.mean(history.loss[-100:]):.3f} at the end")

# %% [markdown]
# **Predict.** The loss of an answer that is always 0 is the variance of $v$, 1. The trained
# denoiser's loss is hardly smaller. Has it learned nothing? At which times can nobody do better
# than 1: near $t = 0$, near $t = 1$, at both, or at neither?

# %%
loss = {}
for t in (0.02, 0.2, 0.4, 0.6, 0.8, 0.98):
    z, v = z_of(x0, noise, t), v_of(x0, noise, t)
    guess, _ = model.forward(z, np.full(len(z), t, np.float32), no_words)
    loss[t] = ((guess - v) ** 2).mean()
    print(f"t = {t:.2f}  loss {loss[t]:.3f}")
assert loss[0.2] < 0.9 < 0.96 < min(loss[0.02], loss[0.98])

# %% [markdown]
# At both. At $t = 0$ one sees $z = x_0$ and has to guess $v = \epsilon$; at $t = 1$ one sees
# $z = \epsilon$ and has to guess $v = -x_0$. There, what one has to guess is independent of what
# one sees. All that the denoiser can learn lies in between, where many pairs of picture and noise
# give the same $z$, and the best answer is the mean of their $v$.
#
# ## Samplers
#
# The means are enough to draw points: follow the field of mean velocities from noise at $t = 1$ to
# $t = 0$. DDIM goes in steps. At $t$, the denoiser's $v$ gives $x_0$ and $\epsilon$, and DDIM mixes
# these again for a smaller time $t'$: $z' = \alpha' x_0 + \sigma' \epsilon$. DPM-Solver goes the
# same way, and also uses how $x_0$ changed since the last step. DDPM replaces a part of $\epsilon$
# by fresh noise in each step.


# %%
class Watched(Layer):
    """A denoiser that keeps all z that it is asked about."""

    def __init__(self, denoiser):
        self.denoiser, self.k, self.seen = denoiser, denoiser.k, []

    def forward(self, z, t, words, rng=None):
        """Return what the denoiser does."""
        self.seen.append(z)
        return self.denoiser.forward(z, t, words, rng)


def draw(sampler, denoiser, steps, n=3000):
    """Return points (n, 2); the noise at the start is always the same."""
    return sampler(denoiser, no_words[:n], steps=steps, rng=np.random.default_rng(5))


ways = {}
for name, sampler, steps in (("DDIM", ddim, 50), ("DDIM", ddim, 5), ("DDPM", ddpm, 50)):
    watched = Watched(model)
    end = draw(sampler, watched, steps)
    ways[f"{name}, {steps} steps"] = np.array([*watched.seen, end])  # (steps + 1, n, 2)
    print(f"{name} with {steps:>2} steps: {share_on_ink(end):.2f} on the ink")

# %% alt="Left, arrows show which way the sampler goes at t = 0.5: from outside toward the strokes of the R. Then the points and ten paths of DDIM with 50 steps, smooth curves; of DDIM with 5 steps, nearly the same curves as polygons; and two crooked paths of DDPM with 50 steps. All end in an R"
_, axes = panels()
x, y = np.meshgrid(np.linspace(-2.6, 2.6, 17), np.linspace(-2.6, 2.6, 17))
grid_points = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)
field, _ = model.forward(grid_points, np.full(17 * 17, 0.5, np.float32), no_words[: 17 * 17])
dots(axes[0], x0, "-v at t = 0.5", color="#BBBBBB")
axes[0].quiver(*grid_points.T, *-field.T, color=BLUE, width=0.006)
start = ways["DDIM, 5 steps"][0]
outside = np.flatnonzero(np.linalg.norm(start, axis=1) > 1.7)  # their paths are long
for axis, (name, way) in zip(axes[1:], ways.items()):
    dots(axis, way[-1], name)
    some = outside[: 2 if "DDPM" in name else 10]
    axis.plot(way[:, some, 0], way[:, some, 1], color=ORANGE, linewidth=1)
    axis.plot(*way[0, some].T, "o", color=ORANGE, markeredgecolor="black", markersize=4)
plt.show()

# %% [markdown]
# The start decides each path of DDIM. So we can measure how far from the end of very many steps a
# few steps end.
#
# **Predict.** DDIM's error falls like one over the number of steps, DPM-Solver's like one over its
# square. By which factor does each error fall from 8 to 32 steps?

# %%
exact = draw(dpm_solver, model, 200)
print("steps     DDIM  DPM-Solver")
off = {}
for steps in (4, 8, 16, 32):
    for sampler in (ddim, dpm_solver):
        gap = draw(sampler, model, steps) - exact
        off[sampler, steps] = np.sqrt((gap**2).sum(axis=1)).mean()
    print(f"{steps:>5}{off[ddim, steps]:>9.3f}{off[dpm_solver, steps]:>12.3f}")
fell = {sampler: off[sampler, 8] / off[sampler, 32] for sampler in (ddim, dpm_solver)}
print(f"from 8 to 32 steps: DDIM by {fell[ddim]:.1f}, DPM-Solver by {fell[dpm_solver]:.1f}")
assert all(off[dpm_solver, n] < off[ddim, n] for n in (8, 16, 32))
assert 3 < fell[ddim] < 5 and fell[dpm_solver] > 6
assert off[dpm_solver, 8] < off[ddim, 16]

# %% [markdown]
# The rules say 4 and 16; they hold once the steps are small. In 8 steps, DPM-Solver comes nearer
# than DDIM does in 16.
#
# ## A style is an adapter
#
# We want a slanted R, and have 300 points of one. LoRA with rank 4 goes on the linear layers
# of all blocks of the denoiser, which is frozen.
#
# **Predict.** Let $\lambda$ be the weight of the adapter, $W_0 + \lambda s B A$. Training had
# $\lambda = 1$. What does the model draw with $\lambda = 0$, with 0.5, and with 2?

# %%
SHEAR = np.array([[1, 0], [0.5, 1]], np.float32)  # x + 0.5 y, y
few = points(np.random.default_rng(6), 300) @ SHEAR
inside = ["up_proj", "down_proj", "mod"]  # the linear layers of a block; mod makes scale and shift
rng = np.random.default_rng(0)
slanted = inject(model, LoraConfig(r=4, lora_alpha=4, target_modules=inside), rng)
batches = Mixed(few, no_words, 256, rng)
fit(VPrediction(slanted), batches, steps=300, lr=5e-3, warmup=20, clip=None)
trained = sum(p.size for p in slanted.parameters().values() if p.trainable)
print(f"{trained:,} parameters trained of {sum(p.size for p in model.parameters().values()):,}")


def changed(base, *terms):
    """Return the base with W0 + sum of weight s B A; each term is an adapted model and a weight."""
    model = copy_model(base)
    layers = model.modules()
    for adapted, weight in terms:
        for path, adapter in adapters(adapted).items():
            layers[path].W.value += weight * adapter.delta()
    return model


def slant(z):
    """Return the slope of x by y, by least squares."""
    x, y = (z - z.mean(axis=0)).T
    return (x @ y) / (y @ y)


ends, slants = {}, {}
for weight in (0.0, 0.5, 1.0, 2.0):
    ends[weight] = draw(ddim, changed(model, (slanted, weight)), 50)
    slants[weight] = slant(ends[weight])
    print(f"weight {weight}: slope {slants[weight]:+.2f}")
print(f"points: slope {slant(x0):+.2f} upright, {slant(x0 @ SHEAR):+.2f} slanted")
assert np.array_equal(ends[0.0], draw(ddim, model, 50))
assert np.allclose(ends[1.0], draw(ddim, merge(slanted), 50), atol=1e-2)
assert slants[0.0] < slants[0.5] < slants[1.0]
assert abs(slants[1.0] - slant(x0 @ SHEAR)) < 0.15

# %% alt="Four clouds of points: with weight 0 an upright R, with 0.5 a slightly slanted one, with 1 the slanted R, with 2 a letter that is slanted further and has begun to fall apart"
_, axes = panels()
for axis, (weight, z) in zip(axes, ends.items()):
    dots(axis, z, f"weight {weight}")
plt.show()

# %% [markdown]
# With 0 the model is the base, entry by entry. With 0.5 the slant lies between that of the base and
# that of the adapted model, and with 2 the model goes on in the same direction, where nobody
# trained it.
#
# ## One step
#
# Fifty steps are fifty evaluations of the denoiser. Let $f(z, t) = \alpha z - \sigma v(z, t)$ be
# the $x_0$ that it predicts. A *consistency model* has the same $f$ at all points of one path, so
# that one evaluation at the start gives the end. Distillation makes our denoiser into such a model.
# The denoiser is the *teacher*. From $z$ at $t$ it goes one small step to $z'$ at $t'$, and the
# *student* learns
#
# $$ f(z, t) = f'(z', t') , $$
#
# where $f'$ is a moving average of the student and has no gradient. At $t = 0$ nothing has to be
# learned, since $f(z, 0) = z$. From there the right answers spread to larger times.
#
# The student is the teacher with an adapter, here of rank 16. This is LCM-LoRA (Luo et al., 2023).
#
# **Predict.** One step of the teacher gives $x_0$ at $t = 1$ too. What will its 3000 points look
# like, and how many lie on the ink?

# %%
rng = np.random.default_rng(0)
student = inject(model, LoraConfig(r=16, lora_alpha=16, target_modules=inside), rng)
average = MovingAverage(student, 0.95)
batches = Neighbours(x0, no_words, 256, rng, 16, (1.0, 1.0))  # 16 steps of the teacher, guidance 1
objective = Consistency(student, model, average)
fit(objective, batches, steps=1500, lr=5e-3, warmup=20, clip=None, after_step=average.update)

one = {
    "base, 1 step": draw(consistency, model, 1),
    "base, 4 steps": draw(consistency, model, 4),
    "distilled, 1 step": draw(consistency, student, 1),
    "distilled, 4 steps": draw(consistency, student, 4),
}
print(f"{'data':<19} on the ink 1.00, spread {x0.std():.2f}")
for name, z in one.items():
    print(f"{name:<19} on the ink {share_on_ink(z):.2f}, spread {z.std():.2f}")
assert one["base, 1 step"].std() < 0.1 < 0.8 < one["distilled, 1 step"].std()
assert share_on_ink(one["distilled, 1 step"]) > share_on_ink(noise) + 0.15

# %% alt="Four clouds of points: the base in one step gives a small spot in the middle, the base in four steps a filled and narrow R, the distilled model an R in one step and in four"
_, axes = panels()
for axis, (name, z) in zip(axes, one.items()):
    dots(axis, z, name)
plt.show()

# %% [markdown]
# The base draws a small spot in the middle. At $t = 1$ nothing is known of the point, and the best
# answer is the mean of the whole letter. The spot happens to lie on the ink, and so *all* its
# points do: the share on the ink says nothing without the *spread*. A second control is the
# sampler: consistency sampling adds noise after each step and removes it again, and in 4 steps the
# base gains much by it without any distillation. The student draws an R in one step, with a foot
# that is too short.
#
# ## Images, and what "latent" means
#
# Now to images of letters, 16 by 16 pixels, in three families of fonts. "Latent" diffusion models
# draw in a smaller space, and an autoencoder leads there and back. The best *linear* autoencoder
# with $k$ numbers has been known since 1936: it is chapter 3's SVD, here of the matrix with one
# image in each row.
#
# **Predict.** Two plain alternatives keep 64 numbers too: the means of 2 by 2 pixels, and the
# products with 64 random directions. How much of the energy does each of the three keep?

# %%
regular = letters(np.random.default_rng(0), 4000).images
fresh = letters(np.random.default_rng(1), 1000).images
codec = SvdCodec.fit(regular, 64)
flat = (fresh - codec.mean).reshape(len(fresh), -1)  # (n, 256)


def kept(basis):
    """Return the share of the energy that the projection on orthonormal rows (k, 256) keeps."""
    return ((flat @ basis.T) ** 2).sum() / (flat**2).sum()


blocks = np.zeros((8, 8, 16, 16))
for i, j in np.ndindex(8, 8):
    blocks[i, j, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = 0.5
aimless = np.linalg.qr(np.random.default_rng(2).standard_normal((256, 64)))[0].T
shares = {
    "singular vectors": kept(codec.basis),
    "means of 2 x 2": kept(blocks.reshape(64, 256)),
    "random directions": kept(aimless),
}
for name, share in shares.items():
    print(f"{name:<18} {share:.3f}")
assert np.isclose(codec.energy(fresh), shares["singular vectors"], atol=1e-4)
assert shares["singular vectors"] > 0.95 > shares["means of 2 x 2"] > shares["random directions"]

# %% alt="Left, the share of energy kept against k: it rises to 0.9 within about 25 of 256 numbers for regular letters, and more slowly for outlines. Right, a letter and its reconstructions with 4, 16 and 64 numbers"
figure, axes = plt.subplots(
    1, 5, figsize=(9, 2.4), layout="constrained", width_ratios=[2.4, 1, 1, 1, 1]
)
most = SvdCodec.fit(regular, 255)
outlines = letters(np.random.default_rng(1), 1000, "outline").images
for name, images, style in (("regular", fresh, "-"), ("outlines", outlines, "--")):
    energy = (most.encode(images) ** 2).sum(axis=0) * most.scale**2  # (255,)
    total = ((images - most.mean) ** 2).sum()
    axes[0].plot(range(1, 256), energy.cumsum() / total, style, color=BLUE, label=name)
axes[0].axvline(64, color=GREY, linewidth=0.8)
axes[0].set(xlabel="k", ylabel="share of energy", ylim=(0, 1.02))
axes[0].legend(frameon=False, loc="lower right")
for axis, k in zip(axes[1:], (4, 16, 64, 256)):
    few_numbers = SvdCodec.fit(regular, k) if k < 256 else None
    image = few_numbers.decode(few_numbers.encode(fresh[:1]))[0] if few_numbers else fresh[0]
    axis.imshow(image, cmap="gray_r", vmin=-1, vmax=1)
    axis.set_title(f"k = {k}" if few_numbers else "the image", fontsize=10)
    axis.axis("off")
plt.show()

# %% [markdown]
# The singular vectors keep the most: a theorem says so for the images that they were fitted to, and
# here they do on fresh images too. But they are made for regular letters: outlines lose more. A
# style that the codec, our pair of encoder and decoder, cannot hold cannot be drawn, whatever the
# adapter does.
#
# ## A small base, and prompts
#
# The base learns from 6,000 regular letters, in 64 latents. It is *small*: it trains for a few
# seconds. `docs/images.md` has a base that is meant to be good, with all measurements over three
# seeds; ours shows the same effects on one seed.
#
# A prompt names a letter, a family, both or neither. In training, each word is left out of a
# fifth of the prompts. So one denoiser predicts both $v_\text{words}$ and $v_\text{none}$, and
# *guidance* with weight $w$ goes from the second through the first and beyond:
#
# $$ v = v_\text{none} + w\,(v_\text{words} - v_\text{none}) . $$
#
# The judge is a small network that reads letter, family and style. It also supplies features for
# the Fréchet distance (FD) of two sets of images. FD depends on the number of images, so it stands
# beside its floor: the FD between two sets of as many *true* images.

# %%
sizes = {"k": 64, "d": 96, "d_hidden": 192, "n_block": 3, "d_c": 64}
recipe = {"images": 6000, "batch": 128, "processes": 1}
settings = BaseSettings(**sizes, **recipe, steps=2500, lr=6e-3)
made = Path("image_base")  # the same base and judge, trained beforehand for readers in a browser
if made.exists():
    base, judge = load_base(made), load_judge(made / "judge.npz")
else:
    base = train_base(np.random.default_rng(0), settings)
    judge = train_judge(np.random.default_rng(9), n=3000, steps=1000)
SEEN, UNSEEN = "ACEGIKMOQSUWY", "BDFHJLNPRTVXZ"
FAMILIES, STYLES = ("sans", "serif", "mono"), ("regular", "bold")


def prompts(of, each=12):
    """Return the words of every letter in every family, `each` times."""
    named = [words_of(f"{family} {letter}") for letter in of for family in FAMILIES]
    return np.repeat(named, each, axis=0)  # (n, 2)


def draw_images(sampler, denoiser, words, steps, guidance=1.0):
    """Return images (n, 16, 16); the noise at the start is always the same."""
    rng = np.random.default_rng(5)
    z = sampler(denoiser, words, steps=steps, rng=rng, guidance=guidance)
    return base.codec.decode(z)


def measured(images, words, style="regular", of=SEEN + UNSEEN):
    """Return the shares of right letters and styles, the spread, FD."""
    truth = letters(np.random.default_rng(6), len(words), style, of=of).images
    return {
        "letter": (judge.letters(images).argmax(axis=1) == words[:, 0]).mean(),
        "style": (judge.styles(images).argmax(axis=1) == STYLES.index(style)).mean(),
        "spread": spread(images, words),
        "FD": frechet(judge.features(images), judge.features(truth)),
    }


def report(name, images, words, style="regular", of=SEEN + UNSEEN):
    """Print and return what is measured."""
    found = measured(images, words, style, of)
    print(f"{name:<30}", *(f"{key} {value:6.3f} " for key, value in found.items()))
    return found


everything = prompts(SEEN + UNSEEN)
true = letters(np.random.default_rng(8), len(everything))
floor = report("true images", true.images, true.words)
by_steps = {}
for name, sampler in (("DDIM", ddim), ("DPM-Solver", dpm_solver)):
    for steps in (1, 4, 20):
        images = draw_images(sampler, base.denoiser, everything, steps)
        by_steps[name, steps] = report(f"{name}, {steps} steps", images, everything)
assert by_steps["DDIM", 20]["letter"] > 0.95
assert by_steps["DDIM", 20]["FD"] < 0.4 * by_steps["DDIM", 1]["FD"]
assert by_steps["DPM-Solver", 4]["FD"] < by_steps["DDIM", 4]["FD"]

# %% [markdown]
# The row to learn from is DDIM with one step: *all* letters are right, and the images are bad. They
# are means, sharp enough for a judge, and nearly the same for all noise, as their spread shows. So
# never report a share of right letters alone.
#
# **Predict.** What does guidance 0 draw if the prompt says "serif R"? And guidance 4: better
# letters, or something else?

# %%
by_weight = {}
for weight in (0.0, 1.0, 1.5, 4.0):
    images = draw_images(ddim, base.denoiser, everything, 20, weight)
    by_weight[weight] = report(f"DDIM, 20 steps, guidance {weight}", images, everything)
assert by_weight[0.0]["letter"] < 0.1 and by_weight[1.5]["letter"] > 0.97
assert by_weight[4.0]["style"] < by_weight[1.0]["style"]
assert by_weight[4.0]["FD"] > by_weight[1.0]["FD"] > by_weight[1.5]["FD"]

# %% alt="Four rows of eight images. Guidance 0: other letters than those of the prompts. Guidance 1: the letters LORA in sans and in serif, with blemishes. Guidance 1.5: the same, darker. Guidance 4: the same letters with bold strokes"
LORA = np.array(
    [words_of(f"{family} {letter}") for family in ("sans", "serif") for letter in "LORA"]
)


def show(rows):
    """Show rows of images, with a name for each row."""
    n = len(next(iter(rows.values())))
    _, axes = plt.subplots(
        len(rows), n, figsize=(9, 0.95 * len(rows)), layout="constrained", squeeze=False
    )
    for line, (name, images) in zip(axes, rows.items()):
        for axis, image in zip(line, images):
            axis.imshow(image, cmap="gray_r", vmin=-1, vmax=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    plt.show()


show(
    {
        f"guidance {weight}": draw_images(ddim, base.denoiser, LORA, 20, weight)
        for weight in (0.0, 1.0, 1.5, 4.0)
    }
)

# %% [markdown]
# Guidance 0 ignores the words: letters are right as often as by chance. 1.5 makes the letters of
# this small base a little clearer, and lowers FD; the larger base of `docs/images.md` is nearest to
# true letters at 1. 4 exaggerates what distinguishes a letter, and the strokes become bold.
#
# ## A style from few images
#
# The style is bold. The adapter sees 117 bold images, of 13 letters only: A, C, E and so on.
#
# **Predict.** Which letters will be bold when the adapter draws B, D and F, which it has never seen
# in bold?

# %%
rng = np.random.default_rng(1)
lora = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear")
settings = StyleSettings(style="bold", images=117, of=SEEN, steps=200, batch=128, lr=5e-3)
bold = train_style(base, lora, rng, settings)
trained = sum(p.size for p in bold.parameters().values() if p.trainable)
print(f"{trained:,} parameters of {sum(p.size for p in base.denoiser.parameters().values()):,}")
by_style = {}
for kind, of in (("seen", SEEN), ("unseen", UNSEEN)):
    words = prompts(of)
    for weight in (0.0, 1.0, 1.5):
        images = draw_images(ddim, changed(base.denoiser, (bold, weight)), words, 20)
        by_style[kind, weight] = report(f"{kind}, weight {weight}", images, words, "bold", of)
assert by_style["seen", 1.0]["style"] > 0.9 and by_style["unseen", 0.0]["style"] < 0.05
assert by_style["unseen", 0.0]["FD"] > by_style["unseen", 1.0]["FD"]
assert by_style["unseen", 1.5]["style"] > by_style["unseen", 1.0]["style"] > 0.3

# %% [markdown]
# Fewer than half of the unseen ones. The adapter has learned a change of strokes, not 13 letters,
# but the change carries over only in part. A weight above 1 carries it further, at the cost of some
# letters. A style is measured on letters that it never saw: on the others, memory would do.
#
# ## An acceleration that is added
#
# LCM-LoRA is distilled from the base. It knows nothing of bold. Both adapters are changes of the
# same frozen weights, so their sum is defined:
#
# $$ W_0 + \lambda_1\, s_1 B_1 A_1 + \lambda_2\, s_2 B_2 A_2 . $$
#
# **Predict.** First, regular letters in one step: how does LCM-LoRA change the spread and FD of
# the one-step images above?

# %%
rng = np.random.default_rng(2)
lora = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear")
settings = DistilSettings(**recipe, guidance=(1.0, 1.0), grid=32, decay=0.95, steps=400, lr=1e-3)
fast = distil(base, lora, rng, settings)
by_speed = {}
for name, denoiser in (("base", base.denoiser), ("LCM-LoRA", fast)):
    for steps in (1, 2, 4):
        images = draw_images(consistency, denoiser, everything, steps)
        by_speed[name, steps] = report(f"{name}, {steps} steps", images, everything)
assert by_speed["LCM-LoRA", 1]["FD"] < 0.7 * by_speed["base", 1]["FD"]
assert by_speed["LCM-LoRA", 1]["spread"] > 2 * by_speed["base", 1]["spread"]
assert by_speed["LCM-LoRA", 4]["FD"] < by_speed["base", 4]["FD"]

# %% [markdown]
# One step of the base gives the same blur as before. Its 4 steps of consistency sampling are a
# control that must not be forgotten: they go most of the way without any distillation.
#
# **Predict.** Now both, in 2 steps, on letters that the style has never seen. Does the sum keep the
# style? And does it need LCM-LoRA, or does the sampler alone do it?

# %%
words = prompts(UNSEEN)
both = changed(base.denoiser, (bold, 1.0), (fast, 1.0))
rows = {
    "style, DDIM, 20 steps": (ddim, bold, 20),
    "style, DDIM, 2 steps": (ddim, bold, 2),
    "style, consistency, 2": (consistency, bold, 2),
    "LCM-LoRA": (consistency, fast, 2),
    "style + LCM-LoRA": (consistency, both, 2),
    "1.25 style + LCM-LoRA": (consistency, changed(base.denoiser, (bold, 1.25), (fast, 1.0)), 2),
}
added = {}
for name, (sampler, denoiser, steps) in rows.items():
    images = draw_images(sampler, denoiser, words, steps)
    added[name] = report(name, images, words, "bold", UNSEEN)
assert added["style + LCM-LoRA"]["spread"] > 1.25 * added["style, consistency, 2"]["spread"]
assert added["style + LCM-LoRA"]["FD"] < added["style, consistency, 2"]["FD"]
assert added["style + LCM-LoRA"]["FD"] < added["style, DDIM, 2 steps"]["FD"]
assert added["LCM-LoRA"]["style"] < 0.1 < added["style + LCM-LoRA"]["style"]
assert added["1.25 style + LCM-LoRA"]["FD"] < added["style + LCM-LoRA"]["FD"]

# %% alt="Six rows of the letters BDFHLNPR in sans. The style with 20 steps of DDIM, and with 2 steps of DDIM and of the consistency sampler, draws them bold; LCM-LoRA alone draws them thin; the sum of style and LCM-LoRA draws them bold, and with weight 1.25 of the style bolder, with blemishes"
unseen = np.array([words_of(f"sans {letter}") for letter in "BDFHLNPR"])
show(
    {
        name: draw_images(sampler, denoiser, unseen, steps)
        for name, (sampler, denoiser, steps) in rows.items()
    }
)

# %% [markdown]
# The sum draws in two steps what neither adapter draws alone. Without LCM-LoRA, two steps give
# smooth means again, with either sampler. Without the style, nothing is bold. Nothing was trained
# to make the two fit together: that the sum works is a measurement, not a theorem. More weight on
# the style lowers FD.
#
# ## What to remember
#
# * The weights of picture and noise run along a quarter of a circle, and $v$ is the velocity of the
#   mixture: $x_0$ and $\epsilon$ follow from $z$ and $v$ without a division.
# * A denoiser gives means. A sampler turns means into samples, in many steps, since one step gives
#   only a mean. A distilled model predicts the end of a path in one evaluation.
# * A style and an acceleration are adapters: they can be weighted, merged and added.
# * Right letters alone prove nothing. Beside them stand the spread, FD with its floor, the letters
#   never shown, and the sampler without the adapter.
#
# The images here are deliberately small: grey, 16 by 16, an SVD in place of a trained autoencoder,
# two words in place of a text encoder. `lora-np images` trains larger models of them, and
# `docs/images.md` measures these models.
#
# ## Exercises
#
# 1. Train the points' student without the moving average: `MovingAverage(student, 0.0)` is the
#    student itself. Predict the spread of its one-step points, then measure it, also with a
#    learning rate of `1e-2`.
# 2. Add the slant and the acceleration of the points: `changed(model, (slanted, 1), (student, 1))`
#    in one step. Measure the slope and the share on the sheared ink, and find the pair of weights
#    that is best on fresh noise.
# 3. Train the style "outline" in place of "bold". First predict, from the energy that the codec
#    keeps, whether `train_style` accepts it. If it refuses, which $k$ does it ask for, and why do
#    outlines need more?
