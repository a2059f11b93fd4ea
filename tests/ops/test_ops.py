"""lora_np.ops and its fast twins: naive twins, the contract, and the cases known by hand."""

import itertools
import math
import tracemalloc
from dataclasses import dataclass
from inspect import unwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import ops
from lora_np.backend import ShapeError
from lora_np.ops import fast
from lora_np.selfcheck import cases
from tests import naive
from tests.compare import close

TOL = 1e-12  # float64: relative to the largest entry of what is expected
TOL32 = 2e-5  # float32


def op(name, form=ops):
    return getattr(form, f"{name}_forward"), getattr(form, f"{name}_backward")


# --- how inputs are drawn: lead is any batch axes, the rest are sizes --------------------------


@dataclass
class Sizes:
    """Lengths of axes, and random numbers of order one in them."""

    lead: tuple[int, ...]
    n_in: int
    n_out: int
    r: int
    T: int
    seed: int

    def __post_init__(self):
        self.rng = np.random.default_rng(self.seed)

    def normal(self, *shape):
        return self.rng.standard_normal(shape)

    def x(self):
        return self.normal(*self.lead, self.n_in)

    def mask(self):
        return (self.rng.random((*self.lead, self.n_in)) < 0.7) / 0.7

    def integers(self, high):
        return self.rng.integers(0, high, self.lead)


def lora_inputs(s, *more):
    return s.x(), s.normal(s.n_out, s.n_in), s.normal(s.r, s.n_in), s.normal(s.n_out, s.r), *more


def some_ignored(s, high):
    targets = s.integers(high)
    targets.reshape(-1)[1::2] = -100  # the first is always kept
    return targets


def attention_inputs(s, n_q, n_k):
    return s.normal(*s.lead, n_q, s.n_in), *(s.normal(*s.lead, n_k, n) for n in (s.n_in, s.n_out))


def gqa_inputs(s, n_q, n_k):
    lead, g = (*s.lead[:1], s.r), 1 + s.seed % 3  # few heads: the naive twin is slow
    q = s.normal(*lead, g, n_q, s.n_in)
    return q, *(s.normal(*lead, n_k, n) for n in (s.n_in, s.n_out))


def angles(s, *lead):
    """Cosines and sines of random angles."""
    a = s.normal(*lead, s.T, s.n_in)
    return {"cos": np.cos(a), "sin": np.sin(a)}


def head_inputs(s, targets):
    return s.x(), s.normal(s.r, s.n_in), targets


def shared_inputs(s):
    """x, and a shift and a scale that some leading axes of x share."""
    shape = [n if s.seed >> i & 1 else 1 for i, n in enumerate(s.lead)]
    return s.x(), s.normal(*shape, s.n_in), s.normal(*shape, s.n_in)


def gru_inputs(s):
    return *(s.normal(*s.lead, 3 * s.n_in) for _ in range(2)), s.x()


