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
# # 14. What a mixed batch costs, and why
#
# **What you'll do.** Give every row of a batch its own adapter, in three ways. Count what that
# costs. Train three adapters in one batch. Break a model that two requests share, and repair it.
# Then watch an engine serve requests for all adapters at once.
#
# **What you'll learn.** Why a mixed batch costs a few percent, why many distinct adapters cost more
# than one, and why neither merging nor switching can do the same.
#
# **What you'll need.** Chapters 4 and 5. A quarter of a minute of computing.

# %%
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

from lora_np import Llama, LlamaConfig, LoraConfig, fit, inject, save_adapter
from lora_np.methods import Together
from lora_np.ops import Rows, lora_rows_forward
from lora_np.ops.fast import lora_rows_forward as segments_of_the_library
from lora_np.plots import BLUE, GREEN, GREY, ORANGE, PURPLE
from lora_np.serve import Engine
from lora_np.serve.engine import OVERTAKEN

one_thread = threadpool_limits(1)  # products this small are not faster on two threads
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## One layer, an adapter for each row
#
# A server has one base and many adapters, and its requests name the adapters that they want. Row
# $i$ of a batch wants the adapter $a_i$:
#
# $$ y_i = W_0 x_i + s\, B_{a_i} A_{a_i} x_i . $$
#
# An article says that such a batch must be worked through task by task. The plainest program takes
# even smaller parts, one row after the other.

# %%
d, r, n, s = 512, 8, 64, 2.0
rng = np.random.default_rng(0)
W0 = rng.standard_normal((d, d)) / d**0.5  # (out, in)
factors = [(rng.standard_normal((r, d)) / d**0.5, rng.standard_normal((d, r))) for _ in range(n)]
x = rng.standard_normal((n, d))  # (n, in)
ids = rng.integers(0, 8, n)  # (n,): 64 rows for 8 adapters
print("the adapters of the first rows:", *ids[:12])


def looped(x, W0, factors, ids):
    """Return y (n, out), one row after the other."""
    pairs = [factors[i] for i in ids]
    return np.array([W0 @ x_i + s * B @ (A @ x_i) for x_i, (A, B) in zip(x, pairs)])


# %% [markdown]
# $W_0$ is the same in every row, so one product with all rows can replace 64. The adapters differ,
# but they too can be *gathered*: copied side by side, one for each row, and multiplied row by row.


# %%
def gathered(x, W0, factors, ids):
    """Return y (n, out), with a copy of A and B for each row."""
    A = np.stack([factors[i][0] for i in ids])  # (n, r, in)
    B = np.stack([factors[i][1] for i in ids])  # (n, out, r)
    u = A @ x[:, :, None]  # (n, r, 1)
    return x @ W0.T + s * (B @ u)[:, :, 0]


# %% [markdown]
# Rows that share an adapter need no copies. Sorted by adapter, they lie in *segments*, and each
# segment is multiplied with its $A$ and $B$ where these lie. Punica (Chen et al., 2023) calls this
# SGMV, and S-LoRA (Sheng et al., 2023) serves thousands of adapters with similar products.


# %%
def segmented(x, W0, factors, ids):
    """Return y (n, out), one segment of rows after the other."""
    order = np.argsort(ids, kind="stable")
    sorted_x, sorted_y = x[order], (x @ W0.T)[order]
    for a in np.unique(ids):
        here = slice(*np.searchsorted(ids[order], [a, a + 1]))
        A, B = factors[a]
        sorted_y[here] += s * (sorted_x[here] @ A.T) @ B.T
    y = np.empty_like(sorted_y)
    y[order] = sorted_y
    return y


y = looped(x, W0, factors, ids)
forms = {"gathered": gathered, "segmented": segmented}
for name, form in forms.items():
    print(f"{name:<10} differs from the loop by {abs(form(x, W0, factors, ids) - y).max():.1e}")
    assert np.allclose(form(x, W0, factors, ids), y, rtol=0, atol=1e-12)

