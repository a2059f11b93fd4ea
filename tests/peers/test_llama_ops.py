"""The pairs of a Llama against transformers' own functions, in float64."""

import importlib

import numpy as np
import pytest

from lora_np import ops
from lora_np.ops import fast

pytestmark = pytest.mark.peers

PAIR = 1e-12  # float64, relative: one operation
SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


class Wide:
    """torch, whose float32 is float64: transformers rounds to float32 wherever it can."""

    def __init__(self, torch):
        self.torch = torch
        self.float32 = self.float = torch.float64

    def __getattr__(self, name):
        return getattr(self.torch, name)


@pytest.fixture
def llama(torch, monkeypatch):
    """transformers' modeling_llama in float64."""
    for name in ("modeling_rope_utils", "models.llama.modeling_llama"):
        module = importlib.import_module(f"transformers.{name}")
        monkeypatch.setattr(module, "torch", Wide(torch))
    return module


def error(found, theirs):
    theirs = theirs.detach().numpy()
    assert found.shape == theirs.shape
    return np.abs(found - theirs).max() / np.abs(theirs).max()


def tensors(torch, *arrays):
    return [torch.tensor(x, requires_grad=True) for x in arrays]


@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_rmsnorm_is_transformers_llama_rms_norm(torch, llama, rng, eps):
    (x, dy), gamma = rng.standard_normal((2, 2, 3, 5)), rng.standard_normal(5)
    norm = llama.LlamaRMSNorm(5, eps).double()
    norm.weight.data = torch.tensor(gamma)
    (their_x,) = tensors(torch, x)
    their_y = norm(their_x)
    their_y.backward(torch.tensor(dy))
    y, cache = ops.rmsnorm_forward(x, gamma, eps)
    dx, dgamma = ops.rmsnorm_backward(dy, cache)
    assert error(y, their_y) < PAIR
    assert error(dx, their_x.grad) < PAIR and error(dgamma, norm.weight.grad) < PAIR


def test_swiglu_is_what_transformers_mlp_computes_between_its_matrices(torch, llama, rng):
    config = llama.LlamaConfig(hidden_size=6, num_attention_heads=2, intermediate_size=6)
    mlp, U = llama.LlamaMLP(config).double(), rng.standard_normal((6, 6))
    mlp.up_proj.weight.data = torch.tensor(U)
    for matrix in (mlp.gate_proj, mlp.down_proj):
        matrix.weight.data = torch.eye(6, dtype=torch.float64)
    x, dy = 3.0 * rng.standard_normal((2, 6)), rng.standard_normal((2, 6))
    (their_x,) = tensors(torch, x)
    their_y = mlp(their_x)
    their_y.backward(torch.tensor(dy))
    y, cache = ops.swiglu_forward(x, x @ U.T)
    dgate, dup = ops.swiglu_backward(dy, cache)
    assert error(y, their_y) < PAIR
    assert error(dgate + dup @ U, their_x.grad) < PAIR


def test_rope_is_transformers_apply_rotary_pos_emb(torch, llama, rng):
    q, k, dq = rng.standard_normal((3, 2, 3, 5, 8))  # (B, heads, T, d)
    places = np.array([[0, 1, 2, 3, 4], [2, 3, 4, 0, 1]])  # each row has its own positions
    cos, sin = (a[places] for a in ops.rope_angles(5, 8, dtype=np.float64))  # (B, T, d/2)
    twice = [torch.tensor(np.concatenate([a, a], axis=-1)) for a in (cos, sin)]
    their_q, their_k = tensors(torch, q, k)
    turned_q, turned_k = llama.apply_rotary_pos_emb(their_q, their_k, *twice)
    turned_q.backward(torch.tensor(dq))
    y, cache = ops.rope_forward(q, cos[:, None], sin[:, None])
    assert error(y, turned_q) < PAIR
    assert error(ops.rope_forward(k, cos[:, None], sin[:, None])[0], turned_k) < PAIR
    assert error(ops.rope_backward(dq, cache)[0], their_q.grad) < PAIR


