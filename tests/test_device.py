"""Everything runs on device arrays and stays there, shown without a GPU by tests/fake_cupy.py.

The fake computes with NumPy, so each result must equal the host's to the last bit; what it adds is
that an array that slips back to the host, or meets one that did, is an error.
"""

import operator
import sys
from dataclasses import replace

import numpy as np
import pytest

import lora_np
from lora_np import account, backend, checkpoint, inject, selfcheck, train
from lora_np.crew import can_fork
from lora_np.experiments.rank_sweep import LinearSettings, TextSettings, rank_sweep
from lora_np.experiments.rank_sweep.models import load_model
from lora_np.forms import BLOCKS, Q8_0, Bfloat16, Float16, Nf4
from lora_np.layers import Layer, Linear, copy_model
from lora_np.layers.stored import store_model
from lora_np.methods import DoraConfig, TokensConfig
from lora_np.models import GPT, GPTConfig, Llama, LlamaConfig
from lora_np.models.top import TopLayers
from lora_np.ops import Rows
from lora_np.parameters import Grads, Parameter
from lora_np.rank import spectrum
from tests import fake_cupy
from tests.counting import unmerged
from tests.naive_gguf import random_blocks

CONFIG = GPTConfig(vocab_size=13, block_size=6, n_layer=2, n_head=2, d_model=8, dropout=0.1)
ALL = lora_np.LoraConfig(r=2, lora_dropout=0.2, target_modules="all-linear")
# Whole models need targets on the same device: they have tests of their own below. A random
# subspace is on the host.
ELSEWHERE = ("GPT", "Llama", "subspace")
CASES = [c for c in selfcheck.cases(np.random.default_rng(0)) if not c.name.startswith(ELSEWHERE)]


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """Make "cuda" a device that this machine has."""
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)


def on_device(tree):
    """Return arrays, and dicts and tuples of them, on the device; all else as it is."""
    if isinstance(tree, dict):
        return {name: on_device(part) for name, part in tree.items()}
    if isinstance(tree, tuple):
        return tuple(on_device(part) for part in tree)
    return backend.to_device(tree, "cuda") if isinstance(tree, np.ndarray) else tree


def arrays(tree):
    """Return all arrays and NumPy scalars in a cache, in order."""
    if isinstance(tree, Layer):
        return arrays([p.value for p in tree.parameters().values()])
    if isinstance(tree, dict):
        return arrays(list(tree.values()))
    if isinstance(tree, list | tuple):
        return [leaf for part in tree for leaf in arrays(part)]
    if tree is None or type(tree) in (bool, int, float, np.random.Generator, Rows):
        return []
    return [tree]


def assert_same(found, expected, tolerance=0.0):
    """Assert that all arrays in `found` lie on the device and equal the host's.

    `tolerance` is relative to the largest entry, or to 1 where that is smaller.
    """
    found, expected = arrays(found), arrays(expected)
    assert len(found) == len(expected) > 0
    for x, reference in zip(found, expected):
        assert type(x) is sys.modules["cupy"].ndarray
        assert x.dtype == reference.dtype
        limit = tolerance * max(1.0, abs(reference).max())
        np.testing.assert_allclose(backend.to_host(x), reference, rtol=0, atol=limit)


def batch(rng, shape=(4, 5)):
    """Return (tokens, targets) on the host, one target ignored."""
    tokens, targets = rng.integers(0, CONFIG.vocab_size, (2, *shape))
    targets[0, 0] = -100
    return tokens, targets


def models(rng, dtype=np.float32):
    """Return a base and its adapted model on the host, every Parameter at random."""
    base = GPT(CONFIG, rng, dtype)
    for p in base.parameters().values():
        p.value = (0.3 * rng.standard_normal(p.shape)).astype(dtype)
    adapted = inject(base, ALL, rng)
    for p in adapted.parameters().values():
        if p.trainable:
            p.value = (0.3 * rng.standard_normal(p.shape)).astype(dtype)
    return base, adapted