# label: (pair, how many slots backward has, inputs, keyword arguments)
PAIRS = {
    "linear": ("linear", 3, lambda s: (s.x(), s.normal(s.n_out, s.n_in), s.normal(s.n_out)), None),
    "linear, no bias": ("linear", 3, lambda s: (s.x(), s.normal(s.n_out, s.n_in)), None),
    "lora": (
        "lora_linear",
        5,
        lambda s: lora_inputs(s, s.normal(s.n_out)),
        lambda s: {"scale": 0.7},
    ),
    "lora, dropout, no bias": (
        "lora_linear",
        5,
        lora_inputs,
        lambda s: {"scale": -2.0, "mask": s.mask()},
    ),
    "gelu": ("gelu", 1, lambda s: (s.x(),), None),
    "relu": ("relu", 1, lambda s: (s.x(),), None),
    "silu": ("silu", 1, lambda s: (s.x(),), None),
    "softmax": ("softmax", 1, lambda s: (s.x(),), None),
    "layernorm": ("layernorm", 3, lambda s: (s.x(), s.normal(s.n_in), s.normal(s.n_in)), None),
    "layernorm, eps": (
        "layernorm",
        3,
        lambda s: (s.x(), s.normal(s.n_in), s.normal(s.n_in)),
        lambda s: {"eps": 0.1},
    ),
    "rmsnorm": ("rmsnorm", 2, lambda s: (s.x(), s.normal(s.n_in)), None),
    "rmsnorm, eps": (
        "rmsnorm",
        2,
        lambda s: (s.x(), s.normal(s.n_in)),
        lambda s: {"eps": 0.1},
    ),
    "modulated norm": ("modulated_norm", 3, lambda s: (s.x(), s.x(), s.x()), None),
    "modulated norm, shared": ("modulated_norm", 3, shared_inputs, lambda s: {"eps": 0.1}),
    "rope": ("rope", 1, lambda s: (s.normal(*s.lead, s.T, 2 * s.n_in),), angles),
    "rope, positions by row": (
        "rope",
        1,
        lambda s: (s.normal(*s.lead, s.r, s.T, 2 * s.n_in),),
        lambda s: angles(s, *s.lead, 1),
    ),
    "swiglu": ("swiglu", 2, lambda s: (s.x(), s.x()), None),
    "embedding": ("embedding", 1, lambda s: (s.integers(s.T), s.normal(s.T, s.n_in)), None),
    "dropout": ("dropout", 1, lambda s: (s.x(), s.mask()), None),
    "attention": ("attention", 3, lambda s: attention_inputs(s, s.T, s.T), None),
    "attention, fewer queries": (
        "attention",
        3,
        lambda s: attention_inputs(s, s.T, s.T + s.r),
        None,
    ),
    "attention, all keys": (
        "attention",
        3,
        lambda s: attention_inputs(s, s.T, s.T),
        lambda s: {"causal": False},
    ),
    "attention, all keys, fewer queries": (
        "attention",
        3,
        lambda s: attention_inputs(s, s.r, s.T + s.r),
        lambda s: {"causal": False},
    ),
    "attention, all keys, more queries": (
        "attention",
        3,
        lambda s: attention_inputs(s, s.T + s.r, s.T),
        lambda s: {"causal": False},
    ),
    "gqa": ("gqa", 3, lambda s: gqa_inputs(s, s.T, s.T), None),
    "gqa, fewer queries": ("gqa", 3, lambda s: gqa_inputs(s, s.T, s.T + s.r), None),
    "gqa, one query": ("gqa", 3, lambda s: gqa_inputs(s, 1, s.T), None),
    "cross-entropy": ("cross_entropy", 1, lambda s: (s.x(), s.integers(s.n_in)), None),
    "cross-entropy, some ignored": (
        "cross_entropy",
        1,
        lambda s: (s.x(), some_ignored(s, s.n_in)),
        lambda s: {"count": 7},
    ),
    "head loss": ("head_loss", 2, lambda s: head_inputs(s, s.integers(s.r)), None),
    "head loss, some ignored": (
        "head_loss",
        2,
        lambda s: head_inputs(s, some_ignored(s, s.r)),
        lambda s: {"count": 7},
    ),
    "mse": ("mse", 2, lambda s: (s.x(), s.x()), None),
    "im2col": (
        "im2col",
        1,
        lambda s: (s.normal(*s.lead, s.T + 1, s.r + 2, s.n_in),),
        lambda s: {"kernel": (2, 3)},
    ),
    "im2col, all options": (
        "im2col",
        1,
        lambda s: (s.normal(*s.lead, s.T, s.r, s.n_in),),
        lambda s: {"kernel": (3, 2), "stride": (1, 2), "padding": (2, 1), "dilation": (2, 1)},
    ),
    "rnn cell": ("rnn_cell", 2, lambda s: (s.x(), s.x()), None),
    "gru cell": ("gru_cell", 3, gru_inputs, None),
}
LABEL_OF_LOSS = {"cross_entropy": "cross-entropy", "head_loss": "head loss", "mse": "mse"}
LOSSES = tuple(LABEL_OF_LOSS)
TWINS = [label for label, (name, *_) in PAIRS.items() if f"{name}_forward" in fast.__all__]
PAIRS |= {f"{label}, fast": PAIRS[label] for label in TWINS}
axis = st.integers(1, 4)
leads = st.lists(st.integers(1, 3), max_size=3).map(tuple)
sizes = st.builds(Sizes, leads, axis, axis, axis, axis, st.integers(0, 2**32))
# Few and many samples, one block of queries and several, and axes of length one in each place.
uneven = st.builds(
    Sizes,
    st.sampled_from(((), (1,), (3,), (40,), (1, 2), (3, 1), (2, 40))),
    *([st.sampled_from((1, 2, 5, 17))] * 2),
    axis,
    st.sampled_from((1, 2, 63, 64, 65, 130)),
    st.integers(0, 2**32),
)
every_pair = pytest.mark.parametrize("label", PAIRS)
both_forms = pytest.mark.parametrize("form", [ops, fast], ids=["textbook", "fast"])


class Drawn:
    """One pair with inputs, its output, and a dy of the output's shape."""

    def __init__(self, label, s, dtype=np.float64):
        self.name, self.slots, args, kwargs = PAIRS[label]
        self.forward, self.backward = op(self.name, fast if label.endswith(", fast") else ops)
        self.args = [cast(a, dtype) for a in args(s)]
        self.kwargs = {k: cast(v, dtype) for k, v in (kwargs(s) if kwargs else {}).items()}
        self.y, self.cache = self.forward(*self.args, **self.kwargs)
        self.dy = cast(s.rng.standard_normal(np.shape(self.y)), dtype)
        if self.name in LOSSES:
            self.dy = float(self.dy)

    def arrays(self):
        held = [*self.args, *self.kwargs.values(), self.dy, *leaves(self.cache)]
        return [a for a in held if isinstance(a, np.ndarray)]


def cast(x, dtype):
    return np.asarray(x, dtype) if getattr(x, "dtype", None) == np.float64 else x


def leaves(cache):
    for part in cache:
        yield from leaves(part) if isinstance(part, tuple | list) else (part,)


def small():
    return Sizes((2, 3), 3, 4, 2, 3, seed=1)


# --- every pair --------------------------------------------------------------------------------


@every_pair
@given(sizes)
def test_forward_equals_the_naive_twin(label, s):
    d = Drawn(label, s)
    close(d.y, getattr(naive, f"{d.name}_forward")(*d.args, **d.kwargs))


@every_pair
@given(sizes)
def test_backward_equals_the_naive_twin(label, s):
    d = Drawn(label, s)
    expected = getattr(naive, f"{d.name}_backward")(d.dy, *d.args, **d.kwargs)
    actual = d.backward(d.dy, d.cache)
    assert len(actual) == len(expected) == d.slots
    for a, e in zip(actual, expected):
        assert (a is None) == (e is None)  # an absent bias
        if e is not None:
            close(a, e)


@pytest.mark.parametrize("label", TWINS)
@given(uneven)
def test_the_fast_twin_equals_the_textbook(label, s):
    d = Drawn(label, s)
    forward, backward = op(d.name, fast)
    y, cache = forward(*d.args, **d.kwargs)
    close(y, d.y, 10 * TOL)
    for fast_one, textbook in zip(backward(d.dy, cache), d.backward(d.dy, d.cache), strict=True):
        assert (fast_one is None) == (textbook is None)
        if textbook is not None:
            close(fast_one, textbook, 10 * TOL)


