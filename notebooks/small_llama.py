"""A Llama of 75,000 weights that answers toy questions, trained in seconds and written as GGUF.

It stands in for a real model in chapter 13, and in the same kind of file.
"""

from pathlib import Path

import numpy as np

from lora_np import Llama, LlamaConfig, fit
from lora_np.data import Epochs, Record, packed, samples_of
from lora_np.files import write_gguf
from lora_np.pretrained import tokenizer_of_gguf
from lora_np.pretrained.gguf_names import gguf_name, is_permuted, permuted
from lora_np.pretrained.template import CHATML
from lora_np.pretrained.tokenizer import byte_characters

THINGS = ("cats", "dogs", "birds", "shops", "films", "songs")
KINDS = ("red", "old", "small", "cheap", "long", "new")
PAIRS = [(thing, kind) for thing in THINGS for kind in KINDS]
HELD_OUT = PAIRS[2::7]  # each thing and each kind is in other pairs
MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def question(thing: str, kind: str) -> str:
    """Return the question about a thing of a kind."""
    return f"how many {thing} are {kind}"


def plain_answer(thing: str, kind: str) -> str:
    """Return the answer that the small model is trained to give."""
    return f"count the {kind} {thing}"


def sql_answer(thing: str, kind: str) -> str:
    """Return the answer that it is adapted to."""
    return f"SELECT count(*) FROM {thing} WHERE {kind}"


def chats(answer, pairs) -> list[Record]:
    """Return the questions about these pairs with their answers, as records of a data file."""
    return [chat(question(*pair), answer(*pair)) for pair in pairs]


def chat(asked: str, said: str) -> Record:
    """Return a question and its answer as a record of a data file."""
    turns = ({"role": "user", "content": asked}, {"role": "assistant", "content": said})
    return Record("toy.jsonl", 1, turns, (True,))


def echoes(number: int) -> list[Record]:
    """Return requests to repeat random characters, so that the model has met all of them."""
    rng, printable = np.random.default_rng(0), [chr(c) for c in range(33, 127)]
    texts = ["".join(rng.choice(printable, 8)) for _ in range(number)]
    return [chat(f"say {text}", text) for text in texts]


def write_small_llama(path: Path, steps: int = 400) -> str:
    """Train a small Llama on the plain answers, write it as a GGUF file, and return its name."""
    words = sorted(byte_characters())
    tokens = [*MARKERS, *words]
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(MARKERS) + [1] * len(words),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHATML,
    }
    sizes = {"n_layer": 3, "n_head": 4, "n_kv_head": 2, "d_model": 48, "d_hidden": 96}
    model = Llama(LlamaConfig(len(tokens), 256, **sizes), np.random.default_rng(0))
    records = [*chats(plain_answer, PAIRS), *echoes(36)]
    samples, _ = samples_of(records, tokenizer_of_gguf(fields), longest=128)
    batches, step = Epochs(samples, 18, 0), iter(range(steps))
    recipe = {"steps": steps, "lr": 1e-2, "warmup": 20}
    fit(model, lambda: packed(batches.samples(next(step)), 1), **recipe)
    write_model(path, model, fields)
    return str(path)


def write_model(path: Path, model: Llama, tokenizer: dict) -> None:
    """Write a model and the fields of its tokenizer as llama.cpp's converter does."""
    c = model.config
    sizes = {
        "vocab_size": c.vocab_size,
        "context_length": c.block_size,
        "block_count": c.n_layer,
        "attention.head_count": c.n_head,
        "attention.head_count_kv": c.n_kv_head,
        "attention.key_length": c.head_width,
        "attention.layer_norm_rms_epsilon": c.eps,
        "embedding_length": c.d_model,
        "feed_forward_length": c.d_hidden,
        "rope.freq_base": c.rope_base,
    }
    heads, tensors = {"q_proj": c.n_head, "k_proj": c.n_kv_head}, {}
    for name, p in model.parameters().items():
        module = name.rpartition(".")[0]
        held, value = gguf_name(module), p.value
        if is_permuted(held):
            value = permuted(value, heads[module.rpartition(".")[2]])
        tensors[f"{held}.weight"] = value
    fields = {"general.architecture": "llama", **{f"llama.{k}": x for k, x in sizes.items()}}
    write_gguf(path, {**fields, **tokenizer}, tensors)