def gradients_of(model, *batch):
    """Return loss, its cache, and all gradients, with the same dropout masks at every call."""
    loss, cache = model.loss(*batch, rng=np.random.default_rng(7))
    grads = Grads()
    model.backward(1.0, cache, grads)
    return loss, cache, [grads[p] for p in model.parameters().values() if p.trainable]


# ---------------------------------------------------------------------------- the fake is strict

HOST = np.ones(3)
LEAKS = {
    "device + host": lambda x: x + HOST,
    "host + device": lambda x: HOST + x,
    "device @ host": lambda x: x @ HOST,
    "host @ device": lambda x: HOST @ x,
    "device == host": lambda x: x == HOST,
    "device += host": lambda x: operator.iadd(x, HOST),
    "host += device": lambda x: operator.iadd(HOST, x),
    "device * numpy scalar": lambda x: x * np.float64(2),
    "device[host]": lambda x: x[HOST > 0],
    "host[device]": lambda x: HOST[x > 0],
    "device[:] = host": lambda x: operator.setitem(x, slice(None), HOST),
    "host[:] = device": lambda x: operator.setitem(HOST, slice(None), x),
    "np.asarray": np.asarray,
    "np.array of a list": lambda x: np.array([x, x]),
    "np.exp": np.exp,
    "np.sum": np.sum,
    "np.ndim": np.ndim,
    "xp.exp(host)": lambda x: fake_cupy.exp(HOST),
    "xp.concatenate([device, host])": lambda x: fake_cupy.concatenate([x, HOST]),
}


@pytest.mark.parametrize("name", LEAKS)
def test_the_fake_refuses_to_meet_the_host(name):
    with pytest.raises(TypeError, match=r"device|operand|conversion"):
        LEAKS[name](fake_cupy.asarray(np.ones(3)))


def test_the_fake_names_what_it_does_not_have():
    with pytest.raises(AttributeError, match="einsum"):
        _ = fake_cupy.einsum
    with pytest.raises(AttributeError, match="flags"):
        _ = fake_cupy.asarray(HOST).flags


def test_the_fakes_reductions_and_entries_stay_on_the_device():
    x = fake_cupy.asarray(np.arange(6.0).reshape(2, 3))
    for found, expected in [(x.sum(), 15), (x.max(), 5), (x.mean(), 2.5), (x[1, 0], 3)]:
        assert type(found) is fake_cupy.ndarray and found.shape == ()
        assert float(found) == expected


# -------------------------------------------------------------------------------------- backend


def test_device_round_trip_copies_and_keeps_dtype(rng):
    x = rng.standard_normal((2, 3)).astype(np.float32)
    moved = backend.to_device(x, "cuda")
    assert backend.get_xp(moved) is fake_cupy and backend.get_xp(x) is np
    back = backend.to_host(moved)
    moved *= 2.0
    np.testing.assert_array_equal(back, x)
    np.testing.assert_array_equal(backend.to_device(moved, "cpu"), 2 * x)
    assert back.dtype == moved.dtype == np.float32
    assert backend.to_device(moved, "cuda") is moved and backend.to_device(x, "cpu") is x
    assert type(backend.like(x, moved)) is fake_cupy.ndarray and backend.like(x, x) is x


def test_unknown_device_is_an_error_that_lists_the_known():
    with pytest.raises(backend.DeviceError, match="'tpu' is unknown: choose 'cpu' or 'cuda'"):
        backend.get_device("tpu")


def test_cuda_without_cupy_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # an import of it now raises ImportError
    with pytest.raises(backend.DeviceError, match=r"needs CuPy: pip install 'lora_np\[gpu\]'"):
        backend.to_device(np.ones(2), "cuda")
    assert backend.get_xp(np.ones(2)) is np


def test_cuda_without_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr(fake_cupy.cuda, "is_available", lambda: False)
    with pytest.raises(backend.DeviceError, match="needs a CUDA GPU and its driver, found none"):
        copy_model(Linear(2, 2, np.random.default_rng(0)), device="cuda")