# %% [markdown]
# They agree up to rounding. `lora_np.ops.lora_rows_forward` is the gathered form and its twin in
# `lora_np.ops.fast` the segmented one. Both let ranks differ, and take -1 for the base alone. Rows
# are sorted once for a whole model: `Rows` keeps the order.

# %%
rows = Rows(ids, len(factors))
print("adapter, from row, to row:", *rows.segments[:3], "...")
for form in (lora_rows_forward, segments_of_the_library):
    assert np.allclose(form(x, W0, factors, rows, scale=s)[0], y, rtol=0, atol=1e-12)
alone, _ = lora_rows_forward(x, W0, factors, np.full(n, -1), scale=s)
assert np.allclose(alone, x @ W0.T, rtol=0, atol=1e-12)

# %% [markdown]
# ## The numbers that are multiplied
#
# $W_0$ costs a row $d_\text{out} d_\text{in}$ products of two numbers, its adapter
# $r\,(d_\text{in} + d_\text{out})$. With $d_\text{in} = d_\text{out} = d$, the second is $2r/d$ of
# the first.
#
# **Predict.** Take $d = 512$ and $r = 8$. By which factor does the number of products for 64 rows
# grow if all rows want one adapter? And if all want different ones?


# %%
def multiplied(distinct):
    """Return the number of products of two numbers, over that of W0 alone."""
    return (n * d * d + n * r * (d + d)) / (n * d * d)  # `distinct` does not matter


print(f"one adapter {multiplied(1):.3f}, 64 adapters {multiplied(64):.3f}")
assert round(multiplied(1), 3) == round(multiplied(64), 3) == 1.031

# %% [markdown]
# It grows by 1.031 in both cases. This is why mixed batches are nearly free. Each row is multiplied
# with its own adapter only, however many others there are.
#
# ## The numbers that are read
#
# A processor multiplies faster than memory delivers numbers, so a number that has been read should
# be used often. $W_0$ is read once and used by all 64 rows, an adapter only by its own rows.
#
# **Predict.** How many numbers of weights does the segmented form read for one adapter, and for 64
# distinct ones, as a multiple of those of $W_0$? How many does the loop read? And the gathered
# form, which reads each row's adapter, writes the copy, and reads the copy?


# %%
def read(form, distinct):
    """Return the numbers of weights that pass between memory and processor, over those of W0."""
    adapter = r * (d + d) / (d * d)
    return {
        "looped": n * (1 + adapter),
        "gathered": 1 + 3 * n * adapter,
        "segmented": 1 + distinct * adapter,
    }[form]


for form in ("looped", "gathered", "segmented"):
    print(f"{form:<10} one adapter {read(form, 1):6.2f}, 64 adapters {read(form, 64):6.2f}")
assert (read("segmented", 1), read("segmented", 64)) == (1.03125, 3.0)
assert (read("looped", 64), read("gathered", 64)) == (66.0, 7.0)

# %% [markdown]
# One adapter adds 3 %. 64 distinct ones have twice as many numbers as $W_0$, and each number is
# used once: the segmented form reads 3 times as much as the base alone. The gathered form reads 7
# times as much, and the loop 66 times, since it reads $W_0$ for each row.
#
# Neither count is the time. The time of the product of 64 rows with $W_0$ is that of its
# multiplications, so reading three times as much does not take three times as long. A cache may
# still hold what was read before, and then the loop pays less than its number says. And each call
# of NumPy takes some time of its own, which adds up over segments. So we measure. The ratios are
# those of the machine that ran this page; nothing below depends on them.


# %%
def seconds(run):
    """Return the shortest of 30 runs."""
    times = []
    for _ in range(30):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


x32, W32 = x.astype(np.float32), W0.astype(np.float32)
factors32 = [(A.astype(np.float32), B.astype(np.float32)) for A, B in factors]


def times(distinct):
    """Return the time of each form, over that of the base alone."""
    rows = Rows(np.sort(np.arange(n) % distinct), n)  # sorted, as an engine keeps them
    base_alone = seconds(lambda: x32 @ W32.T)
    forms = {
        "looped": lambda: looped(x32, W32, factors32, rows.ids),
        "gathered": lambda: lora_rows_forward(x32, W32, factors32, rows, scale=s),
        "segmented": lambda: segments_of_the_library(x32, W32, factors32, rows, scale=s),
    }
    return [seconds(form) / base_alone for form in forms.values()]


