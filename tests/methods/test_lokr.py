"""LoKr: its pair, its sides, files by the names that are there, what its configuration refuses."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_np import Linear, check_gradients, inject, load_adapter, save_adapter
from lora_np.files import CheckpointError
from lora_np.layers import MLP
from lora_np.methods import LoKrConfig, adapters, make_method
from lora_np.methods.lokr import lokr_backward, lokr_forward, near
from tests.methods.pairs import assert_exact

WHOLE, FACTORS, MIXED = (False, False), (True, True), (False, True)


def inputs(rng, factors=FACTORS, a=2, c=3, k=4, j=5, r=2):
    n = rng.standard_normal
    made = {"x": n((2, 3, c * j)), "W0": n((a * k, c * j))}
    for i, (rows, columns) in enumerate(((a, c), (k, j)), start=1):
        two = factors[i - 1]
        made[f"L{i}"] = n((rows, r if two else columns))
        made[f"R{i}"] = n((r, columns)) if two else None
    return {**made, "b": n(a * k)}


@pytest.mark.parametrize("factors", [WHOLE, FACTORS, MIXED])
def test_the_pair_is_right_at_random_sides(rng, factors):
    assert_exact(lokr_forward, lokr_backward, inputs(rng, factors), scale=0.7)


def test_the_weight_is_numpys_kronecker_product(rng):
    made = inputs(rng)
    W = made["W0"] + 0.7 * np.kron(made["L1"] @ made["R1"], made["L2"] @ made["R2"])
    y, _ = lokr_forward(**made, scale=0.7)
    np.testing.assert_allclose(y, made["x"] @ W.T + made["b"], rtol=1e-12)


def test_a_planted_wrong_derivation_is_caught(rng):
    def backward(dy, cache, need=None):  # h is taken for dy: W1 is lost
        W1, W2 = cache.sides
        return lokr_backward(dy, cache._replace(sides=(np.ones_like(W1), W2)), need)

    report = check_gradients(lokr_forward, backward, inputs(rng, WHOLE), scale=0.7)
    assert {row.name for row in report.rows if row.error > report.tolerance} == {"L2"}


@pytest.mark.parametrize(
    "n, factor, expected",
    [
        (256, -1, (16, 16)),
        (128, -1, (8, 16)),
        (127, -1, (1, 127)),
        (128, 4, (4, 32)),
        (6, 4, (2, 3)),
        (30, 4, (3, 10)),
        (12, 6, (6, 2)),
        (1, -1, (1, 1)),
    ],
)
def test_the_sides_of_a_length(n, factor, expected):
    assert near(n, factor) == expected


@pytest.mark.parametrize(
    "options, names",
    [
        ({"r": 2}, ["L1", "L2"]),
        ({"r": 1}, ["L1", "L2", "R2"]),
        ({"r": 1, "decompose_both": True}, ["L1", "R1", "L2", "R2"]),
        ({"r": 1, "decompose_factor": 1, "decompose_both": True}, ["L1", "L2", "R2"]),
    ],
)
def test_a_side_has_factors_below_half_of_its_longer_length(rng, options, names):
    base = Linear(12, 6, rng)  # sides (2, 3) and (3, 4), or (1, 1) and (6, 12)
    layer = inject(base, LoKrConfig(**options, target_modules="all-linear"), rng)
    assert list(layer.own()) == names
    np.testing.assert_array_equal(layer.merged().W.value, base.W.value)


def test_a_file_is_read_by_the_names_that_are_there(rng, tmp_path):
    """A file whose sides are factors where the rule would hold them whole, and the other way."""
    base = MLP(6, 24, rng)
    config = LoKrConfig(r=1, decompose_both=True, target_modules=("up_proj",))
    adapted = inject(base, config, rng)
    layer = adapters(adapted)["up_proj"]
    layer.L1.value = rng.standard_normal(layer.L1.shape).astype(np.float32)
    save_adapter(adapted, tmp_path)
    file, prefix = tmp_path / "adapter_model.safetensors", "base_model.model.up_proj.lokr_w"
    assert set(load_file(file)) == {f"{prefix}{end}" for end in ("1_a", "1_b", "2_a", "2_b")}
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    for changed in ({"decompose_both": False}, {"r": 9, "alpha": 72}):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**fields, **changed}))
        again = load_adapter(base, tmp_path)
        x = rng.standard_normal((3, 6)).astype(np.float32)
        np.testing.assert_allclose(again.forward(x)[0], adapted.forward(x)[0], rtol=1e-5, atol=1e-6)
    tensors = {name: np.ones((5, 5), np.float32) for name in load_file(file)}
    save_file(tensors, file)
    with pytest.raises(
        CheckpointError, match=r"'up_proj.lokr_w1_a' has shape \(5, 5\) in the file"
    ):
        load_adapter(base, tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"r": 0}, "r = 0, expected a whole number from 1 on"),
        ({"alpha": -1.0}, "alpha = -1.0, expected a number above 0"),
        ({"decompose_factor": 0}, "decompose_factor = 0, expected a whole number from 1 on"),
        (
            {"decompose_facter": 2},
            "has no option 'decompose_facter': did you mean decompose_factor",
        ),
    ],
)
def test_what_means_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_method("lokr", **options)
