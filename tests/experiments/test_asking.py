"""lora_np.experiments.asking: shared prompts change no loss, batches change no answer."""

import numpy as np
import pytest

from lora_np.data import DataError
from lora_np.experiments.asking import adapter_of, answer_losses, answers, chat_samples
from lora_np.experiments.folder import SweepError
from lora_np.experiments.unchanged import parameter_hashes
from tests.finetune.tiny import llama
from tests.pretrained.tiny_tokenizer import tiny_tokenizer

TRAINING = {"r": 2, "top_layers": 2, "epochs": 1, "batch_size": 4, "lr": 0.01}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    return llama(dtype=np.float64)


def test_losses_of_shared_prompts_of_any_length_are_those_of_each_sample_alone(model, tokenizer):
    asked = [("a", "shops"), ("which city?", "x"), ("a", "12 orders in the city"), ("a", "no")]
    asked += [(f"count {'of orders ' * i}", f"{i}") for i in range(1, 4)]
    samples = chat_samples(asked, tokenizer, model)
    alone = [model.loss(s.tokens[None], s.targets[None])[0] for s in samples]
    np.testing.assert_allclose(answer_losses(model, samples), alone, rtol=1e-12)


def test_losses_do_not_depend_on_the_batches(model, tokenizer, monkeypatch):
    samples = chat_samples(
        [(f"{i % 5}" * (i % 3 + 1), f"{i}") for i in range(12)], tokenizer, model
    )
    whole = answer_losses(model, samples)
    monkeypatch.setattr("lora_np.experiments.asking.TOGETHER", 2)
    np.testing.assert_allclose(answer_losses(model, samples), whole, rtol=1e-12)


def test_answers_come_in_order_without_end_markers_and_are_asked_once(
    model, tokenizer, monkeypatch
):
    asked = []

    def generate(rows, n, *, temperature, stop):
        assert temperature == 0 and stop == tokenizer.ends and n == 5
        asked.extend(rows)
        return [np.array([*row, *tokenizer.encode(f"{len(row)}"), stop[0]]) for row in rows]

    monkeypatch.setattr(model, "generate", generate)
    prompts = ["a long prompt of many tokens", "b", "b"]
    expected = [len(tokenizer.chat([{"role": "user", "content": p}], True)) for p in prompts]
    assert answers(model, tokenizer, prompts, 5) == [str(n) for n in expected]
    assert len(asked) == 2 and expected[0] > expected[1]


def test_answers_of_a_batch_are_those_of_each_prompt_alone(model, tokenizer):
    prompts = ["which shops are in the city?", "b", "how many orders?"]
    alone = [answers(model, tokenizer, [prompt], 6)[0] for prompt in prompts]
    assert answers(model, tokenizer, prompts, 6) == alone and len(set(alone)) > 1


def test_a_sample_that_is_too_long_for_the_model_is_refused(model, tokenizer):
    with pytest.raises(DataError, match=r"line 2 has \d+ tokens, more than 160"):
        chat_samples([("a", "b"), ("x" * 200, "b")], tokenizer, model)


def test_an_adapter_is_trained_over_a_base_that_stays(model, tokenizer):
    asked = [(f"shop {i}", "yes") for i in range(8)]
    before, samples = parameter_hashes(model), chat_samples(asked, tokenizer, model)
    adapted = adapter_of(model, tokenizer, asked, asked, {**TRAINING, "epochs": 4})
    assert parameter_hashes(model) == before
    assert answer_losses(adapted, samples).mean() < answer_losses(model, samples).mean()


def test_a_training_that_diverges_is_refused(tokenizer):
    broken, asked = llama(), [("shop", "yes")]
    broken.head().value[...] = np.inf
    with pytest.raises(SweepError, match=r"training diverged at lr = 0.01: "):
        adapter_of(broken, tokenizer, asked, asked, TRAINING)
