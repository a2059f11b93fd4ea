"""lora_np.forms.nf4 against bitsandbytes: the same codes in every entry."""

import importlib
import warnings

import numpy as np
import pytest

from lora_np.forms import Nf4
from lora_np.forms.nf4 import DYNAMIC, Q

pytestmark = pytest.mark.peers


@pytest.fixture
def functional(torch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about kernels for other hardware
        return importlib.import_module("bitsandbytes.functional")


def both(torch, functional, x, block_size, double):
    """Return their packed codes and state, and our form."""
    packed, state = functional.quantize_4bit(
        torch.from_numpy(x), blocksize=block_size, compress_statistics=double, quant_type="nf4"
    )
    return packed.numpy().reshape(-1), state, Nf4.encode(x, block_size, double)


def test_the_values_are_theirs(torch, functional):
    np.testing.assert_array_equal(Q, functional.get_4bit_type("nf4", device="cpu").numpy())
    np.testing.assert_array_equal(DYNAMIC, functional.create_dynamic_map().numpy())


SHAPES = [(64,), (1, 1), (3, 5), (65,), (127, 3), (300, 640), (2, 64, 3)]


@pytest.mark.parametrize("block_size", [32, 64, 128, 4096])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["normal", "uniform", "heavy"])
def test_codes_and_absmax_are_theirs_in_every_entry(torch, functional, shape, block_size, kind):
    rng = np.random.default_rng(0)
    x = {"normal": rng.standard_normal, "uniform": lambda s: rng.uniform(-1, 1, s)}.get(
        kind, lambda s: rng.standard_t(2, s)
    )(shape).astype(np.float32)
    packed, state, form = both(torch, functional, x, block_size, False)
    np.testing.assert_array_equal(form.parts["codes"][: packed.size], packed)
    np.testing.assert_array_equal(form.parts["absmax"], state.absmax.numpy())
    theirs = functional.dequantize_4bit(torch.from_numpy(packed.reshape(-1, 1)), state).numpy()
    np.testing.assert_array_equal(form.decode(np.float32), theirs.reshape(shape))


def test_ties_are_theirs_and_so_are_their_neighbours(torch, functional):
    halves = (Q[:-1] + Q[1:]) / 2
    near = [np.nextafter(halves, np.float32(end)) for end in (-2.0, 2.0)]
    for scale in (1.0, 2.0, 0.37, 1e-3, 3.0):  # not all of them exact after the scaling
        numbers = np.concatenate([halves, *near, Q, [1.0, 0.0, -0.0]]).astype(np.float32)
        x = (np.float32(scale) * numbers).reshape(-1)
        for block_size in (32, 64):
            packed, _, form = both(torch, functional, x, block_size, False)
            np.testing.assert_array_equal(form.parts["codes"][: packed.size], packed)


def test_zeros_and_tiny_numbers_have_their_codes(torch, functional):
    x = np.zeros(200, np.float32)
    x[70], x[130] = 1e-39, 1e-37
    packed, _, form = both(torch, functional, x, 64, False)
    np.testing.assert_array_equal(form.parts["codes"][: packed.size], packed)


def test_double_quantisation_is_theirs_but_where_their_cpu_kernel_rounds(torch, functional):
    x = np.random.default_rng(0).standard_normal((640, 300)).astype(np.float32)
    packed, state, form = both(torch, functional, x, 64, True)
    np.testing.assert_array_equal(form.parts["codes"][: packed.size], packed)
    mean = state.offset.numpy()
    np.testing.assert_allclose(form.parts["mean"], mean, rtol=2e-7)
    np.testing.assert_allclose(form.parts["scales"], state.state2.absmax.numpy(), rtol=1e-5)
    ours, theirs = form.parts["absmax"].astype(int), state.absmax.numpy().astype(int)
    differ = np.nonzero(ours != theirs)[0]
    assert len(differ) < 0.005 * ours.size and np.abs(ours - theirs).max() <= 1
    # Their kernel for CPUs is not exact near a midpoint; there the two values are equally good.
    single = both(torch, functional, x, 64, False)[2]
    ratios = (single.parts["absmax"] - mean) / np.repeat(state.state2.absmax.numpy(), 256)[
        : ours.size
    ]
    halves = (DYNAMIC[ours[differ]] + DYNAMIC[theirs[differ]]) / 2
    assert np.abs(ratios[differ] - halves).max() < 2.0**-16
    numbers = functional.dequantize_4bit(torch.from_numpy(packed.reshape(-1, 1)), state).numpy()
    same = np.repeat(ours == theirs, 64)[: x.size].reshape(x.shape)
    error = np.abs(form.decode(np.float32) - numbers)
    assert same.mean() > 0.99 and error[same].max() < 1e-6
