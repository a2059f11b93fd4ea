"""lora_np.layers.stored: packed weights behave like frozen Parameters, and keep their own bytes."""

import copy
import pickle
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest

from lora_np.checks import check_layer
from lora_np.costs import account
from lora_np.files import CheckpointError, GgufFile, load_arrays, write_gguf
from lora_np.forms import Q8_0, Bfloat16, Float16, Nf4, narrowed
from lora_np.layers import Chain, Linear, as_pair, copy_model, stored
from lora_np.layers.stored import StoredParameter, store_model
from lora_np.methods import LoraConfig, MethodConfig, inject, merge
from lora_np.models import GPT, GPTConfig
from lora_np.parameters import Grads, Parameter, freeze, pack
from lora_np.train import MovingAverage, evaluate, fit, load_parameters, save_parameters

TOKENS = np.arange(12).reshape(2, 6) % 13
TARGETS = (TOKENS + 1) % 13
LORA = LoraConfig(r=2)
ENCODERS = {form.name: form.encode for form in (Float16, Bfloat16, Nf4, Q8_0)}
every_form = pytest.mark.parametrize("encode", ENCODERS.values(), ids=ENCODERS)


def make_gpt(dtype=np.float32):
    config = GPTConfig(vocab_size=13, block_size=8, n_layer=2, n_head=2, d_model=32)
    return GPT(config, np.random.default_rng(0), dtype)


def weights(shape=(6, 64)):  # rows of whole blocks
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def decoded(model):
    return {name: p.value.copy() for name, p in model.parameters().items()}


# --- one stored Parameter ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encode, dtype", [(Float16.encode, np.float16), (Bfloat16.encode, ml_dtypes.bfloat16)]
)
def test_a_narrow_form_decodes_to_the_rounded_numbers(encode, dtype):
    x = np.concatenate([weights().ravel(), [0.0, -0.0, 1e-7, 1 + 2**-9, 1 + 3 * 2**-9]])
    x = x.astype(np.float32)
    for compute in (np.float32, np.float64):
        found = encode(x).decode(compute)
        assert found.dtype == compute
        np.testing.assert_array_equal(found, x.astype(dtype).astype(compute))


@every_form
def test_a_stored_parameter_has_the_shape_and_dtype_of_its_value(encode):
    p = StoredParameter(encode(weights()), np.float64)
    assert (p.shape, p.size, p.dtype) == ((6, 64), 384, np.float64)
    assert p.value.shape == (6, 64) and p.value.dtype == np.float64
    assert p.trainable is False and not p.shared


@pytest.mark.parametrize(
    "encode, nbytes",
    [
        (Float16.encode, 2 * 6400),
        (Bfloat16.encode, 2 * 6400),
        (Nf4.encode, 3200 + 100 + 4 + 4),  # 4 bits; a byte a block of 64; one of 256; the mean
        (lambda x: Nf4.encode(x, double=False), 3200 + 4 * 100),
        (Q8_0.encode, 200 * 34),  # a byte a number and a float16 a block of 32
    ],
)
def test_the_bytes_are_those_of_what_is_stored(encode, nbytes):
    p = StoredParameter(encode(weights((50, 128))))
    assert p.nbytes == nbytes == sum(array.nbytes for array in p.arrays().values())
    assert p.share().nbytes == p.copy().nbytes == p.copy(np.float64).nbytes == nbytes


@every_form
def test_a_stored_parameter_cannot_be_trained_or_written_to(encode):
    p = StoredParameter(encode(weights()))
    before = p.value.copy()
    for attempt in (lambda: setattr(p, "trainable", True), lambda: setattr(p, "value", before)):
        with pytest.raises(ValueError, match=r"stored as \w+ cannot be trained or changed: train"):
            attempt()
    with pytest.raises(ValueError, match="read-only"):
        p.value[...] = 7.0  # a write to a decoded array would be lost
    freeze([p])  # which it is
    np.testing.assert_array_equal(p.value, before)
    with pytest.raises(ValueError, match="every Parameter is frozen"):
        pack({"W": p})
    with pytest.raises(ValueError, match=r"frozen StoredParameter\(\(6, 64\), float32 from"):
        Grads().add(p, np.zeros((6, 64)))


