"""The exercises on LoRA's rivals against PEFT: merged weights, outputs and gradients."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.docs import rival_solutions
from tests.docs.pages import ROOT, bodies

pytestmark = pytest.mark.peers

OUT, IN, GROUP, SCALE = 12, 8, 4, 0.75
TOLERANCE = 1e-10


@pytest.fixture
def torch64(torch):
    """PEFT makes some of its arrays in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def tensor(torch, values):
    return torch.tensor(np.ascontiguousarray(values))


def adapted(torch, config, parameters):
    """Return PEFT's layer over a random weight with these values in its Parameters, and W0."""
    import peft

    base = torch.nn.Sequential(torch.nn.Linear(IN, OUT, bias=False))
    W0 = base[0].weight.detach().numpy().copy()
    layer = peft.get_peft_model(base, config).base_model.model[0]
    for name, values in parameters.items():
        getattr(layer, name)["default"].data = tensor(torch, values)
    return layer, W0


def backward_of(torch, layer, names, rng):
    """Return (x, y, dy, the gradients of the named Parameters) of PEFT's layer, by autograd."""
    x, dy = rng.standard_normal((5, IN)), rng.standard_normal((5, OUT))
    y = layer(tensor(torch, x))
    y.backward(tensor(torch, dy))
    found = [getattr(layer, name)["default"].grad.numpy() for name in names]
    return x, y.detach().numpy(), dy, found


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def compare(torch, layer, names, name, inputs, given, rng, of_ours=lambda *gradients: gradients):
    """Hold a solution to PEFT's layer: its output, its gradients, and its merged weight.

    ``of_ours`` brings our gradients into the shapes of PEFT's Parameters.
    """
    x, y, dy, expected = backward_of(torch, layer, names, rng)
    W, cache = getattr(rival_solutions, f"{name}_forward")(*inputs, **given)
    same(x @ W.T, y)
    gradients = of_ours(*getattr(rival_solutions, f"{name}_backward")(dy.T @ x, cache))
    for found, theirs in zip(gradients, expected, strict=True):
        same(found, theirs)
    layer.merge()
    same(W, layer.get_base_layer().weight.detach().numpy())


