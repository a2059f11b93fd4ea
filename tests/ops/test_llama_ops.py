"""The pairs of a Llama: what is known of them by hand, and derivations wrong on purpose."""

import dataclasses
import math
import tracemalloc

import numpy as np
import pytest

from lora_np import ops
from lora_np.gradcheck import check_gradients
from lora_np.ops import fast, head_loss
from tests.compare import close

GQA = [form for form in (ops, fast) if "gqa_forward" in form.__all__]
gqa_forms = pytest.mark.parametrize("form", GQA, ids=lambda form: form.__name__)

# --- RMSNorm and SwiGLU --------------------------------------------------------------------------


def test_rmsnorm_ignores_a_stretch_and_keeps_a_mean(rng):
    x, gamma = rng.standard_normal((3, 5)), rng.standard_normal(5)
    y, _ = ops.rmsnorm_forward(x, gamma, eps=0.0)
    close(ops.rmsnorm_forward(7.0 * x, gamma, eps=0.0)[0], y)
    centred, _ = ops.layernorm_forward(x, gamma, np.zeros(5), eps=0.0)
    assert np.abs(y - centred).max() > 0.1
    level = x - x.mean(axis=-1, keepdims=True)  # without a mean the two norms are one
    close(ops.rmsnorm_forward(level, gamma, eps=0.0)[0], centred)


def test_rmsnorm_of_a_single_entry_is_its_sign():
    y, cache = ops.rmsnorm_forward(np.array([[3.0], [-0.2]]), np.ones(1), eps=0.0)
    close(y, [[1.0], [-1.0]])
    close(ops.rmsnorm_backward(np.ones((2, 1)), cache)[0], np.zeros((2, 1)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_swiglu_far_out_is_up_times_the_gate_or_zero(dtype):
    gate, up = np.array([-1e30, -1e4, 1e4, 1e30], dtype), np.full(4, 2.0, dtype)
    for form in (ops, fast):
        if "swiglu_forward" in form.__all__:
            y, cache = form.swiglu_forward(gate, up)
            np.testing.assert_allclose(y, [0.0, 0.0, 2e4, 2e30], rtol=1e-6)
            dgate, dup = form.swiglu_backward(np.ones(4, dtype), cache)
            np.testing.assert_allclose(dgate, [0.0, 0.0, 2.0, 2.0], rtol=1e-6)
            np.testing.assert_allclose(dup, [0.0, 0.0, 1e4, 1e30], rtol=1e-6)


# --- rotary positions ----------------------------------------------------------------------------

LLAMA3 = ops.Llama3Scaling(8.0, 1.0, 4.0, 8192)


def test_a_score_depends_on_the_distance_alone(rng):
    q, k = rng.standard_normal((2, 6))
    cos, sin = ops.rope_angles(40, 6, dtype=np.float64)

    def score(t, s):
        a, b = (ops.rope_forward(x, cos[i], sin[i])[0] for x, i in ((q, t), (k, s)))
        return float(a @ b)

    assert score(31, 25) == pytest.approx(score(6, 0), rel=1e-12)
    assert abs(score(31, 25) - score(31, 26)) > 0.01


def test_a_rotation_keeps_lengths_and_position_zero(rng):
    x = rng.standard_normal((3, 7, 8))
    y, cache = ops.rope_forward(x, *ops.rope_angles(7, 8, dtype=np.float64))
    close(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1))
    np.testing.assert_array_equal(y[:, 0], x[:, 0])
    close(ops.rope_backward(y, cache)[0], x)


def test_positions_of_each_row_are_those_of_the_row_alone(rng):
    x, places = rng.standard_normal((2, 3, 4, 6)), np.array([[0, 1, 0, 1], [5, 6, 7, 8]])
    cos, sin = ops.rope_angles(9, 6, dtype=np.float64)
    y, _ = ops.rope_forward(x, cos[places][:, None], sin[places][:, None])
    for row, at, found in zip(x, places, y):
        np.testing.assert_array_equal(found, ops.rope_forward(row, cos[at], sin[at])[0])


def test_angles_are_rounded_once():
    """At position 100,000 an angle in float32 would be off by 0.004."""
    length = 100_001
    cos, sin = ops.rope_angles(length, 4, base=500000.0)
    assert cos.dtype == sin.dtype == np.float32 and cos.shape == (length, 2)
    slow = (length - 1) * 500000.0**-0.5
    assert cos[-1].tolist() == [np.float32(math.cos(length - 1)), np.float32(math.cos(slow))]
    assert sin[-1].tolist() == [np.float32(math.sin(length - 1)), np.float32(math.sin(slow))]


def test_llama3_keeps_fast_rotations_and_stretches_slow_ones():
    d, base = 64, 500000.0
    plain = base ** (-np.arange(0, d, 2) / d)
    turns = 8192 * plain / (2 * math.pi)
    found = LLAMA3.stretched(plain)
    np.testing.assert_array_equal(found[turns > 4], plain[turns > 4])
    close(found[turns < 1], plain[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert (found[between] > plain[between] / 8).all() and (found < plain)[between].all()
    cos, _ = ops.rope_angles(3, d, base, np.float64, LLAMA3)
    close(cos[2], np.cos(2 * found))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"factor": 0.0}, "factor and original_max_position_embeddings must be above 0"),
        ({"original_max_position_embeddings": 0}, "must be above 0"),
        ({"low_freq_factor": 4.0}, "low_freq_factor must be below high_freq_factor"),
    ],
)
def test_a_scaling_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LLAMA3, **change)


