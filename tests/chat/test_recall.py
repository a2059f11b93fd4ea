"""lora_np.chat.recall: what is kept gives the logits of a fresh computation."""

import numpy as np
import pytest

import lora_np.chat.recall as recall_file
from lora_np import GPT, GPTConfig, PrefixConfig, PromptConfig, inject
from lora_np.chat import Recall
from tests.chat.tiny import V, llama


@pytest.fixture
def counted(monkeypatch):
    """Return a model, and the number of tokens of each call."""
    model, calls = llama(), []
    advance = model.advance

    def counting(tokens, memory=None):
        calls.append(tokens.shape[1])
        return advance(tokens, memory)

    monkeypatch.setattr(model, "advance", counting)
    return model, calls


def tokens_of(number, seed=0):
    return np.random.default_rng(seed).integers(0, V, number).tolist()


def assert_fresh(found, model, tokens):
    """Compare with the logits of the whole text, computed at once."""
    expected = model.forward(np.array([tokens]))[0][:, -1]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert np.abs(expected).max() > 0.1


def test_a_longer_text_computes_its_new_tokens_alone(counted):
    model, calls = counted
    recall, tokens = Recall(model), tokens_of(30)
    for n in (10, 11, 30):
        assert_fresh(recall.logits(tokens[:n]), model, tokens[:n])
    assert calls == [10, 1, 19] and recall.tokens == tokens


@pytest.mark.parametrize("same", [0, 1, 7, 19])
def test_a_text_that_differs_further_up_keeps_the_common_beginning(counted, same):
    model, calls = counted
    first, other = tokens_of(20), tokens_of(25, seed=1)
    second = [*first[:same], (first[same] + 1) % V, *other[same:]]
    recall = Recall(model)
    recall.logits(first)
    assert_fresh(recall.logits(second), model, second)
    assert calls == [20, len(second) - same]
    assert_fresh(recall.logits(first), model, first)  # and the shared room is not spoilt


def test_a_text_that_is_known_computes_its_last_token_again(counted):
    model, calls = counted
    recall, tokens = Recall(model), tokens_of(12)
    for n in (12, 12, 5):
        assert_fresh(recall.logits(tokens[:n]), model, tokens[:n])
    assert calls == [12, 1, 1]


def test_a_long_text_is_read_in_parts(counted, monkeypatch):
    monkeypatch.setattr(recall_file, "AT_ONCE", 8)
    model, calls = counted
    recall, tokens = Recall(model), tokens_of(20)
    assert_fresh(recall.logits(tokens), model, tokens)
    assert calls == [8, 8, 4]


def test_an_interrupt_in_the_middle_of_the_layers_spoils_nothing(monkeypatch):
    model = llama()
    recall, tokens = Recall(model), tokens_of(24)
    recall.logits(tokens[:10])

    def interrupted(x, memory=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model.model.layers[1], "extend", interrupted)  # layer 0 has extended its keys
        with pytest.raises(KeyboardInterrupt):
            recall.logits(tokens[:11])
    other = [*tokens[:10], *tokens_of(6, seed=2)]
    assert_fresh(recall.logits(other), model, other)


@pytest.mark.parametrize("method", [PromptConfig(3), PrefixConfig(3)], ids=["prompt", "prefix"])
def test_what_a_method_puts_before_the_text_stays_in_its_place(method):
    rng = np.random.default_rng(1)
    model = inject(GPT(GPTConfig(V, 40, 2, 2, 16), rng, np.float64), method, rng)
    for p in model.parameters().values():
        p.value = p.value + 0.2 * rng.standard_normal(p.shape)
    recall, tokens = Recall(model), tokens_of(20)
    for text in (tokens[:12], tokens, [*tokens[:5], 7, 8, 9]):
        assert_fresh(recall.logits(text), model, text)