def rope_config(llama, **parameters):
    return llama.LlamaConfig(
        hidden_size=128,
        num_attention_heads=2,
        max_position_embeddings=131072,
        rope_parameters={"rope_theta": 500000.0, **parameters},
    )


def test_llama3_angles_are_those_of_transformers_init(torch, llama):
    utils = importlib.import_module("transformers.modeling_rope_utils")
    config = rope_config(llama, rope_type="llama3", **SCALING)
    frequencies, factor = utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    assert frequencies.dtype == torch.float64 and factor == 1.0
    scaling = ops.Llama3Scaling(**SCALING)
    plain = 500000.0 ** (-np.arange(0, 64, 2) / 64)
    assert error(scaling.stretched(plain), frequencies) < PAIR
    cos, sin = ops.rope_angles(300, 64, 500000.0, np.float64, scaling)
    angles = torch.arange(300, dtype=torch.float64)[:, None] * frequencies
    assert error(cos, angles.cos()) < PAIR and error(sin, angles.sin()) < PAIR


@pytest.mark.parametrize("scaling", [{}, SCALING], ids=["default", "llama3"])
def test_angles_are_transformers_rotary_embedding_in_float32(torch, scaling):
    llama = importlib.import_module("transformers.models.llama.modeling_llama")
    config = rope_config(llama, rope_type="llama3" if scaling else "default", **scaling)
    stretch = ops.Llama3Scaling(**scaling) if scaling else None
    their_cos, their_sin = llama.LlamaRotaryEmbedding(config)(
        torch.zeros(1), torch.arange(64)[None]
    )
    for found, theirs in zip(
        ops.rope_angles(64, 64, 500000.0, scaling=stretch), (their_cos, their_sin)
    ):
        assert np.abs(np.concatenate([found, found], -1) - theirs[0].numpy()).max() < 2e-5


@pytest.mark.parametrize("Tq, Tk", [(5, 5), (1, 5), (2, 5), (70, 70)])
@pytest.mark.parametrize("form", [ops, fast], ids=["textbook", "fast"])
def test_gqa_is_repeat_kv_and_sdpa(torch, llama, rng, form, Tq, Tk):
    B, G, g, d = 2, 2, 3, 4
    q, dy = rng.standard_normal((2, B, G, g, Tq, d))
    k, v = rng.standard_normal((2, B, G, Tk, d))
    theirs = tensors(torch, q.reshape(B, G * g, Tq, d), k, v)
    allowed = torch.ones(Tq, Tk, dtype=torch.bool).tril(Tk - Tq)
    their_y = torch.nn.functional.scaled_dot_product_attention(
        theirs[0], *(llama.repeat_kv(a, g) for a in theirs[1:]), attn_mask=allowed
    )
    their_y.backward(torch.tensor(dy.reshape(B, G * g, Tq, d)))
    y, cache = form.gqa_forward(q, k, v)
    dq, dk, dv = form.gqa_backward(dy, cache)
    assert error(y.reshape(B, G * g, Tq, d), their_y) < PAIR
    found = dq.reshape(B, G * g, Tq, d), dk, dv
    for ours, their in zip(found, theirs, strict=True):
        assert error(ours, their.grad) < PAIR


def test_head_loss_is_that_of_transformers_causal_lm_loss(torch, rng):
    from transformers.loss.loss_utils import fixed_cross_entropy

    x, W, targets = rng.standard_normal((9, 4)), rng.standard_normal((7, 4)), rng.integers(0, 7, 9)
    targets[[0, 3, 4]] = -100
    their_x, their_W = tensors(torch, x, W)
    for count in (None, 11):
        their_x.grad = their_W.grad = None
        divisor = None if count is None else torch.tensor(count)
        logits = torch.nn.functional.linear(their_x, their_W)
        theirs = fixed_cross_entropy(logits, torch.tensor(targets), divisor)
        theirs.backward()
        loss, cache = ops.head_loss_forward(x, W, targets, count=count)
        dx, dW = ops.head_loss_backward(1.0, cache)
        assert float(loss) == pytest.approx(theirs.item(), rel=PAIR)
        assert error(dx, their_x.grad) < PAIR and error(dW, their_W.grad) < PAIR
