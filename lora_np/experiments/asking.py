"""What an experiment does with a language model: train adapters on questions and answers, and ask.

Everything goes through the model's chat template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lora_np.backend import to_host
from lora_np.data import Record, Sample, samples_of
from lora_np.experiments.folder import SweepError
from lora_np.finetune import Settings, train_adapter
from lora_np.finetune.adapt import method_in
from lora_np.layers.memory import shortened
from lora_np.ops import cross_entropy_forward

TRAINING = (  # the settings of finetune that an experiment may choose; the others name files
    *("method", "r", "alpha", "dropout", "target_modules", "top_layers", "options"),
    *("epochs", "batch_size", "accumulate", "lr", "schedule", "warmup", "weight_decay", "clip"),
    "seed",
)
TOGETHER = 32  # prompts in one batch, unless the caller says otherwise
SPARE = 4  # tokens that an answer may have beyond the longest right one


def chat_samples(asked: Sequence[tuple[str, str]], tokenizer: Any, model: Any) -> list[Sample]:
    """Return prompts and answers as samples of conversations; the answers are labelled.

    Parameters
    ----------
    asked : sequence of (prompt, answer)
    tokenizer : lora_np.pretrained.Tokenizer
    model : LanguageModel
        Its context is the most that a sample may hold.

    Raises
    ------
    lora_np.data.DataError
        If a sample is longer.
    """
    records = []
    for i, (prompt, answer) in enumerate(asked, 1):
        said = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
        records.append(Record("the samples", i, said, (True,)))
    return samples_of(records, tokenizer, longest=model.block_size)[0]


def adapter_of(
    base: Any,
    tokenizer: Any,
    train: Sequence[tuple[str, str]],
    validation: Sequence[tuple[str, str]],
    training: Mapping[str, Any],
) -> Any:
    """Return the base with an adapter that was trained on prompts and answers.

    Parameters
    ----------
    base : LanguageModel
        It stays as it is.
    tokenizer : lora_np.pretrained.Tokenizer
    train, validation : sequence of (prompt, answer)
    training : mapping
        Fields of :class:`lora_np.finetune.Settings`. All is computed in this process.

    Raises
    ------
    SweepError
        If training diverges.
    """
    learned, held = (chat_samples(asked, tokenizer, base) for asked in (train, validation))
    result = train_adapter(base, learned, held, Settings(**training, jobs=1))
    if result.diverged is not None:
        raise SweepError(f"training diverged at lr = {training['lr']}: {result.diverged}")
    return result.model


def expect_trainable(base: Any, training: Mapping[str, Any]) -> None:
    """Raise ValueError if a base cannot be trained with these settings, before any work is done."""
    method_in(Settings(**training, jobs=1), base, steps=1)


def longest_answer(samples: Sequence[Sample]) -> int:
    """Return how many tokens an answer to one of these may have: the most, and a few to spare.

    Examples
    --------
    >>> from lora_np.data import Sample
    >>> from lora_np.experiments.asking import longest_answer
    >>> longest_answer([Sample([5, 6, 7, 2], [0, 0, 1, 1]), Sample([5, 2], [0, 1])])
    6
    """
    return max(int(sample.labelled.sum()) for sample in samples) + SPARE


def answers(model: Any, tokenizer: Any, prompts: Sequence[str], longest: int) -> list[str]:
    """Return the most likely answer to each prompt, token by token.

    Parameters
    ----------
    model : LanguageModel
    tokenizer : lora_np.pretrained.Tokenizer
    prompts : sequence of str
        Each is asked in a conversation of its own. Equal ones are asked once.
    longest : int
        Tokens after which an answer is cut off.
    """
    asked = list(dict.fromkeys(prompts))
    chats = [[{"role": "user", "content": prompt}] for prompt in asked]
    found = dict(zip(asked, chat_answers(model, tokenizer, chats, longest)))
    return [found[prompt] for prompt in prompts]


def chat_answers(
    model: Any,
    tokenizer: Any,
    chats: Sequence[Sequence[Mapping[str, str]]],
    longest: int,
    together: int = TOGETHER,
) -> list[str]:
    """Return the most likely answer to each chat, token by token.

    Parameters
    ----------
    model : LanguageModel
    tokenizer : lora_np.pretrained.Tokenizer
    chats : sequence of list of dict
        Messages, the last of which is the user's.
    longest : int
        Tokens after which an answer is cut off.
    together : int
        Most chats in a batch. Chats of similar lengths share one, so that there is little padding.
    """
    rows = [np.array(tokenizer.chat(chat, answer_follows=True)) for chat in chats]
    said = [""] * len(rows)
    for batch in _batches(sorted(range(len(rows)), key=lambda i: len(rows[i])), together):
        texts = model.generate(
            [rows[i] for i in batch], longest, temperature=0, stop=tokenizer.ends
        )
        for i, text in zip(batch, texts, strict=True):
            new = text[len(rows[i]) :].tolist()
            said[i] = tokenizer.decode([token for token in new if token not in tokenizer.ends])
    return said


def answer_losses(model: Any, samples: Sequence[Sample]) -> np.ndarray:
    """Return the mean loss of each sample's answer (n,), in nats a token.

    Samples that ask the same thing share the work: keys and values of a prompt are computed once,
    and each of its answers continues from there.

    Parameters
    ----------
    model : LanguageModel
    samples : sequence of Sample
        Each is labelled from its third token, or a later one, to its end.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Llama, LlamaConfig
    >>> from lora_np.data import Sample
    >>> from lora_np.experiments.asking import answer_losses
    >>> model = Llama(LlamaConfig(9, 8, 1, 1, 1, d_model=4, d_hidden=6), np.random.default_rng(0))
    >>> samples = [Sample([1, 2, 3, 4], [0, 0, 1, 1]), Sample([1, 2, 5], [0, 0, 1])]
    >>> one_by_one = [model.loss(s.tokens[None], s.targets[None])[0] for s in samples]
    >>> bool(np.allclose(answer_losses(model, samples), one_by_one))
    True
    """
    asking: dict[tuple[int, ...], list[int]] = {}  # by a prompt's tokens: the samples that ask it
    for i, sample in enumerate(samples):
        start = int(sample.labelled.argmax())
        asking.setdefault(tuple(sample.tokens[:start].tolist()), []).append(i)
    losses = np.empty(len(samples))
    for batch in _batches(sorted(asking, key=len), TOGETHER):
        memory = _read(model, [prompt[:-1] for prompt in batch])
        groups = [asking[prompt] for prompt in batch]
        for turn in range(max(map(len, groups))):  # each continues the same memory
            own = [group[min(turn, len(group) - 1)] for group in groups]
            texts = [samples[i].tokens[len(prompt) - 1 :] for i, prompt in zip(own, batch)]
            logits, _ = model.extend(_padded([text[:-1] for text in texts]), memory)  # (B, T, V)
            for i, text, row in zip(own, texts, to_host(logits)):
                losses[i] = cross_entropy_forward(row[: len(text) - 1], text[1:])[0]
    return losses


def _read(model: Any, prompts: Sequence[Sequence[int]]) -> Any:
    """Return the memory of prompts of different lengths."""
    lengths = tuple(map(len, prompts))
    _, memory = model.advance(_padded(prompts))
    return memory._replace(lengths=lengths, body=shortened(memory.body, lengths))


def _padded(rows: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    """Return rows of tokens as one array (B, T); no later token is attended to."""
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for out, row in zip(tokens, rows):
        out[: len(row)] = row
    return tokens


def _batches(things: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(things), most):
        yield things[first : first + most]
