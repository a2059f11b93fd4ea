"""lora_np against PyTorch's autograd and optimizers, and against transformers' GPT-2."""

import importlib

import numpy as np
import pytest

from lora_np import ops
from lora_np.models import GPT, GPTConfig
from lora_np.ops import fast
from lora_np.optim import clip_by_global_norm
from lora_np.parameters import Grads
from lora_np.selfcheck import at_random, flat_pair
from lora_np.train import fit

pytestmark = pytest.mark.peers

MODEL = 1e-9  # float64, relative: a whole model and its gradients
PAIR = 1e-12  # float64, relative: one operation
CONFIG = GPTConfig(vocab_size=17, block_size=9, n_layer=3, n_head=4, d_model=16)


@pytest.fixture
def tg():
    """The torch side; without torch this is an error, not a skip."""
    return importlib.import_module("tests.peers.torch_gpt")


@pytest.fixture
def torch(tg):
    return tg.torch


def make_gpt(rng, std=0.3):
    """All weights random, biases and gains too: at its start a model hides mistakes."""
    model = GPT(CONFIG, rng, np.float64)
    at_random(model, rng, std)
    return model


def batch(rng, B=3, T=9):
    return rng.integers(0, CONFIG.vocab_size, (2, B, T))


# ------------------------------------------------------------------------------- every pair of ops