distincts = [1, 2, 4, 8, 16, 32, 64]
names = ("looped", "gathered", "segmented")
measured = dict(zip(names, zip(*map(times, distincts))))
print("distinct  ", *(f"{k:>6}" for k in distincts))
for name, ratios in measured.items():
    print(f"{name:<10}", *(f"{ratio:>6.2f}" for ratio in ratios))
assert all(len(ratios) == len(distincts) for ratios in measured.values())

# %% alt="Cost over that of the base alone against the number of distinct adapters in 64 rows: the numbers multiplied stay at 1.03, the numbers read by the segmented form rise from 1.03 to 3; between them or above are the measured times of the loop, the gathered and the segmented form"
figure, axis = plt.subplots(figsize=(8, 3.8), layout="constrained")
axis.plot(
    distincts, [multiplied(k) for k in distincts], "--", color=GREY, label="numbers multiplied"
)
read_by_segments = [read("segmented", k) for k in distincts]
axis.plot(distincts, read_by_segments, ":", color=GREY, label="numbers read, segmented")
for (name, ratios), colour, marker in zip(measured.items(), (PURPLE, ORANGE, BLUE), "^so"):
    axis.plot(distincts, ratios, f"{marker}-", color=colour, label=f"{name}, time")
axis.set_xscale("log", base=2)
axis.set_xticks(distincts, [str(k) for k in distincts])
axis.minorticks_off()
axis.set_xlabel("distinct adapters in a batch of 64 rows")
axis.set_ylabel("cost / base alone")
axis.set_title(f"One layer, d = {d}, r = {r}: distinct adapters share nothing")
axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# Two numbers are easily confused: the adapters that a server *has*, and those that are distinct
# *in one batch*. A server may have 10,000; a batch of 64 rows has at most 64.
#
# ## What merging cannot do
#
# A merged weight $W_0 + s\,B_a A_a$ costs nothing extra, as chapter 5 showed. It has room for one
# adapter.
#
# **Predict.** We merge adapter 3 and multiply the whole batch. How many of the 64 rows are right?

# %%
A, B = factors[3]
merged = W0 + s * B @ A
right = np.isclose(x @ merged.T, y, rtol=0, atol=1e-9).all(axis=1)  # (n,)
print(f"{right.sum()} of {n} rows are right, and {(ids == 3).sum()} want adapter 3")
assert (right == (ids == 3)).all() and 0 < right.sum() < n / 4

# %% [markdown]
# Only the rows of adapter 3 are right. A server that merges needs a whole $W$ for each adapter, and
# divides the batch into one large product for each of them.
#
# ## The same rows train
#
# Nothing so far holds for answering alone. Let row $i$ of a training batch belong to adapter $a_i$,
# and let $L_a$ be the mean loss of the rows of adapter $a$. The loss of the batch is the sum
# $\sum_a L_a$. Since $A_a$ and $B_a$ appear in $L_a$ alone,
#
# $$ \frac{\partial}{\partial A_a} \sum_b L_b = \frac{\partial L_a}{\partial A_a} , \qquad
#    \frac{\partial}{\partial B_a} \sum_b L_b = \frac{\partial L_a}{\partial B_a} . $$
#
# Each adapter gets the gradient that it would have alone, while $W_0$, which is frozen, is
# multiplied with all rows at once. `Together` is the model of this loss, and `fit` trains it.
#
# Our base is a small Llama that has learned to count, modulo 20, in steps of 1 to 9. After a single
# number it can only guess the step. Three users want it to count in *their* step, whatever comes
# before.


# %%
def counting(rng, by, length=25):
    """Return inputs and targets, a row (length - 1,) for each step in `by`, from a random start."""
    start = rng.integers(0, 20, (len(by), 1))
    text = (start + by[:, None] * np.arange(length)) % 20
    return text[:, :-1], text[:, 1:]