@every_pair
def test_need_forms_what_is_wanted_and_nothing_else(label):
    d = Drawn(label, small())
    everything = d.backward(d.dy, d.cache)
    for need in itertools.product((True, False), repeat=d.slots):
        some = d.backward(d.dy, d.cache, need)
        for gradient, full, wanted in zip(some, everything, need, strict=True):
            if wanted and full is not None:
                np.testing.assert_array_equal(gradient, full)
            else:
                assert gradient is None


@every_pair
@pytest.mark.parametrize("extra", [-1, 1])
def test_need_of_the_wrong_length_is_refused(label, extra):
    d = Drawn(label, small())
    need = (True,) * (d.slots + extra)
    with pytest.raises(ValueError, match=f"need has {len(need)} entries, expected {d.slots}"):
        d.backward(d.dy, d.cache, need)


@every_pair
@given(sizes)
def test_nothing_is_written_to(label, s):
    d = Drawn(label, s)
    for array in d.arrays():
        array.flags.writeable = False  # from here on a write raises
    y, cache = d.forward(*d.args, **d.kwargs)
    for array in leaves(cache):
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    np.testing.assert_array_equal(y, d.y)
    first, second = d.backward(d.dy, cache), d.backward(d.dy, cache)
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a, b)


@every_pair
@given(sizes)
def test_output_and_gradients_share_no_memory_with_the_inputs(label, s):
    d = Drawn(label, s)
    made = [d.y, *(g for g in d.backward(d.dy, d.cache) if g is not None)]
    inputs = [a for a in [*d.args, d.dy] if isinstance(a, np.ndarray)]
    assert not any(np.shares_memory(m, a) for m in made for a in inputs)


