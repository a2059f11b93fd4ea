"""Convolutions and recurrent layers against PyTorch's; LoRA on them against PEFT and autograd."""

import importlib
import warnings

import numpy as np
import pytest

from lora_np.layers import GRU, RNN, Conv1d, Conv2d
from lora_np.methods import LoraConfig, inject
from lora_np.parameters import Grads
from lora_np.selfcheck import at_random

pytestmark = pytest.mark.peers

TOLERANCE = 1e-12  # float64, relative
F64 = np.float64
OPTIONS = {
    "plain": ((3, 3), {}),
    "stride": ((3, 3), {"stride": (2, 3)}),
    "padding": ((3, 3), {"padding": (1, 2)}),
    "dilation": ((3, 3), {"dilation": (2, 1)}),
    "groups": ((3, 3), {"groups": 2}),
    "not square": ((2, 4), {"stride": (1, 2), "padding": (0, 3)}),
    "1 x 1": ((1, 1), {}),
    "one row": ((1, 3), {"padding": (0, 1)}),
    "all": ((2, 3), {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}),
    "depthwise": ((3, 2), {"stride": (2, 1), "padding": (1, 1), "groups": 4}),
}


@pytest.fixture
def tg():
    """The torch side; without torch this is an error, not a skip."""
    return importlib.import_module("tests.peers.torch_gpt")


def channels_first(x):
    return np.moveaxis(x, -1, 1)


def same(tg, ours, theirs, name=""):
    assert tg.relative_error(ours, theirs) < TOLERANCE, name


# ------------------------------------------------------------------------------- convolutions


def conv_pair(tg, axes, kernel, options, rng):
    """Return our convolution and PyTorch's with the same kernel and bias, over one axis or two."""
    torch = tg.torch
    if axes == 1:
        kernel, options = kernel[1], {k: v if k == "groups" else v[1] for k, v in options.items()}
    ours = (Conv1d if axes == 1 else Conv2d)(4, 8, kernel, rng, dtype=F64, **options)
    at_random(ours, rng)
    theirs = (torch.nn.Conv1d if axes == 1 else torch.nn.Conv2d)(4, 8, kernel, **options).double()
    with torch.no_grad():
        K = np.concatenate([linear.W.value for linear in ours.group])
        theirs.weight.copy_(tg.tensor(K.reshape(theirs.weight.shape)))
        theirs.bias.copy_(tg.tensor(np.concatenate([linear.b.value for linear in ours.group])))
    return ours, theirs


def run_both(tg, ours, theirs, axes, rng):
    """Return our gradients, after comparing y and dx and going back through both."""
    x = rng.standard_normal((2, 7, 9, 4) if axes == 2 else (2, 9, 4))
    y, cache = ours.forward(x)
    dy, grads = rng.standard_normal(y.shape), Grads()
    dx = ours.backward(dy, cache, grads)
    their_x = tg.tensor(channels_first(x)).requires_grad_()
    their_y = theirs(their_x)
    their_y.backward(tg.tensor(channels_first(dy)))
    same(tg, channels_first(y), their_y, "y")
    same(tg, channels_first(dx), their_x.grad, "dx")
    return grads


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_convolution_and_its_gradients_are_pytorchs(rng, tg, name, axes):
    ours, theirs = conv_pair(tg, axes, *OPTIONS[name], rng)
    grads = run_both(tg, ours, theirs, axes, rng)
    dK = np.concatenate([grads[linear.W] for linear in ours.group])
    same(tg, dK.reshape(theirs.weight.shape), theirs.weight.grad, "dW")
    db = np.concatenate([grads[linear.b] for linear in ours.group])
    same(tg, db, theirs.bias.grad, "db")


