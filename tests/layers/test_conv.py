"""Convolutions: the definition, the options one by one and together, and LoRA on their patches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import account, check_layer, fit, load_adapter, merge, save_adapter
from lora_np.backend import ShapeError
from lora_np.layers import Conv1d, Conv2d, copy_model, rebuild
from lora_np.methods import LoraConfig, inject
from lora_np.ops import im2col_forward
from lora_np.parameters import Grads, Parameter
from lora_np.selfcheck import at_random
from tests.compare import close
from tests.counting import Counting, unmerged
from tests.regression import Regression

F64 = np.float64
ALL = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
OPTIONS = {
    "plain": ((3, 3), {}),
    "stride": ((3, 3), {"stride": 2}),
    "padding": ((3, 3), {"padding": 1}),
    "dilation": ((3, 3), {"dilation": 2}),
    "groups": ((3, 3), {"groups": 2}),
    "not square": ((2, 3), {}),
    "1 x 1": (1, {}),
    "one row": ((1, 4), {"padding": (0, 3)}),
    "all": ((2, 3), ALL),
    "depthwise": ((2, 3), {**ALL, "groups": 4}),
}
every_option = pytest.mark.parametrize("name", OPTIONS)


def conv_named(name, rng, bias=True):
    kernel, options = OPTIONS[name]
    conv = Conv2d(4, 4, kernel, rng, bias=bias, dtype=F64, **options)
    at_random(conv, rng)
    return conv


def by_definition(conv, x):
    """Return y (Ho, Wo, out) of one image x (H, W, C), one product after the other."""
    (s0, s1), (p0, p1), (d0, d1) = conv.stride, conv.padding, conv.dilation
    (kh, kw), (H, W, C), G = conv.kernel, x.shape, len(conv.group)
    padded = np.pad(x, ((p0, p0), (p1, p1), (0, 0)))
    Ho = (H + 2 * p0 - d0 * (kh - 1) - 1) // s0 + 1
    Wo = (W + 2 * p1 - d1 * (kw - 1) - 1) // s1 + 1
    blocks = []
    for g, linear in enumerate(conv.group):
        K = linear.W.value.reshape(-1, C // G, kh, kw)
        y = np.zeros((Ho, Wo, len(K)))
        for a, b, o, c, i, j in np.ndindex(Ho, Wo, len(K), C // G, kh, kw):
            seen = padded[a * s0 + i * d0, b * s1 + j * d1, g * (C // G) + c]
            y[a, b, o] += seen * K[o, c, i, j]
        blocks.append(y + linear.b.value)
    return np.concatenate(blocks, axis=-1)


# --- the layer -----------------------------------------------------------------------------------


@every_option
def test_a_convolution_is_its_definition(name, rng):
    conv, x = conv_named(name, rng), rng.standard_normal((2, 6, 5, 4))
    y, _ = conv.forward(x)
    close(y, np.stack([by_definition(conv, image) for image in x]))


@every_option
def test_a_convolution_keeps_the_contract_of_layers(name, rng):
    assert len(check_layer(conv_named(name, rng), rng.standard_normal((2, 5, 6, 4)))) == 7


@every_option
def test_leading_axes_are_batch(name, rng):
    conv, x = conv_named(name, rng), rng.standard_normal((2, 3, 5, 6, 4))
    y, _ = conv.forward(x)
    close(conv.forward(x.reshape(6, 5, 6, 4))[0], y.reshape(6, *y.shape[2:]))
    close(conv.forward(x[1, 2])[0], y[1, 2])


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}])
def test_a_convolution_over_one_axis_is_a_kernel_of_one_row(options, rng):
    conv = Conv1d(4, 6, 3, rng, dtype=F64, **options)
    at_random(conv, rng)
    x = rng.standard_normal((2, 7, 4))
    y, cache = conv.forward(x)
    dy, grads = rng.standard_normal(y.shape), Grads()
    dx = conv.backward(dy, cache, grads)
    assert conv.kernel == (1, 3) and dx.shape == x.shape
    twin = Conv2d(4, 6, (1, 3), rng, dtype=F64)
    twin.__dict__ |= vars(conv)
    image, cache = twin.forward(x[:, None])
    np.testing.assert_array_equal(image[:, 0], y)
    np.testing.assert_array_equal(twin.backward(dy[:, None], cache, Grads())[:, 0], dx)
    assert len(check_layer(conv, x)) == 7


def test_a_causal_reader_is_refused(rng):
    """The last positions of a patch lie ahead, so no part of a sequence can be continued."""
    for conv in (Conv1d(2, 2, 3, rng, padding=1), Conv2d(2, 2, 3, rng)):
        with pytest.raises(
            TypeError, match=rf"{type(conv).__name__} reads positions after its own"
        ):
            conv.extend(np.ones((1, 1, 2)))


@pytest.mark.parametrize("c_in, c_out, groups", [(4, 6, 4), (6, 4, 3), (4, 4, 0)])
def test_groups_must_divide_the_channels(c_in, c_out, groups, rng):
    message = f"c_in = {c_in}, c_out = {c_out} do not divide into groups = {groups} equal parts"
    with pytest.raises(ShapeError, match=message):
        Conv2d(c_in, c_out, 3, rng, groups=groups)


@pytest.mark.parametrize(
    "x, options, message",
    [
        ((3, 4), {"kernel": (1, 1)}, r"x has shape \(3, 4\), expected \(\.\.\., H, W, C\)"),
        ((2, 4, 1), {"kernel": (3, 1)}, "its 2 places with padding 0 are fewer than the 3 that a"),
        ((4, 4, 1), {"kernel": (1, 3), "dilation": (1, 2)}, "kernel of 3 with dilation 2 spans"),
        ((4, 4, 1), {"kernel": (1, 0)}, r"kernel \(1, 0\), stride .* must be at least 1"),
        ((4, 4, 1), {"kernel": (1, 1), "stride": (0, 1)}, r"stride \(0, 1\), .* at least 1"),
        ((4, 4, 1), {"kernel": (1, 1), "padding": (0, -1)}, r"padding \(0, -1\) at least 0"),
    ],
)
def test_what_does_not_fit_is_named(x, options, message):
    with pytest.raises(ValueError, match=message):  # a ShapeError is one
        im2col_forward(np.ones(x), **options)


def test_channels_that_do_not_fit_are_named(rng):
    with pytest.raises(ShapeError, match=r"x has shape \(.*, 27\), expected \(\.\.\., 18\)"):
        Conv2d(2, 4, 3, rng).forward(np.ones((5, 5, 3), np.float32))


# --- the cost: for one output position -----------------------------------------------------------


@every_option
@given(data=st.data())
def test_flops_of_an_output_position_are_the_products_carried_out(name, data):
    rng = np.random.default_rng(0)
    conv = inject(conv_named(name, rng), LoraConfig(r=1, target_modules="all-linear"), rng)
    for p in conv.parameters().values():
        p.trainable = data.draw(st.booleans())
    need_dx, x = data.draw(st.booleans()), rng.standard_normal((2, 6, 5, 4))
    counted = rebuild(conv, lambda p: Parameter(p.value.view(Counting), p.trainable))
    with unmerged():
        Counting.flops = 0
        y, cache = counted.forward(x.view(Counting))
        forward, Counting.flops = Counting.flops, 0
        counted.backward(rng.standard_normal(y.shape).view(Counting), cache, Grads(), need_dx)
    positions = y[..., 0].size
    assert (forward, Counting.flops) == tuple(positions * n for n in conv.flops(1, need_dx))


def test_the_account_of_a_convolution_is_known_by_hand(rng):
    """2 x 9 x 16 x 32 operations for each position of a 3 x 3 kernel from 16 to 32 channels."""
    conv = Conv2d(16, 32, 3, rng, padding=1)
    found = account(inject(conv, LoraConfig(r=4, target_modules=["group.0"]), rng))
    assert account(conv).flops.forward == 2 * 9 * 16 * 32
    assert found.flops.forward == 2 * 9 * 16 * 32 + 2 * 4 * (9 * 16 + 32)
    assert (found.base, found.adapter) == (9 * 16 * 32 + 32, 4 * (9 * 16 + 32))
    assert account(Conv2d(16, 32, 3, rng, groups=4)).flops.forward == 2 * 9 * 16 * 32 / 4


# --- LoRA on the patches -------------------------------------------------------------------------


def lora_named(name, rng):
    """Return a base and the same with LoRA on every group."""
    base = conv_named(name, rng)
    return base, inject(base, LoraConfig(r=1, target_modules="all-linear"), rng)


@every_option
def test_lora_on_a_convolution_starts_at_the_base_merges_and_is_saved(name, rng, tmp_path):
    base, adapted = lora_named(name, rng)
    x = rng.standard_normal((2, 6, 5, 4))
    np.testing.assert_array_equal(adapted.forward(x)[0], base.forward(x)[0])
    for linear in adapted.group:
        linear.B.value = rng.standard_normal(linear.B.shape)
    y = adapted.forward(x)[0]
    assert abs(y - base.forward(x)[0]).max() > 0.1
    merged = merge(adapted)
    assert type(merged) is Conv2d
    assert list(merged.parameters()) == list(base.parameters())
    close(merged.forward(x)[0], y)
    save_adapter(adapted, tmp_path / "adapter")
    close(load_adapter(base, tmp_path / "adapter").forward(x)[0], y)


def test_a_rank_above_the_side_of_a_group_is_refused(rng):
    conv = Conv2d(4, 4, 3, rng, groups=2)
    with pytest.raises(ValueError, match=r"rank 3 for group\.0 is above the limit 2"):
        inject(conv, LoraConfig(r=3, target_modules="all-linear"), rng)


@pytest.mark.parametrize("groups", [1, 2])
def test_lora_recovers_a_planted_change_of_low_rank(groups, rng):
    """Each group's kernel changes by a matrix of rank 2: LoRA of rank 2 finds that matrix."""
    net = Conv2d(4, 8, (3, 2), rng, padding=1, groups=groups, dtype=F64)
    target, planted = copy_model(net), []
    for linear in target.group:
        d_out, d_in = linear.W.shape
        planted.append(0.3 * rng.standard_normal((d_out, 2)) @ rng.standard_normal((2, d_in)))
        linear.W.value = linear.W.value + planted[-1]
    adapted = inject(net, LoraConfig(r=2, lora_alpha=2, target_modules="all-linear"), rng)

    def sample():
        x = rng.standard_normal((8, 6, 6, 4))
        return x, target.forward(x)[0]

    history = fit(Regression(adapted), sample, steps=200, lr=0.05)
    assert history.loss[0] > 0.3 and history.loss[-1] < 1e-5 * history.loss[0]
    for linear, change in zip(adapted.group, planted):
        assert np.linalg.norm(linear.delta() - change) < 0.01 * np.linalg.norm(change)