@every_pair
@given(sizes)
def test_float32_stays_float32(label, s):
    d = Drawn(label, s, np.float32)
    gradients = [g for g in d.backward(d.dy, d.cache) if g is not None]
    floats = [a for a in leaves(d.cache) if getattr(a, "dtype", np.dtype(int)).kind == "f"]
    assert [a.dtype for a in [d.y, *gradients, *floats]] == [np.float32] * (
        1 + len(gradients) + len(floats)
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dy", [1.0, 1, np.float32(1.0)])
def test_a_loss_of_float32_has_float32_gradients_at_dy_one(name, dy):
    d = Drawn(LABEL_OF_LOSS[name], small(), np.float32)
    for gradient in d.backward(dy, d.cache):
        assert gradient.dtype == np.float32


@every_pair
def test_float32_agrees_with_float64(label):
    wide, narrow = Drawn(label, small()), Drawn(label, small(), np.float32)
    close(narrow.y, wide.y, TOL32)
    for a, e in zip(narrow.backward(narrow.dy, narrow.cache), wide.backward(wide.dy, wide.cache)):
        if e is not None:
            close(a, e, TOL32)


# --- gradients: the table that `lora-np gradcheck` prints --------------------------------------

CHECKS = [(case, m) for case in cases(np.random.default_rng(0)) for m in case.methods]


@pytest.mark.parametrize("case, method", CHECKS, ids=[f"{c.name}: {m}" for c, m in CHECKS])
def test_gradients_match(case, method):
    case.check(method).raise_if_wrong()


def test_every_pair_is_in_the_table():
    pairs = {n.removesuffix("_forward") for n in ops.__all__ if n.endswith("_forward")}
    assert pairs == {name for name, *_ in PAIRS.values()} | {"lora_rows"}  # in test_many.py
    twins = {n.removesuffix("_forward") for n in fast.__all__ if n.endswith("_forward")}
    checked = {(unwrap(case.forward), unwrap(case.backward)) for case, _ in CHECKS}
    assert {op(name) for name in pairs} | {op(name, fast) for name in twins} <= checked


# --- LoRA --------------------------------------------------------------------------------------

W0 = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
A, B = np.array([[0.1, -0.2]]), np.array([[0.3], [-0.4], [0.5]])


@both_forms
@pytest.mark.parametrize("batch", [(), (1,), (1, 1)])
def test_lora_worked_by_hand(form, batch):
    """y = W0 x + B A x, dA = B^T g x^T, dB = g (A x)^T, dx = W0^T g + A^T B^T g, by pencil."""
    x, g = np.array([1.0, 2.0]), np.array([0.2, -0.1, 0.3])
    y, cache = form.lora_linear_forward(x.reshape(*batch, 2), W0, A, B, scale=1.0)
    dx, dW0, dA, dB, db = form.lora_linear_backward(g.reshape(*batch, 3), cache)
    close(y, np.array([4.91, 11.12, 16.85]).reshape(*batch, 3))
    close(dA, [[0.25, 0.50]])
    close(dB, [[-0.06], [0.03], [-0.09]])
    close(dW0, [[0.2, 0.4], [-0.1, -0.2], [0.3, 0.6]])
    close(dx, np.array([1.425, 1.75]).reshape(*batch, 2))
    assert db is None


@both_forms
@given(sizes)
def test_lora_at_b_zero_changes_nothing_and_moves_b_alone(form, s):
    d = Drawn("lora", s)
    x, W, A_, B_, b = d.args
    y, cache = form.lora_linear_forward(x, W, A_, np.zeros_like(B_), b, scale=0.7)
    np.testing.assert_array_equal(y, ops.linear_forward(x, W, b)[0])
    _, _, dA, dB, _ = form.lora_linear_backward(d.dy, cache)
    assert not dA.any() and dB.all()


@both_forms
def test_lora_forms_nothing_of_the_weights_size(form):
    n, r = 4000, 2
    rng = np.random.default_rng(0)
    x, A_, B_ = rng.standard_normal((1, n)), rng.standard_normal((r, n)), np.ones((n, r))
    W = np.zeros((n, n))
    tracemalloc.start()
    try:
        _, cache = form.lora_linear_forward(x, W, A_, B_, scale=0.5)
        form.lora_linear_backward(x, cache, (True, False, True, True, False))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < W.nbytes / 100  # dense: 128 MB; the thin products: under a megabyte


def test_a_frozen_layer_never_reads_what_its_gradient_would_need():
    _, cache = ops.linear_forward(np.ones((2, 2)), W0)
    dx, dW, _ = ops.linear_backward(np.ones((2, 3)), cache._replace(x=None), (True, False, False))
    assert dW is None
    close(dx, [[9.0, 12.0], [9.0, 12.0]])


# --- gradients that are zero -------------------------------------------------------------------


@pytest.mark.parametrize("label", ["attention, fewer queries", "attention, fewer queries, fast"])
@given(sizes)
def test_a_bias_of_the_keys_changes_nothing(label, s):
    """q . (k + b) adds the number q . b to a whole row of scores: softmax does not see it."""
    d = Drawn(label, s)
    q, k, v = d.args
    close(d.forward(q, k + s.normal(s.n_in), v)[0], d.y, 10 * TOL)
    _, dk, _ = d.backward(d.dy, d.cache)
    close(dk.sum(axis=-2), np.zeros((*s.lead, s.n_in)), 10 * TOL)


@both_forms
@given(sizes)
def test_one_position_has_no_choice(form, s):
    q, k, v = attention_inputs(s, 1, 1)
    y, cache = form.attention_forward(q, k, v)
    dy = s.normal(*y.shape)
    dq, dk, dv = form.attention_backward(dy, cache)
    np.testing.assert_array_equal(y, v)
    np.testing.assert_array_equal(dv, dy)
    close(dq, np.zeros_like(q))  # the difference of two equal sums, added up in other orders
    close(dk, np.zeros_like(k))


@given(leads, st.integers(0, 99))
def test_size_one_axes_have_zero_gradient(lead, seed):
    s = Sizes(lead, 1, 1, 1, 1, seed)
    soft, norm, loss = (Drawn(label, s) for label in ("softmax", "layernorm", "cross-entropy"))
    assert (soft.y == 1).all() and not soft.backward(soft.dy, soft.cache)[0].any()
    assert (norm.y == norm.args[2]).all()
    dx, dgamma, _ = norm.backward(norm.dy, norm.cache)
    assert not dx.any() and not dgamma.any()
    assert loss.y == 0 and not loss.backward(1.0, loss.cache)[0].any()


@given(sizes)
def test_softmax_and_layernorm_ignore_a_constant(s):
    for label in ("softmax", "layernorm"):
        d = Drawn(label, s)
        dx = d.backward(d.dy, d.cache)[0]
        limit = TOL * max(1.0, float(np.abs(dx).max()))  # tiny variances amplify rounding
        np.testing.assert_allclose(dx.sum(axis=-1), 0.0, atol=10 * limit)


@both_forms
def test_gelu_far_out_is_the_identity_or_zero(form):
    far = np.array([10.0, 20.0, 1e3, 1e10, 1e12, 1e20, 3e38])
    for x in (np.concatenate([-far, far]).astype(dtype) for dtype in (np.float32, np.float64)):
        y, cache = form.gelu_forward(x)
        np.testing.assert_allclose(y, np.maximum(x, 0), rtol=1e-6, atol=1e-6)
        close(form.gelu_backward(np.ones_like(x), cache)[0], (x > 0).astype(x.dtype), TOL32)


# --- attention -----------------------------------------------------------------------------------


@both_forms
def test_queries_align_to_the_last_key(form):
    q, k, v = attention_inputs(Sizes((2,), 3, 4, 1, 1, 0), 5, 5)
    whole, _ = form.attention_forward(q, k, v)
    for n in range(1, 6):
        close(form.attention_forward(q[:, -n:], k, v)[0], whole[:, -n:])


@both_forms
@pytest.mark.parametrize("size", [1.0, 20.0])  # exp without and with its shift: other last bits
def test_no_position_sees_the_future(form, size):
    q, k, v = attention_inputs(Sizes((), 3, 4, 1, 1, 0), 4, 4)
    k *= size
    y, _ = form.attention_forward(q, k, v)
    k[2], v[2] = size * q[3], 100.0
    changed, _ = form.attention_forward(q, k, v)
    np.testing.assert_array_equal(changed[:2], y[:2])
    assert (np.abs(changed[3] - y[3]) > 0).all()


@pytest.mark.parametrize("x", [np.float64(0.3), np.array(0.3, np.float32)])
def test_a_twin_takes_a_scalar_too(x):
    results = []
    for module in (ops, fast):
        y, cache = module.gelu_forward(x)
        results.append([y, *module.gelu_backward(np.ones_like(y), cache)])
    for found, expected in zip(*results):
        assert found.shape == expected.shape and found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "tokens, W",
    [
        (np.array([1, 1]), np.zeros((3, 0))),
        (np.zeros((0, 2), int), np.zeros((3, 0))),
        (np.zeros((0, 2), int), np.ones((3, 2))),
        (np.array(2), np.ones((3, 2))),
    ],
    ids=["rows without an entry", "nothing of nothing", "no tokens", "a scalar"],
)
def test_an_embedding_takes_a_scalar_no_tokens_and_rows_without_an_entry(tokens, W):
    y, cache = ops.embedding_forward(tokens, W)
    (dW,) = ops.embedding_backward(np.ones_like(y), cache)
    assert y.shape == (*tokens.shape, W.shape[1]) and (y == 1.0).all()
    assert dW.tolist() == [[float((tokens == v).sum())] * W.shape[1] for v in range(3)]


