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
# # Write with a tiny model
#
# A GPT of 32,000 weights has read English about Python, character by character. Three LoRA adapters,
# of ranks 1, 4 and 16, turn it to Python code. All of it was trained within a minute on one core and
# lies in the folder `tiny` beside this notebook. Run the cells: the model writes in this page.

# %%
from pathlib import Path

import numpy as np

from lora_np import GPT, GPTConfig, load_adapter
from lora_np.files import load_json
from lora_np.train import load_parameters

folder = Path("tiny")
base = GPT(GPTConfig(**load_json(folder / "config.json")), np.random.default_rng(0))
load_parameters(folder / "base.npz", base)
models = {"base": base} | {
    f"rank {r}": load_adapter(base, folder / f"rank-{r}") for r in (1, 4, 16)
}


def write(model, prompt, length=200, temperature=0.7, seed=0):
    """Return the prompt and what the model writes after it."""
    text = prompt.encode("ascii", "ignore") or b"\n"  # the model knows no other characters
    tokens = np.frombuffer(text, np.uint8).astype(int)
    rng = np.random.default_rng(seed)
    return bytes(model.generate(tokens, length, temperature=temperature, rng=rng).tolist()).decode()


for name, model in models.items():
    print(f"--- {name}\n{write(model, 'The class ')}\n")

# %% [markdown]
# The base writes something like English. With an adapter, the same prompt goes on in the style of
# code: names with underscores, brackets, indented lines. All of these models are far too small to
# write sense.
#
# Change the prompt, the temperature and the seed, and run the cell again.

# %%
print(write(models["rank 16"], prompt="def ", length=300, temperature=0.8, seed=1))

# %% [markdown]
# What does an adapter cost? Count its numbers, and the bytes of its file.

# %%
for r in (1, 4, 16):
    numbers = sum(p.size for p in models[f"rank {r}"].parameters().values() if p.trainable)
    size = sum(file.stat().st_size for file in (folder / f"rank-{r}").iterdir())
    print(f"rank {r:>2}: {numbers:>6,} numbers, {size / 1000:>5.1f} kB")
size = (folder / "base.npz").stat().st_size
print(
    f"base:    {sum(p.size for p in base.parameters().values()):>6,} numbers, {size / 1000:>5.1f} kB"
)
