"""lora_np.gradcheck: it passes what is right and catches every bug planted here."""

import math

import numpy as np
import pytest

from lora_np import ops
from lora_np.gradcheck import STEP, TOLERANCE, GradientError, check_gradients
from lora_np.ops.attention import causal_mask
from lora_np.ops.linear import rows

METHODS = ("central", "complex", "directional")
every_method = pytest.mark.parametrize("method", METHODS)


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


# --- planted bugs: what the right backward found goes in, something wrong comes out --------------

X, W, SQUARE, BIAS = normal(2, 3, 5), normal(4, 5), normal(5, 5), normal(4)
A, B, MASK = normal(2, 5), normal(4, 2), (normal(2, 3, 5, seed=1) > -0.5) / 0.7
GELU_X = normal(3, 4)
TOKENS = np.array([[0, 3, 3], [1, 0, 5]])
TARGETS = np.array([[0, -100, 3], [1, 0, -100]])
SCALE = 0.7
LORA = (X, W, A, B, BIAS)
DROPPED = {"scale": SCALE, "mask": MASK}


def put(slot, make):
    """Replace one gradient by ``make(gradients, dy, cache)``."""

    def plant(g, dy, cache):
        return [make(g, dy, cache) if i == slot else gradient for i, gradient in enumerate(g)]

    return plant


def transposed_mask(g, dy, cache):
    scores = cache.q @ cache.k.swapaxes(-1, -2) / math.sqrt(cache.q.shape[-1])
    mask = causal_mask(scores.shape[-2], scores.shape[-1], float, np).T
    P, _ = ops.softmax_forward(scores + mask)
    return ops.attention_backward(dy, cache._replace(P=P))


def gelu_without_inner_slope(g, dy, cache):
    t = np.tanh(math.sqrt(2 / math.pi) * (GELU_X + 0.044715 * GELU_X**3))
    return (dy * 0.5 * (1 + t) + dy * 0.5 * GELU_X * (1 - t**2),)


def overwrite_equal_tokens(g, dy, cache):
    dW = np.zeros_like(g[0])
    dW[cache.tokens] = dy
    return (dW,)


def du(dy, cache):
    return cache.scale * (dy @ cache.B)


def dx_base(g, dy, cache):
    return dy @ cache.W0


def dx_adapter(g, dy, cache):
    return (du(dy, cache) @ cache.A) * cache.mask


def layernorm_without(mean, along):
    def dx(g, dy, c):
        h = dy * c.gamma
        mean_of = mean * h.mean(axis=-1, keepdims=True)
        return c.rstd * (h - mean_of - along * c.xhat * (h * c.xhat).mean(axis=-1, keepdims=True))

    return dx


def ignored_counted(g, dy, cache):
    return ops.cross_entropy_backward(dy, cache._replace(kept=np.ones_like(cache.kept)))


def divided_by_all(g, dy, cache):
    return ops.cross_entropy_backward(dy, cache._replace(divisor=cache.kept.size))


def nan_in_one_entry(g, dy, cache):
    g[1][0, 0] = math.nan
    return g