# ------------------------------------------------------------------------------ pairs and layers


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pair_or_layer_stays_on_the_device_and_equals_the_host(case, dtype):
    def cast(x):
        return x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x

    is_layer = isinstance(case.inputs, dict)
    inputs = [cast(x) for x in (case.inputs.values() if is_layer else case.inputs)]
    kwargs = {name: cast(x) for name, x in case.kwargs.items()}
    y, cache = case.forward(*inputs, **kwargs)
    dy = np.random.default_rng(1).standard_normal(np.shape(y)).astype(dtype)
    y_device, cache_device = case.forward(*on_device(tuple(inputs)), **on_device(kwargs))
    assert_same(y_device, y)
    assert_same((y_device, cache_device), (y, cache))
    assert_same(case.backward(on_device(dy), cache_device), case.backward(dy, cache))


# ---------------------------------------------------------------------------------- whole models


@pytest.mark.parametrize("which", [0, 1], ids=["GPT", "GPT with LoRA"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loss_caches_and_gradients_on_the_device_equal_the_host(rng, which, dtype):
    model = models(rng, dtype)[which]
    tokens, targets = batch(rng)
    expected = gradients_of(model, tokens, targets)
    moved = copy_model(model, device="cuda")
    assert_same(moved, model)
    found = gradients_of(moved, *on_device((tokens, targets)))
    assert_same(found[0], expected[0])
    assert_same(found, expected)
    assert {x.dtype for x in arrays(expected) if x.dtype.kind == "f"} == {np.dtype(dtype)}


LLAMA = LlamaConfig(13, 8, n_layer=2, n_head=4, n_kv_head=2, d_model=8, d_hidden=12)
ON_LLAMA = {
    "Llama": None,
    "with LoRA": ALL,
    "with DoRA": DoraConfig(r=2, target_modules="all-linear"),
    "with a prefix": lora_np.PrefixConfig(1),
    "with a prompt": lora_np.PromptConfig(1),
    "with trained tokens": TokensConfig((3, 5), target_modules=("embed_tokens",)),
    "with an adapted top": lora_np.LoraConfig(r=2, layers_to_transform=1),
}
BEFORE = ("with a prefix", "with a prompt")  # nothing may stand before a packed sample
POSITIONS = np.array([[0, 1, 2, 0, 1]] * 3 + [[0, 0, 0, 1, 2]])


def llama(rng, method, dtype=np.float32):
    """A Llama on the host, every Parameter at random."""
    model = Llama(LLAMA, rng, dtype)
    model = model if method is None else inject(model, method, rng)
    for p in model.parameters().values():
        p.value = (0.3 * rng.standard_normal(p.shape)).astype(dtype)
    return model


@pytest.mark.parametrize("method", ON_LLAMA)
@pytest.mark.parametrize("recompute", [False, True])
def test_a_llama_on_the_device_equals_the_host(rng, method, recompute):
    model, given = llama(rng, ON_LLAMA[method]), batch(rng)
    model.recompute = recompute
    moved = copy_model(model, device="cuda")
    assert_same(moved, model)
    found, expected = gradients_of(moved, *on_device(given)), gradients_of(model, *given)
    assert_same(found[0], expected[0])
    assert_same(found[2], expected[2])


@pytest.mark.parametrize("method", ["GPT", *(name for name in ON_LLAMA if name not in BEFORE)])
def test_packed_rows_on_the_device_equal_the_host(rng, method):
    """Batches are packed on the host: their positions may stay there."""
    model = models(rng)[1] if method == "GPT" else llama(rng, ON_LLAMA[method])
    given = batch(rng)
    moved, expected = copy_model(model, device="cuda"), gradients_of(model, *given, POSITIONS)
    for positions in (POSITIONS, on_device(POSITIONS)):
        found = gradients_of(moved, *on_device(given), positions)
        assert_same(found[0], expected[0])
        assert_same(found[2], expected[2])


@pytest.mark.parametrize("method", ON_LLAMA)
def test_a_llama_on_the_device_writes_the_hosts_texts(rng, method):
    model = llama(rng, ON_LLAMA[method], np.float64)
    moved, prompts = copy_model(model, device="cuda"), [np.array([1, 2, 3]), np.array([4])]
    pairs = (m.generate(prompts, 9, temperature=0) for m in (moved, model))  # beyond the context
    for one, other in zip(*pairs):
        np.testing.assert_array_equal(one, other)


def test_the_trained_top_of_a_llama_works_on_the_device(rng):
    model, (tokens, targets) = llama(rng, replace(ALL, layers_to_transform=[1])), batch(rng)
    found = []
    for m, given in ((model, (tokens, targets)), (copy_model(model, device="cuda"), None)):
        tokens, targets = given or on_device((tokens, targets))
        top = TopLayers(m)
        found.append((hidden := top.hidden(tokens), *gradients_of(top, hidden, targets)[::2]))
    assert_same(found[1], found[0])


@pytest.mark.parametrize(
    "method",
    [
        lora_np.PromptConfig(1),
        lora_np.PromptConfig(1, init_tokens=[3]),
        lora_np.PrefixConfig(1),
        lora_np.PrefixConfig(1, prefix_projection=True),
    ],
    ids=str,
)
def test_what_stands_before_a_text_works_on_the_device(rng, method):
    base, (tokens, targets) = models(rng)[0], batch(rng)
    moved, model = (
        inject(m, method, np.random.default_rng(3)) for m in (copy_model(base, device="cuda"), base)
    )
    assert_same(moved, model)
    found = gradients_of(moved, *on_device((tokens, targets)))
    assert_same(found, gradients_of(model, tokens, targets))
    prompts = [np.array([1, 2, 3]), np.array([4])]
    pairs = (m.generate(prompts, 5, temperature=0) for m in (moved, model))
    for one, other in zip(*pairs):
        np.testing.assert_array_equal(one, other)


def test_inject_merge_and_unmerge_work_on_the_device(rng):
    base, adapted = models(rng)
    seed, there = 3, copy_model(base, device="cuda")
    fresh = [inject(model, ALL, np.random.default_rng(seed)) for model in (there, base)]
    assert_same(*fresh)
    moved, merged = copy_model(adapted, device="cuda"), lora_np.merge(adapted)
    assert_same(lora_np.merge(moved), merged)
    assert_same(lora_np.unmerge(lora_np.merge(moved), moved), lora_np.unmerge(merged, adapted))


def test_a_model_comes_back_from_the_device_as_it_was(rng):
    model = models(rng)[1]
    back = copy_model(copy_model(model, device="cuda"), device="cpu")
    for found, expected in zip(arrays(back), arrays(model), strict=True):
        assert type(found) is np.ndarray
        np.testing.assert_array_equal(found, expected)


def test_adapters_on_the_device_share_the_bases_memory(rng):
    base = copy_model(GPT(CONFIG, rng), device="cuda")
    adapted = inject(base, ALL, rng)
    base.wte.W.value[0] = 5.0  # writing to the base is seen through the adapted model
    np.testing.assert_array_equal(backend.to_host(adapted.wte.W.value)[0], 5.0)


OPTIMIZERS = {
    "sgd": {"options": {"momentum": 0.9}, "clip": 0.1},
    "adam": {"clip": None, "accumulate": 2},
    "adamw": {"options": {"weight_decay": 0.1}, "schedule": "linear", "warmup": 2},
}


def fitted(model, device, optimizer, **options):
    """Train for five steps with dropout, a validation among them; return the history."""
    draw, held_out = np.random.default_rng(5), batch(np.random.default_rng(6))
    return train.fit(
        model,
        lambda: tuple(backend.to_device(x, device) for x in batch(draw)),
        steps=5,
        lr=0.05,
        optimizer=optimizer,
        rng=np.random.default_rng(8),
        validate=lambda: train.evaluate(model, *held_out, batch_size=3),
        validate_every=3,
        **options,
    )


@pytest.mark.parametrize("which", [0, 1], ids=["GPT", "GPT with LoRA"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_on_the_device_equals_training_on_the_host(rng, optimizer, which):
    host = copy_model(models(rng)[which])
    moved = copy_model(host, device="cuda")
    expected = fitted(host, "cpu", optimizer, **OPTIMIZERS[optimizer])
    found = fitted(moved, "cuda", optimizer, **OPTIMIZERS[optimizer])
    assert found.loss == expected.loss and found.gradient_norm == expected.gradient_norm
    assert found.validation == expected.validation and len(found.validation) == 2
    assert {type(x) for x in (*found.loss, *found.gradient_norm)} == {float}
    assert_same(moved, host)


def test_divergence_on_the_device_leaves_the_last_good_parameters(rng):
    model, fixed = copy_model(models(rng)[1], device="cuda"), on_device(batch(rng))

    def sample():
        return fixed

    with pytest.raises(train.Diverged, match="holds the parameters from before"):
        train.fit(model, sample, steps=9, lr=1e30, optimizer="sgd", clip=None)
    assert all(np.isfinite(backend.to_host(x)).all() for x in arrays(model))


@pytest.mark.skipif(not can_fork(), reason="fork is Linux's")
def test_processes_are_refused_on_the_device(rng):
    model = copy_model(models(rng)[1], device="cuda")
    with pytest.raises(ValueError, match="processes = 2 share host memory: on a GPU use 1"):
        train.fit(model, lambda: on_device(batch(rng)), steps=1, lr=0.1, processes=2)


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 0.8, "top_k": 4}])
def test_generation_on_the_device_gives_the_hosts_tokens(rng, shape, options):
    model = models(rng, np.float64)[1]
    moved = copy_model(model, device="cuda")
    prompt = rng.integers(0, CONFIG.vocab_size, shape)
    expected = model.generate(prompt, 9, rng=np.random.default_rng(2), **options)
    for start in (prompt, on_device(prompt)):  # nine tokens slide the window of six
        found = moved.generate(start, 9, rng=np.random.default_rng(2), **options)
        assert type(found) is np.ndarray
        np.testing.assert_array_equal(found, expected)


def test_checkpoint_goes_through_the_host_and_back(rng, tmp_path):
    model = copy_model(models(rng)[1], device="cuda")
    twin = copy_model(model)
    checkpoint.save_parameters(tmp_path / "all.npz", model)
    for p in twin.parameters().values():
        p.value *= 0.0
    checkpoint.load_parameters(tmp_path / "all.npz", twin)
    assert_same(twin, copy_model(model, device="cpu"))


def test_spectrum_on_the_device_equals_the_host(rng):
    M, B, A = rng.standard_normal((5, 7)), rng.standard_normal((6, 2)), rng.standard_normal((2, 4))
    for host in (M, M.astype(np.float32), (B, A)):
        found, expected = spectrum(on_device(host), 0.5), spectrum(host, 0.5)
        assert type(found.singular_values) is np.ndarray
        np.testing.assert_array_equal(found.singular_values, expected.singular_values)
        assert str(found) == str(expected)


# ----------------------------------------------------------------------------------- the main job

TINY_TEXT = TextSettings(
    ranks=(1, 2),
    seeds=1,
    pretrain_steps=2,
    steps=3,
    batch_size=2,
    block_size=8,
    d_model=8,
    n_layer=1,
    n_head=2,
    windows=4,
)
TINY_LINEAR = LinearSettings(ranks=(1, 2), seeds=1, d_in=5, d_out=4, steps=20)


@pytest.mark.parametrize("settings", [TINY_TEXT, TINY_LINEAR], ids=["text", "linear"])
def test_a_sweep_on_the_device_gives_the_hosts_results(tmp_path, settings):
    if settings.task == "text":
        text = tmp_path / "text.txt"
        text.write_text("a text that is long enough for a window or two. " * 9, encoding="utf-8")
        settings = replace(settings, pretrain_text=str(text), adapt_text=str(text))
    host, device = (
        rank_sweep(replace(settings, device=device), tmp_path / device)
        for device in ("cpu", "cuda")
    )
    for results in (host, device):
        del results["settings"]["device"]
        for trial in results["trials"]:
            assert trial.pop("seconds") >= 0
    assert device == host
    if settings.task == "text":
        models = [load_model(tmp_path / device, "2", device) for device in ("cpu", "cuda")]
        assert_same(*reversed(models))


# -------------------------------------------------- the account, against products that were counted


def counted_flops(model, tokens):
    """Return the products' FLOPs a token of the logits, and of the rest of a step.

    No token is ignored. The loss of a frozen head forms a part of the gradient in its forward.
    """
    fake_cupy.ndarray.flops = 0
    with unmerged():
        model.forward(tokens)
        forward, fake_cupy.ndarray.flops = fake_cupy.ndarray.flops, 0
        _, cache = model.loss(tokens, tokens)
        model.backward(1.0, cache, Grads())
    return forward / tokens.size, (fake_cupy.ndarray.flops - forward) / tokens.size


ADAPTERS = {
    "all-linear": {"target_modules": "all-linear"},
    "q_proj and v_proj": {},
    "k_proj alone": {"target_modules": ["k_proj"]},
    "down_proj alone": {"target_modules": ["down_proj"]},
    "last block only": {"layers_to_transform": 1},
    "last block's up_proj": {"layers_to_transform": 1, "target_modules": ["up_proj"]},
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_account_of_adapters_states_the_products_that_were_counted(rng, name):
    config = lora_np.LoraConfig(r=2, **ADAPTERS[name])
    model = inject(GPT(CONFIG, rng), config, rng)
    found = counted_flops(copy_model(model, device="cuda"), on_device(batch(rng)[0]))
    assert found == account(model, T=5).flops


@pytest.mark.parametrize(
    "method", ["Llama", "with LoRA", "with a prefix", "with trained tokens", "with an adapted top"]
)
@pytest.mark.parametrize("recompute", [False, True])
def test_account_of_a_llama_states_the_products_that_were_counted(rng, method, recompute):
    model = llama(rng, ON_LLAMA[method])
    model.recompute = recompute
    found = counted_flops(copy_model(model, device="cuda"), on_device(batch(rng)[0]))
    assert found == account(model, T=5).flops


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("adapted", [0, 1], ids=["GPT", "GPT with LoRA"])
def test_account_states_the_products_counted_whatever_is_frozen(rng, adapted, share):
    model = models(rng)[adapted]
    for _ in range(5):
        for p in model.parameters().values():
            p.trainable = rng.random() < share
        found = counted_flops(copy_model(model, device="cuda"), on_device(batch(rng)[0]))
        assert found == account(model, T=5).flops


@pytest.mark.parametrize("form", [Float16, Bfloat16, Nf4])
@pytest.mark.parametrize("first", ["store", "move"])
def test_a_stored_base_on_the_device_trains_as_on_the_host(rng, form, first):
    base, tokens = models(rng)[0], batch(rng)
    host = store_model(base, form.encode)
    moved = copy_model(host if first == "store" else base, device="cuda")
    device = moved if first == "store" else store_model(moved, form.encode)
    assert account(device).weight_bytes == account(host).weight_bytes < account(base).weight_bytes
    found = []
    for model, inputs in ((host, tokens), (device, on_device(tokens))):
        adapted = inject(model, ALL, np.random.default_rng(3))
        history = train.fit(adapted, lambda inputs=inputs: inputs, steps=3, lr=0.05)
        found.append((history.loss, [p.value for p in adapted.parameters().values()]))
    assert found[0][0] == found[1][0]
    assert_same(found[1][1], found[0][1])
    assert_same(
        [p.value for p in device.parameters().values()],
        [p.value for p in host.parameters().values()],
    )


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_gguf_are_decoded_on_the_device_as_on_the_host(rng, name):
    blocks = random_blocks(name, 4 * 512 // BLOCKS[name].block_size, rng)
    host = BLOCKS[name].over((4, 512), blocks)
    device, rows = host.converted(on_device), np.array([2, 0, 2])
    assert_same([device.decode(np.float32)], [host.decode(np.float32)])
    assert_same([device.take(on_device(rows), np.float64)], [host.take(rows, np.float64)])
    x = rng.standard_normal((4, 64))
    assert_same([Q8_0.encode(on_device(x)).parts["blocks"]], [Q8_0.encode(x).parts["blocks"]])


def test_parameter_on_the_device_copies_its_memory(rng):
    p = Parameter(on_device(rng.standard_normal(3)))
    twin = p.copy()
    p.value *= 0.0
    assert float(abs(twin.value).max()) > 0
