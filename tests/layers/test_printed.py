"""A layer prints as the tree of its parts: shapes, what is frozen, counts."""

import numpy as np
import pytest

from lora_np import GPT, GPTConfig, Linear, LoraConfig, freeze, inject, merge, store_model
from lora_np.forms import Nf4
from lora_np.layers import Chain, Layer, Residual


@pytest.fixture
def model():
    return GPT(GPTConfig(9, 4, 3, 2, 8), np.random.default_rng(0))


def lines(layer):
    return [line.strip() for line in repr(layer).splitlines()]


def test_a_leaf_is_one_line_with_its_shapes_and_a_line_of_counts(rng):
    assert lines(Linear(3, 2, rng)) == ["Linear(W (2, 3), b (2,))", "8 parameters, 8 trainable"]
    layer = Linear(1000, 2, rng, bias=False)
    freeze(layer.parameters())
    assert lines(layer) == ["Linear(W (2, 1000) frozen)", "2,000 parameters, 0 trainable"]


def test_equal_blocks_are_folded_and_a_different_one_ends_the_run(model):
    assert sum("3 x Block(" in line for line in lines(model)) == 1
    assert sum(line.startswith("(q_proj)") for line in lines(model)) == 1
    freeze(model.h[1].attn.q_proj.parameters())
    heads = [line for line in lines(model) if "Block(" in line]
    assert heads == ["(h.0): Block(", "(h.1): Block(", "(h.2): Block("]
    freeze(model.h[0].attn.q_proj.parameters())
    assert [line for line in lines(model) if "Block(" in line] == [
        "(h.0-1): 2 x Block(",
        "(h.2): Block(",
    ]


def test_neighbours_that_are_no_list_are_not_folded(rng):
    class Two(Layer):
        def __init__(self):
            self.one, self.other = Linear(2, 2, rng), Linear(2, 2, rng)

    assert [line.split(":")[0] for line in lines(Two())[1:3]] == ["(one)", "(other)"]


def test_an_adapted_model_says_what_is_frozen_and_the_rank_and_alpha(model):
    adapted = inject(model, LoraConfig(r=2, lora_alpha=6), np.random.default_rng(0))
    (shown,) = (line for line in lines(adapted) if line.startswith("(q_proj)"))
    assert shown.startswith(
        "(q_proj): LoRALinear(W0 (8, 8) frozen, b (8,) frozen, A (2, 8), B (8, 2)"
    )
    assert "r=2, alpha=6" in shown
    trainable = sum(p.size for p in adapted.parameters().values() if p.trainable)
    total = sum(p.size for p in adapted.parameters().values())
    assert lines(adapted)[-1] == f"{total:,} parameters, {trainable:,} trainable"
    assert trainable == 3 * 2 * 2 * (8 + 8)  # blocks, q and v, r, in + out
    assert "LoRALinear" not in repr(merge(adapted))


def test_a_tied_parameter_is_counted_once(rng):
    one, other = Linear(2, 2, rng), Linear(2, 2, rng)
    other.W = one.W
    assert lines(Chain(one, other))[-1] == "8 parameters, 8 trainable"


def test_a_stored_parameter_names_its_form_and_is_not_decoded(model, monkeypatch):
    stored = store_model(model, Nf4.encode)
    monkeypatch.setattr(Nf4, "decode", None)
    assert "W (8, 8) nf4 frozen" in repr(stored)


def test_brackets_and_indents_close(model):
    text = repr(Residual(model)).splitlines()
    depth = 0
    for line in text[:-1]:
        depth -= line.strip() == ")"
        assert line.startswith("  " * depth) and not line.startswith("  " * depth + " ")
        depth += line.count("(") - line.count(")") > 0
    assert depth == 0
