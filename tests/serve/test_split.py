"""A model split over processes: its logits, the numbers that it sends, what it refuses."""

import os
import signal
from fractions import Fraction

import numpy as np
import pytest

from lora_np import (
    GPT,
    GPTConfig,
    Llama,
    LlamaConfig,
    LoraConfig,
    PrefixConfig,
    crew,
    inject,
    load_adapter,
    save_adapter,
    store_model,
)
from lora_np.backend import ShapeError
from lora_np.crew import CrewError, MemberLost
from lora_np.forms import Bfloat16
from lora_np.layers import Layer
from lora_np.methods import BitFitConfig, DoraConfig
from lora_np.serve.split import SplitModel

V, T = 13, 5
needs_fork = pytest.mark.skipif(not crew.can_fork(), reason="processes are forked on Linux only")


def spread(model, rng):
    """Return the model with weights large enough that every part matters."""
    for p in model.parameters().values():
        if p.trainable:
            p.value[...] = p.value + 0.3 * rng.standard_normal(p.shape)
    return model


def gpt(n_head=3, dtype=np.float64):
    rng = np.random.default_rng(0)
    return spread(GPT(GPTConfig(V, 8, 2, n_head, 4 * n_head), rng, dtype), rng)


def llama(n_kv_head=3, dtype=np.float64, **changes):
    rng = np.random.default_rng(0)
    sizes = {"n_layer": 2, "n_head": 6, "n_kv_head": n_kv_head, "d_model": 12, "d_hidden": 15}
    return spread(Llama(LlamaConfig(V, 8, **{**sizes, **changes}), rng, dtype), rng)


def adapted(model, r=2, targets="all-linear", seed=1, **options):
    rng = np.random.default_rng(seed)
    config = LoraConfig(r=r, lora_alpha=3.0, target_modules=targets, **options)
    return spread(inject(model, config, rng), rng)


def mixed(model):
    """Three adapters of other ranks and targets over one model."""
    return [
        adapted(model),
        adapted(model, 5, ["q_proj", "down_proj"], seed=2),
        adapted(model, 1, ["q_proj", "o_proj", "down_proj"], seed=3),
    ]


IDS = [1, -1, 0, 2, 0, 1]


def batch(n=6):
    return np.random.default_rng(4).integers(0, V, (n, T))


def row_by_row(model, adapters, tokens, ids):
    """The logits of each row, computed by the model of its own adapter."""
    models = [*adapters, model]  # so that -1 is the model itself
    return np.stack([models[i].forward(row)[0] for row, i in zip(tokens, ids)])


def off(y, expected):
    """The largest difference, by the largest number."""
    return abs(y - expected).max() / abs(expected).max()


