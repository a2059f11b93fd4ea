"""Packed rows whose samples share their starts have the loss and gradient of each sample alone."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lora_np import LoraConfig, inject
from lora_np.data import Sample
from lora_np.finetune.layout import Layout, targets_in
from lora_np.parameters import Grads, pack
from lora_np.train import loss_and_gradient
from tests.finetune.tiny import llama

V = 7


def adapted(**options):
    rng = np.random.default_rng(0)
    model = inject(
        llama(dtype=np.float64, vocab=V, context=40),
        LoraConfig(r=2, target_modules="all-linear", **options),
        rng,
    )
    for p in model.parameters().values():
        if p.trainable:
            p.value[...] = rng.standard_normal(p.shape)
    return model


WHOLE, TOP = adapted(), adapted(layers_to_transform=(2,))


@st.composite
def alike(draw):
    """Samples around one start: equal ones, prefixes of others, of one token, of any labels."""
    base = draw(st.lists(st.integers(0, 2), min_size=1, max_size=10))
    samples = []
    for _ in range(draw(st.integers(1, 6))):
        cut = draw(st.integers(0, len(base)))
        tokens = base[:cut] + draw(st.lists(st.integers(0, V - 1), max_size=4)) or [0]
        n = len(tokens)
        labels = draw(
            st.sampled_from([[True] * n, [False] * n, [i >= cut for i in range(n)]])
            | st.lists(st.booleans(), min_size=n, max_size=n)
        )
        samples += [Sample(tokens, labels)] * draw(st.integers(1, 2))
    return samples


def alone(model, samples):
    grads, total = Grads(), 0.0
    for sample in samples:
        batch = sample.tokens[None].astype(np.int64), sample.targets[None]
        loss, cache = model.loss(*batch, count=targets_in(samples))
        model.backward(1.0, cache, grads)
        total += float(loss)
    return total, pack(model.parameters()).gather(grads)


@pytest.mark.parametrize(
    "model, hidden_mb, recompute", [(WHOLE, 0, False), (WHOLE, 0, True), (TOP, 1, False)]
)
@given(alike(), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=25)
def test_shared_starts_change_neither_loss_nor_gradient(
    model, hidden_mb, recompute, samples, rows, parts
):
    assume(targets_in(samples))
    expected, slope = alone(model, samples)
    layout = Layout.of(model, samples, rows, least=parts, hidden_mb=hidden_mb)
    assert (layout.hidden is not None) == (hidden_mb > 0)
    batch = layout(samples)
    model.recompute = recompute
    try:
        found, gradient = loss_and_gradient(
            layout.model, pack(layout.model.parameters()), batch, min(parts, len(batch[0]))
        )
    finally:
        model.recompute = False
    assert abs(found - expected) < 1e-11 * abs(expected)
    np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-11 * np.abs(slope).max())
