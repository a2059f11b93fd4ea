"""A layer that a condition modulates (adaLN-zero): its start, adapters, costs, errors."""

import numpy as np
import pytest

from lora_np import (
    MLP,
    Chain,
    Conv2d,
    Gelu,
    Grads,
    LoraConfig,
    Modulated,
    Residual,
    as_pair,
    check_gradients,
    copy_model,
    inject,
    merge,
    ops,
)
from lora_np.backend import ShapeError
from lora_np.parameters import freeze
from lora_np.selfcheck import at_random
from tests.compare import close
from tests.counting import Counting, unmerged

F64 = np.float64
D, D_C = 4, 3


def modulated(rng, layer=None, random=True):
    layer = MLP(D, 6, rng, dtype=F64) if layer is None else layer
    block = Modulated(layer, D, D_C, rng, F64)
    if random:
        at_random(block, rng)
    return block


def step(block, x, c, dy, need_dx=True):
    """Return y, dx, dc and the gradients by name."""
    y, cache = block.forward(x, c)
    grads = Grads()
    dx, dc = block.backward(dy, cache, grads, need_dx)
    found = {name: grads.get(p) for name, p in block.parameters().items()}
    return y, dx, dc, {name: g for name, g in found.items() if g is not None}


def drawn(rng, *shape):
    return rng.standard_normal(shape), rng.standard_normal((shape[0], D_C))


# ------------------------------------------------------------------------------------- what it is


@pytest.mark.parametrize("shape", [(5, D), (5, 3, D), (5, 1, D), (2, 3, 2, D)])
def test_it_is_the_formula_of_its_docstring(rng, shape):
    block, (x, c) = modulated(rng), drawn(rng, *shape)
    found = c @ block.mod.W.value.T + block.mod.b.value
    y = np.zeros_like(x)
    for n in range(len(x)):  # one sample after the other: nothing is shared
        shift, scale, gate = np.split(found[n], 3)
        normed, _ = ops.layernorm_forward(x[n], 1 + scale, shift, 1e-6)
        y[n] = x[n] + gate * block.layer.forward(normed)[0]
    close(block.forward(x, c)[0], y)


def test_at_the_start_it_is_the_identity_and_only_its_gate_moves(rng):
    block, (x, c) = modulated(rng, random=False), drawn(rng, 2, 3, D)
    y, dx, dc, grads = step(block, x, c, dy := rng.standard_normal(x.shape))
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(dx, dy)
    assert not dc.any()
    for name in ("mod.W", "mod.b"):
        assert not grads[name][: 2 * D].any() and grads[name][2 * D :].all()
    assert not any(g.any() for name, g in grads.items() if name.startswith("layer"))


def test_samples_do_not_mix_and_positions_share_what_the_condition_says(rng):
    block, (x, c) = modulated(rng), drawn(rng, 3, 2, D)
    y, _ = block.forward(x, c)
    close(block.forward(x[1:2], c[1:2])[0], y[1:2])
    swapped, _ = block.forward(x[:, ::-1], c)
    close(swapped[:, ::-1], y)


@pytest.mark.parametrize("method", ["central", "complex"])
def test_gradients_match_around_a_convolution(rng, method):
    block = modulated(rng, Conv2d(D, D, 3, rng, padding=1, dtype=F64))
    forward, backward, inputs = as_pair(block)
    check_gradients(
        forward, backward, inputs(*drawn(rng, 2, 3, 2, D)), method=method
    ).raise_if_wrong()


@pytest.mark.parametrize("forgotten", ["the direct path", "the sum over positions", "u"])
def test_the_usual_mistakes_are_found_at_random_weights(rng, forgotten):
    class Wrong(Modulated):
        def backward(self, dy, cache, grads, need_dx=True):
            if forgotten == "u":
                cache = cache._replace(h=np.ones_like(cache.h))
            dx, dc = super().backward(dy, cache, grads, need_dx)
            if forgotten == "the direct path":
                return dx - dy, dc
            return dx, dc / 3 if forgotten == "the sum over positions" else dc

    block = Wrong(MLP(D, 6, rng, dtype=F64), D, D_C, rng, F64)
    at_random(block, rng)
    forward, backward, inputs = as_pair(block)
    report = check_gradients(forward, backward, inputs(*drawn(rng, 2, 3, D)))
    wrong = {row.name for row in report.rows if row.error > report.tolerance}
    expected = {"the direct path": {"x"}, "the sum over positions": {"c"}}
    assert wrong == expected.get(forgotten, {"c", "mod.W", "mod.b"})


# ------------------------------------------------------------------ frozen, copied, adapted, merged