def test_float16_scores_that_exp_cannot_hold_attend_as_in_the_textbook():
    q = np.full((4, 4), 3.2, np.float16)  # scores of 20, and float16 ends at exp(11)
    v = np.arange(8, dtype=np.float16).reshape(4, 2)
    found, expected = (module.attention_forward(q, q, v)[0] for module in (fast, ops))
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, atol=1e-2)


@pytest.mark.parametrize("size", [1.0, 30.0])
@pytest.mark.parametrize("Tq, Tk", [(130, 130), (65, 70), (64, 64)])
def test_blocks_and_the_shift_change_nothing(Tq, Tk, size):
    """Several blocks of queries, the last one partial; scores far beyond what exp can take."""
    q, k, v = attention_inputs(Sizes((), 3, 4, 1, 1, 0), Tq, Tk)
    q *= size
    expected = naive.attention_forward(q, k, v)
    dy = np.random.default_rng(1).standard_normal(expected.shape)
    gradients = naive.attention_backward(dy, q, k, v)
    for form in (ops, fast):
        y, cache = form.attention_forward(q, k, v)
        close(y, expected)
        for ours, theirs in zip(form.attention_backward(dy, cache), gradients, strict=True):
            close(ours, theirs, 10 * TOL)


@both_forms
def test_without_a_query_no_key_and_no_value_has_a_gradient(form):
    q, k, v = attention_inputs(Sizes((2,), 3, 4, 1, 1, 0), 0, 5)
    y, cache = form.attention_forward(q, k, v)
    dq, dk, dv = form.attention_backward(y, cache)
    assert y.shape == (2, 0, 4) and dq.shape == q.shape
    assert not dk.any() and dk.shape == k.shape and not dv.any() and dv.shape == v.shape


@both_forms
@pytest.mark.parametrize("size", [5.0, 10.0, 30.0, 1000.0])
def test_scores_beyond_what_exp_can_take_are_shifted(form, size):
    q, k, v = (size * x for x in attention_inputs(Sizes((), 3, 4, 1, 1, 0), 5, 5))
    for dtype, tolerance in ((np.float64, TOL), (np.float32, TOL32)):
        inputs = [x.astype(dtype) for x in (q, k, v)]
        y, cache = form.attention_forward(*inputs)
        close(y, naive.attention_forward(*(x.astype(np.float64) for x in inputs)), tolerance)
        assert all(np.isfinite(d).all() for d in form.attention_backward(np.ones_like(y), cache))


@both_forms
def test_scores_are_shifted_where_their_bound_is_no_number(form):
    q = np.full((3, 2), 1e30, np.float32)  # q . q overflows and k . k is 0
    k = 1e-24 * np.arange(1, 4, dtype=np.float32)[:, None] * np.ones(2, np.float32)
    v = np.arange(6, dtype=np.float32).reshape(3, 2)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        y, _ = form.attention_forward(q, k, v)
    close(y, naive.attention_forward(q.astype(np.float64), k.astype(np.float64), v), TOL32)


@pytest.mark.parametrize("n", [2, 40])
def test_merged_and_thin_products_are_the_same_lora(n):
    """Few samples go through A and B; many through W0 + s B A, in fewer operations."""
    s = Sizes((n,), 6, 5, 2, 1, 0)
    x, W0, A, B, b = lora_inputs(s, s.normal(s.n_out))
    y, cache = fast.lora_linear_forward(x, W0, A, B, b, scale=0.7)
    assert (type(cache).__name__ == "MergedCache") == (n == 40)
    dy = s.normal(n, s.n_out)
    close(y, naive.lora_linear_forward(x, W0, A, B, b, scale=0.7))
    twins = naive.lora_linear_backward(dy, x, W0, A, B, b, scale=0.7)
    for ours, theirs in zip(fast.lora_linear_backward(dy, cache), twins):
        close(ours, theirs)


# --- losses --------------------------------------------------------------------------------------


def test_cross_entropy_of_equal_logits_is_log_v():
    loss, cache = ops.cross_entropy_forward(np.zeros((2, 5)), np.array([0, 3]))
    (dz,) = ops.cross_entropy_backward(1.0, cache)
    assert abs(loss - math.log(5)) < TOL
    close(dz, [[-0.4, 0.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, -0.4, 0.1]])


@given(sizes, st.integers(-3, -1))
def test_ignored_tokens_count_for_nothing(s, ignore_index):
    z, targets = s.normal(5, s.n_in), s.rng.integers(0, s.n_in, 5)
    targets[[1, 3]] = ignore_index
    loss, cache = ops.cross_entropy_forward(z, targets, ignore_index)
    kept, kept_cache = ops.cross_entropy_forward(z[::2], targets[::2])
    close(loss, kept)
    (dz,), (dkept,) = (ops.cross_entropy_backward(1.0, c) for c in (cache, kept_cache))
    close(dz[::2], dkept)
    assert not dz[1::2].any()