@every_form
def test_sharing_is_of_the_stored_bytes_and_copying_is_not(encode):
    p = StoredParameter(encode(weights()))
    view, twin = p.share(), p.copy()
    for name, part in p.form.parts.items():
        assert np.shares_memory(part, view.form.parts[name])
        assert not view.form.parts[name].flags.writeable
        assert not np.shares_memory(part, twin.form.parts[name])
    assert view.borrowed and view.shared and p.shared and not p.borrowed and not twin.shared
    for other in (view, twin, copy.copy(p)):
        np.testing.assert_array_equal(other.value, p.value)
    del view, other
    assert not p.shared


@every_form
@pytest.mark.parametrize("shared", [False, True])
def test_pickling_keeps_the_bytes_and_lets_them_be_loaded_again(encode, shared):
    p = StoredParameter(encode(weights()), np.float64)
    buffers = []
    data = pickle.dumps(p.share() if shared else p, protocol=5, buffer_callback=buffers.append)
    again = pickle.loads(data, buffers=[bytes(b.raw()) for b in buffers])
    assert again.dtype == np.float64 and again.stored_as == p.stored_as and not again.shared
    assert all(part.flags.writeable for part in again.form.parts.values())
    np.testing.assert_array_equal(again.value, p.value)


@every_form
def test_decoding_gives_a_plain_frozen_parameter_of_its_own(encode):
    p = StoredParameter(encode(weights()))
    plain = p.decoded()
    assert type(plain) is Parameter and not plain.trainable and plain.value.flags.writeable
    np.testing.assert_array_equal(plain.value, p.value)
    assert plain.decoded() is plain and (plain.stored_as, p.stored_as != "") == ("", True)


@every_form
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(encode, bad):
    x = weights()
    x[3, 5] = bad
    with pytest.raises(ValueError, match="some numbers are not finite: such weights cannot be"):
        encode(x)


def test_a_number_beyond_the_dtype_is_refused_and_not_made_infinite():
    with pytest.raises(ValueError, match=r"largest number is 1e\+06, too large for float16"):
        narrowed(np.array([1.0, -1e6]), "float16")
    assert Bfloat16.encode(np.array([1e6])).decode(np.float64) == [999424.0]


# --- a stored model ------------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("leading", [(), (1,), (2, 3)])
def test_a_product_is_that_of_the_decoded_array(encode, leading, monkeypatch):
    monkeypatch.setattr(stored, "AT_ONCE", 4 * 64)  # 6 rows: 4, then 2
    p, x = StoredParameter(encode(weights())), weights((*leading, 64))
    y = p.product(x)
    assert y.shape == (*leading, 6) and y.dtype == np.float32
    np.testing.assert_allclose(y, x @ p.value.T, rtol=0, atol=1e-5)
    np.testing.assert_allclose(Parameter(p.value).product(x), y, rtol=0, atol=1e-5)


def test_generation_never_decodes_the_whole_head(monkeypatch):
    monkeypatch.setattr(stored, "AT_ONCE", 4 * 32)
    shapes = []
    decode = Q8_0.decode

    def watched(form, dtype):
        shapes.append(form.shape)
        return decode(form, dtype)

    names = {"wte.W"}  # the table of tokens, and the head
    model = make_gpt()
    base = store_model(model, Q8_0.encode, names)
    monkeypatch.setattr(Q8_0, "decode", watched)
    found = base.generate(TOKENS, 6, temperature=0)
    assert len(shapes) > 6 and max(rows[0] for rows in shapes if len(rows) == 2) <= 4
    monkeypatch.undo()
    whole = copy_model(base, decode=True)
    np.testing.assert_array_equal(found, whole.generate(TOKENS, 6, temperature=0))