LORA_BUGS = {
    "dA: missing scale": put(2, lambda g, dy, c: g[2] / SCALE),
    "dA: scale applied twice": put(2, lambda g, dy, c: g[2] * SCALE),
    "dA: dW0 mixed in": put(2, lambda g, dy, c: g[2] + g[1][:2]),
    "dA: forgotten mask": put(2, lambda g, dy, c: rows(du(dy, c)).T @ rows(c.x)),
    "dB: missing scale": put(3, lambda g, dy, c: g[3] / SCALE),
    "dB: forgotten mask": put(3, lambda g, dy, c: SCALE * rows(dy).T @ rows(c.x @ c.A.T)),
    "dx: mask on the base's path too": put(
        0, lambda g, dy, c: (dy @ c.W0 + du(dy, c) @ c.A) * c.mask
    ),
    "dx: forgotten mask": put(0, lambda g, dy, c: dy @ c.W0 + du(dy, c) @ c.A),
    "dx: the base's path alone": put(0, dx_base),
    "dx: the adapter's path alone": put(0, dx_adapter),
    "dW0: None": put(1, lambda g, dy, c: None),
}
LINEAR_BUGS = {
    "dW: missing transpose": put(1, lambda g, dy, c: g[1].T),
    "dx: missing transpose": put(0, lambda g, dy, c: dy @ c.W.T),
    "db: mean instead of sum": put(2, lambda g, dy, c: rows(dy).mean(axis=0)),
    "db: one sample alone": put(2, lambda g, dy, c: rows(dy)[0]),
    "db: missing sum": put(2, lambda g, dy, c: dy),
    "dW: times 2.001": put(1, lambda g, dy, c: 2.001 * g[1]),
    "dW: times 1.0005": put(1, lambda g, dy, c: 1.0005 * g[1]),
    "dW: sign": put(1, lambda g, dy, c: -g[1]),
    "dW: zero": put(1, lambda g, dy, c: 0 * g[1]),
    "dW: NaN": nan_in_one_entry,
    "dW: infinite": put(1, lambda g, dy, c: g[1] + math.inf),
    "dx: rows flattened": put(0, lambda g, dy, c: rows(g[0])),
}
SWAPPED = {"A and B swapped": lambda g, dy, c: [g[0], g[1], g[3].T, g[2].T, g[4]]}
ATTENTION_BUGS = {
    "mask transposed": transposed_mask,
    "dq: forgotten scale": put(0, lambda g, dy, c: g[0] * math.sqrt(3)),
    "dv: P not transposed": put(2, lambda g, dy, c: c.P @ dy),
    "dq and dk swapped": lambda g, dy, c: [g[1], g[0], g[2]],
}
NORM_BUGS = {
    "layernorm: missing mean term": put(0, layernorm_without(0, 1)),
    "layernorm: missing xhat term": put(0, layernorm_without(1, 0)),
    "layernorm: dgamma from dy alone": put(1, lambda g, dy, c: g[2]),
}
OTHER_BUGS = [
    (
        "softmax",
        (normal(3, 4),),
        {"diagonal alone": put(0, lambda g, dy, c: dy * c.y * (1 - c.y))},
    ),
    (
        "gelu",
        (GELU_X,),
        {"without u'": gelu_without_inner_slope},
    ),
    ("embedding", (TOKENS, normal(6, 3)), {"equal tokens overwrite": overwrite_equal_tokens}),
    (
        "cross_entropy",
        (normal(2, 3, 6), TARGETS),
        {"ignored tokens counted": ignored_counted, "divided by all tokens": divided_by_all},
    ),
    ("mse", (normal(3, 4), normal(4, 3).T), {"target's sign": lambda g, dy, c: [g[0], g[0]]}),
    ("relu", (normal(3, 4),), {"missing kink": put(0, lambda g, dy, c: dy)}),
]
QKV = tuple(normal(2, 4, 3, seed=i) for i in range(3))
GROUPS = [
    ("lora_linear", LORA, LORA_BUGS, DROPPED),
    ("lora_linear", (normal(4, 5), SQUARE, A, normal(5, 2)), SWAPPED, {"scale": SCALE}),
    ("linear", (X, SQUARE, normal(5)), LINEAR_BUGS, {}),
    ("attention", QKV, ATTENTION_BUGS, {}),
    ("layernorm", (X, normal(5), normal(5, seed=1)), NORM_BUGS, {}),
    *((name, inputs, bugs, {}) for name, inputs, bugs in OTHER_BUGS),
]
BUGS = [
    pytest.param(name, inputs, plant, kwargs, id=f"{name}, {bug}")
    for name, inputs, bugs, kwargs in GROUPS
    for bug, plant in bugs.items()
]


def op(name):
    return getattr(ops, f"{name}_forward"), getattr(ops, f"{name}_backward")


def check(name, inputs, plant=None, method="central", **kwargs):
    forward, backward = op(name)

    def wrong(dy, cache, need=None):
        return plant(list(backward(dy, cache, need)), dy, cache)

    return check_gradients(forward, wrong if plant else backward, inputs, method=method, **kwargs)