def test_parts_with_the_whole_count_add_up_and_a_mean_of_means_does_not():
    s = Sizes((6,), 5, 1, 1, 1, 0)
    z, targets = s.x(), s.integers(5)
    targets[0] = -100  # the first half keeps two, the second three
    whole, whole_cache = ops.cross_entropy_forward(z, targets)
    parts = [ops.cross_entropy_forward(z[i : i + 3], targets[i : i + 3], count=5) for i in (0, 3)]
    close(parts[0][0] + parts[1][0], whole)
    dz = np.concatenate([ops.cross_entropy_backward(1.0, cache)[0] for _, cache in parts])
    close(dz, ops.cross_entropy_backward(1.0, whole_cache)[0])
    means = [ops.cross_entropy_forward(z[i : i + 3], targets[i : i + 3])[0] for i in (0, 3)]
    assert abs(sum(means) / 2 - whole) > 0.01


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_logits_are_finite(dtype):
    z = np.array([[1e4, 0.0, -1e4], [-1e4, 1e4, 1e4]], dtype)
    loss, cache = ops.cross_entropy_forward(z, np.array([2, 1]))
    (dz,) = ops.cross_entropy_backward(1.0, cache)
    assert abs(loss - (2e4 + math.log(2)) / 2) < 2e-7 * 1e4
    close(dz, [[0.5, 0.0, -0.5], [0.0, -0.25, 0.25]], TOL32)
    y, _ = ops.softmax_forward(z)
    close(y, [[1, 0, 0], [0, 0.5, 0.5]], TOL32)
    for forward, backward in (op("gelu"), op("gelu", fast), op("silu")):
        y, cache = forward(z[0])
        close(y, [1e4, 0, 0], TOL32)
        close(backward(np.ones(3, dtype), cache)[0], [1.0, 0.5, 0.0], TOL32)


def test_relu_has_gradient_zero_at_its_kink():
    y, cache = ops.relu_forward(np.array([-1.0, 0.0, 2.0]))
    np.testing.assert_array_equal(y, [0, 0, 2])
    np.testing.assert_array_equal(ops.relu_backward(np.full(3, 3.0), cache)[0], [0, 0, 3])


def test_no_kept_token_is_an_error():
    with pytest.raises(ValueError, match="no token is kept: every target is ignore_index = -7"):
        ops.cross_entropy_forward(np.zeros((2, 3)), np.array([-7, -7]), ignore_index=-7)


@pytest.mark.parametrize("wrong, span", [(3, "0 .. 3"), (-1, "-1 .. 1")])
def test_a_target_outside_the_vocabulary_is_an_error(wrong, span):
    with pytest.raises(ValueError, match=rf"targets lie in {span}, expected 0 .. 2"):
        ops.cross_entropy_forward(np.zeros((3, 3)), np.array([1, wrong, -100]))


@pytest.mark.parametrize("wrong, span", [(3, "1 .. 3"), (-1, "-1 .. 1")])
def test_a_token_outside_the_table_is_an_error(wrong, span):
    with pytest.raises(IndexError, match=rf"tokens lie in {span}, expected 0 .. 2: .* 3 rows"):
        ops.embedding_forward(np.array([1, wrong]), np.zeros((3, 2)))


# --- dropout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_dropout_mask_keeps_the_mean(dtype):
    x = np.ones((200, 300), dtype)
    mask = ops.dropout_mask(x, 0.25, np.random.default_rng(0))
    assert mask.dtype == dtype and mask.shape == x.shape
    np.testing.assert_array_equal(np.unique(mask), np.array([0, 1 / 0.75], dtype))
    # standard deviation of the mean: sqrt(p / (1 - p) / 60000) = 0.0024; four of them
    assert abs(float(mask.mean(dtype=np.float64)) - 1) < 4 * math.sqrt(0.25 / 0.75 / mask.size)


# --- shapes that do not fit ----------------------------------------------------------------------