@every_form
def test_a_stored_model_computes_what_a_model_of_the_decoded_arrays_does(encode):
    base = store_model(make_gpt(), encode)
    plain = make_gpt()
    for name, p in plain.parameters().items():
        p.value[...] = base.parameters()[name].value
    np.testing.assert_array_equal(base.forward(TOKENS)[0], plain.forward(TOKENS)[0])
    assert evaluate(base, TOKENS, TARGETS) == evaluate(plain, TOKENS, TARGETS)


@every_form
def test_only_the_named_parameters_are_stored_and_the_others_are_lent(encode):
    model = make_gpt()
    name = "h.0.attn.q_proj.W"
    base = store_model(model, encode, [name])
    for other, p in base.parameters().items():
        assert (p.stored_as != "") == (other == name) and not p.trainable
        if other != name:
            assert np.shares_memory(p.value, model.parameters()[other].value)
    assert all(p.trainable for p in model.parameters().values())  # the model stays as it was


def test_an_unknown_name_and_a_bad_number_are_named():
    model = make_gpt()
    with pytest.raises(ValueError, match=r"the model has no Parameter h\.7\.W to store"):
        store_model(model, Float16.encode, ["h.7.W"])
    model.h[1].mlp.up_proj.W.value[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"^h\.1\.mlp\.up_proj\.W: some numbers are not finite"):
        store_model(model, Bfloat16.encode)


def test_a_tied_parameter_stays_one_parameter():
    layer = Linear(40, 40, np.random.default_rng(0), bias=False)
    chain = Chain(layer, Linear.over(layer.W, None))
    base = store_model(chain, Bfloat16.encode)
    assert len(base.parameters()) == 1
    assert account(base).weight_bytes == 2 * 1600


@every_form
def test_an_adapter_is_trained_over_a_stored_base(encode):
    base = store_model(make_gpt(), encode)
    before = {n: a.copy() for p in base.parameters().values() for n, a in p.arrays().items()}
    adapted = inject(base, LoraConfig(r=2, target_modules="all-linear"), np.random.default_rng(1))
    assert adapted.forward(TOKENS)[0].tolist() == base.forward(TOKENS)[0].tolist()
    start = evaluate(adapted, TOKENS, TARGETS)
    fit(adapted, lambda: (TOKENS, TARGETS), steps=20, lr=0.01)
    assert evaluate(adapted, TOKENS, TARGETS) < start - 0.3
    after = {n: a for p in base.parameters().values() for n, a in p.arrays().items()}
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    lent = [a for p in adapted.parameters().values() if p.stored_as for a in p.arrays().values()]
    owned = [a for p in base.parameters().values() for a in p.arrays().values()]
    assert len(lent) == len(owned)
    assert all(any(np.shares_memory(one, other) for other in owned) for one in lent)


@every_form
def test_the_gradients_of_an_adapter_are_those_over_the_decoded_weights(encode):
    base = store_model(make_gpt(np.float64), encode)
    config = LoraConfig(r=2, target_modules="all-linear")
    found = []
    for model in (base, copy_model(base, decode=True)):
        adapted = inject(model, config, np.random.default_rng(1))
        rng, grads = np.random.default_rng(2), Grads()
        own = [p for p in adapted.parameters().values() if p.trainable]
        for p in own:
            p.value[...] = 0.1 * rng.standard_normal(p.shape)
        _, cache = adapted.loss(TOKENS, TARGETS)
        adapted.backward(1.0, cache, grads)
        found.append([grads[p] for p in own])
    assert len(found[0]) == 24
    for one, other in zip(*found):
        assert np.abs(one).max() > 1e-6
        np.testing.assert_array_equal(one, other)


@every_form
def test_merging_dequantises_what_was_adapted(encode):
    config = LoraConfig(r=2, target_modules="all-linear")
    names = [f"{p}.W" for p, m in make_gpt().modules().items() if isinstance(m, Linear)]
    base = store_model(make_gpt(), encode, names)
    adapted = inject(base, config, np.random.default_rng(1))
    fit(adapted, lambda: (TOKENS, TARGETS), steps=5, lr=0.05)
    plain = merge(adapted)
    assert not any(p.stored_as for p in plain.parameters().values())
    assert all(p.trainable for p in plain.parameters().values())
    np.testing.assert_allclose(plain.forward(TOKENS)[0], adapted.forward(TOKENS)[0], atol=1e-5)


