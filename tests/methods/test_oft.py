"""OFT: its pair in both forms, what a rotation keeps, and what its configuration refuses."""

import json

import numpy as np
import pytest

from lora_np import Linear, check_gradients, inject, load_adapter, save_adapter
from lora_np.files import CheckpointError
from lora_np.layers import MLP
from lora_np.methods import OFTConfig, make_method
from lora_np.methods.oft import oft_backward, oft_forward, rotations
from tests.methods.pairs import assert_exact

FORMS = pytest.mark.parametrize("terms", [None, 3, 5, 7])


def inputs(rng, parts=2, k=3, rotations=2):
    n = rng.standard_normal
    q = n((rotations, k * (k - 1) // 2))
    return {"x": n((2, 3, parts * k)), "W0": n((4, parts * k)), "q": q, "b": n(4)}


@FORMS
@pytest.mark.parametrize("shared", [1, 2])
def test_the_pair_is_right_at_random_angles(rng, terms, shared):
    assert_exact(oft_forward, oft_backward, inputs(rng, rotations=shared), k=3, terms=terms)


@FORMS
def test_a_planted_wrong_derivation_is_caught(rng, terms):
    def backward(dy, cache, need=None):  # Q is not skew: dq lacks the entries below the diagonal
        dx, dW0, dq, db = oft_backward(dy, cache, need)
        return dx, dW0, 0.5 * dq, db

    report = check_gradients(oft_forward, backward, inputs(rng), k=3, terms=terms)
    assert {row.name for row in report.rows if row.error > report.tolerance} == {"q"}


def test_the_exact_form_is_orthogonal_and_the_series_to_its_order(rng):
    q, unit = rng.standard_normal((5, 6)), np.eye(4)

    def off(q, terms):
        R, _, _ = rotations(q, 4, terms)
        return float(np.abs(R @ R.swapaxes(1, 2) - unit).max())

    assert off(q, None) < 1e-14
    assert 10 < off(0.02 * q, 5) / off(0.01 * q, 5) < 25  # about 2^4


@pytest.mark.parametrize("terms, p", [(3, 3), (4, 3), (5, 4), (6, 5)])
def test_the_cut_series_is_the_inverse_rotation_times_i_minus_q_to_the_p(rng, terms, p):
    R, Q, _ = rotations(rng.standard_normal((2, 3)), 3, terms)
    unit = np.eye(3)
    expected = (unit + Q) @ np.linalg.inv(unit - Q) @ (unit - np.linalg.matrix_power(Q, p))
    np.testing.assert_allclose(R, expected, rtol=1e-12, atol=1e-12)


def test_pefts_two_forms_turn_opposite_ways(rng):
    q = 1e-3 * rng.standard_normal((2, 3))
    exact, series = rotations(q, 3, None)[0], rotations(q, 3, 7)[0]
    np.testing.assert_allclose(exact.swapaxes(1, 2), series, atol=1e-12)
    assert np.abs(exact - series).max() > 1e-3


def test_a_rotation_keeps_the_lengths_and_the_angles_of_the_rows(rng):
    base = Linear(6, 4, rng, dtype=np.float64)
    config = OFTConfig(r=2, oft_block_size=0, use_cayley_neumann=False, target_modules="all-linear")
    layer = inject(base, config, rng)
    np.testing.assert_array_equal(layer.merged().W.value, base.W.value)
    layer.q.value = rng.standard_normal(layer.q.shape)
    W, W0 = layer.merged().W.value, base.W.value
    np.testing.assert_allclose(W @ W.T, W0 @ W0.T, atol=1e-15)
    assert np.abs(W - W0).max() > 1e-2


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"oft_block_size": 4},
            r"oft_block_size = 4, but the 6 inputs of up_proj divide into parts of \[2, 3, 6\]",
        ),
        (
            {"r": 4, "oft_block_size": 0},
            r"r = 4, but the 6 inputs of up_proj divide into parts of \[2, 3, 6\]",
        ),
        ({"oft_block_size": 1}, "oft_block_size = 1, but the 6 inputs of up_proj divide"),
        ({"r": 6, "oft_block_size": 0}, "r = 6, but the 6 inputs of up_proj divide"),
        ({"r": 2}, "give r or oft_block_size, and set the other to 0"),
        ({"num_cayley_neumann_terms": 2}, "terms = 2, expected a whole number from 3 to 99"),
        ({"r": -1}, "r = -1, expected a whole number from 0 on"),
        ({"coft": True}, "method 'oft' has no option 'coft'"),
    ],
)
def test_what_means_nothing_is_refused(rng, options, message):
    with pytest.raises(ValueError, match=message):
        inject(MLP(6, 24, rng), make_method("oft", target_modules=["up_proj"], **options), rng)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"coft": True}, "coft = True, which lora_np does not implement"),
        ({"peft_version": None}, "PEFT before 0.18 had another series: train this OFT anew"),
    ],
)
def test_a_file_that_means_something_else_is_refused(rng, tmp_path, changed, message):
    base = MLP(6, 24, rng)
    save_adapter(
        inject(base, OFTConfig(oft_block_size=3, target_modules=["up_proj"]), rng), tmp_path
    )
    config = tmp_path / "adapter_config.json"
    fields = {**json.loads(config.read_text()), **changed}
    config.write_text(json.dumps({name: x for name, x in fields.items() if x is not None}))
    with pytest.raises(CheckpointError, match=message):
        load_adapter(base, tmp_path)