o = np.ones
MISFITS = [
    ("linear", (o((2, 3)), o(4)), r"W has shape \(4,\), expected \(any, any\)"),
    ("linear", (o((2, 3)), o((4, 5))), r"x has shape \(2, 3\), expected \(\.\.\., 5\)"),
    ("linear", (o(()), o((4, 5))), r"x has shape \(\), expected \(\.\.\., 5\)"),
    ("linear", (o((2, 5)), o((4, 5)), o(5)), r"b has shape \(5,\), expected \(4,\)"),
    ("linear", (o((2, 5)), o((4, 5)), o((1, 4))), r"b has shape \(1, 4\), expected \(4,\)"),
    ("lora_linear", (o(3), o((4, 5, 1)), A, B), r"W0 has shape \(4, 5, 1\), expected \(any, any\)"),
    ("lora_linear", (o(3), W0, A, B), r"x has shape \(3,\), expected \(\.\.\., 2\)"),
    ("lora_linear", (o(2), W0, A.T, B), r"A has shape \(2, 1\), expected \(any, 2\)"),
    ("lora_linear", (o(2), W0, A, B.T), r"B has shape \(1, 3\), expected \(3, 1\)"),
    ("lora_linear", (o(2), W0, o((2, 2)), B), r"B has shape \(3, 1\), expected \(3, 2\)"),
    ("lora_linear", (o(2), W0, A, B, o(2)), r"b has shape \(2,\), expected \(3,\)"),
    ("layernorm", (o((2, 3)), o(2), o(3)), r"gamma has shape \(2,\), expected \(3,\)"),
    ("layernorm", (o((2, 3)), o(3), o((2, 3))), r"beta has shape \(2, 3\), expected \(3,\)"),
    ("rmsnorm", (o((2, 3)), o(2)), r"gamma has shape \(2,\), expected \(3,\)"),
    ("modulated_norm", (o((2, 3)), o(3), o(3)), r"shift has shape \(3,\), expected \(2, 3\), the"),
    ("modulated_norm", (o((2, 3)), o((3, 3)), o((3, 3))), r"shift has .* the shape of x, or 1 in"),
    ("modulated_norm", (o((2, 3)), o((2, 1)), o((2, 1))), r"shift has shape \(2, 1\), expected"),
    (
        "modulated_norm",
        (o((2, 3)), o((1, 3)), o((2, 3))),
        r"scale has .* \(1, 3\), the shape of sh",
    ),
    ("rope", (o((2, 3)), o((2, 1)), o((2, 1))), r"x has shape \(2, 3\), expected an even last"),
    ("rope", (o((3, 4)), o((2, 2)), o((2, 2))), r"cos has shape \(2, 2\), .* against \(3, 2\)"),
    ("rope", (o((3, 4)), o((3, 1)), o((3, 1))), r"cos has shape \(3, 1\), .* against \(3, 2\)"),
    ("rope", (o((3, 4)), o((9, 3, 2)), o((9, 3, 2))), r"cos has shape \(9, 3, 2\), expected"),
    ("rope", (o((3, 4)), o((3, 2)), o((1, 2))), r"sin has shape \(1, 2\), .* the shape of cos"),
    ("swiglu", (o((2, 3)), o((2, 1))), r"up has shape \(2, 1\), expected \(2, 3\), .* of gate"),
    ("gqa", (o((3, 4)), o((3, 4)), o((3, 4))), r"q has shape \(3, 4\), expected \(\.\.\., g, Tq"),
    ("gqa", (o((2, 3, 4, 5)), o((3, 4, 5)), o((3, 4, 5))), r"k has shape .*, expected \(2, any, 5"),
    ("gqa", (o((2, 3, 4, 5)), o((2, 4, 5)), o((2, 3, 5))), r"v has shape .*, expected \(2, 4, any"),
    ("gqa", (o((2, 3, 4, 5)), o((2, 3, 5)), o((2, 3, 5))), r"q has shape .* at most 3 queries"),
    ("head_loss", (o((2, 3)), o((4, 2)), o(2, int)), r"x has shape \(2, 3\), expected \(\.\.\., 2"),
    ("head_loss", (o((2, 3)), o((0, 3)), o(2, int)), r"W has shape \(0, 3\), expected at least"),
    ("head_loss", (o((2, 3)), o((4, 3)), o(3, int)), r"targets has shape \(3,\), expected \(2,\)"),
    ("embedding", (np.array([0]), o(4)), r"W has shape \(4,\), expected \(any, any\)"),
    ("dropout", (o((2, 3)), o((2, 1))), r"mask has shape \(2, 1\), expected \(2, 3\), .* of x"),
    ("attention", (o((2, 3)), o((2, 4)), o((2, 4))), r"k has shape \(2, 4\), expected .*, 3\)"),
    ("attention", (o((2, 3)), o((4, 3)), o((5, 3))), r"v has shape \(5, 3\), expected \(4, "),
    ("attention", (o((4, 3)), o((2, 3)), o((2, 3))), r"q has shape \(4, 3\), .* at most 2 queries"),
    ("cross_entropy", (o((2, 3)), o(3, int)), r"targets has shape \(3,\), expected \(2,\)"),
    ("rnn_cell", (o((2, 3)), o((3, 3))), r"gh has shape \(3, 3\), expected \(2, 3\), .* of gx"),
    ("gru_cell", (o((2, 6)), o((2, 6)), o((2, 3))), r"gx has shape \(2, 6\), expected \(2, 9\)"),
    ("gru_cell", (o((2, 9)), o((2, 6)), o((2, 3))), r"gh has shape \(2, 6\), .* the shape of gx"),
    ("mse", (o((2, 3)), o((3, 2))), r"target has shape \(3, 2\), expected \(2, 3\), .* of y"),
]


@pytest.mark.parametrize("name, args, message", MISFITS)
def test_a_shape_error_names_the_argument_its_shape_and_the_expected_one(name, args, message):
    kwargs = {"scale": 1.0} if name == "lora_linear" else {}
    for form in (ops, fast) if f"{name}_forward" in fast.__all__ else (ops,):
        with pytest.raises(ShapeError, match=message):
            op(name, form)[0](*args, **kwargs)


@both_forms
def test_a_lora_mask_has_the_shape_of_x(form):
    with pytest.raises(ShapeError, match=r"mask has shape \(1,\), expected \(2,\), the shape of x"):
        form.lora_linear_forward(o(2), W0, A, B, scale=1.0, mask=o(1))


@both_forms
def test_without_the_mask_the_order_of_the_keys_does_not_matter(form, rng):
    q, k, v = (rng.standard_normal((2, T, 3)) for T in (70, 66, 66))
    order = rng.permutation(66)
    (y, cache), (shuffled, again) = (
        form.attention_forward(q, *kv, causal=False) for kv in ((k, v), (k[:, order], v[:, order]))
    )
    close(shuffled, y)
    dq, dk, dv = form.attention_backward(q, cache)
    for found, expected in zip(form.attention_backward(q, again), (dq, dk[:, order], dv[:, order])):
        close(found, expected, 10 * TOL)


@both_forms
@pytest.mark.parametrize("causal", [True, False])
def test_queries_without_a_key_to_look_at_are_refused(form, causal):
    with pytest.raises(ShapeError, match=r"q has shape \(2, 3\), .* 0 queries for 0 keys"):
        form.attention_forward(o((2, 3)), o((0, 3)), o((0, 3)), causal=causal)


@both_forms
@pytest.mark.parametrize("wrong", ["q", "k"])
def test_attention_refuses_batch_axes_that_differ(form, wrong):
    shapes = {"q": (2, 3, 4), "k": (2, 3, 4), "v": (2, 3, 4)}
    shapes[wrong] = shapes[wrong][1:]
    shapes["v"] = shapes["k"]
    with pytest.raises(ShapeError, match="k has shape"):
        form.attention_forward(*(o(shape) for shape in shapes.values()))