@every_form
def test_account_counts_the_bytes_that_are_stored(encode):
    model = make_gpt()
    base = store_model(model, encode)
    costs = account(base)
    assert costs.base == account(model).base and costs.trainable == 0
    held = [array for p in base.parameters().values() for array in p.arrays().values()]
    assert costs.weight_bytes == sum(array.nbytes for array in held)
    assert costs.weight_bytes < 0.51 * account(model).weight_bytes
    assert costs.flops.forward == account(model).flops.forward


@every_form
def test_another_compute_dtype_keeps_the_stored_bytes(encode):
    base = store_model(make_gpt(), encode)
    wide = copy_model(base, dtype=np.float64)
    assert account(wide).weight_bytes == account(base).weight_bytes
    assert wide.forward(TOKENS)[0].dtype == np.float64
    for a, b in zip(wide.parameters().values(), base.parameters().values()):
        assert a.stored_as == b.stored_as and a.dtype == np.float64
        np.testing.assert_array_equal(a.value.astype(np.float32), b.value)


@every_form
def test_a_copy_can_be_decoded_to_be_trained_in_full(encode):
    base = store_model(make_gpt(), encode)
    plain = copy_model(base, decode=True)
    np.testing.assert_array_equal(plain.forward(TOKENS)[0], base.forward(TOKENS)[0])
    assert not any(p.stored_as or p.trainable for p in plain.parameters().values())
    for p in plain.parameters().values():
        p.trainable = True
    fit(plain, lambda: (TOKENS, TARGETS), steps=2, lr=0.01)


@every_form
def test_a_stored_layer_keeps_the_contract_and_is_a_pair(encode):
    layer = store_model(Linear(64, 32, np.random.default_rng(0)), encode)
    assert len(check_layer(layer, np.ones((2, 3, 64)))) == 7
    assert layer.W.stored_as  # the check runs on a copy
    _, _, inputs = as_pair(layer)
    np.testing.assert_array_equal(inputs(np.ones((1, 64)))["W"], layer.W.value)


def test_a_moving_average_follows_an_adapter_over_a_stored_base():
    adapted = inject(store_model(make_gpt(), Bfloat16.encode), LORA, np.random.default_rng(1))
    average = MovingAverage(adapted, decay=0.5)
    for p in adapted.parameters().values():
        if p.trainable:
            p.value[...] += 1.0
    average.update()
    name = "h.0.attn.q_proj.B"
    assert (average.model.parameters()[name].value == 0.5).all()


@pytest.mark.parametrize("workers", [{"threads": 2}, {"processes": 2}, {"accumulate": 2}])
def test_workers_train_over_a_stored_base(workers):
    adapted = inject(store_model(make_gpt(), Nf4.encode), LORA, np.random.default_rng(1))
    history = fit(adapted, lambda: (TOKENS, TARGETS), steps=5, lr=0.05, **workers)
    assert history.loss[-1] < history.loss[0]


@dataclass(frozen=True)
class Biases(MethodConfig):
    def places(self, model):
        return []

    def trains(self, name):
        return name.endswith(".b")


def test_a_method_that_trains_a_stored_parameter_trains_a_decoded_copy():
    base = store_model(make_gpt(), Bfloat16.encode)
    adapted = inject(base, Biases(), np.random.default_rng(1))
    fit(adapted, lambda: (TOKENS, TARGETS), steps=3, lr=0.05)
    for name, p in adapted.parameters().items():
        trained = name.endswith(".b")
        assert (p.stored_as, p.trainable) == ("" if trained else "bfloat16", trained)
    assert all(p.stored_as for p in base.parameters().values())


# --- files ---------------------------------------------------------------------------------------


