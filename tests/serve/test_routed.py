"""The layers with an adapter for each row: both have the textbook's numbers."""

import numpy as np
import pytest

from lora_np.layers import Linear
from lora_np.ops import Rows
from lora_np.ops.many import lora_rows_forward
from lora_np.serve import Engine, Pool, routed
from lora_np.serve.adapters import Adapters
from tests.serve.tiny import adapter, llama

IDS = {
    "one each": [0, 1, 2, 3],
    "unsorted, some without": [2, -1, 0, 0, 3, -1, 2, 1],
    "many rows an adapter": [0] * 20 + [3] * 20,
    "none": [-1, -1],
}


@pytest.mark.parametrize("kind", [routed.RowsLinear, routed.CopiedRows])
@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("m", [1, 3])
def test_both_layers_have_the_textbooks_numbers(kind, ids, bias, m, rng):
    linear = Linear(6, 5, rng, bias=bias, dtype=np.float64)
    pairs = [(rng.standard_normal((r, 6)), rng.standard_normal((5, r))) for r in (2, 4, 1, 2)]
    scales = np.array([0.5, 2.0, 1.0, -1.0])
    x = rng.standard_normal((len(ids), m, 6))
    b = linear.b.value if bias else None
    y, _ = lora_rows_forward(x, linear.W.value, pairs, ids, b, scale=scales)
    layer = kind(linear, pairs, scales, Rows(ids, 4))
    np.testing.assert_allclose(layer.forward(x)[0], y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ids, stays", [([0, 1, 1], True), ([0] * 17 + [1], False)])
def test_factors_are_copied_where_an_adapter_has_few_rows_and_the_batch_stays(
    ids, stays, tmp_path, rng
):
    base = llama()
    for name in "ab":
        adapter(base, tmp_path / name, rng, r=2, target_modules=["q_proj"])
    adapters = Adapters(base, Pool(100, 16), [tmp_path / "a", tmp_path / "b"])
    held = [adapters.hold(name) for name in "ab"]
    for asked in (False, True):
        layer = routed.routed(base, held, ids, asked).model.layers[0].self_attn.q_proj
        assert type(layer) is (routed.CopiedRows if asked and stays else routed.RowsLinear)


def test_large_copies_are_not_made(tmp_path, rng, monkeypatch):
    base = llama()
    adapter(base, tmp_path / "a", rng, r=2, target_modules=["q_proj"])  # 2 layers of 128 numbers
    held = Adapters(base, Pool(100, 16), [tmp_path / "a"]).hold("a")
    kinds = []
    for most in (3 * 256, 3 * 256 - 1):
        monkeypatch.setattr(routed, "COPIED", most)
        model = routed.routed(base, [held], [0, -1, 0, 0], stays=True)
        kinds.append(type(model.model.layers[0].self_attn.q_proj))
    assert kinds == [routed.CopiedRows, routed.RowsLinear]


def test_the_second_step_of_a_batch_makes_the_copies_and_the_third_keeps_them(tmp_path, rng):
    base = llama()
    adapter(base, tmp_path / "a", rng, r=2, target_modules=["q_proj"])
    engine = Engine(base, [tmp_path / "a"], pages=200, batch=4)
    requests = [engine.submit("a", [1], 6) for _ in range(2)]
    kinds, models = [], []
    while engine.step():
        models.append(engine._routed[1])
        kinds.append(type(models[-1].model.layers[0].self_attn.q_proj))
    assert kinds == [routed.RowsLinear] + [routed.CopiedRows] * 4
    assert models[1] is models[2] and requests[0].tokens == requests[1].tokens