def test_layernorm_refuses_a_scalar():
    with pytest.raises(ShapeError, match="has shape"):
        ops.layernorm_forward(o(()), o(1), o(1))


# --------------------------------------------------------------------- dy of another shape


@pytest.mark.parametrize("label", [label for label in PAIRS if PAIRS[label][0] not in LOSSES])
def test_backward_refuses_a_dy_of_another_shape(label):  # that of a loss is one number
    d = Drawn(label, small())
    for wrong in (np.ones((*d.y.shape[:-1], d.y.shape[-1] + 1)), np.ones((2, *d.y.shape))):
        with pytest.raises(ShapeError, match=r"^dy has shape .*, expected "):
            d.backward(wrong, d.cache)


# ------------------------------------------------------------------------- nothing, and no numbers

WITHOUT_ROWS = (
    "GPT",
    "Llama",
    "lora_rows",
    "subspace",
    "triplet",
)  # models are below; lora_rows has ids, in test_many.py; the others have no samples
CASES_OF_0 = [c for c in cases(np.random.default_rng(0)) if not c.name.startswith(WITHOUT_ROWS)]


def of_no_rows(case):
    """A case's inputs with their batch axis emptied, where they have one."""
    named = case.inputs if isinstance(case.inputs, dict) else dict(enumerate(case.inputs))
    pair = case.name.partition(",")[0]
    all_batched = ("attention", "gqa", "swiglu", "modulated_norm", "rnn_cell", "gru_cell", *LOSSES)
    batched = range(len(named)) if pair in all_batched else [0, *(1 for k in named if k == "c")]
    batched = [0, 2] if pair == "head_loss" else batched  # its second input is a weight
    inputs = [x[:0] if i in batched else x for i, x in enumerate(named.values())]
    alike = {k for k, v in case.kwargs.items() if np.ndim(v) == np.ndim(inputs[0])}  # masks, angles
    kwargs = {k: v[:0] if k in alike else v for k, v in case.kwargs.items()}
    return inputs, kwargs


@pytest.mark.parametrize("case", CASES_OF_0, ids=lambda case: case.name)
def test_no_rows_give_no_rows_and_gradients_of_zero_or_one_clear_error(case):
    inputs, kwargs = of_no_rows(case)
    if case.name.startswith(LOSSES):
        with pytest.raises(ValueError, match=r"no token is kept|at least one entry to average"):
            case.forward(*inputs, **kwargs)
        return
    y, cache = case.forward(*inputs, **kwargs)
    assert len(y) == 0
    for x, g in zip([x for x in inputs if x.dtype.kind == "f"], case.backward(y, cache)):
        assert g.shape == x.shape and not g.any()


def test_a_part_without_tokens_adds_nothing_to_the_whole():
    loss, cache = ops.cross_entropy_forward(np.zeros((0, 3)), np.zeros(0, int), count=7)
    assert float(loss) == 0.0
    assert ops.cross_entropy_backward(1.0, cache)[0].shape == (0, 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.softmax_forward(np.zeros((2, 0))),
        lambda: ops.layernorm_forward(np.zeros((2, 0)), np.zeros(0), np.zeros(0)),
        lambda: ops.rmsnorm_forward(np.zeros((2, 0)), np.zeros(0)),
        lambda: ops.modulated_norm_forward(*np.zeros((3, 2, 0))),
        lambda: ops.rope_forward(*np.zeros((3, 2, 0))),
        lambda: ops.attention_forward(*np.zeros((3, 2, 2, 0))),
        lambda: ops.head_loss_forward(*np.zeros((2, 2, 0)), np.zeros(2, int)),
        lambda: ops.cross_entropy_forward(np.zeros((2, 0)), np.zeros(2, int)),
    ],
    ids=["softmax", "layernorm", "rmsnorm", "modulated", "rope", "attention", "head", "entropy"],
)
def test_a_last_axis_of_no_length_is_named(call):
    with pytest.raises(ShapeError, match=r"shape \(.*0\), expected at least 1 in the last axis"):
        call()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_that_are_not_finite_give_a_finite_loss_or_one_clear_error(bad, dtype):
    logits = np.zeros((2, 3), dtype)
    logits[1, 0] = bad
    if bad == -np.inf:  # probability 0: a masked token
        loss, cache = ops.cross_entropy_forward(logits, np.array([0, 1]))
        assert float(loss) == pytest.approx((np.log(3) + np.log(2)) / 2, rel=1e-6)
        assert ops.cross_entropy_backward(1.0, cache)[0][1].tolist() == [0.0, -0.25, 0.25]
        assert ops.softmax_forward(logits)[0][1].tolist() == [0.0, 0.5, 0.5]
        with pytest.raises(FloatingPointError, match="log-probabilities has a row"):
            ops.cross_entropy_forward(logits, np.array([0, 0]))
    else:
        with pytest.raises(FloatingPointError, match="logits has a row whose largest number is"):
            ops.cross_entropy_forward(logits, np.array([0, 1]))
        with pytest.raises(FloatingPointError, match="x has a row whose largest number is"):
            ops.softmax_forward(logits)
    logits[1] = -np.inf
    with pytest.raises(FloatingPointError, match="x has a row"):
        ops.softmax_forward(logits)


def test_logits_as_large_as_the_type_allows_raise_no_warning():
    most = np.finfo(np.float32).max
    logits = np.array([[most, -most, 0.0]], np.float32)
    loss, cache = ops.cross_entropy_forward(logits, np.array([0]))
    assert float(loss) == 0.0
    assert ops.cross_entropy_backward(1.0, cache)[0].tolist() == [[0.0, 0.0, 0.0]]