@every_form
def test_a_stored_model_is_saved_and_loaded_in_its_own_form(encode, tmp_path):
    base, other = make_gpt(), GPT(make_gpt().config, np.random.default_rng(5))
    base, other = store_model(base, encode), store_model(other, encode)
    save_parameters(tmp_path / "base.npz", base)
    load_parameters(tmp_path / "base.npz", other)
    np.testing.assert_array_equal(other.forward(TOKENS)[0], base.forward(TOKENS)[0])
    written = load_arrays(tmp_path / "base.npz")
    assert sum(array.nbytes for array in written.values()) == account(base).weight_bytes


def test_an_adapter_alone_is_saved_without_the_stored_base(tmp_path):
    base = store_model(make_gpt(), Nf4.encode)
    one, two = (inject(base, LoraConfig(r=2), np.random.default_rng(seed)) for seed in (1, 2))
    fit(one, lambda: (TOKENS, TARGETS), steps=3, lr=0.05)
    save_parameters(tmp_path / "adapter.npz", one, trainable_only=True)
    load_parameters(tmp_path / "adapter.npz", two)
    np.testing.assert_array_equal(two.forward(TOKENS)[0], one.forward(TOKENS)[0])


def test_a_file_in_another_form_is_refused_and_nothing_changes(tmp_path):
    layer = Linear(40, 4, np.random.default_rng(0))
    wider = store_model(Linear(40, 9, np.random.default_rng(0)), Nf4.encode)
    narrow, packed = store_model(layer, Bfloat16.encode), store_model(layer, Nf4.encode)
    for name, model in (("plain", layer), ("narrow", narrow), ("packed", packed)):
        save_parameters(tmp_path / f"{name}.npz", model)
    for name, model, message in (
        ("plain", narrow, "holds 'W', which the model stores as bfloat16: load into the base"),
        ("narrow", packed, r"holds 'W\.bfloat16\.bits', which the model does not have"),
        ("packed", layer, r"holds 'W\.nf4\.codes', which the model does not have"),
        ("packed", wider, r"holds W\.nf4\.codes with shape \(96,\), expected \(192,\)"),
    ):
        before = decoded(model)
        with pytest.raises(CheckpointError, match=message):
            load_parameters(tmp_path / f"{name}.npz", model)
        for key, value in decoded(model).items():
            np.testing.assert_array_equal(value, before[key])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a.pop("W.nf4.absmax"), r"lacks W\.nf4\.absmax, which the model needs beside"),
        (
            lambda a: a.update({"W.nf4.codes": a["W.nf4.codes"].astype(np.int64)}),
            r"holds W\.nf4\.codes as int64, expected uint8",
        ),
        (
            lambda a: a.update({"W.nf4.codes": a["W.nf4.codes"].astype(np.uint16)}),
            r"holds W\.nf4\.codes as uint16, expected uint8",
        ),
    ],
)
def test_a_damaged_file_of_a_stored_model_is_refused(change, message, tmp_path):
    base = store_model(Linear(40, 4, np.random.default_rng(0)), Nf4.encode)
    save_parameters(tmp_path / "base.npz", base)
    arrays = load_arrays(tmp_path / "base.npz")
    change(arrays)
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(CheckpointError, match=message):
        load_parameters(tmp_path / "bad.npz", base)


def test_weights_mapped_from_a_file_are_loaded_into_a_copy(tmp_path):
    base = store_model(Linear(64, 4, np.random.default_rng(0), bias=False), Q8_0.encode)
    save_parameters(tmp_path / "base.npz", base)
    write_gguf(tmp_path / "other.gguf", {}, {"W": Q8_0.encode(np.full((4, 64), 127.0))})
    mapped = Linear.over(
        StoredParameter(GgufFile.open(tmp_path / "other.gguf").tensors["W"].form()), None
    )
    with pytest.raises(CheckpointError, match=r"holds W\.q8_0\.blocks, which the model maps from"):
        load_parameters(tmp_path / "base.npz", mapped)
    assert (mapped.W.value == 127.0).all()
    load_parameters(tmp_path / "base.npz", twin := copy_model(mapped))
    np.testing.assert_array_equal(twin.W.value, base.W.value)