config = LlamaConfig(20, 64, n_layer=2, n_head=4, n_kv_head=2, d_model=32, d_hidden=48)
base = Llama(config, np.random.default_rng(0), dtype=np.float64)
draws = np.random.default_rng(1)
fit(base, lambda: counting(draws, draws.integers(1, 10, 16)), steps=200, lr=1e-2, warmup=10)

users = {"anna": (1, 4), "ben": (2, 4), "cleo": (3, 8)}  # the step, and the rank
ids = np.repeat([0, 1, 2], 4)  # (12,): four rows for each user in every batch
by = np.array([step for step, _ in users.values()])[ids]  # (12,)


def fresh(name):
    """Return an adapter as it starts: the same one each time."""
    step, rank = users[name]
    lora = LoraConfig(r=rank, target_modules="all-linear")
    return inject(base, lora, np.random.default_rng(step))


def batches():
    """Return a function that draws the next mixed batch: inputs, targets, ids."""
    rng = np.random.default_rng(7)
    return lambda: (*counting(rng, by), ids)


recipe = {"steps": 200, "lr": 1e-2, "warmup": 10}
models = {name: fresh(name) for name in users}
history = fit(Together(list(models.values())), batches(), **recipe)
print(f"sum of the losses: {history.loss[0]:.2f} at first, {history.loss[-1]:.2f} at the end")
assert history.loss[-1] < 0.3 * history.loss[0]

# %% [markdown]
# **Predict.** We train each adapter again, alone, on its own rows of the same batches. How far
# apart are the two results: equal up to rounding, or as far as two seeds?


# %%
def trained_alone(name):
    """Return a user's adapter, trained on the user's own rows of the mixed batches."""
    model, draw, own = fresh(name), batches(), by == users[name][0]
    fit(model, lambda: tuple(part[own] for part in draw()[:2]), **recipe)
    return model


for name, model in models.items():
    mine, its = model.parameters(), trained_alone(name).parameters()
    apart = max(abs(mine[path].value - its[path].value).max() for path in its)
    moved = max(
        abs(its[path].value - p.value).max() for path, p in fresh(name).parameters().items()
    )
    print(f"{name:<5} rank {users[name][1]}, {apart:.1e} apart after moving by {moved:.2f}")
    assert apart < 1e-6 * moved

# %% [markdown]
# They are equal up to rounding, though the ranks differ.
#
# ## What switching cannot do
#
# Back to answering. After the number 5, everyone counts on:


# %%
def answer(model, prompt, n):
    """Yield the n likeliest next tokens, one at a time."""
    tokens, memory = np.array([prompt]), None
    for _ in range(n):
        logits, memory = model.advance(tokens, memory)  # (1, V)
        tokens = logits.argmax(axis=1)[:, None]
        yield int(tokens[0, 0])


alone = {name: list(answer(models[name], [5], 10)) for name in ("anna", "ben")}
for name, tokens in alone.items():
    print(f"{name:<5}", *(f"{token:>3}" for token in tokens))

# %% [markdown]
# Tutorials keep one model and set its adapter when a request comes in. Then they generate the
# tokens for this request.
#
# **Predict.** Anna's request comes first. Ben's comes after her first token, and then they take
# turns. Which tokens are wrong?

# %%
shared = fresh("anna")


def switch(name):
    """Give the shared model an adapter's weights."""
    wanted = models[name].parameters()
    for path, p in shared.parameters().items():
        if p.trainable:
            p.value = wanted[path].value


def switched(name, prompt, n):
    """Yield an answer of the shared model, whose adapter is set at the first token."""
    switch(name)
    yield from answer(shared, prompt, n)


def in_turns(answers):
    """Return what two or more answers write if they take turns, as a list for each."""
    return [list(tokens) for tokens in zip(*zip(*answers))]


for name in alone:
    assert list(switched(name, [5], 10)) == alone[name]  # one after the other: right
anna, ben = in_turns([switched("anna", [5], 10), switched("ben", [5], 10)])
print("anna ", *(f"{token:>3}" for token in anna))
print("ben  ", *(f"{token:>3}" for token in ben))
assert anna[0] == alone["anna"][0] and anna != alone["anna"] and ben == alone["ben"]