@every_method
@pytest.mark.parametrize("name, inputs, plant, kwargs", BUGS)
def test_a_planted_bug_is_caught(name, inputs, plant, kwargs, method):
    assert check(name, inputs, None, method, **kwargs).ok  # so it is the bug that is caught
    report = check(name, inputs, plant, method, **kwargs)
    assert not report.ok and report.max_error > 100 * TOLERANCE[method]
    with pytest.raises(GradientError):
        report.raise_if_wrong()


@every_method
def test_at_b_zero_bugs_of_a_would_go_unnoticed(method):
    """That is why the checks draw B at random, though training starts at B = 0."""
    at_zero = (X, W, A, np.zeros_like(B), BIAS)
    unnoticed = {
        bug
        for bug, plant in LORA_BUGS.items()
        if check("lora_linear", at_zero, plant, method, **DROPPED).ok
    }
    assert unnoticed == {
        "dA: missing scale",
        "dA: scale applied twice",
        "dA: forgotten mask",
        "dx: forgotten mask",
        "dx: the base's path alone",
    }


# --- purity --------------------------------------------------------------------------------------


def square(x):
    return x * x, (x,)


def square_backward(dy, cache, need=None):
    return (2 * dy * cache[0],)


def writes_to_input(x):
    y = x * x
    held = x.copy()
    x += 1.0
    return y, (held,)


def writes_to_cache(dy, cache, need=None):
    cache[0][...] *= 2.0
    return (dy * cache[0],)


def writes_to_dy(dy, cache, need=None):
    dy *= 2.0
    return (dy * cache[0],)


@every_method
@pytest.mark.parametrize(
    "forward, backward, note",
    [
        (writes_to_input, square_backward, "the pair wrote to this input"),
        (lambda x: (x * x, (x.copy(),)), writes_to_cache, "cache was changed"),
        (square, writes_to_dy, "wrote to dy"),
    ],
)
def test_writing_where_a_pure_function_may_not_is_caught(forward, backward, note, method):
    report = check_gradients(forward, backward, (normal(3),), method=method)
    assert not report.ok and report.max_error == math.inf
    assert note in report.rows[0].note


def test_a_write_to_dy_that_changes_nothing_the_second_time_is_caught():
    def in_place(dy, cache, need=None):
        dy *= cache.positive
        return (dy,)

    assert not check_gradients(ops.relu_forward, in_place, (normal(3, 4),)).ok


def test_a_write_to_an_integer_input_is_caught():
    def forward(logits, targets):
        y, cache = ops.cross_entropy_forward(logits, targets)
        targets[targets == -100] = 0
        return y, cache

    inputs = (normal(2, 3, 6), TARGETS.copy())
    assert not check_gradients(forward, ops.cross_entropy_backward, inputs).ok


def test_the_callers_arrays_are_not_written_to():
    x, W_ = normal(2, 5), normal(4, 5)
    before = x.copy(), W_.copy()
    check_gradients(*op("linear"), (x, W_))
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(W_, before[1])


# --- the report ----------------------------------------------------------------------------------


def half_too_much(g, dy, cache):
    g[1][1, 2] += 0.5
    return g


@pytest.mark.parametrize("method", ["central", "complex"])
def test_the_report_says_which_entry_is_wrong_and_by_how_much(method):
    report = check("linear", (X, W, BIAS), half_too_much, method)
    assert [row.name for row in report.rows] == ["x", "W", "b"]
    assert [row.shape for row in report.rows] == [X.shape, W.shape, BIAS.shape]
    assert [row.error <= report.tolerance for row in report.rows] == [True, False, True]
    bad = report.rows[1]
    dy = np.random.default_rng(0).standard_normal((2, 3, 4))
    dW = rows(dy).T @ rows(X)
    assert bad.index == (1, 2)
    assert abs(bad.numeric - dW[1, 2]) < 1e-8 and abs(bad.analytic - bad.numeric - 0.5) < 1e-8
    assert abs(bad.error - 0.5 / max(1.0, np.abs(dW).max())) < 1e-8
    assert report.max_error == bad.error and not report.ok and report.method == method