MODELS = {
    "gpt, 2 heads": lambda: gpt(2),
    "gpt, 3 heads": lambda: gpt(3),
    "llama, 2 groups": lambda: llama(2),
    "llama, 3 groups": lambda: llama(3),
    "llama, untied, biases": lambda: llama(6, tied=False, qkv_bias=True, d_head=4),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_every_row_has_the_logits_of_its_own_adapter(make):
    model = make()
    adapters, tokens = mixed(model), batch()
    expected = row_by_row(model, adapters, tokens, IDS)
    with SplitModel(model, adapters) as split:
        assert off(split.forward(tokens, IDS), expected) < 1e-12
        assert off(split.forward(tokens[::-1], IDS[::-1]), expected[::-1]) < 1e-12
    alone = row_by_row(model, adapters, tokens, [-1] * len(IDS))
    assert off(expected, alone) > 0.1  # or adapters that do nothing would pass


@pytest.mark.parametrize("members", [1, 3])
def test_any_number_of_members_computes_the_same(members):
    model, tokens = llama(3), batch()
    adapters = mixed(model)
    with SplitModel(model, adapters, members) as split:
        y = split.forward(tokens, IDS)
    assert off(y, row_by_row(model, adapters, tokens, IDS)) < 1e-12


def test_threads_compute_the_same_where_processes_cannot_be_forked(monkeypatch):
    monkeypatch.setattr("lora_np.serve.split.can_fork", lambda: False)
    model, tokens = llama(3), batch()
    adapters = mixed(model)
    with SplitModel(model, adapters) as split:
        assert isinstance(split.crew, crew.Threads)
        y = split.forward(tokens, IDS)
    assert off(y, row_by_row(model, adapters, tokens, IDS)) < 1e-12


def test_float32_stays_float32():
    model = llama(dtype=np.float32)
    adapters, tokens = mixed(model), batch()
    with SplitModel(model, adapters) as split:
        y = split.forward(tokens, IDS)
    assert y.dtype == np.float32
    assert off(y, row_by_row(model, adapters, tokens, IDS)) < 1e-5


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_whose_start_is_part_of_the_base_is_split_too(start):
    model, tokens = gpt(2), batch(2)
    adapters = [adapted(model, init_lora_weights=start)]
    with SplitModel(model, adapters) as split:
        y = split.forward(tokens, [0, -1])
    assert off(y, row_by_row(model, adapters, tokens, [0, -1])) < 1e-12


def test_an_adapter_read_from_its_folder_is_split_over_the_base_that_was_read_for(tmp_path):
    model, tokens = llama(), batch(2)
    save_adapter(adapted(model), tmp_path / "a")
    read = load_adapter(model, tmp_path / "a")
    with SplitModel(model, [read]) as split:
        y = split.forward(tokens, [0, -1])
    assert off(y, row_by_row(model, [read], tokens, [0, -1])) < 1e-12


def test_stored_weights_are_split():
    model = store_model(llama(dtype=np.float32), Bfloat16.encode)
    adapters, tokens = mixed(model), batch()
    with SplitModel(model, adapters) as split:
        y = split.forward(tokens, IDS)
    assert off(y, row_by_row(model, adapters, tokens, IDS)) < 1e-5


# --- what is sent --------------------------------------------------------------------------------


def of_paper(p, N, h, r, gathers, reduces):
    """The mean of a member, as the paper counts it: (base, adapters) of one block."""
    of_others = Fraction(p - 1, p)
    return 2 * 2 * of_others * N * h, (gathers + 2 * reduces) * of_others * N * r


@pytest.mark.parametrize("p", [2, 3])
@pytest.mark.parametrize("targets, gathers, reduces", [
    (["q_proj", "k_proj", "v_proj", "o_proj"], 3, 1),  # the paper's 5 (p - 1) N r / p
    (["gate_proj", "up_proj", "down_proj"], 2, 1),
    ("all-linear", 5, 2),
])  # fmt: skip
def test_the_numbers_sent_are_those_of_the_paper(p, targets, gathers, reduces):
    model = llama(3, n_layer=1)
    base, own = of_paper(p, 4 * T, 12, 5, gathers, reduces)
    with SplitModel(model, [adapted(model, 5, targets)], p) as split:
        split.forward(batch(4), [0] * 4)
        assert split.sent == (p * base, p * own)
        split.forward(batch(4), [-1] * 4)
        assert split.sent == (2 * p * base, p * own)  # rows of the base send nothing more


def test_each_row_sends_by_the_rank_of_its_own_adapter():
    model = gpt(2)
    adapters = [adapted(model, 3), adapted(model, 6, seed=2)]
    with SplitModel(model, adapters) as split:
        split.forward(batch(6), [0, 1, -1, 1, 0, 0])
        numbers = (3 * 3 + 2 * 6) * T  # the sum of N r
        # In a block 5 in attention, 3 in the MLP without a gate; 2 blocks.
        assert split.sent == (2 * 4 * 6 * T * 8, 2 * (5 + 3) * numbers)


def test_adapters_of_rank_8_send_a_32nd_of_what_a_base_of_width_576_sends():
    sizes = {"n_layer": 1, "n_head": 9, "d_model": 576, "d_hidden": 1536}
    model = llama(3, np.float32, **sizes)
    with SplitModel(model, [adapted(model, 8)]) as split:
        split.forward(batch(2), [0, 0])
        assert split.sent.base == 32 * split.sent.adapters


# --- what goes wrong -----------------------------------------------------------------------------


@needs_fork
@pytest.mark.parametrize("member", [0, 1])
def test_a_member_that_dies_ends_the_crew_and_nobody_waits(member):
    model = gpt(2)
    with SplitModel(model, mixed(model)) as split:
        split.forward(batch(), IDS)
        os.kill(split.crew.processes[member].pid, signal.SIGKILL)
        with pytest.raises(CrewError, match="killed"):
            split.forward(batch(), IDS)
        with pytest.raises(CrewError, match="with block"):
            split.forward(batch(), IDS)
    with SplitModel(model, mixed(model)) as split:
        assert split.forward(batch(), IDS).shape == (len(IDS), T, V)


class Broken(Layer):
    """A layer with an error of its own."""

    def __init__(self, error):
        self.error = error

    def forward(self, x, rng=None):
        raise self.error("of this member")


@pytest.mark.parametrize("error", [ZeroDivisionError, MemberLost])
def test_an_error_inside_a_member_is_the_one_that_is_raised(error):
    model = gpt(2)
    split = SplitModel(model, mixed(model))
    split.parts[1][0].h[1].mlp.act = Broken(error)
    with split:
        with pytest.raises(error):
            split.forward(batch(), IDS)
        with pytest.raises(CrewError, match="with block"):
            split.forward(batch(), IDS)


@pytest.mark.parametrize("tokens, ids, error, message", [
    ([[1, 2]], [3], IndexError, "ids has the number 3, expected -1 .. 2"),
    ([[1, 2]], [-2], IndexError, "ids has the number -2"),
    ([[1, 2]], [0, 0], ShapeError, r"ids has shape \(2,\), expected \(1,\)"),
    ([[1, 2]], [0.0], TypeError, "ids has dtype float64"),
    ([[1.0, 2.0]], [0], TypeError, "tokens has dtype float64"),
    ([1, 2], [0], ShapeError, r"tokens has shape \(2,\)"),
    (np.zeros((0, 3), int), [], ShapeError, "n at least 1"),
    (np.zeros((1, 9), int), [0], ShapeError, "block_size = 8"),
    ([[1, V]], [0], IndexError, "expected 0 .. 12"),
])  # fmt: skip
def test_a_batch_that_cannot_run_is_refused_and_the_crew_goes_on(tokens, ids, error, message):
    model = gpt(2)
    with SplitModel(model, mixed(model)) as split:
        with pytest.raises(error, match=message):
            split.forward(tokens, ids)
        assert split.forward(batch(), IDS).shape == (len(IDS), T, V)


def refused():
    """Pairs of a SplitModel's arguments, and the message."""
    model, other = gpt(3), gpt(3)
    rng = np.random.default_rng(0)
    prefix = inject(model, PrefixConfig(num_virtual_tokens=2), rng)
    return [
        ((model, [], 4), "members is 4, expected 1 to 3"),
        ((model, [], 0), "members is 0"),
        ((llama(2), [], 3), "members is 3, expected 1 to 2"),
        ((adapted(model), []), "pass its base"),
        ((model.h[0].mlp, []), "MLP is no language model"),
        (
            (model, [adapted(model), prefix]),
            "adapter 1 cannot be split: PrefixAttention at",
        ),
        (
            (model, [inject(model, DoraConfig(r=2), rng)]),
            "DoraLinear at 'h.0.attn",
        ),
        ((model, [inject(model, BitFitConfig(), rng)]), "is not the base's"),
        (
            (model, [adapted(model), adapted(llama())]),
            "adapter 1 .* no such layer as 'model",
        ),
        ((model, [adapted(gpt(2))]), "adapter 0 .* no such layer as 'h.0.attn"),
        ((model, [adapted(other)]), "adapter 0 cannot be split: its .* is not the base's"),
        ((model, [adapted(model, targets=["wte"])]), "LoRAEmbedding at 'wte' is not LoRA"),
    ]


@pytest.mark.parametrize("arguments, message", refused())
def test_what_cannot_be_split_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SplitModel(*arguments)