# %% [markdown]
# Anna's first token is right. All later ones were computed with Ben's weights. No error was raised,
# and a test of one request at a time finds nothing. A lock around each request would help, but then
# the base is read once for each request and token, as in the loop above.
#
# `inject` changes nothing: it returns a new tree that shares the base's weights. Two trees do not
# know of each other.

# %%
assert in_turns(answer(models[name], [5], 10) for name in alone) == list(alone.values())
for model in models.values():
    frozen = [p for p in model.parameters().values() if not p.trainable]
    for p, q in zip(frozen, base.parameters().values(), strict=True):
        assert np.shares_memory(p.value, q.value)

# %% [markdown]
# ## An engine
#
# Trees that share the base can answer in any order, but each still reads the base on its own. The
# engine puts the newest token of every request into one batch. For each batch it makes a tree whose
# layers know the rows' adapters (`lora_np/serve/routed.py`), so that nothing has to be switched.
#
# Requests end at different times. An engine could wait until the whole batch is done. *Continuous
# batching* (Orca, Yu et al., 2022) gives a place that is free to the next request at once.
#
# **Predict.** Seven requests want 12, 3, 6, 9, 4, 8 and 5 tokens, and three fit into the batch. How
# many steps do they take if each group of three waits for its longest? And how many if free places
# are taken at once?

# %%
for name, model in models.items():
    save_adapter(model, folder / name)
wanted = [  # the adapter, the length of the prompt, and how many tokens to write
    ("anna", 5, 12),
    ("ben", 9, 3),
    ("cleo", 3, 6),
    (None, 4, 9),  # the base alone
    ("anna", 8, 4),
    ("cleo", 6, 8),
    ("ben", 2, 5),
]
steps_of = {name: step for name, (step, _) in users.items()} | {None: 4}
prompts = [
    ((i + steps_of[name] * np.arange(length)) % 20).tolist()
    for i, (name, length, _) in enumerate(wanted)
]


def served(pages):
    """Serve the requests; return them, and what each step did: new tokens, and the counts."""
    engine = Engine(base, [folder / name for name in models], pages=pages, batch=3)
    requests = [engine.submit(name, p, m) for (name, _, m), p in zip(wanted, prompts)]
    steps, more = [], True
    while more:
        before = [len(request.tokens) for request in requests]
        more = engine.step()
        after = [len(request.tokens) for request in requests]
        steps.append((np.subtract(after, before), engine.counts()))
    return requests, steps


requests, steps = served(pages=300)
lengths = [m for _, _, m in wanted]
waiting = sum(max(lengths[i : i + 3]) for i in range(0, len(lengths), 3))
print(f"{waiting} steps if each group waits for its longest, {len(steps)} here")
assert (waiting, len(steps)) == (26, 18)

# %% [markdown]
# They take 26 and 18 steps. Every answer is what its adapter gives alone:

# %%
for request in requests:
    model = base if request.adapter is None else models[request.adapter]
    expected = list(answer(model, request.prompt, request.n))
    print(f"{request.adapter or 'base':<5}{request.prompt} {request.tokens}")
    assert request.tokens == expected

# %% [markdown]
# ## One pool of pages
#
# A request needs memory for the keys and values of its tokens, and an adapter for its $A$ and $B$.
# Both take *pages* of one pool; a page holds the keys and values of one token. How many pages go to
# adapters and how many to keys need not be chosen beforehand. When pages run short, the least
# recently used adapter is dropped, but never one that a request is using.
#
# A request takes the pages for its prompt and its answer, rounded up to a multiple of 16, when it
# starts. So it can never be stopped halfway because the memory is full.
#
# **Predict.** The three adapters take 58, 58 and 116 pages. We serve the same requests with a pool
# of 220. What changes: the answers, the number of steps, or both?

