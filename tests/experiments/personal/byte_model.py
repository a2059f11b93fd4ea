"""A tiny GPT of bytes as a base, and the tools that train and ask it."""

from functools import lru_cache

import numpy as np

from lora_np.data import VOCAB_SIZE
from lora_np.experiments.personal import Sample, Tools
from lora_np.layers import copy_model
from lora_np.methods import LoraConfig, inject
from lora_np.models import GPT, GPTConfig
from lora_np.ops.loss import IGNORE_INDEX
from lora_np.train import fit

LENGTH, END = 8, 0  # tokens of a sample; the byte that ends an answer
WORDS = ("yes", "YES", "nay", "NAY")


def base():
    """A new copy of a base that knows every answer, and not which of them is wanted."""
    return copy_model(pretrained())


@lru_cache
def pretrained():
    model = GPT(GPTConfig(VOCAB_SIZE, LENGTH, 1, 2, 32), np.random.default_rng(0))
    prompts = [f"q{i}?" for i in range(24)]
    train_in_place(model, [Sample(p, word) for p in prompts for word in WORDS], steps=60)
    return model


def arrays(samples):
    """Tokens and targets (N, T); only the answer and its end have targets."""
    tokens = np.full((len(samples), LENGTH), END)
    targets = np.full((len(samples), LENGTH), IGNORE_INDEX)
    for row, (prompt, answer) in enumerate(samples):
        text = [*prompt.encode(), *answer.encode(), END]
        start, stop = len(prompt.encode()) - 1, len(text) - 1
        tokens[row, : len(text)] = text
        targets[row, start:stop] = text[start + 1 :]
    return tokens, targets


def train_in_place(model, samples, steps=40):
    """Train on all samples in every step."""
    tokens, targets = arrays(samples)
    fit(model, lambda: (tokens, targets), steps=steps, lr=1e-2, options={"weight_decay": 0.0})


def adapted(model):
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    return inject(model, config, np.random.default_rng(1))


def train(model, samples, validation):
    found = adapted(model)
    train_in_place(found, samples)
    return found


def losses(model, samples):
    tokens, targets = arrays(samples)
    return np.array([model.loss(x[None], y[None])[0] for x, y in zip(tokens, targets)])


def answer(model, prompts):
    found = []
    for prompt in prompts:
        tokens = np.frombuffer(prompt.encode(), np.uint8).astype(np.int64)
        texts = model.generate(tokens, 6, temperature=0, stop=END)
        found.append(
            bytes(np.asarray(texts)[len(tokens) :].astype(np.uint8)).rstrip(b"\0").decode("latin-1")
        )
    return found


TOOLS = Tools(train, losses, answer)