def test_the_error_is_absolute_for_small_gradients_and_relative_for_large_ones():
    def off(scale, by):
        forward = lambda x: (scale * x, None)  # noqa: E731
        backward = lambda dy, cache, need=None: (scale * dy + by,)  # noqa: E731
        return check_gradients(forward, backward, (np.ones(3),), method="complex").max_error

    assert off(0.0, 1e-3) == pytest.approx(1e-3)
    dy = np.abs(np.random.default_rng(0).standard_normal(3)).max()
    assert off(1e6, 1.0) == pytest.approx(1 / (1e6 * dy), rel=1e-6)


def test_raise_if_wrong_names_the_input_and_the_entry_and_passes_what_is_right():
    check("linear", (X, W, BIAS)).raise_if_wrong()
    message = r"1 of 3 gradients are wrong \(complex, tolerance 1e-12\):\n.* at .*\nW .* \[1, 2\]"
    with pytest.raises(GradientError, match=message) as caught:
        check("linear", (X, W, BIAS), half_too_much, "complex").raise_if_wrong()
    assert len(str(caught.value).splitlines()) == 3  # the right ones are not listed
    assert isinstance(caught.value, AssertionError)


def test_the_report_prints_as_a_table():
    title, heads, *lines = str(check("linear", (X, W, BIAS), half_too_much)).splitlines()
    assert title == "WRONG: central, tolerance 1e-07"
    assert heads.split() == ["input", "shape", "error", "analytic", "numeric", "at", "note"]
    assert [line.split()[0] for line in lines] == ["x", "W", "b"]
    assert "(4, 5)" in lines[1] and "[1, 2]" in lines[1]
    right = str(check("linear", (X, W), None, "directional")).splitlines()
    assert right[0] == "ok: directional, tolerance 1e-07" and "[" not in right[2]


@pytest.mark.parametrize(
    "plant, hint",
    [
        (put(1, lambda g, dy, c: 2.001 * g[1]), "it is 2.001 times the numeric gradient"),
        (put(1, lambda g, dy, c: 1.0005 * g[1]), "it is 1.0005 times the numeric gradient"),
        (put(1, lambda g, dy, c: -g[1]), "it is -1 times the numeric gradient"),
        (put(1, lambda g, dy, c: g[1].T), "it is the transpose of the numeric gradient"),
        (put(1, lambda g, dy, c: None), "the gradient is None, expected shape (5, 5)"),
        (put(1, lambda g, dy, c: g[1][0]), "the gradient is of shape (5,), expected shape (5, 5)"),
        (nan_in_one_entry, "the gradient is not finite"),
        (half_too_much, ""),
    ],
)
def test_the_note_says_how_the_gradient_is_wrong(plant, hint):
    right, wrong, _ = check("linear", (X, SQUARE, BIAS[:1].repeat(5)), plant).rows
    assert wrong.note == hint and right.note == ""


def test_no_likeness_is_claimed_when_one_entry_is_off_by_little():
    def plant(g, dy, cache):
        g[1][1, 2] += 1e-5
        return g

    row = check("linear", (X, SQUARE), plant).rows[1]
    assert row.error > TOLERANCE["central"] and row.note == ""


# --- what is checked -----------------------------------------------------------------------------


def spy_on_linear(needs):
    def backward(dy, cache, need=None):
        needs.append(None if need is None else list(need))
        return ops.linear_backward(dy, cache, need)

    return backward


@every_method
def test_wrt_checks_these_alone_and_asks_backward_for_no_others(method):
    needs = []
    report = check_gradients(
        ops.linear_forward, spy_on_linear(needs), (X, W), method=method, wrt=["W"]
    )
    assert report.ok and [row.name for row in report.rows] == ["W"]
    assert needs == [None, [False, True, False]]


def test_a_bug_outside_wrt_is_not_reported():
    plant = put(1, lambda g, dy, c: None if g[1] is None else 2 * g[1])
    assert check("linear", (X, W), plant, wrt=["x"]).ok
    assert not check("linear", (X, W), plant, wrt=["x", "W"]).ok


