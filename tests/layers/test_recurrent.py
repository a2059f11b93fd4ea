"""Recurrent layers: their equations, state and memory, and LoRA through time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import check_layer, check_method, fit, load_adapter, merge, save_adapter
from lora_np.backend import ShapeError
from lora_np.gradcheck import check_gradients
from lora_np.layers import GRU, RNN, Chain, Embedding, as_pair, copy_model
from lora_np.layers.memory import StateMemory
from lora_np.methods import LoraConfig, inject
from lora_np.models.language import LanguageModel
from lora_np.parameters import Grads, Parameter
from lora_np.selfcheck import at_random
from tests.compare import close
from tests.naive import generate_without_cache
from tests.regression import Regression

F64 = np.float64
BOTH = LoraConfig(r=2, lora_alpha=2, target_modules=["x_proj", "h_proj"])
both_kinds = pytest.mark.parametrize("kind", [RNN, GRU])


def make(kind, rng, d=3, d_hidden=4, lora=False):
    layer = kind(d, d_hidden, rng, dtype=F64)
    layer = inject(layer, BOTH, rng) if lora else layer
    at_random(layer, rng, 0.7)
    return layer


def sigma(a):
    return 1 / (1 + np.exp(-a))


def by_definition(layer, x, h):
    """Return the states (T, H) of one sequence (T, d)."""
    Wx, bx, Wh, bh = (p.value for p in layer.parameters().values())
    states, H = [], len(h)
    for x_t in x:
        gx, gh = Wx @ x_t + bx, Wh @ h + bh
        if isinstance(layer, GRU):
            r, z = sigma(gx[:H] + gh[:H]), sigma(gx[H : 2 * H] + gh[H : 2 * H])
            h = (1 - z) * np.tanh(gx[2 * H :] + r * gh[2 * H :]) + z * h
        else:
            h = np.tanh(gx + gh)
        states.append(h)
    return np.array(states)


# --- the layer -----------------------------------------------------------------------------------


@both_kinds
def test_states_follow_the_equations(kind, rng):
    layer, x, h0 = make(kind, rng), rng.standard_normal((2, 5, 3)), rng.standard_normal((2, 4))
    y, _ = layer.unroll(x, h0)
    close(y, np.stack([by_definition(layer, *row) for row in zip(x, h0)]))
    close(layer.forward(x)[0], layer.unroll(x, np.zeros((2, 4)))[0])


@both_kinds
@pytest.mark.parametrize("lora", [False, True])
def test_a_recurrent_layer_keeps_the_contract_of_layers(kind, lora, rng):
    assert len(check_layer(make(kind, rng, lora=lora), rng.standard_normal((2, 4, 3)))) == 7


def from_a_state(kind):
    """Return a kind of layer that begins at a state, which is its condition."""

    class FromState(kind):
        conditioned = True

        def forward(self, x, c, rng=None):
            return self.unroll(x, c, rng)

        def backward(self, dy, cache, grads, need_dx=True):
            return self.unroll_backward(dy, cache, grads, need_dx)

    return FromState


@both_kinds
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("method", ["central", "complex"])
def test_gradients_match_to_the_first_state(kind, lora, method, rng):
    layer = make(from_a_state(kind), rng, lora=lora)
    forward, backward, inputs = as_pair(layer)
    arguments = inputs(rng.standard_normal((2, 6, 3)), rng.standard_normal((2, 4)))
    report = check_gradients(forward, backward, arguments, method=method)
    report.raise_if_wrong()
    assert [row.name for row in report.rows][:2] == ["x", "c"]


@both_kinds
def test_the_direct_path_and_every_step_count(kind, rng, monkeypatch):
    """What a wrong derivation leaves out is right at T = 1, and found with more steps."""
    layer = make(kind, rng)
    right, wrong = kind.cell_backward, {}
    wrong["no direct path"] = lambda *args: (*right(*args)[:2], 0.0)
    wrong["no recurrence"] = lambda *args: (
        right(*args)[0],
        0.0 * right(*args)[1],
        right(*args)[2],
    )
    for name, cell_backward in wrong.items():
        monkeypatch.setattr(kind, "cell_backward", cell_backward)
        forward, backward, inputs = as_pair(layer)
        for T in (1, 4):
            x = rng.standard_normal((2, T, 3))
            ok = check_gradients(forward, backward, inputs(x), method="complex", wrt=["x"]).ok
            unharmed = T == 1 or (kind is RNN and name == "no direct path")  # it has none
            assert ok == unharmed, (name, T)


@both_kinds
@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 0, 3)])
def test_a_sequence_has_at_least_one_position(kind, shape, rng):
    with pytest.raises(ShapeError, match=r"x has shape .*, expected \(\.\.\., T, d\), T at least"):
        kind(3, 4, rng).forward(np.ones(shape, np.float32))


@both_kinds
def test_a_state_of_another_shape_and_a_dy_of_another_length_are_refused(kind, rng):
    layer, x = make(kind, rng), rng.standard_normal((2, 5, 3))
    with pytest.raises(ShapeError, match=r"h0 has shape \(4,\), expected \(2, 4\)"):
        layer.unroll(x, np.ones(4))
    y, cache = layer.forward(x)
    with pytest.raises(ShapeError, match=r"dy has shape \(2, 4, 4\), expected \(2, 5, 4\)"):
        layer.backward(y[:, 1:], cache, Grads())


# --- memory --------------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("lora", [False, True])
@given(
    chunks=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    lead=st.sampled_from([(), (2,), (2, 3)]),
)
def test_extending_chunk_by_chunk_equals_the_whole_forward(kind, lora, chunks, lead):
    rng = np.random.default_rng(0)
    layer, x = make(kind, rng, lora=lora), rng.standard_normal((*lead, sum(chunks), 3))
    whole, _ = layer.forward(x)
    memory, start = None, 0
    for n in chunks:
        y, memory = layer.extend(x[..., start : start + n, :], memory)
        close(y, whole[..., start : start + n, :])
        start += n
    assert set(memory.lengths) == {start} and memory.state().shape == (int(np.prod(lead)), 4)


@both_kinds
def test_extending_leaves_the_memory_as_it_was(kind, rng):
    layer, x = make(kind, rng), rng.standard_normal((2, 5, 3))
    _, memory = layer.extend(x[:, :3])
    one, _ = layer.extend(x[:, 3:4], memory)
    layer.extend(-x[:, 3:], memory)
    np.testing.assert_array_equal(layer.extend(x[:, 3:4], memory)[0], one)


@both_kinds
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 3))
def test_rows_of_different_lengths_continue_from_their_own_ends(kind, lengths, more):
    rng = np.random.default_rng(0)
    layer, rows = make(kind, rng), len(lengths)
    x, fresh = (rng.standard_normal((rows, n, 3)) for n in (max(lengths), 2 * more))
    _, memory = layer.extend(x)
    memory = memory.shortened(tuple(lengths))
    first, memory = layer.extend(fresh[:, :more], memory)
    second, memory = layer.extend(fresh[:, more:], memory)
    assert memory.lengths == tuple(n + 2 * more for n in lengths)
    for row, n in enumerate(lengths):
        whole = layer.forward(np.concatenate([x[row, :n], fresh[row]]))[0]
        close(np.concatenate([first[row], second[row]]), whole[n:])


def test_a_row_cannot_be_cut_before_the_last_call():
    memory = StateMemory(np.ones((2, 2, 3)), (4, 1))
    assert memory.lengths == (6, 3) and memory.shortened((5, 3)).lengths == (5, 3)
    for lengths in ((4, 3), (6, 4), (6, 1)):
        with pytest.raises(ValueError, match=r"cannot be cut to \d positions: the states"):
            memory.shortened(lengths)


class Text(LanguageModel):
    """A recurrent language model: an embedding, a GRU and a head."""

    block_size = 64

    def __init__(self, vocab_size, d, rng):
        super().__init__()
        self.wte = Embedding(vocab_size, d, rng, dtype=F64)
        self.gru, self.out = GRU(d, d, rng, dtype=F64), Parameter(np.zeros((vocab_size, d)))
        self.config = type("Config", (), {"block_size": 64})

    def table(self):
        return self.wte

    def embeddings(self):
        return [self.wte.W]

    def body(self):
        return Chain(self.gru)

    def head(self):
        return self.out


@pytest.mark.parametrize("lora", [False, True])
def test_a_recurrent_language_model_writes_from_its_state(lora, rng):
    """Prompts of different lengths in one batch, each as if alone and computed anew."""
    model = Text(11, 6, rng)
    model = inject(model, BOTH, rng) if lora else model
    at_random(model, rng, 1.0)
    prompts = [rng.integers(0, 11, n) for n in (5, 1, 3)]
    texts = model.generate(prompts, 8, temperature=0)
    for prompt, text in zip(prompts, texts):
        assert text.tolist() == generate_without_cache(model, prompt, 8, temperature=0).tolist()


# --- LoRA through time ---------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("targets", [["x_proj"], ["h_proj"], "all-linear"])
def test_lora_keeps_the_contract_of_methods(kind, targets, rng):
    config = LoraConfig(r=2, target_modules=targets)
    assert len(check_method(config, kind(3, 4, rng))) == 15


@both_kinds
def test_lora_starts_at_the_base_merges_and_is_saved(kind, rng, tmp_path):
    base, x = make(kind, rng), rng.standard_normal((2, 5, 3))
    adapted = inject(base, BOTH, rng)
    np.testing.assert_array_equal(adapted.forward(x)[0], base.forward(x)[0])
    for linear in (adapted.x_proj, adapted.h_proj):
        linear.B.value = rng.standard_normal(linear.B.shape)
    y = adapted.forward(x)[0]
    assert abs(y - base.forward(x)[0]).max() > 0.1
    merged = merge(adapted)
    assert type(merged) is kind and list(merged.parameters()) == list(base.parameters())
    close(merged.forward(x)[0], y, 1e-11)
    save_adapter(adapted, tmp_path / "adapter")
    close(load_adapter(base, tmp_path / "adapter").forward(x)[0], y)


def loss_after_training(base, target, targets):
    """Return the first and the last loss of LoRA on these modules, from base towards target."""
    rng = np.random.default_rng(1)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=targets)

    def sample():
        x = rng.standard_normal((8, 6, 3))
        return x, target.forward(x)[0]

    history = fit(Regression(inject(base, config, rng)), sample, steps=400, lr=0.05)
    return history.loss[0], history.loss[-1]


@both_kinds
def test_lora_through_time_learns_a_planted_change_of_low_rank(kind, rng):
    """LoRA fits recurrent networks: both projections change by a matrix of rank 2, and LoRA of
    rank 2 on both finds the states that follow. On the input's alone it does not."""
    base = kind(3, 8, rng, dtype=F64)
    target = copy_model(base)
    for linear in (target.x_proj, target.h_proj):
        d_out, d_in = linear.W.shape
        low = rng.standard_normal((d_out, 2)) @ rng.standard_normal((2, d_in))
        linear.W.value = linear.W.value + 0.3 * low
    first, last = loss_after_training(base, target, ["x_proj", "h_proj"])
    _, of_input_alone = loss_after_training(base, target, ["x_proj"])
    assert first > 0.03 and last < 2e-3 * first
    assert of_input_alone > 10 * last
