"""LoHa: its pair, its start, its rank, and what its configuration refuses."""

import numpy as np
import pytest

from lora_np import (
    GPT,
    GPTConfig,
    Linear,
    check_gradients,
    check_layer,
    inject,
    load_adapter,
    save_adapter,
)
from lora_np.checks import ContractError
from lora_np.methods import LoHaConfig, adapters, make_method
from lora_np.methods.loha import LoHaLinear, loha_weight_backward, loha_weight_forward
from tests.methods.pairs import assert_exact


def inputs(rng, d_out=5, d_in=4, r=2):
    shapes = {"W0": (d_out, d_in), "B1": (d_out, r), "A1": (r, d_in)}
    shapes |= {"B2": (d_out, r), "A2": (r, d_in)}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def test_the_pair_is_right_at_random_factors(rng):
    assert_exact(loha_weight_forward, loha_weight_backward, inputs(rng), scale=0.7)


def test_a_planted_wrong_derivation_is_caught(rng):
    def backward(dW, cache, need=None):
        swapped = cache._replace(P1=cache.P2, P2=cache.P1)  # dP1 = s dW * P1
        return loha_weight_backward(dW, swapped, need)

    report = check_gradients(loha_weight_forward, backward, inputs(rng), scale=0.7)
    wrong = {row.name for row in report.rows if row.error > report.tolerance}
    assert wrong == {"B1", "A1", "B2", "A2"}

    class Planted(LoHaLinear):
        weight_backward = staticmethod(backward)

    layer = inject(Linear(4, 5, rng), LoHaConfig(r=2, target_modules="all-linear"), rng)
    held = {name: getattr(layer, name) for name in layer.names}
    with pytest.raises(ContractError, match="dhada_w1_a is off by"):
        check_layer(Planted(layer.base, held, layer.options), rng.standard_normal((3, 4)))


def test_the_change_has_rank_r_squared(rng):
    made = inputs(rng, 12, 10, r=3)
    W, _ = loha_weight_forward(**made, scale=0.5)
    assert np.linalg.matrix_rank(W - made["W0"]) == 9


def test_it_starts_at_the_base_and_the_last_factor_alone_learns_first(rng):
    base = Linear(6, 4, rng)
    layer = inject(base, LoHaConfig(r=2, alpha=3, target_modules="all-linear"), rng)
    np.testing.assert_array_equal(layer.merged().W.value, base.W.value)
    assert layer.options == {"scale": 1.5}
    _, cache = layer.weight()
    need = [p.trainable for p in layer.held()]
    moved = [
        d is not None and bool(d.any()) for d in loha_weight_backward(base.W.value, cache, need)
    ]
    assert moved == [False, False, False, False, True]


def test_on_layers_that_peft_cannot_adapt_a_file_has_our_own_form(rng, tmp_path):
    """GPT-2's files hold o_proj as Conv1D, (in, out)."""
    base = GPT(GPTConfig(9, 4, 1, 2, 8), rng)
    adapted = inject(base, LoHaConfig(r=2, target_modules=["o_proj"]), rng)
    with pytest.raises(ValueError, match=r"PEFT does not have 'loha' on Conv1D"):
        save_adapter(adapted, tmp_path / "theirs", peft_only=True)
    layer = adapters(adapted)["h.0.attn.o_proj"]
    layer.hada_w2_b.value = rng.standard_normal((2, 8)).astype(np.float32)
    save_adapter(adapted, tmp_path / "ours")
    again, tokens = load_adapter(base, tmp_path / "ours"), np.array([[1, 2, 3]])
    np.testing.assert_array_equal(again.forward(tokens)[0], adapted.forward(tokens)[0])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"r": 0}, "r = 0, expected a whole number from 1 on"),
        ({"r": 5}, "rank 5 for the layer is above the limit 4 of its 4 x 6 weight"),
        ({"alpha": 0}, "alpha = 0, expected a number above 0"),
        ({"lora_alpha": 3}, "has no option 'lora_alpha': did you mean alpha"),
    ],
)
def test_what_means_nothing_is_refused(rng, options, message):
    with pytest.raises(ValueError, match=message):
        inject(Linear(6, 4, rng), make_method("loha", target_modules="all-linear", **options), rng)