def test_a_backward_that_forms_what_nobody_needs_is_refused():
    def eager(dy, cache, need=None):
        return ops.linear_backward(dy, cache)

    assert check_gradients(ops.linear_forward, eager, (X, W)).ok
    with pytest.raises(
        GradientError, match=r"formed the gradients of \['x'\], which were not needed"
    ):
        check_gradients(ops.linear_forward, eager, (X, W), wrt=["W"])


def test_a_gradient_that_goes_missing_under_wrt_is_caught():
    def forgetful(dy, cache, need=None):
        dx, dW, db = ops.linear_backward(dy, cache, need)
        return (dx, None if need is not None else dW, db)

    report = check_gradients(ops.linear_forward, forgetful, (X, W), wrt=["W"])
    assert (
        not report.ok
        and report.rows[0].note == "a second call of backward does not return this gradient"
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"method": "guess"}, "method is 'guess', expected one of central, complex, directional"),
        ({"wrt": ["W0"]}, r"wrt names \['W0'\]; floating-point inputs are \['x', 'W'\]"),
        ({"wrt": []}, "wrt names nothing"),
    ],
)
def test_unknown_names_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_gradients(*op("linear"), (X, W), **arguments)


def test_integer_inputs_cannot_be_checked():
    with pytest.raises(ValueError, match=r"wrt names \['tokens'\]; .* \['W'\]"):
        check_gradients(*op("embedding"), (TOKENS, normal(6, 3)), wrt=["tokens"])


def test_more_inputs_than_forward_takes_are_refused():
    with pytest.raises(ValueError, match="2 inputs for a forward that takes 1"):
        check_gradients(*op("gelu"), (X, W))


def test_the_number_of_gradients_must_fit():
    with pytest.raises(GradientError, match="backward returned 1 gradients, expected 2"):
        check_gradients(ops.mse_forward, square_backward, (np.ones(3), np.zeros(3)))
    plant = put(2, lambda g, dy, c: np.ones(4))
    with pytest.raises(GradientError, match=r"returned a gradient for \['argument 2'\]"):
        check("linear", (X, W), plant)
    with pytest.raises(GradientError, match=r"returned a gradient for \['b'\]"):
        check("linear", (X, W, None), plant)


def test_a_mapping_names_the_inputs_and_may_hold_an_absent_one():
    report = check_gradients(*op("linear"), {"data": X, "weight": W, "bias": None})
    assert report.ok and [row.name for row in report.rows] == ["data", "weight"]


def test_float32_inputs_are_checked_in_float64():
    narrow = tuple(a.astype(np.float32) for a in LORA)
    report = check("lora_linear", narrow, None, "complex", **DROPPED)
    assert report.ok and report.tolerance == 1e-12


