"""The layer with an adapter for each row: the same numbers in the first step and in later ones."""

import numpy as np
import pytest

from lora_np.layers import Linear
from lora_np.ops import Rows
from lora_np.ops.many import lora_rows_forward
from lora_np.serve import routed

IDS = {
    "one each": [0, 1, 2, 3],
    "unsorted, some without": [2, -1, 0, 0, 3, -1, 2, 1],
    "many rows an adapter": [0] * 20 + [3] * 20,
    "none": [-1, -1],
}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("m", [1, 3])
def test_every_step_of_a_batch_gives_the_textbooks_numbers(ids, bias, m, rng):
    linear = Linear(6, 5, rng, bias=bias, dtype=np.float64)
    pairs = [(rng.standard_normal((r, 6)), rng.standard_normal((5, r))) for r in (2, 4, 1, 2)]
    scales = np.array([0.5, 2.0, 1.0, -1.0])
    layer = routed.RowsLinear(linear, pairs, scales, Rows(ids, 4))
    for _ in range(3):
        x = rng.standard_normal((len(ids), m, 6))
        b = linear.b.value if bias else None
        y, _ = lora_rows_forward(x, linear.W.value, pairs, ids, b, scale=scales)
        np.testing.assert_allclose(layer.forward(x)[0], y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ids, copied", [([0, 1, 1], 3), ([0] * 17 + [1], 0)])
def test_factors_are_copied_where_an_adapter_has_few_rows_and_the_batch_stays(ids, copied, rng):
    pairs = [(rng.standard_normal((2, 6)), rng.standard_normal((5, 2))) for _ in range(2)]
    layer = routed.RowsLinear(Linear(6, 5, rng), pairs, np.ones(2), Rows(ids, 2))
    x = rng.standard_normal((len(ids), 1, 6)).astype(np.float32)
    layer.forward(x)
    assert layer._copies == []
    layer.forward(x)
    assert sum(len(A) for _, A, _ in layer._copies) == copied