@pytest.mark.parametrize("d", [0, 5])
def test_angles_of_an_odd_width_are_refused(d):
    with pytest.raises(ValueError, match=f"d = {d}: .* d must be even"):
        ops.rope_angles(3, d)


# --- grouped-query attention ---------------------------------------------------------------------


def drawn(rng, *sizes, dtype=np.float64):
    B, G, g, Tq, Tk, d, d_v = sizes
    shapes = (B, G, g, Tq, d), (B, G, Tk, d), (B, G, Tk, d_v)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


@gqa_forms
@pytest.mark.parametrize("Tq, Tk", [(5, 5), (2, 5), (1, 70), (70, 75), (130, 130)])
def test_one_query_a_group_is_plain_attention(form, rng, Tq, Tk):
    q, k, v = drawn(rng, 2, 3, 1, Tq, Tk, 4, 5)
    y, cache = form.gqa_forward(q, k, v)
    plain, plain_cache = ops.attention_forward(q[:, :, 0], k, v)
    close(y[:, :, 0], plain)
    dy = rng.standard_normal(y.shape)
    dq, dk, dv = form.gqa_backward(dy, cache)
    expected = ops.attention_backward(dy[:, :, 0], plain_cache)
    for found, theirs in zip((dq[:, :, 0], dk, dv), expected, strict=True):
        close(found, theirs, 1e-11)


@gqa_forms
@pytest.mark.parametrize("size", [1.0, 30.0, 1000.0])  # scores beyond what exp can take
@pytest.mark.parametrize("Tq, Tk", [(5, 5), (1, 70), (70, 75), (130, 130)])
def test_groups_are_plain_attention_with_copied_keys(form, rng, Tq, Tk, size):
    q, k, v = drawn(rng, 2, 2, 3, Tq, Tk, 4, 5)
    q *= size
    every = [np.repeat(a[:, :, None], 3, axis=2) for a in (k, v)]
    y, cache = form.gqa_forward(q, k, v)
    expected, plain_cache = ops.attention_forward(q, *every)
    close(y, expected)
    dy = rng.standard_normal(y.shape)
    dq, dk, dv = ops.attention_backward(dy, plain_cache)
    gradients = dq, dk.sum(axis=2), dv.sum(axis=2)
    for found, theirs in zip(form.gqa_backward(dy, cache), gradients, strict=True):
        close(found, theirs, 1e-11)


@gqa_forms
def test_no_head_of_a_group_sees_the_future(form, rng):
    q, k, v = drawn(rng, 1, 2, 3, 4, 4, 5, 5)
    y, _ = form.gqa_forward(q, k, v)
    k[:, :, 2], v[:, :, 2] = q[:, :, 0, 3], 100.0
    changed, _ = form.gqa_forward(q, k, v)
    np.testing.assert_array_equal(changed[..., :2, :], y[..., :2, :])
    assert (np.abs(changed[..., 3, :] - y[..., 3, :]) > 0).all()


@gqa_forms
def test_keys_and_values_are_not_copied(form, rng):
    q, k, v = drawn(rng, 1, 1, 2, 1, 50_000, 8, 8)
    tracemalloc.start()
    try:
        form.gqa_forward(q, k, v)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    scores = 2 * 50_000 * 8  # bytes
    assert peak < 4 * scores < k.nbytes + v.nbytes


@gqa_forms
def test_without_a_query_keys_and_values_have_no_gradient(form, rng):
    q, k, v = drawn(rng, 2, 2, 3, 0, 5, 4, 5)
    y, cache = form.gqa_forward(q, k, v)
    dq, dk, dv = form.gqa_backward(y, cache)
    assert y.shape == (2, 2, 3, 0, 5) and dq.shape == q.shape
    assert dk.shape == k.shape and dv.shape == v.shape and not dk.any() and not dv.any()


# --- head and loss -------------------------------------------------------------------------------