def op_cases(tg):
    """(name, inputs, keywords, torch's counterpart) for every pair."""
    torch, F = tg.torch, tg.F
    rng = np.random.default_rng(0)
    n = rng.standard_normal
    x, W, A, B, b = n((2, 3, 5)), n((4, 5)), n((2, 5)), n((4, 2)), n(4)
    mask = (rng.random(x.shape) < 0.7) / 0.7
    tokens = rng.integers(0, 6, (2, 4))
    some = np.where(tokens == tokens[0, 0], -100, tokens)
    logits = 3.0 * n((2, 4, 6))
    square, wide = [n((2, 2, 4, 3)) for _ in range(3)], [n((2, 2, 3)), n((2, 5, 3)), n((2, 5, 4))]
    many = [n((2, 5, 3)), n((2, 2, 3)), n((2, 2, 4))]  # more queries than keys

    def lora(x, W0, A, B, b=None, m=1.0):
        return F.linear(x, W0, b) + 0.7 * F.linear(F.linear(x * m, A), B)

    def lora_rows(x, W0, b, *factors):
        """One row after the other."""
        rows = []
        for row, a in zip(x, ids):
            y = F.linear(row, W0, b)
            if a >= 0:
                A, B = factors[2 * a : 2 * a + 2]
                y = y + scales[a] * F.linear(F.linear(row, A), B)
            rows.append(y)
        return torch.stack(rows)

    def attend(q, k, v):
        allowed = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool)
        allowed = allowed.tril(k.shape[-2] - q.shape[-2])  # queries align to the last key
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)

    def modulated(x, shift, scale):
        return F.layer_norm(x, (5,), eps=1e-6) * (1 + scale) + shift

    def rope(x):
        """Multiply by complex numbers of length one."""
        turned = torch.complex(*x.chunk(2, -1)) * torch.complex(*map(tg.tensor, angles.values()))
        return torch.cat([turned.real, turned.imag], -1)

    def grouped(q, k, v):
        k, v = (a.unsqueeze(-3).expand(*q.shape[:-2], *a.shape[-2:]) for a in (k, v))
        return attend(q, k, v)

    def entropy(z, t, **options):
        return F.cross_entropy(z.flatten(0, -2), t.flatten(), ignore_index=-100, **options)

    def unfold(x, options):
        found = F.unfold(
            x.permute(0, 3, 1, 2),
            options["kernel"],
            options["dilation"],
            options["padding"],
            options["stride"],
        )  # (B, C kh kw, Ho Wo)
        return found.transpose(1, 2).unflatten(1, (3, 8))

    def gru_cell(gx, gh, h):
        (xr, xz, xn), (hr, hz, hn) = gx.chunk(3, -1), gh.chunk(3, -1)
        r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
        return torch.lerp(torch.tanh(xn + r * hn), h, z)

    patches = {"kernel": (2, 3), "stride": (2, 1), "padding": (1, 2), "dilation": (2, 1)}
    ids, scales = [1, -1, 0, 1], [0.7, 2.0]
    factors = n((3, 5)), n((4, 3)), n((1, 5)), n((4, 1))  # of ranks 3 and 1
    torch_mask = tg.tensor(mask)
    angles = dict(zip(("cos", "sin"), ops.rope_angles(4, 6, dtype=np.float64)))
    return [
        ("linear", (x, W, b), {}, F.linear),
        ("linear", (x, W), {}, F.linear),
        ("lora_linear", (x, W, A, B, b), {"scale": 0.7}, lora),
        ("lora_linear", (x, W, A, B), {"scale": 0.7, "mask": mask},
         lambda *args: lora(*args, m=torch_mask)),
        ("lora_rows", (n((4, 2, 5)), W, b, *factors), {"ids": ids, "scale": scales}, lora_rows),
        ("gelu", (3.0 * x,), {}, lambda x: F.gelu(x, approximate="tanh")),
        ("relu", (x,), {}, F.relu),
        ("silu", (3.0 * x,), {}, F.silu),
        ("softmax", (3.0 * x,), {}, lambda x: F.softmax(x, dim=-1)),
        ("layernorm", (x, n(5), n(5)), {}, lambda x, g, b: F.layer_norm(x, (5,), g, b)),
        ("layernorm", (x, n(5), n(5)), {"eps": 0.1},
         lambda x, g, b: F.layer_norm(x, (5,), g, b, eps=0.1)),
        ("rmsnorm", (x, n(5)), {"eps": 0.1}, lambda x, g: F.rms_norm(x, (5,), g, eps=0.1)),
        ("modulated_norm", (x, n(x.shape), n(x.shape)), {}, modulated),
        ("modulated_norm", (x, n((2, 1, 5)), n((2, 1, 5))), {}, modulated),
        ("rope", (n((2, 3, 4, 6)),), angles, rope),
        ("swiglu", (3.0 * x, n(x.shape)), {}, lambda gate, up: F.silu(gate) * up),
        ("gqa", (n((2, 2, 3, 4, 3)), n((2, 2, 4, 3)), n((2, 2, 4, 5))), {}, grouped),
        ("gqa", (n((2, 2, 3, 2, 3)), n((2, 2, 4, 3)), n((2, 2, 4, 5))), {}, grouped),
        ("head_loss", (n((2, 4, 5)), n((6, 5)), tokens), {},
         lambda x, W, t: entropy(F.linear(x, W), t)),
        ("head_loss", (n((2, 4, 5)), n((6, 5)), some), {"count": 20},
         lambda x, W, t: entropy(F.linear(x, W), t, reduction="sum") / 20),
        ("embedding", (tokens, n((6, 3))), {}, F.embedding),
        ("dropout", (x,), {"mask": mask}, lambda x: x * torch_mask),
        ("attention", square, {},
         lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
        ("attention", wide, {}, attend),
        ("attention", square, {"causal": False}, F.scaled_dot_product_attention),
        ("attention", wide, {"causal": False}, F.scaled_dot_product_attention),
        ("attention", many, {"causal": False}, F.scaled_dot_product_attention),
        ("cross_entropy", (logits, tokens), {}, entropy),
        ("cross_entropy", (logits, some), {}, entropy),
        ("cross_entropy", (logits, some), {"count": 20},
         lambda z, t: entropy(z, t, reduction="sum") / 20),
        ("mse", (n((3, 4)), n((3, 4))), {}, F.mse_loss),
        ("im2col", (n((2, 5, 6, 3)),), patches, lambda x: unfold(x, patches)),
        ("rnn_cell", (n((2, 3)), n((2, 3))), {}, lambda gx, gh: torch.tanh(gx + gh)),
        ("gru_cell", (n((2, 9)), n((2, 9)), n((2, 3))), {}, gru_cell),
    ]  # fmt: skip


@pytest.mark.parametrize("form", [ops, fast], ids=["textbook", "fast"])
def test_every_pair_equals_its_counterpart(tg, form):
    seen = set()
    for name, inputs, keywords, counterpart in op_cases(tg):
        if f"{name}_forward" not in form.__all__:
            continue
        forward, backward = getattr(form, f"{name}_forward"), getattr(form, f"{name}_backward")
        if name == "lora_rows":
            forward, backward = flat_pair(form)
        y, cache = forward(*inputs, **keywords)
        dy = np.random.default_rng(1).standard_normal(np.shape(y))
        found = [g for g in backward(dy, cache) if g is not None]
        theirs = [tg.tensor(x).requires_grad_(x.dtype.kind == "f") for x in inputs]
        their_y = counterpart(*theirs)
        their_y.backward(tg.tensor(dy))
        expected = [x.grad for x in theirs if x.requires_grad]
        assert tg.relative_error(y, their_y) < PAIR, name
        assert len(found) == len(expected), name
        for i, (ours, grad) in enumerate(zip(found, expected)):
            assert tg.relative_error(ours, grad) < PAIR, (name, i)
        seen.add(name)
    assert seen == {n.removesuffix("_forward") for n in form.__all__ if n.endswith("_forward")}


# ------------------------------------------------------------------------------- the whole model


@pytest.mark.parametrize("ignored", [False, True], ids=["all kept", "some ignored"])
def test_logits_loss_and_all_gradients_of_the_gpt_equal_autograds(rng, tg, ignored):
    model = make_gpt(rng)
    twin, (tokens, targets) = tg.twin_of(model), batch(rng)
    if ignored:
        targets[0, 2:] = -100
    loss, cache = model.loss(tokens, targets)
    grads = Grads()
    model.backward(1.0, cache, grads)
    their_loss = twin.loss(tg.tensor(tokens), tg.tensor(targets))
    their_loss.backward()
    assert tg.relative_error(model.forward(tokens)[0], twin(tg.tensor(tokens))) < MODEL
    assert float(loss) == pytest.approx(their_loss.item(), rel=MODEL)
    theirs = dict(twin.named_parameters())
    assert {tg.torch_name(name) for name in model.parameters()} == set(theirs)  # all of them
    assert sum(p.size for p in model.parameters().values()) == sum(
        p.numel() for p in theirs.values()
    )
    for name, p in model.parameters().items():
        assert tg.relative_error(grads[p], theirs[tg.torch_name(name)].grad) < MODEL, name


def torch_optimizer(torch, twin, name, lr):
    """torch decays whatever lies in a group; we decay matrices only, so there are two groups."""
    matrices = [p for p in twin.parameters() if p.ndim >= 2]
    others = [p for p in twin.parameters() if p.ndim < 2]
    if name == "adamw":
        groups = [
            {"params": matrices, "weight_decay": 0.1},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=lr, betas=(0.8, 0.99), eps=1e-6)
    if name == "adam":
        return torch.optim.Adam(twin.parameters(), lr=lr)
    return torch.optim.SGD(twin.parameters(), lr=lr, momentum=0.9)


OPTIONS = {
    "adamw": {"weight_decay": 0.1, "betas": (0.8, 0.99), "eps": 1e-6},
    "adam": {},
    "sgd": {"momentum": 0.9},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_five_training_steps_follow_torchs_optimizer(rng, tg, torch, name):
    model, lr = make_gpt(rng), 0.01
    twin, batches = tg.twin_of(model), [batch(rng) for _ in range(5)]
    optimizer, losses = torch_optimizer(torch, twin, name, lr), []
    for tokens, targets in batches:
        optimizer.zero_grad()
        loss = twin.loss(tg.tensor(tokens), tg.tensor(targets))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    rest = iter(batches)
    fixed = {"steps": 5, "lr": lr, "clip": None, "schedule": "constant"}
    history = fit(model, lambda: next(rest), optimizer=name, **fixed, options=OPTIONS[name])
    assert history.loss == pytest.approx(losses, rel=1e-10)
    theirs = dict(twin.named_parameters())
    for ours, p in model.parameters().items():
        assert tg.relative_error(p.value, theirs[tg.torch_name(ours)]) < 1e-10, ours


@pytest.mark.parametrize("max_norm", [0.1, 1e3])
def test_clipping_is_torchs_but_for_the_millionth_in_its_denominator(rng, tg, torch, max_norm):
    gradient = rng.standard_normal(50)
    p = torch.zeros(50, dtype=torch.float64, requires_grad=True)
    p.grad = tg.tensor(gradient)
    their_norm = torch.nn.utils.clip_grad_norm_([p], max_norm).item()
    clipped, norm = clip_by_global_norm(gradient, max_norm)
    assert norm == pytest.approx(their_norm, rel=1e-14)
    factor = norm / (norm + 1e-6) if norm > max_norm else 1.0  # torch: max_norm / (norm + 1e-6)
    np.testing.assert_allclose(p.grad.numpy(), factor * clipped, rtol=1e-13)


# --------------------------------------------------------------------------- transformers' GPT-2


def gpt2_state(model, tensor):
    """Our values under GPT-2's names; its Conv1D holds (in, out), and q, k, v side by side."""
    state = {"transformer.wte.weight": model.wte.W.value, "lm_head.weight": model.wte.W.value}
    state["transformer.wpe.weight"] = model.wpe.W.value
    norms = {"transformer.ln_f": model.ln_f}
    convs = {}
    for i, block in enumerate(model.h):
        here, attn, mlp = f"transformer.h.{i}", block.attn, block.mlp
        norms |= {f"{here}.ln_1": block.ln_1, f"{here}.ln_2": block.ln_2}
        convs[f"{here}.attn.c_attn"] = [attn.q_proj, attn.k_proj, attn.v_proj]
        convs[f"{here}.attn.c_proj"] = [attn.o_proj]
        convs |= {f"{here}.mlp.c_fc": [mlp.up_proj], f"{here}.mlp.c_proj": [mlp.down_proj]}
    for name, norm in norms.items():
        state |= {f"{name}.weight": norm.gamma.value, f"{name}.bias": norm.beta.value}
    for name, parts in convs.items():
        state[f"{name}.weight"] = np.concatenate([p.W.value for p in parts]).T
        state[f"{name}.bias"] = np.concatenate([p.b.value for p in parts])
    return {name: tensor(value) for name, value in state.items()}


def test_logits_equal_those_of_transformers_gpt2(rng, tg, torch):
    from transformers import GPT2Config, GPT2LMHeadModel

    model, c = make_gpt(rng), CONFIG
    config = GPT2Config(
        vocab_size=c.vocab_size,
        n_positions=c.block_size,
        n_embd=c.d_model,
        n_layer=c.n_layer,
        n_head=c.n_head,
        activation_function="gelu_new",
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    theirs = GPT2LMHeadModel(config).double().eval()
    theirs.load_state_dict(gpt2_state(model, tg.tensor))
    tokens, _ = batch(rng)
    with torch.no_grad():
        logits = theirs(tg.tensor(tokens)).logits
    assert float(logits.std()) > 0.1
    assert tg.relative_error(model.forward(tokens)[0], logits) < MODEL