def test_road(torch64, rng):
    import peft

    theta, alpha = rng.standard_normal((2, OUT // 2))
    config = peft.RoadConfig(variant="road_1", group_size=GROUP, target_modules=["0"])
    layer, W0 = adapted(torch64, config, {"road_theta": theta, "road_alpha": alpha})
    given = {"W0": W0, "group": GROUP}
    names = ("road_theta", "road_alpha")
    compare(torch64, layer, names, "road", (theta, alpha), given, rng)


def test_gralora(torch64, rng):
    """PEFT's A (k, in/k, r) holds block (i, j) at [j, :, ranks of i], B at [i, ranks of j]."""
    import peft

    k, r = 2, 4
    A = rng.standard_normal((k, k, r // k, IN // k))
    B = rng.standard_normal((k, k, OUT // k, r // k))

    def in_peft(A, B):
        A = A.transpose(1, 3, 0, 2).reshape(k, IN // k, r)
        return A, B.transpose(0, 1, 3, 2).reshape(k, r, OUT // k)

    config = peft.GraloraConfig(r=r, gralora_k=k, alpha=r * SCALE, target_modules=["0"])
    theirs = dict(zip(("gralora_A", "gralora_B"), in_peft(A, B)))
    layer, W0 = adapted(torch64, config, theirs)
    given = {"W0": W0, "scale": SCALE}
    compare(torch64, layer, theirs, "gralora", (A, B), given, rng, in_peft)


def test_randlora(torch64, rng):
    """PEFT flattens A as (r, n) and B as (n, r), so that its products take other columns of B."""
    import peft

    n, r = 4, 2
    lam, gamma = rng.standard_normal((n, r)), rng.standard_normal((n, IN))
    config = peft.RandLoraConfig(r=r, randlora_alpha=r * SCALE, target_modules=["0"])
    theirs = {"randlora_lambda": lam.T, "randlora_gamma": gamma}
    layer, W0 = adapted(torch64, config, theirs)
    A = layer.randlora_A["default"][:, 0].numpy()  # (r, in)
    flat = layer.randlora_B["default"].numpy().reshape(OUT, r * n)
    B = flat.reshape(OUT, r, n).transpose(2, 0, 1)  # (n, out, r)
    given = {"W0": W0, "A": A, "B": B, "scale": SCALE}

    def in_peft(dlam, dgamma):
        return dlam.T, dgamma

    compare(torch64, layer, theirs, "randlora", (lam, gamma), given, rng, in_peft)


def test_delora(torch64, rng):
    import peft

    lam, A, B = rng.standard_normal(1), rng.standard_normal((3, IN)), rng.standard_normal((OUT, 3))
    theirs = {"delora_lambda": lam, "delora_A": A, "delora_B": B}
    layer, W0 = adapted(torch64, peft.DeloraConfig(r=3, target_modules=["0"]), theirs)
    compare(torch64, layer, theirs, "delora", (lam, A, B), {"W0": W0}, rng)


def test_fourierft(torch64, rng, monkeypatch):
    """PEFT's layer computes in float32: we let it take float64 for that."""
    import peft

    monkeypatch.setattr(torch64.Tensor, "float", torch64.Tensor.double)
    c = rng.standard_normal(10)
    config = peft.FourierFTConfig(n_frequency=10, scaling=150.0, target_modules=["0"])
    layer, W0 = adapted(torch64, config, {"fourierft_spectrum": c})
    given = {"W0": W0, "locations": layer.indices["default"].numpy(), "scale": 150.0}
    compare(torch64, layer, ["fourierft_spectrum"], "fourierft", (c,), given, rng)


def test_c3a(torch64, rng, monkeypatch):
    """PEFT's layer computes in float32: we let it take float64 for that."""
    import peft

    w = rng.standard_normal((3, 2, 4))
    config = peft.C3AConfig(block_size=4, target_modules=["0"])
    layer, W0 = adapted(torch64, config, {"c3a_kernel": w})
    monkeypatch.setattr(torch64, "float32", torch64.float64)
    compare(torch64, layer, ["c3a_kernel"], "c3a", (w,), {"W0": W0}, rng)


def test_hra(torch64, rng):
    import peft

    U = rng.standard_normal((IN, 4))
    config = peft.HRAConfig(r=4, target_modules=["0"])
    layer, W0 = adapted(torch64, config, {"hra_u": U})
    compare(torch64, layer, ["hra_u"], "hra", (U,), {"W0": W0}, rng)


def block_diagonal(torch):
    """Return what PEFT compiles for CUDA, (m, blocks, b, b) to (m, in, in), and its backward."""

    def forward(Q):
        return (torch.stack([torch.block_diag(*factor) for factor in Q]),)

    def backward(d, Q):
        m, blocks, b, _ = Q.shape
        j = torch.arange(blocks)
        return (d.reshape(m, blocks, b, blocks, b)[:, j, :, j].swapaxes(0, 1),)

    return SimpleNamespace(forward=forward, backward=backward)


@pytest.mark.parametrize(("b", "m"), [(2, 1), (2, 3), (4, 2)])
def test_boft(torch64, rng, monkeypatch, b, m):
    """Also PEFT's boft_s, which multiplies the rows of W and which the exercise leaves out."""
    import peft

    page = (ROOT / "docs" / "guides" / "rivals_exercises.md").read_text(encoding="utf-8")
    (butterfly,) = (b for b in bodies(page, "python") if b.startswith("def butterfly"))
    exec(butterfly, names := {"np": np})
    monkeypatch.setattr("peft.tuners.boft.layer._FBD_CUDA", block_diagonal(torch64))
    R, s = rng.standard_normal((m, IN // b, b, b)), rng.standard_normal((OUT, 1))
    config = peft.BOFTConfig(boft_block_size=b, boft_n_butterfly_factor=m, target_modules=["0"])
    layer, W0 = adapted(torch64, config, {"boft_R": R, "boft_s": s})
    given = {"W0": s * W0, "columns": names["butterfly"](IN, b, m)}
    compare(torch64, layer, ["boft_R"], "boft", (R,), given, rng)