def test_the_same_rng_gives_the_same_report_and_another_gives_another():
    one, same, other = (
        check_gradients(*op("linear"), (X, W), rng=np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert one == same
    assert one.ok and other.ok and one.rows[1].numeric != other.rows[1].numeric


@every_method
def test_steps_and_tolerances_are_what_the_documentation_says(method):
    assert TOLERANCE == {"central": 1e-7, "complex": 1e-12, "directional": 1e-7}
    assert set(STEP) == set(METHODS)
    report = check("layernorm", (X, normal(5), normal(5, seed=1)), None, method)
    assert report.max_error <= TOLERANCE[method] == report.tolerance


# --- a trap of the complex step ------------------------------------------------------------------


def layernorm_with_np_var(x, gamma, beta):
    variance = np.var(x, axis=-1, keepdims=True)  # |x - mean|^2: np.var conjugates
    rstd = (variance + 1e-5) ** -0.5
    xhat = (x - x.mean(axis=-1, keepdims=True)) * rstd
    return xhat * gamma + beta, (xhat, rstd, gamma)


def test_np_var_breaks_the_complex_step_though_the_gradient_is_right():
    """The error lies in the numeric side: a forward that conjugates is not analytic."""
    inputs = (X, normal(5), normal(5, seed=1))

    def run(method):
        return check_gradients(layernorm_with_np_var, op("layernorm")[1], inputs, method=method)

    assert run("central").ok and run("directional").ok
    dx, dgamma, dbeta = run("complex").rows
    assert dx.error > 0.01  # what np.var's conjugate lost
    assert max(dgamma.error, dbeta.error) <= TOLERANCE["complex"]


@pytest.mark.parametrize("method", ["central", "complex", "directional"])
def test_a_forward_that_breaks_under_the_method_is_not_ok(method):
    def forward(x, w):
        broken = w * np.nan if not np.array_equal(w, W0) else 0.0
        return x * 2.0 + broken, None

    def backward(dy, cache, need=None):
        return 2.0 * dy, np.zeros_like(dy)

    W0 = np.ones(3)
    report = check_gradients(forward, backward, (np.ones(3), W0), method=method)
    assert not report.ok and report.rows[0].error <= report.tolerance
    assert "numeric derivative is not finite" in report.rows[1].note


# --------------------------------------------------------------------------------------- kinks


def relu(x):
    return np.maximum(x, 0.0), x


def relu_backward(at_zero, factor=1.0):
    return lambda dy, x, need=None: (factor * dy * np.where(x == 0, at_zero, x > 0),)


def largest(x):
    return x.max(axis=-1), x


def largest_backward(dy, x, need=None):
    return (dy[..., None] * (np.arange(x.shape[-1]) == x.argmax(axis=-1)[..., None]),)


AT_A_KINK = np.array([[1.0, 0.0, -2.0], [0.5, -1.0, 0.0]])


@pytest.mark.parametrize("method", ["central", "complex"])
@pytest.mark.parametrize("at_zero", [0.0, 0.5, 1.0])
def test_any_slope_of_a_kink_is_right_and_the_note_says_where(method, at_zero):
    report = check_gradients(relu, relu_backward(at_zero), [AT_A_KINK], method=method)
    assert report.ok
    if (method, at_zero) not in (("central", 0.5), ("complex", 1.0)):  # which is what they find
        note = str(report)
        assert "not differentiable at [0, 1] and 1 more entries: a kink with slopes" in note


@pytest.mark.parametrize("method", ["central", "complex"])
@pytest.mark.parametrize("at_zero", [-0.1, 1.1, 5.0])
def test_a_value_that_is_no_slope_of_the_kink_is_wrong(method, at_zero):
    report = check_gradients(relu, relu_backward(at_zero), [AT_A_KINK], method=method)
    assert not report.ok and report.rows[0].index in ((0, 1), (1, 2))


@pytest.mark.parametrize("method", ["central", "complex"])
def test_a_planted_bug_beside_a_kink_is_found(method):
    report = check_gradients(relu, relu_backward(0.0, 0.99), [AT_A_KINK], method=method)
    assert not report.ok and report.rows[0].index == (0, 0)


def test_a_tie_of_the_largest_is_a_kink_of_both():
    x = np.array([[1.0, 1.0, 0.0], [3.0, 2.0, 1.0]])
    report = check_gradients(largest, largest_backward, [x])
    assert report.ok and "not differentiable at [0, 0] and 1 more" in report.rows[0].note


@pytest.mark.parametrize("bend", [1.0, 1e3, 1e5])
def test_a_smooth_bend_excuses_no_wrong_gradient(bend):
    """Its one-sided slopes disagree too, by the step times the bend."""

    def forward(x):
        return x * x * (0.5 * bend), x

    x = np.array([1.0, 0.0, -2.0])
    off = 2e-6 * bend  # between the one-sided slopes, which lie 6e-6 bend apart

    def backward(dy, x, need=None):
        return (dy * (bend * x + off),)

    assert check_gradients(forward, lambda dy, x, need=None: (dy * bend * x,), [x]).ok
    assert not check_gradients(forward, backward, [x]).ok


def test_inputs_in_float32_are_checked_in_float64():
    rng = np.random.default_rng(0)
    x, W = 100 * rng.standard_normal((60, 30)), rng.standard_normal((30, 30))
    arrays = [a.astype(np.float32) for a in (x, W)]
    report = check_gradients(
        lambda x, W: (x @ W.T, (x, W)), lambda dy, c, need=None: (dy @ c[1], dy.T @ c[0]), arrays
    )
    assert report.ok