# %%
tight, tight_steps = served(pages=220)
page = 2 * 2 * 2 * 8  # blocks, keys and values, heads, width
sizes = {}
for name, model in models.items():
    numbers = sum(p.size for p in model.parameters().values() if p.trainable)
    sizes[name] = -(-numbers // page)
print("pages of the adapters:", sizes)
print(f"{len(steps)} steps with 300 pages, {len(tight_steps)} with 220")
print("pages of adapters after each step:", *(counts.held for _, counts in tight_steps))
assert list(sizes.values()) == [58, 58, 116]
assert [request.tokens for request in tight] == [request.tokens for request in requests]
assert len(tight_steps) > len(steps) and {c.held for _, c in tight_steps} == {116, 174}
for _, counts in (steps[-1], tight_steps[-1]):
    assert counts.free + counts.held == counts.pages  # all pages of keys came back

# %% alt="Above, a chart of seven requests over the steps: who waits, who reads a prompt and who writes, coloured by adapter. Below, the pages of adapters and of keys in the pool of 220 after each step"
colours = {"anna": BLUE, "ben": ORANGE, "cleo": GREEN, None: GREY}
figure, (top, low) = plt.subplots(2, 1, figsize=(7.4, 5.4), sharex=True, layout="constrained")
new = np.array([tokens for tokens, _ in tight_steps])  # (steps, requests)
for i, request in enumerate(tight):
    at = np.flatnonzero(new[:, i])
    top.barh(i, at[0], left=0, height=0.1, color=GREY)  # waits
    top.barh(i, len(at), left=at[0], height=0.7, color=colours[request.adapter])
    top.barh(i, 1, left=at[0], height=0.7, color="none", edgecolor="black", hatch="///")
top.set_yticks(range(len(tight)), [request.adapter or "base" for request in tight])
top.invert_yaxis()
top.set_title("Thin: waits. Hatched: reads its prompt. Plain: writes")
middles = np.arange(len(tight_steps)) + 0.5
held = np.array([counts.held for _, counts in tight_steps])
free = np.array([counts.free for _, counts in tight_steps])
low.bar(middles, held, width=1, color=PURPLE, label="adapters")
low.bar(middles, 220 - held - free, width=1, bottom=held, color="#56B4E9", hatch="..", label="keys")
low.axhline(220, color="black", linewidth=0.8, label="the pool")
low.set_xticks(range(0, len(tight_steps) + 1, 2))
low.set_xlim(0, len(tight_steps))
low.set_ylim(0, 300)
low.set_xlabel("steps")
low.set_ylabel("pages after the step")
low.legend(frameon=False, loc="upper left", ncols=3)
plt.show()

# %% [markdown]
# The answers are the same, but they take more steps. Cleo's adapter does not fit beside those of
# Anna and Ben while both are in use. So Cleo waits, although there is a place in the batch, and
# requests that fit overtake hers: those of the base, Anna and Ben. Then one of the other two
# adapters is dropped, and both of Cleo's requests run. At most 32 requests may overtake one that
# waits; the next ones stay in the queue until it has started. So nobody waits forever.

# %%
print("each request was overtaken by", *(request.overtaken for request in tight))
assert tight[2].overtaken == 3 and OVERTAKEN == 32

# %% [markdown]
# ## What to remember
#
# * An adapter multiplies few numbers, so a mixed batch costs little more than the base alone.
# * Distinct adapters in one batch share nothing. The numbers of each are read for few rows, so the
#   cost grows with the number of distinct adapters.
# * Which adapter a row uses belongs to the batch, not to the model. A model that can be switched is
#   wrong as soon as two requests take turns.
#
# `lora-np serve` puts this engine behind the API of OpenAI's clients, and `docs/serving.md`
# measures it.
#
# ## Exercises
#
# 1. A batch has 1,024 rows and 64 distinct adapters, with $d$ and $r$ as above. Predict both
#    counts, multiplied and read, over those of the base alone. Then measure the segmented form.
#    Why is it nearer to 1 than with 64 rows?
# 2. Give half of the adapters rank 64 and the others rank 2. Predict how many numbers the segmented
#    form multiplies, and how many a program that pads all of them with zeros to rank 64. Measure
#    both, and check that the results agree.
# 3. Serve the requests with 128 pages. One of them fails: predict which, read its `error`, and
#    check that all others have their answers and that all pages come back.
