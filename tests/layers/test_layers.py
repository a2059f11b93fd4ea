"""lora_np.layers: every layer alone and inside others, frozen in part, used twice, copied."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import layers, ops
from lora_np.backend import ShapeError
from lora_np.gradcheck import GradientError, check_gradients
from lora_np.layers import (
    GRU,
    MLP,
    RNN,
    CausalSelfAttention,
    Chain,
    Conv1d,
    Dropout,
    Embedding,
    Gelu,
    Layer,
    LayerNorm,
    Linear,
    Modulated,
    Residual,
    SelfAttention,
    as_pair,
    copy_model,
    rebuild,
)
from lora_np.layers.memory import KeyMemory
from lora_np.methods import LoraConfig, LoRALinear, inject
from lora_np.models import GPT, GPTConfig
from lora_np.parameters import Grads, Parameter, freeze
from lora_np.selfcheck import at_random
from tests.compare import close
from tests.counting import Counting, unmerged

TOL = 1e-12  # float64, numbers of order one
D = 4
F64 = np.float64


def lora(rng, bias=True, dropout=0.25, std=1.0):
    linear = Linear(D, D, rng, bias=bias, std=std, dtype=F64)
    A, B = Parameter(rng.standard_normal((2, D))), Parameter(rng.standard_normal((D, 2)))
    return LoRALinear(linear, A, B, 0.7, dropout)


def with_lora(layer, rng):
    config = LoraConfig(r=2, lora_dropout=0.25, target_modules="all-linear")
    return inject(layer, config, rng)


# every layer that takes (..., D) to (..., D)
LAYERS = {
    "Linear": lambda rng: Linear(D, D, rng, dtype=F64),
    "Linear, no bias": lambda rng: Linear(D, D, rng, bias=False, dtype=F64),
    "LoRALinear": lora,
    "LoRALinear, no bias": lambda rng: lora(rng, bias=False),
    "LayerNorm": lambda rng: LayerNorm(D, dtype=F64),
    "Dropout": lambda rng: Dropout(0.3),
    "Gelu": lambda rng: Gelu(),
    "MLP": lambda rng: MLP(D, 6, rng, dtype=F64),
    "attention, 1 head": lambda rng: CausalSelfAttention(D, 1, rng, dtype=F64),
    "attention, 2 heads": lambda rng: CausalSelfAttention(D, 2, rng, dtype=F64),
    "attention to all": lambda rng: SelfAttention(D, 2, rng, dtype=F64),
    "Residual": lambda rng: Residual(MLP(D, 6, rng, dtype=F64)),
    "Chain": lambda rng: Chain(Linear(D, D, rng, dtype=F64), Gelu(), lora(rng)),
    "Conv1d": lambda rng: Conv1d(D, D, 3, rng, padding=1, dtype=F64),
    "Conv1d, groups, dilation": lambda rng: Conv1d(
        D, D, 3, rng, padding=2, dilation=2, groups=2, bias=False, dtype=F64
    ),
    "RNN": lambda rng: RNN(D, D, rng, dtype=F64),
    "GRU": lambda rng: GRU(D, D, rng, dtype=F64),
    "GRU, no bias": lambda rng: GRU(D, D, rng, bias=False, dtype=F64),
    "Conv1d with adapters": lambda rng: with_lora(Conv1d(D, D, 3, rng, padding=1, dtype=F64), rng),
    "GRU with adapters": lambda rng: with_lora(GRU(D, D, rng, dtype=F64), rng),
    "attention with adapters": lambda rng: inject(
        CausalSelfAttention(D, 2, rng, dtype=F64), LoraConfig(r=2, lora_dropout=0.25), rng
    ),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def layer_named(name, seed=0):
    rng = np.random.default_rng(seed)
    layer = LAYERS[name](rng)
    at_random(layer, rng)
    return layer


def x_and_dy(*shape):
    return np.random.default_rng([7, *shape]).standard_normal((2, *shape))


def step(layer, x, dy, need_dx=True):
    """Return y, dx and the gradients by name, with the same dropout masks at every call."""
    y, cache = layer.forward(x, np.random.default_rng(3))
    grads = Grads()
    dx = layer.backward(dy, cache, grads, need_dx)
    found = {name: grads.get(p) for name, p in layer.parameters().items()}
    return y, dx, {name: g for name, g in found.items() if g is not None}


# --- gradients -----------------------------------------------------------------------------------

WRAPS = {
    "alone": lambda layer, rng: layer,
    "in a Residual": lambda layer, rng: Residual(layer),
    "in a Chain": lambda layer, rng: Chain(
        LayerNorm(D, dtype=F64), layer, Linear(D, 3, rng, dtype=F64)
    ),
    "in a Residual in a Chain, twice": lambda layer, rng: Chain(Residual(layer), Gelu(), layer),
}


@every_layer
@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("shape", [(3, D), (1, D), (2, 1, 2, D)])
def test_gradients_match_alone_and_inside_others(name, wrap, shape):
    rng = np.random.default_rng(1)
    layer = WRAPS[wrap](layer_named(name), rng)
    at_random(layer, rng, 0.7)
    forward, backward, inputs = as_pair(layer, seed=5)
    x = rng.standard_normal(shape)
    method = "complex" if shape == (3, D) else "directional"
    check_gradients(forward, backward, inputs(x), method=method).raise_if_wrong()


@pytest.mark.parametrize("wrap", ["alone", "in a Chain"])
def test_gradients_match_of_an_embedding(wrap, rng):
    layer = Embedding(5, D, rng, dtype=F64)
    layer = layer if wrap == "alone" else Chain(layer, LayerNorm(D, dtype=F64), Gelu())
    at_random(layer, rng)
    forward, backward, inputs = as_pair(layer)
    tokens = np.array([[0, 3, 3], [1, 0, 3]])
    report = check_gradients(forward, backward, inputs(tokens), method="complex")
    report.raise_if_wrong()
    assert [row.name for row in report.rows] == list(layer.parameters())


@every_layer
def test_float32_stays_float32(name):
    layer = copy_model(layer_named(name), dtype=np.float32)
    x, dy = (a.astype(np.float32) for a in x_and_dy(3, D))
    y, dx, grads = step(layer, x, dy)
    assert {a.dtype for a in (y, dx, *grads.values())} == {np.dtype(np.float32)}


def test_as_pair_checks_one_parameter_and_finds_a_layer_that_ignores_frozen():
    class Eager(Linear):
        def backward(self, dy, cache, grads, need_dx=True):
            grads.add(self.W, dy.reshape(-1, D).T @ cache.x.reshape(-1, D))
            return dy @ self.W.value  # whether anybody needs it or not

    rng = np.random.default_rng(0)
    x = x_and_dy(3, D)[0]
    for make, right in ((Linear, True), (Eager, False)):
        forward, backward, inputs = as_pair(make(D, D, rng, bias=False, dtype=F64))
        if right:
            report = check_gradients(forward, backward, inputs(x), wrt=["W"])
            assert report.ok and [row.name for row in report.rows] == ["W"]
        else:
            assert check_gradients(forward, backward, inputs(x)).ok
            with pytest.raises(GradientError, match="were not needed"):
                check_gradients(forward, backward, inputs(x), wrt=["W"])


# --- frozen in part ------------------------------------------------------------------------------


@every_layer
@given(data=st.data())
def test_freezing_some_leaves_the_other_gradients_as_they_were(name, data):
    layer = Chain(Linear(D, D, np.random.default_rng(0), dtype=F64), layer_named(name))
    for p in layer.parameters().values():
        p.trainable = True
    x, dy = x_and_dy(3, D)
    y, dx, full = step(layer, x, dy)
    assert list(full) == list(layer.parameters())
    chosen = data.draw(st.sets(st.sampled_from(list(full))))
    freeze(layer.parameters()[n] for n in chosen)
    for need_dx in (True, False):
        y_frozen, dx_frozen, some = step(layer, x, dy, need_dx)
        np.testing.assert_array_equal(y_frozen, y)
        assert set(some) == set(full) - chosen
        for n, gradient in some.items():
            close(gradient, full[n])
        if need_dx:
            close(dx_frozen, dx)
        else:
            assert dx_frozen is None


@every_layer
def test_a_layer_that_is_frozen_whole_still_passes_dx_on(name):
    layer = layer_named(name)
    x, dy = x_and_dy(3, D)
    _, dx, _ = step(layer, x, dy)
    freeze(layer.parameters())
    assert not layer.trainable
    _, dx_frozen, none = step(layer, x, dy)
    close(dx_frozen, dx)
    assert none == {}
    assert step(layer, x, dy, need_dx=False)[1] is None


class Spy(Layer):
    """The identity, counting the calls of its backward and remembering what they were asked."""

    def __init__(self):
        self.asked = []

    def forward(self, x, rng=None):
        return x, None

    def backward(self, dy, cache, grads, need_dx=True):
        self.asked.append(need_dx)
        return dy if need_dx else None


@pytest.mark.parametrize(
    "trainable, asked",
    [
        ([], [[], [], [False]]),
        ([2], [[], [], [True]]),
        ([1], [[], [True], [True]]),
        ([1, 2], [[], [True], [True]]),
        ([0], [[True], [True], [True]]),
    ],
)
def test_backward_stops_below_the_lowest_trainable_layer(trainable, asked):
    rng = np.random.default_rng(0)
    spies, linear = [Spy() for _ in range(3)], [Linear(D, D, rng, dtype=F64) for _ in range(3)]
    for i, layer in enumerate(linear):
        if i not in trainable:
            freeze(layer.parameters())
    chain = Chain(*(layer for pair in zip(linear, spies) for layer in pair))  # spy i above linear i
    x, dy = x_and_dy(3, D)
    assert step(chain, x, dy, need_dx=False)[1] is None
    assert [spy.asked for spy in spies] == asked  # not called at all, or called for dx or without


def test_a_residual_around_frozen_layers_stops_as_well(rng):
    below, inside = Spy(), Spy()
    frozen, top = Residual(Chain(inside, Linear(D, D, rng, dtype=F64))), LayerNorm(D, dtype=F64)
    freeze(frozen.parameters())
    x, dy = x_and_dy(3, D)
    _, dx, found = step(Chain(below, frozen, top), x, dy, need_dx=False)
    assert dx is None and list(found) == ["layers.2.gamma", "layers.2.beta"]
    assert below.asked == inside.asked == []


def test_a_gpts_backward_stops_below_its_lowest_adapter(rng):
    config = GPTConfig(vocab_size=7, block_size=4, n_layer=3, n_head=1, d_model=D)
    adapted = inject(GPT(config, rng, F64), LoraConfig(r=1, layers_to_transform=1), rng)
    adapted.h[0] = spy = Spy()
    tokens = np.array([[1, 2, 3]])
    grads = Grads()
    _, cache = adapted.loss(tokens, tokens)
    adapted.backward(1.0, cache, grads)
    assert spy.asked == [] and len(grads) == 4  # A and B of q_proj and v_proj


def test_frozen_q_and_k_form_no_gradient_of_the_scores(monkeypatch, rng):
    attention = CausalSelfAttention(D, 2, rng, dtype=F64)
    freeze(attention.parameters())
    attention.v_proj.W.trainable = True
    needs = []

    def spied(dy, cache, need):
        needs.append(list(need))
        return backward(dy, cache, need)

    backward = layers.attention.attention_backward
    monkeypatch.setattr(layers.attention, "attention_backward", spied)
    _, _, found = step(attention, *x_and_dy(3, D), need_dx=False)
    assert needs == [[False, False, True]] and list(found) == ["v_proj.W"]


def test_a_frozen_linear_layer_lets_go_of_its_input(rng):
    linear = Linear(D, D, rng)
    x = np.ones((2, D), np.float32)
    assert linear.forward(x)[1].x is x
    freeze([linear.W])
    assert linear.forward(x)[1].x is None  # b stays trainable: db reads dy alone
    freeze([linear.b])
    assert linear.forward(x)[1].x is None


# --- FLOPs: the count is what is multiplied ------------------------------------------------------


def count(layer, x, dy, need_dx):
    """Return the operations of forward and of backward."""
    counted = rebuild(layer, lambda p: Parameter(p.value.view(Counting), p.trainable))
    Counting.flops = 0
    with unmerged():
        _, cache = counted.forward(x.view(Counting) if x.dtype == F64 else x)
        forward, Counting.flops = Counting.flops, 0
        counted.backward(dy.view(Counting), cache, Grads(), need_dx)
    return forward, Counting.flops


@every_layer
@given(data=st.data())
def test_flops_are_the_products_that_are_carried_out(name, data):
    layer = Chain(Linear(D, D, np.random.default_rng(0), dtype=F64), layer_named(name))
    need_dx, T = data.draw(st.booleans()), data.draw(st.integers(2, 4))
    for p in layer.parameters().values():
        p.trainable = data.draw(st.booleans())
    tokens = 2 * T
    x, dy = np.random.default_rng(0).standard_normal((2, 2, T, D))
    forward, backward = count(layer, x, dy, need_dx)
    flops = layer.flops(T, need_dx)
    assert (forward, backward) == (tokens * flops.forward, tokens * flops.backward)


@pytest.mark.parametrize("targets", [("q_proj",), ("down_proj",), "all-linear"])
@pytest.mark.parametrize("blocks", [None, 1])
def test_flops_of_an_adapted_gpt_are_the_products_that_are_carried_out(targets, blocks, rng):
    config = GPTConfig(vocab_size=7, block_size=4, n_layer=2, n_head=2, d_model=D)
    lora_config = LoraConfig(r=2, target_modules=targets, layers_to_transform=blocks)
    adapted = inject(GPT(config, rng, F64), lora_config, rng)
    tokens = np.array([[1, 2, 3], [4, 5, 6]])
    forward, backward = count(adapted, tokens, rng.standard_normal((2, 3, 7)), False)
    flops = adapted.flops(3)
    assert (forward, backward) == (6 * flops.forward, 6 * flops.backward)


# --- names, ties, copies -------------------------------------------------------------------------


def test_parameters_and_modules_are_named_by_path_in_order(rng):
    chain = Chain(MLP(D, 6, rng), Residual(CausalSelfAttention(D, 2, rng)), LayerNorm(D))
    attention = [f"layers.1.layer.{p}_proj" for p in "qkvo"]
    assert list(chain.modules()) == [
        "layers.0",
        *(f"layers.0.{part}" for part in ("up_proj", "act", "down_proj")),
        "layers.1",
        "layers.1.layer",
        *attention,
        "layers.2",
    ]
    assert list(chain.parameters()) == [
        *(f"layers.0.{part}.{p}" for part in ("up_proj", "down_proj") for p in "Wb"),
        *(f"{path}.{p}" for path in attention for p in "Wb"),
        "layers.2.gamma",
        "layers.2.beta",
    ]
    assert chain.modules()["layers.0.up_proj"].W is chain.parameters()["layers.0.up_proj.W"]
    assert list(Linear(D, D, rng, bias=False).parameters()) == ["W"]
    assert list(lora(rng).parameters()) == ["W0", "b", "A", "B"]


def test_trainable_looks_all_the_way_down(rng):
    chain = Chain(Residual(MLP(D, 6, rng)), Gelu())
    assert chain.trainable and not Chain(Gelu()).trainable
    names = list(chain.parameters())
    freeze(chain.parameters()[name] for name in names[:-1])
    assert chain.trainable
    freeze([chain.parameters()[names[-1]]])
    assert not chain.trainable


@pytest.mark.parametrize("tie", ["the layer", "the Parameter"])
def test_a_parameter_used_twice_appears_once_and_receives_the_sum(tie, rng):
    first, second = (Linear(D, D, rng, bias=False, dtype=F64) for _ in range(2))
    second.W.value = first.W.value.copy()
    x, dy = x_and_dy(3, D)
    y, dx, apart = step(Chain(first, Gelu(), second), x, dy)
    if tie == "the layer":
        tied = Chain(first, Gelu(), first)
    else:
        second.W = first.W
        tied = Chain(first, Gelu(), second)
    y_tied, dx_tied, together = step(tied, x, dy)
    assert list(together) == list(tied.parameters()) == ["layers.0.W"]
    np.testing.assert_array_equal(y_tied, y)
    close(together["layers.0.W"], apart["layers.0.W"] + apart["layers.2.W"])
    close(dx_tied, dx)


def test_rebuild_keeps_ties_and_leaves_the_original_alone(rng):
    first, second = Linear(D, D, rng), Linear(D, D, rng)
    second.W = first.W
    model = Chain(first, Residual(second), first)
    before, values = model.parameters(), [p.value for p in model.parameters().values()]
    made = []

    def double(p):
        made.append(p)
        return Parameter(2 * p.value)

    twin = rebuild(model, double)
    assert len(made) == 3 and list(twin.parameters()) == list(before)  # once for each
    assert twin.layers[1].layer.W is twin.layers[0].W is twin.layers[2].W
    assert twin.layers[0] is not first and twin.layers is not model.layers
    for p, new, value in zip(before.values(), twin.parameters().values(), values):
        assert new is not p and p.value is value
        np.testing.assert_array_equal(new.value, 2 * value)
    assert model.parameters() == before and model.layers[0] is first


def test_rebuild_puts_another_layer_at_a_path(rng):
    model = Chain(Linear(D, D, rng), Residual(MLP(D, 6, rng)))
    paths = []

    def replace(path, layer):
        paths.append(path)
        return Spy() if path == "layers.1.layer" else None

    twin = rebuild(model, lambda p: p, replace)
    assert isinstance(twin.layers[1].layer, Spy) and isinstance(model.layers[1].layer, MLP)
    assert twin.layers[0].W is model.layers[0].W
    assert paths == ["", "layers.0", "layers.1", "layers.1.layer"]  # not inside what was replaced


@pytest.mark.parametrize("dtype", [None, np.float32, np.float64])
def test_copy_model_has_its_own_memory_and_the_dtype_asked_for(dtype, rng):
    model = Chain(lora(rng), MLP(D, 6, rng, dtype=F64))
    freeze([model.layers[0].W0])
    twin = copy_model(model, dtype=dtype)
    for name, p in model.parameters().items():
        q = twin.parameters()[name]
        assert q.dtype == (dtype or np.float64) and q.trainable == p.trainable
        assert not np.shares_memory(p.value, q.value)
        np.testing.assert_array_equal(q.value, p.value.astype(q.dtype))
    assert twin.layers[0].scale == 0.7 and twin.layers[0].dropout == 0.25


# --- dropout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("p, rng", [(0.5, None), (0.0, np.random.default_rng(0))])
def test_dropout_without_rng_or_probability_is_the_identity(p, rng):
    x, dy = x_and_dy(3, D)
    layer = Dropout(p)
    y, cache = layer.forward(x, rng)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(layer.backward(dy, cache, Grads()), dy)
    assert layer.backward(dy, cache, Grads(), need_dx=False) is None


def test_dropout_keeps_the_mean_and_sends_no_gradient_where_it_dropped():
    x = np.ones((300, 200))
    y, cache = Dropout(0.2).forward(x, np.random.default_rng(0))
    dropped = y == 0
    # standard deviations: sqrt(p (1 - p) / 60000) = 0.0016 and sqrt(p / (1 - p) / 60000) = 0.002
    assert abs(dropped.mean() - 0.2) < 0.007 and abs(y.mean() - 1) < 0.008
    np.testing.assert_array_equal(y[~dropped], 1 / 0.8)
    dx = Dropout(0.2).backward(np.full_like(x, 3.0), cache, Grads())
    np.testing.assert_array_equal(dx == 0, dropped)
    close(dx[~dropped], np.full((~dropped).sum(), 3 / 0.8))


def test_one_generator_gives_a_new_mask_at_every_call_and_a_seed_the_same():
    x, rng = np.ones((20, D)), np.random.default_rng(0)
    first, second = (Dropout(0.5).forward(x, rng)[0] for _ in range(2))
    again = Dropout(0.5).forward(x, np.random.default_rng(0))[0]
    assert (first != second).any()
    np.testing.assert_array_equal(first, again)


def test_lora_dropout_touches_the_adapters_path_alone(rng):
    layer = lora(rng, dropout=0.5)
    x, dy = x_and_dy(6, D)
    base, _ = ops.linear_forward(x, layer.W0.value, layer.b.value)
    mask = ops.dropout_mask(x, 0.5, np.random.default_rng(3))
    y, dx, grads = step(layer, x, dy)  # draws with seed 3 as well
    A, B = layer.A.value, layer.B.value
    close(y - base, 0.7 * (x * mask) @ A.T @ B.T)
    close(dx - dy @ layer.W0.value, 0.7 * (dy @ B @ A) * mask)
    close(grads["W0"], dy.T @ x)
    close(grads["A"], 0.7 * (dy @ B).T @ (x * mask))
    close(layer.forward(x)[0] - base, x @ layer.delta().T)  # without rng there is none


# --- attention, one position after another -------------------------------------------------------


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.sampled_from([1, 2, 4]))
def test_extending_chunk_by_chunk_equals_the_whole_forward(chunks, n_head):
    rng = np.random.default_rng(0)
    attention = CausalSelfAttention(D, n_head, rng, dtype=F64)
    at_random(attention, rng)
    x = rng.standard_normal((2, sum(chunks), D))
    whole, _ = attention.forward(x)
    past, start = None, 0
    for n in chunks:
        y, past = attention.extend(x[:, start : start + n], past)
        close(y, whole[:, start : start + n])
        start += n
    assert past.lengths == (start, start)
    assert past.keys(0).shape == (1, n_head, start, D // n_head)


def test_extending_leaves_the_past_as_it_was(rng):
    """So two continuations may start from one prompt."""
    attention = CausalSelfAttention(D, 2, rng, dtype=F64)
    x = rng.standard_normal((1, 5, D))
    _, past = attention.extend(x[:, :3], None)
    before = past.keys(0).copy()
    one, _ = attention.extend(x[:, 3:4], past)
    attention.extend(x[:, 4:5], past)
    again, _ = attention.extend(x[:, 3:4], past)
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(past.keys(0), before)


def test_room_is_made_in_advance_so_that_few_positions_are_copied(rng):
    """A cache that is joined anew at every position copies it T times: T^2 / 2 positions."""
    one = rng.standard_normal((2, 1, 1, 4))
    memory, rooms = KeyMemory(one, one), set()
    for _ in range(200):
        memory = memory.extended(one, one)
        rooms.add(memory.keys(0).base.ctypes.data)
    assert memory.lengths == (201, 201) and len(rooms) <= 8  # doubled, log2(201)


def test_a_memory_and_its_shortened_one_do_not_disturb_each_other(rng):
    k, new = rng.standard_normal((2, 1, 3, 4)), rng.standard_normal((2, 1, 1, 4))
    longer = KeyMemory(k, k).extended(new, new)  # its room has space left
    short = longer.shortened((2, 4))
    went_on = short.extended(-new, -new)
    np.testing.assert_array_equal(longer.keys(0), np.concatenate([k[:1], new[:1]], axis=2))
    np.testing.assert_array_equal(went_on.keys(0), np.concatenate([k[:1, :, :2], -new[:1]], axis=2))
    longer.extended(3 * new, 3 * new)
    np.testing.assert_array_equal(went_on.keys(1)[:, :, 4:], -new[1:])


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 3))
def test_rows_of_different_lengths_attend_to_their_own_positions(lengths, more):
    rng = np.random.default_rng(0)
    attention = CausalSelfAttention(D, 2, rng, dtype=F64)
    at_random(attention, rng)
    rows, longest = len(lengths), max(lengths)
    x = rng.standard_normal((rows, longest + more, D))
    _, memory = attention.extend(x[:, :longest])
    memory = memory.shortened(tuple(lengths))
    fresh = rng.standard_normal((rows, more, D))
    y, _ = attention.extend(fresh, memory)
    for row, n in enumerate(lengths):
        whole = np.concatenate([x[row : row + 1, :n], fresh[row : row + 1]], axis=1)
        close(y[row : row + 1], attention.forward(whole)[0][:, n:])


@pytest.mark.parametrize("size", [0.1, 10.0])
def test_no_position_of_the_layer_sees_the_future(size, rng):
    # Scores stay large, or small: where exp needs its shift, the last bits differ.
    attention = CausalSelfAttention(D, 2, rng, dtype=F64)
    at_random(attention, rng)
    x = size * rng.standard_normal((4, D))
    y, _ = attention.forward(x)
    x[2] += size
    changed, _ = attention.forward(x)
    np.testing.assert_array_equal(changed[:2], y[:2])
    assert (changed[2:] != y[2:]).any(axis=-1).all()


@pytest.mark.parametrize("d, n_head", [(6, 4), (4, 0), (4, 8)])
def test_heads_must_divide_the_width(d, n_head, rng):
    message = f"d_model = {d} does not divide into n_head = {n_head} equal heads"
    with pytest.raises(ShapeError, match=message):
        CausalSelfAttention(d, n_head, rng)


def test_a_layer_says_that_it_has_no_forward_of_its_own():
    for call in (lambda: Layer().forward(1), lambda: Layer().backward(1, 2, Grads())):
        with pytest.raises(TypeError, match=r"Layer has no (forward|backward) of its own"):
            call()


@pytest.mark.parametrize(
    "kind", [tuple, lambda parts: dict(enumerate(parts))], ids=["tuple", "dict"]
)
def test_parts_kept_where_nobody_would_find_them_are_refused_by_name(kind):
    layer = Gelu()
    layer.inner = kind([Gelu(), Gelu()])
    with pytest.raises(TypeError, match=r"Gelu\.inner keeps parts in a (tuple|dict).*in a list"):
        layer.parameters()


def test_numbers_and_names_in_containers_are_no_parts():
    layer = Gelu()
    layer.shape, layer.names, layer.sizes = (2, 3), {"a": 1}, [1, 2]
    assert layer.parameters() == {} and layer.modules() == {} and not layer.trainable


# --- a layer with a condition --------------------------------------------------------------------


def modulated(rng, kind=Modulated):
    return kind(Linear(3, 3, rng, dtype=F64), 3, 2, rng, F64)


@pytest.mark.parametrize("method", ["central", "complex"])
def test_a_layer_with_a_condition_is_checked_as_a_pair_of_both(rng, method):
    layer = modulated(rng)
    at_random(layer, rng)
    forward, backward, inputs = as_pair(layer)
    arguments = inputs(rng.standard_normal((4, 3)), rng.standard_normal((4, 2)))
    assert list(arguments) == ["x", "c", "layer.W", "layer.b", "mod.W", "mod.b"]
    report = check_gradients(forward, backward, arguments, method=method)
    assert report.ok and len(report.rows) == 6
    alone = check_gradients(forward, backward, arguments, method=method, wrt=["c", "mod.b"])
    assert alone.ok and [row.name for row in alone.rows] == ["c", "mod.b"]


def test_a_wrong_gradient_of_the_condition_is_found(rng):
    class Wrong(Modulated):
        def backward(self, dy, cache, grads, need_dx=True):
            dx, dc = super().backward(dy, cache, grads, need_dx)
            return dx, 0.5 * dc

    layer = modulated(rng, Wrong)
    at_random(layer, rng)
    forward, backward, inputs = as_pair(layer)
    report = check_gradients(
        forward, backward, inputs(rng.standard_normal((4, 3)), rng.standard_normal((4, 2)))
    )
    assert [row.name for row in report.rows if row.error > report.tolerance] == ["c"]
