"""The oracle of the engine: its tokens are the likeliest ones, and only true ties are called so."""

import numpy as np
import pytest

from lora_np import GPT, GPTConfig, LoraConfig, inject, load_adapter, save_adapter
from tests.serve.oracle import answers, likeliest, tie, verdict

V = 11


@pytest.fixture(scope="module")
def base():
    """A model whose tokens 2 and 7 are as good as equal: their rows of the head are."""
    rng = np.random.default_rng(0)
    model = GPT(GPTConfig(V, 16, 1, 2, 8), rng)
    for p in model.parameters().values():
        p.value[...] = p.value + rng.standard_normal(p.shape)
    table = model.head().value
    table[7] = table[2] * (1 + 1e-7)
    return model


@pytest.fixture(scope="module")
def folders(base, tmp_path_factory):
    """Two adapters on disk, by name."""
    rng, found = np.random.default_rng(1), {}
    for name in ("one", "two"):
        adapted = inject(base, LoraConfig(r=2), rng)
        for p in adapted.parameters().values():
            if p.trainable:
                p.value[...] = rng.standard_normal(p.shape)
        found[name] = tmp_path_factory.mktemp("adapters") / name
        save_adapter(adapted, found[name])
    return found


def greedy(model, prompt, n, stop):
    """The likeliest token, again and again, with nothing remembered."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + n:
        tokens.append(int(model.forward(np.array(tokens))[0][-1].argmax()))
        if tokens[-1] in stop:
            break
    return tokens[len(prompt) :]


def test_every_request_is_answered_by_the_model_of_its_own_adapter(base, folders):
    models = {None: base, **{name: load_adapter(base, path) for name, path in folders.items()}}
    rng = np.random.default_rng(2)
    requests = [
        (name, rng.integers(0, V, 1 + i).tolist(), 8, stop)
        for i, name in enumerate(["one", None, "two", "one", None, "two"])
        for stop in ([], [1, 2, 5, 8])
    ]
    found = answers(base, folders, requests)
    for (name, prompt, n, stop), tokens in zip(requests, found):
        same = verdict(models[name], prompt, tokens, greedy(models[name], prompt, n, stop))
        assert same in ("equal", "tie")
        assert len(tokens) == n or tokens[-1] in stop
    ended = [len(tokens) < 8 for tokens in found]
    assert any(ended) and not any(ended[::2])
    assert len({tuple(tokens) for tokens in answers(base, folders, [
        (name, [1, 2, 3], 8, []) for name in models
    ])}) == 3  # fmt: skip


def tied_and_clear(model):
    """A prompt after which tokens 2 and 7 are the likeliest, and one without a tie."""
    prompts = [[i, j] for i in range(V) for j in range(V)]
    tied = next(p for p in prompts if set(likeliest(model, p)[0]) == {2, 7})
    return tied, next(p for p in prompts if likeliest(model, p)[1] > 0.01)


def test_a_tie_is_two_logits_that_differ_in_the_last_bits(base):
    tied, clear = tied_and_clear(base)
    assert tie(base, tied) and not tie(base, clear)


def test_a_difference_is_a_tie_only_where_the_two_tokens_are_tied(base):
    tied, clear = tied_and_clear(base)
    (first, second), others = likeliest(base, clear)[0], [t for t in range(V) if t not in (2, 7)]
    assert verdict(base, tied, [2, 5], [2, 5]) == "equal"
    assert verdict(base, tied, [2, 5], [7, 9]) == "tie"
    assert verdict(base, tied, [2], [others[0]]) == "wrong"
    assert verdict(base, tied, [2], [2, 7]) == "wrong"  # too short
    assert verdict(base, clear, [second], [first]) == "wrong"