def test_what_is_frozen_gets_no_gradient_and_the_rest_is_as_before(rng):
    block, (x, c) = modulated(rng), drawn(rng, 2, 3, D)
    dy = rng.standard_normal(x.shape)
    y, dx, dc, full = step(block, x, c, dy)
    assert list(full) == list(block.parameters())
    for frozen in [{"mod.W"}, {"layer.up_proj.W", "mod.b"}, set(full)]:
        twin = copy_model(block)
        freeze(twin.parameters()[name] for name in frozen)
        y_twin, none, dc_twin, some = step(twin, x, c, dy, need_dx=False)
        assert none is None and set(some) == set(full) - frozen
        np.testing.assert_array_equal(y_twin, y)
        np.testing.assert_array_equal(dc_twin, dc)
        for name, g in some.items():
            np.testing.assert_array_equal(g, full[name])
        np.testing.assert_array_equal(step(twin, x, c, dy)[1], dx)


@pytest.mark.parametrize(
    "targets, adapted",
    [
        (["mod"], ["mod"]),
        (["up_proj"], ["layer.up_proj"]),
        ("all-linear", ["layer.up_proj", "layer.down_proj", "mod"]),
    ],
)
def test_lora_on_mod_and_on_the_layer_trains_merges_and_copies(rng, targets, adapted):
    block, (x, c) = modulated(rng), drawn(rng, 2, 3, D)
    before = block.forward(x, c)[0]
    with_lora = inject(block, LoraConfig(r=2, target_modules=targets), rng)
    np.testing.assert_array_equal(with_lora.forward(x, c)[0], before)
    at_random(with_lora, rng)
    dy = rng.standard_normal(x.shape)
    y, _, _, grads = step(with_lora, x, c, dy)
    assert list(grads) == [f"{path}.{factor}" for path in adapted for factor in "AB"]
    forward, backward, inputs = as_pair(with_lora)
    check_gradients(forward, backward, inputs(x, c), method="complex").raise_if_wrong()
    close(merge(with_lora).forward(x, c)[0], y)
    np.testing.assert_array_equal(copy_model(with_lora).forward(x, c)[0], y)
    np.testing.assert_array_equal(block.forward(x, c)[0], before)


def test_float32_stays_float32(rng):
    block = copy_model(modulated(rng), dtype=np.float32)
    x, c = (a.astype(np.float32) for a in drawn(rng, 2, 3, D))
    y, dx, dc, grads = step(block, x, c, np.ones_like(x))
    assert {a.dtype for a in (y, dx, dc, *grads.values())} == {np.dtype(np.float32)}


@pytest.mark.parametrize("need_dx", [True, False])
@pytest.mark.parametrize("frozen", [(), ("mod.W",), ("layer.up_proj.W",)])
@pytest.mark.parametrize("T", [1, 2, 4])
def test_flops_are_the_products_that_are_carried_out(rng, T, frozen, need_dx):
    block, (x, c) = modulated(rng), drawn(rng, 2, T, D)
    freeze(block.parameters()[name] for name in frozen)
    counted = copy_model(block)
    for p, original in zip(counted.parameters().values(), block.parameters().values()):
        p.value, p.trainable = p.value.view(Counting), original.trainable
    Counting.flops = 0
    with unmerged():
        y, cache = counted.forward(x.view(Counting), c.view(Counting))
        forward, Counting.flops = Counting.flops, 0
        counted.backward(np.ones_like(y), cache, Grads(), need_dx)
    flops, tokens = block.flops(T, need_dx), 2 * T
    assert (forward, Counting.flops) == (tokens * flops.forward, tokens * flops.backward)


# ----------------------------------------------------------------------------------------- errors


def test_a_condition_of_another_shape_is_named(rng):
    block, (x, c) = modulated(rng), drawn(rng, 2, 3, D)
    for wrong in (c[:1], c[:, :2], c[:, None]):
        with pytest.raises(ShapeError, match=r"^c has shape \(.*\), expected \(2, 3\)$"):
            block.forward(x, wrong)
    with pytest.raises(ShapeError, match=r"^shift has shape \(2, 1, 4\), expected \(2, 3, 3\)"):
        block.forward(x[..., :3], c)


def test_a_layer_with_a_condition_does_not_extend(rng):
    for layer in (modulated(rng), Chain(Gelu(), modulated(rng))):
        with pytest.raises(TypeError, match=r"^Modulated needs a condition c: use forward\(x, c\)"):
            layer.extend(np.ones((1, 2, D)))


@pytest.mark.parametrize("rng_of_dropout", [None, np.random.default_rng(0)])
@pytest.mark.parametrize("around", [Chain, Residual])
def test_a_layer_that_passes_no_condition_raises_a_clear_error(rng, around, rng_of_dropout):
    with pytest.raises(TypeError, match=r"^Modulated needs a condition c: use forward\(x, c\)"):
        around(modulated(rng)).forward(np.ones((1, 2, D)), rng_of_dropout)