def head_inputs(rng, N=9, d=4, V=7, dtype=np.float64):
    x, W = rng.standard_normal((N, d)).astype(dtype), rng.standard_normal((V, d)).astype(dtype)
    return x, W, rng.integers(0, V, N)


def composed(x, W, targets, dy=1.0, **options):
    """The loss and its gradients by the two pairs."""
    z, linear_cache = ops.linear_forward(x, W)
    loss, cache = ops.cross_entropy_forward(z, targets, **options)
    (dz,) = ops.cross_entropy_backward(dy, cache)
    return loss, *ops.linear_backward(dz, linear_cache)[:2]


def both(x, W, targets, dy=1.0, **options):
    loss, cache = ops.head_loss_forward(x, W, targets, **options)
    return loss, *ops.head_loss_backward(dy, cache)


@pytest.mark.parametrize("ignored", [(), (0, 8), (1, 2, 3, 4, 5, 6, 7)])
@pytest.mark.parametrize("rows", [1, 2, 4, 9, 100])  # of a chunk
@pytest.mark.parametrize("options", [{}, {"count": 20}, {"ignore_index": 2}])
def test_chunks_are_the_two_pairs_in_a_row(rng, monkeypatch, ignored, rows, options):
    x, W, targets = head_inputs(rng)
    targets[targets == 2] = 3
    targets[list(ignored)] = options.get("ignore_index", -100)
    monkeypatch.setattr(head_loss, "CHUNK", 7 * rows)
    for found, expected in zip(
        both(x, W, targets, 0.3, **options), composed(x, W, targets, 0.3, **options)
    ):
        close(found, expected)


def test_the_softmax_of_one_chunk_is_kept_and_of_several_is_not(rng, monkeypatch):
    x, W, targets = head_inputs(rng)
    assert ops.head_loss_forward(x, W, targets)[1].softmax is not None
    monkeypatch.setattr(head_loss, "CHUNK", 8 * 7)
    assert ops.head_loss_forward(x, W, targets)[1].softmax is None
    targets[0] = -100  # eight are left
    assert ops.head_loss_forward(x, W, targets)[1].softmax is not None


def test_an_ignored_row_is_never_multiplied(rng):
    x, W, targets = head_inputs(rng)
    x[[0, 5]], targets[[0, 5]] = np.nan, -100
    loss, dx, dW = both(x, W, targets)
    assert np.isfinite(loss) and np.isfinite(dW).all()
    assert not dx[[0, 5]].any() and dx[1:5].all()


def test_rows_that_are_all_kept_are_not_copied(rng):
    x, W, targets = head_inputs(rng)
    _, cache = ops.head_loss_forward(x.reshape(3, 3, 4), W, targets.reshape(3, 3))
    assert np.shares_memory(cache.x, x)


def test_no_more_than_one_chunk_of_logits_is_in_memory(rng, monkeypatch):
    x, W, targets = head_inputs(rng, N=400, d=2, V=1000, dtype=np.float32)
    chunk = 50 * 1000
    monkeypatch.setattr(head_loss, "CHUNK", chunk)
    tracemalloc.start()
    try:
        _, cache = ops.head_loss_forward(x, W, targets)
        ops.head_loss_backward(1.0, cache)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert chunk * 4 < peak < 1.6 * chunk * 4


@pytest.mark.parametrize("rows", [1, 100])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_logits_that_are_not_finite_are_one_clear_error(rng, monkeypatch, rows, bad):
    x, W, targets = head_inputs(rng)
    monkeypatch.setattr(head_loss, "CHUNK", 7 * rows)
    x[8] = bad
    with np.errstate(invalid="ignore"), pytest.raises(FloatingPointError, match="logits has a row"):
        ops.head_loss_forward(x, W, targets)


def test_a_target_of_probability_zero_is_one_clear_error():
    x, W = np.array([[1.0], [1.0]]), np.array([[0.0], [-np.inf], [1.0]])
    loss, dx, dW = both(x, W[[0, 2]], np.array([0, 1]))
    with pytest.raises(FloatingPointError, match="log-probabilities has a row"):
        ops.head_loss_forward(x, W, np.array([0, 1]))
    assert np.isfinite([loss, *dx.flat, *dW.flat]).all()


@pytest.mark.parametrize("wrong, span", [(7, "0 .. 7"), (-1, "-1 .. 0")])
def test_a_target_outside_the_vocabulary_is_an_error(rng, wrong, span):
    x, W, targets = head_inputs(rng)
    targets[:] = 0
    targets[3] = wrong
    with pytest.raises(ValueError, match=rf"targets lie in {span}, expected 0 .. 6"):
        ops.head_loss_forward(x, W, targets)