def with_peft(tg, conv, r, alpha):
    """Return PEFT's model over a convolution, and its LoRA layer."""
    import peft

    config = peft.LoraConfig(r=r, lora_alpha=alpha, target_modules=["0"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*groups > 1. Merging is not supported")
        model = peft.get_peft_model(tg.torch.nn.Sequential(conv), config)
    return model, model.base_model.model[0]


def copy_factors(tg, ours, layer):
    """Copy our A and B into PEFT's; return where each group's part of PEFT's A lies.

    With groups, PEFT's A reads the channels of all groups, and its B is cut into groups. LoRA on
    each group alone is this with zeros in A where a direction would read another group.
    """
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    r, channels = (n // len(ours.group) for n in A.shape[:2])
    places = [
        (slice(g * r, (g + 1) * r), slice(g * channels, (g + 1) * channels))
        for g in range(len(ours.group))
    ]
    with tg.torch.no_grad():
        A.zero_()
        for linear, place in zip(ours.group, places):
            A[place] = tg.tensor(linear.A.value.reshape(r, channels, *A.shape[2:]))
        B.copy_(tg.tensor(np.concatenate([linear.B.value for linear in ours.group])).view(B.shape))
    return places


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in ("dilation", "all")])
def test_lora_on_a_convolution_and_its_gradients_are_pefts(rng, tg, name, axes):
    """PEFT 0.21 does not pass the dilation on to its A, so that the shapes do not fit there."""
    base, conv = conv_pair(tg, axes, *OPTIONS[name], rng)
    r = 1 if name == "depthwise" else 2
    config = LoraConfig(r=r, lora_alpha=3 * r, target_modules="all-linear")
    ours = inject(base, config, rng)
    for linear in ours.group:
        linear.B.value = rng.standard_normal(linear.B.shape)
    groups = len(ours.group)
    model, layer = with_peft(tg, conv, r * groups, 3 * r * groups)
    places = copy_factors(tg, ours, layer)
    grads = run_both(tg, ours, model, axes, rng)
    dA, dB = (part["default"].weight.grad for part in (layer.lora_A, layer.lora_B))
    for linear, place in zip(ours.group, places):
        same(tg, grads[linear.A], dA[place].flatten(1), "dA")
    ours_dB = np.concatenate([grads[linear.B] for linear in ours.group])
    same(tg, ours_dB, dB.flatten(1), "dB")


# ----------------------------------------------------------------------------- recurrent layers

NAMES = {"weight_ih_l0": "x_proj.W", "weight_hh_l0": "h_proj.W"}
NAMES |= {"bias_ih_l0": "x_proj.b", "bias_hh_l0": "h_proj.b"}
both_kinds = pytest.mark.parametrize("kind", [RNN, GRU])


def recurrent_pair(tg, kind, rng):
    """Return our layer and PyTorch's with the same Parameters."""
    ours = kind(3, 5, rng, dtype=F64)
    at_random(ours, rng, 0.7)
    theirs = getattr(tg.torch.nn, kind.__name__)(3, 5, batch_first=True).double()
    values = ours.parameters()
    theirs.load_state_dict({name: tg.tensor(values[path].value) for name, path in NAMES.items()})
    return ours, theirs


def run_through_time(tg, ours, run, rng):
    """Return our gradients, after comparing y, dx and dh0 and going back through both."""
    x, h0 = rng.standard_normal((2, 11, 3)), rng.standard_normal((2, 5))
    y, cache = ours.unroll(x, h0)
    dy, grads = rng.standard_normal(y.shape), Grads()
    dx, dh0 = ours.unroll_backward(dy, cache, grads)
    their_x, their_h0 = (tg.tensor(a).requires_grad_() for a in (x, h0[None]))
    their_y, _ = run(their_x, their_h0)
    their_y.backward(tg.tensor(dy))
    for name, mine, other in (
        ("y", y, their_y),
        ("dx", dx, their_x.grad),
        ("dh0", dh0, their_h0.grad[0]),
    ):
        same(tg, mine, other, name)
    return grads


@both_kinds
def test_a_recurrent_layer_and_its_gradients_are_pytorchs(rng, tg, kind):
    ours, theirs = recurrent_pair(tg, kind, rng)
    grads = run_through_time(tg, ours, theirs, rng)
    found = ours.parameters()
    assert set(NAMES) == {name for name, _ in theirs.named_parameters()}
    for name, path in NAMES.items():
        same(tg, grads[found[path]], getattr(theirs, name).grad, path)


@both_kinds
def test_lora_through_time_has_the_gradients_of_autograd(rng, tg, kind):
    """PEFT has no LoRA for them: autograd differentiates W0 + s B A in place of each weight."""
    base, theirs = recurrent_pair(tg, kind, rng)
    ours = inject(base, LoraConfig(r=2, lora_alpha=3, target_modules="all-linear"), rng)
    factors = {}
    for name, path in (("weight_ih_l0", "x_proj"), ("weight_hh_l0", "h_proj")):
        linear = ours.modules()[path]
        linear.B.value = rng.standard_normal(linear.B.shape)
        factors[name] = [tg.tensor(p.value).requires_grad_() for p in (linear.A, linear.B)]

    def run(x, h0):
        changed = {name: getattr(theirs, name) + 1.5 * B @ A for name, (A, B) in factors.items()}
        return tg.torch.func.functional_call(theirs, changed, (x, h0))

    grads = run_through_time(tg, ours, run, rng)
    for linear, (A, B) in zip((ours.x_proj, ours.h_proj), factors.values()):
        same(tg, grads[linear.A], A.grad, "dA")
        same(tg, grads[linear.B], B.grad, "dB")
