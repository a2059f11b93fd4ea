"""The numerics on a real GPU: run with ``pytest -m gpu``, which fails where there is none.

The routing is shown without one by test_device.py, whose helpers these tests share.
"""

import numpy as np
import pytest

from lora_np import backend, methods, train
from lora_np.layers import copy_model
from lora_np.rank import spectrum
from tests.test_device import CASES, CONFIG, assert_same, batch, gradients_of, models
from tests.test_device import on_device as move

pytestmark = pytest.mark.gpu

# The GPU adds in another order, so the rounding differs; relative to an array's largest entry.
TOLERANCE = {np.float64: 1e-10, np.float32: 1e-4}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)
MODELS = pytest.mark.parametrize("which", [0, 1], ids=["GPT", "GPT with LoRA"])


@pytest.fixture(autouse=True)
def gpu():
    """Fail with the package's own words on a machine without a GPU."""
    return backend.get_device("cuda")


def halved(x, dtype):
    """Return a real array at half size: at full size one chain amplifies rounding a hundredfold."""
    return (0.5 * x).astype(dtype) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x


@DTYPES
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pair_or_layer_on_the_gpu_equals_the_host(case, dtype):
    is_layer = isinstance(case.inputs, dict)
    inputs = tuple(halved(x, dtype) for x in (case.inputs.values() if is_layer else case.inputs))
    kwargs = {name: halved(x, dtype) for name, x in case.kwargs.items()}
    y, cache = case.forward(*inputs, **kwargs)
    dy = np.random.default_rng(1).standard_normal(np.shape(y)).astype(dtype)
    y_gpu, cache_gpu = case.forward(*move(inputs), **move(kwargs))
    assert_same(y_gpu, y, TOLERANCE[dtype])
    assert_same((y_gpu, cache_gpu), (y, cache), TOLERANCE[dtype])
    assert_same(case.backward(move(dy), cache_gpu), case.backward(dy, cache), TOLERANCE[dtype])


@DTYPES
@MODELS
def test_loss_and_gradients_on_the_gpu_equal_the_host(rng, which, dtype):
    model = models(rng, dtype)[which]
    tokens, targets = batch(rng)
    expected = gradients_of(model, tokens, targets)
    found = gradients_of(copy_model(model, device="cuda"), move(tokens), move(targets))
    assert_same(found, expected, TOLERANCE[dtype])


def five_steps(model, device, optimizer):
    """Train with dropout and clipping."""
    draw = np.random.default_rng(5)
    return train.fit(
        model,
        lambda: tuple(backend.to_device(x, device) for x in batch(draw)),
        steps=5,
        lr=0.01,
        optimizer=optimizer,
        clip=0.5,
        rng=np.random.default_rng(8),
        validate=lambda: train.evaluate(model, *batch(np.random.default_rng(6))),
    )


@MODELS
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_five_training_steps_on_the_gpu_equal_the_host(rng, optimizer, which):
    # Adam divides by the gradient's own size, so a bias of k_proj, whose gradient is rounding
    # alone, would move by a random sign: in float64 and with those frozen the rest agrees.
    host = copy_model(models(rng, np.float64)[which])
    for name, p in host.parameters().items():
        p.trainable = p.trainable and not name.endswith("k_proj.b")
    moved = copy_model(host, device="cuda")
    expected, found = five_steps(host, "cpu", optimizer), five_steps(moved, "cuda", optimizer)
    for part in ("loss", "gradient_norm"):
        np.testing.assert_allclose(getattr(found, part), getattr(expected, part), rtol=1e-8)
    np.testing.assert_allclose(found.validation, expected.validation, rtol=1e-8)
    assert_same(moved, host, tolerance=1e-7)


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_greedy_generation_on_the_gpu_gives_the_hosts_tokens(rng, shape):
    model = models(rng, np.float64)[1]
    prompt = rng.integers(0, CONFIG.vocab_size, shape)
    found = copy_model(model, device="cuda").generate(move(prompt), 12, temperature=0)
    np.testing.assert_array_equal(found, model.generate(prompt, 12, temperature=0))


def test_merge_and_unmerge_on_the_gpu_equal_the_host(rng):
    adapted = models(rng)[1]
    moved, merged = copy_model(adapted, device="cuda"), methods.merge(adapted)
    assert_same(methods.merge(moved), merged, TOLERANCE[np.float32])
    assert_same(
        methods.unmerge(methods.merge(moved), moved),
        methods.unmerge(merged, adapted),
        TOLERANCE[np.float32],
    )


def test_spectrum_on_the_gpu_equals_the_host(rng):
    M, B, A = rng.standard_normal((40, 30)), rng.standard_normal((40, 4)), rng.random((4, 30))
    for host in (M, (B, A)):
        found, expected = spectrum(move(host), 0.5), spectrum(host, 0.5)
        np.testing.assert_allclose(found.singular_values, expected.singular_values, rtol=1e-10)


def test_a_token_outside_the_table_is_an_error_on_the_gpu_too(rng):
    # CuPy wraps such an index around without a word, so the check must be the package's own.
    model = copy_model(models(rng)[0], device="cuda")
    tokens = np.array([[1, CONFIG.vocab_size]])
    with pytest.raises(IndexError, match=f"expected 0 .. {CONFIG.vocab_size - 1}"):
        model.forward(move(tokens))