def test_no_kept_token_is_an_error_unless_a_count_is_given(rng):
    x, W, targets = head_inputs(rng)
    targets[:] = -100
    with pytest.raises(ValueError, match="no token is kept: every target is ignore_index = -100"):
        ops.head_loss_forward(x, W, targets)
    loss, dx, dW = both(x, W, targets, count=7)
    assert loss == 0.0 and not dx.any() and not dW.any()
    assert dx.shape == x.shape and dW.shape == W.shape


# --- derivations that are wrong on purpose -------------------------------------------------------


def wrong_rmsnorm(dy, cache, need=None):
    """The root taken as a constant."""
    return cache.r * dy * cache.gamma, ops.rmsnorm_backward(dy, cache)[1]


def wrong_rope(dy, cache, need=None):
    """The rotation forward again."""
    return (ops.rope_forward(dy, cache.cos, cache.sin)[0],)


def wrong_swiglu(dy, cache, need=None):
    """The product rule's second term left out."""
    return dy * cache.up * cache.s, ops.swiglu_backward(dy, cache)[1]


def wrong_gqa(dy, cache, need=None):
    """The mean over a group's heads in the place of their sum."""
    dq, dk, dv = ops.gqa_backward(dy, cache)
    return dq, dk / cache.q.shape[-3], dv


def wrong_head_loss(dy, cache, need=None):
    """The gradient of the kept rows at the first places."""
    dx, dW = ops.head_loss_backward(dy, cache)
    return np.roll(dx, -1, axis=0), dW


@pytest.mark.parametrize(
    "pair, backward, wrong",
    [
        ("rmsnorm", wrong_rmsnorm, {0}),
        ("rope", wrong_rope, {0}),
        ("swiglu", wrong_swiglu, {0}),
        ("gqa", wrong_gqa, {1}),
        ("head_loss", wrong_head_loss, {0}),
    ],
)
@pytest.mark.parametrize("method", ["central", "complex"])
def test_a_wrong_derivation_is_caught(rng, pair, backward, wrong, method):
    n = rng.standard_normal
    options = {}
    if pair == "rope":
        options = dict(zip(("cos", "sin"), ops.rope_angles(3, 4, dtype=np.float64)))
    inputs = {
        "rmsnorm": (n((2, 5)), n(5)),
        "rope": (n((2, 3, 4)),),
        "swiglu": (n((2, 3)), n((2, 3))),
        "gqa": drawn(rng, 1, 2, 2, 3, 3, 2, 2),
        "head_loss": (n((3, 4)), n((5, 4)), np.array([-100, 2, 1])),
    }[pair]
    forward, right = getattr(ops, f"{pair}_forward"), getattr(ops, f"{pair}_backward")
    assert check_gradients(forward, right, inputs, method=method, **options).ok
    report = check_gradients(forward, backward, inputs, method=method, **options)
    assert {i for i, row in enumerate(report.rows) if row.error > report.tolerance} == wrong


@pytest.mark.parametrize("rows", [2, 8])
def test_a_linear_map_of_few_rows_in_blocks_is_the_textbooks(rng, monkeypatch, rows):
    from lora_np.ops.fast import linear

    monkeypatch.setattr(linear, "NARROWEST", 2)
    monkeypatch.setattr(linear, "SMALL", rows * 5 * 3)  # blocks of 3 rows of W
    x, W, b = rng.standard_normal((rows, 5)), rng.standard_normal((9, 5)), rng.standard_normal(9)
    calls = []
    monkeypatch.setattr(linear, "matmul", lambda a, b: (calls.append(b.ndim), a @ b)[1])
    y, cache = fast.linear_forward(x.reshape(2, -1, 5), W, b)
    assert calls == [3] and y.shape == (2, rows // 2, 9)
    np.testing.assert_allclose(y.reshape(rows, 9), x @ W.T + b, rtol=1e-13)
    assert fast.linear_backward(y, cache)[1].shape == W.shape
    fast.linear_forward(rng.standard_normal((9, 5)), W)  # one row more
    assert calls[-1] == 2


@pytest.mark.parametrize("ignored", [0, 3])
def test_the_loss_that_forms_dx_in_forward_is_the_textbooks_in_chunks(rng, monkeypatch, ignored):
    monkeypatch.setattr(head_loss, "CHUNK", 2 * 7)
    x, W = rng.standard_normal((9, 4)), rng.standard_normal((7, 4))
    targets = rng.integers(0, 7, 9)
    targets[:ignored] = -100
    found, expected = (
        (loss, *pair.head_loss_backward(0.5, cache))
        for pair in (fast, ops)
        for loss, cache in [pair.head_loss_forward(x, W, targets, count=20)]
    )
    for ours, textbook in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, textbook, rtol=1e-11, atol=1e-15)
