"""lora_np.adapters: resize, extract, merge and combine, against dense products and SVDs."""

import json
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from lora_np.adapters import (
    Keep,
    combine_adapters,
    extract_adapter,
    fit_table,
    merge_adapter,
    open_adapter,
    resize_adapter,
    total_errors,
    weights,
    write_adapter,
)
from lora_np.adapters.analyse import analyse_adapter, analyse_checkpoints
from lora_np.adapters.cut import norm_of_sum
from lora_np.files import CheckpointError, TensorFile, save_json, save_tensors
from tests.sample_files import factors, modules_of, save_any, tampered

EXACT, SINGLE = 1e-12, 1e-6  # relative to the norm: float64, and factors rounded to float32
BF16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = {
    "model.layers.0.q_proj": (12, 5, 9, 1.0),
    "model.layers.0.up_proj": (20, 4, 9, 16 / 3),
    "model.layers.1.q_proj": (12, 1, 9, 0.3),
}


def deltas(path):
    """The dense changes of an adapter, and its ranks."""
    with open_adapter(path) as adapter:
        modules = adapter.modules
        dense = {n: m.scale * np.matmul(*wide(m.factors())) for n, m in modules.items()}
        return dense, {n: m.r for n, m in modules.items()}


def wide(pair):
    return [x.astype(np.float64) for x in pair]


def norm(x):
    return float(np.linalg.norm(x))


def files_in(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def adapter(tmp_path, rng):
    modules = modules_of(rng, SHAPES)
    write_adapter(tmp_path / "a", modules, base_model="mine", lora_dropout=0.1)
    return tmp_path / "a"


# --------------------------------------------------------------------------------- how much to keep


@pytest.mark.parametrize(
    "options", [{}, {"rank": 1, "energy": 0.5}, {"rank": 0}, {"energy": 0.0}, {"energy": 1.01},
                {"error": -0.1}, {"error": 1.0}, {"energy": float("nan")}],
)  # fmt: skip
def test_no_rule_two_rules_and_rules_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"expected|give one"):
        Keep(**options)


@pytest.mark.parametrize(
    "sigma, rule, expected",
    [
        ([2, 1, 1, 0], {"energy": 4 / 6}, 1),  # exactly at the edge
        ([2, 1, 1, 0], {"energy": 4 / 6 + 1e-9}, 2),
        ([2, 1, 1, 0], {"energy": 1.0}, 3),
        ([1] * 10, {"energy": 0.9}, 9),
        ([3, 4e-9], {"error": 0.0}, 2),
        ([4, 3], {"error": 0.6}, 1),
        ([4, 3], {"error": 0.6 - 1e-9}, 2),
        ([4, 3], {"error": 0.999}, 1),  # no adapter has rank 0
        ([0, 0], {"energy": 0.9}, 1),
        ([0, 0], {"error": 0.1}, 1),
        ([4, 3], {"rank": 9}, 2),
    ],
)
def test_the_rules_at_their_edges(sigma, rule, expected):
    assert Keep(**rule).of(np.array(sigma, np.float64), (12, 12)) == expected


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), st.integers(1, 3))
def test_the_norm_of_a_sum_of_products_is_the_dense_one(out, in_, r, count):
    rng = np.random.default_rng(r)
    terms = [(rng.standard_normal(), *factors(rng, out, r, in_)) for _ in range(count)]
    dense = sum(s * B.astype(np.float64) @ A for s, B, A in terms)
    size = sum(abs(s) * norm(B) * norm(A) for s, B, A in terms)
    assert abs(norm_of_sum(terms) - norm(dense)) < EXACT * size


# ------------------------------------------------------------------------------------------ resize


@pytest.mark.parametrize("keep", [Keep(rank=2), Keep(energy=0.8), Keep(error=0.5)], ids=str)
def test_a_resized_adapter_is_the_best_of_its_rank_and_its_error_is_told(tmp_path, adapter, keep):
    before, _ = deltas(adapter)
    fits = resize_adapter(adapter, tmp_path / "b", keep)
    after, ranks = deltas(tmp_path / "b")
    missed = 0.0
    for fit in fits:
        dense = before[fit.name]
        sigma = np.linalg.svd(dense, compute_uv=False)
        best = norm(sigma[fit.r :]) if fit.r < fit.before else 0.0
        assert fit.r == ranks[fit.name] and fit.norm == pytest.approx(norm(dense), rel=EXACT)
        assert abs(fit.missed - best) < EXACT * fit.norm
        assert abs(fit.written - norm(after[fit.name] - dense)) < EXACT * fit.norm
        assert abs(fit.written - fit.missed) < SINGLE * fit.norm
        energy = (sigma**2).cumsum() / (sigma @ sigma)
        if keep.energy:
            assert fit.r == np.argmax(energy >= keep.energy) + 1
        if keep.error:
            assert fit.r == np.argmax(1 - energy <= keep.error**2) + 1
        missed += best**2
    whole = np.sqrt(sum(norm(x) ** 2 for x in before.values()))
    assert total_errors(fits)[0] == pytest.approx(np.sqrt(missed) / whole)


def test_a_rank_above_a_modules_own_leaves_it_bit_for_bit(tmp_path, adapter):
    resize_adapter(adapter, tmp_path / "b", Keep(rank=4))
    with open_adapter(adapter) as old, open_adapter(tmp_path / "b") as new:
        for name in ("model.layers.0.up_proj", "model.layers.1.q_proj"):
            pairs = zip(old.modules[name].factors(), new.modules[name].factors())
            assert all(np.array_equal(x, y) for x, y in pairs)
        assert [m.r for m in new.modules.values()] == [4, 4, 1]


def test_ranks_scales_types_and_the_config_are_kept(tmp_path, rng):
    write_adapter(
        tmp_path / "a", modules_of(rng, SHAPES), base_model="mine", dtype="bfloat16",
        fan_in_fan_out=True, lora_dropout=0.1,
    )  # fmt: skip
    resize_adapter(tmp_path / "a", tmp_path / "b", Keep(rank=3))
    with open_adapter(tmp_path / "a") as old, open_adapter(tmp_path / "b") as new:
        for name, module in old.modules.items():
            assert new.modules[name].scale == module.scale and new.modules[name].dtype == "bfloat16"
        assert (new.base_model, new.fan_in_fan_out, new.lora_dropout) == ("mine", True, 0.1)


@pytest.mark.parametrize("dtype, eps", [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_what_rounding_adds_to_the_error_is_told(tmp_path, rng, dtype, eps):
    write_adapter(tmp_path / "a", modules_of(rng, {"q": (30, 6, 20, 2.0)}), dtype=dtype)
    sigma = np.linalg.svd(deltas(tmp_path / "a")[0]["q"], compute_uv=False)
    (fit,) = resize_adapter(tmp_path / "a", tmp_path / "b", Keep(rank=5))
    error = norm(deltas(tmp_path / "b")[0]["q"] - deltas(tmp_path / "a")[0]["q"])
    assert fit.missed == pytest.approx(sigma[5])
    assert fit.written == pytest.approx(error)
    assert 0 < fit.written - fit.missed < 2 * eps * fit.norm


def test_an_adapter_of_zeros_keeps_rank_1_and_an_A_to_train_from(tmp_path, rng):
    A = rng.standard_normal((4, 6)).astype(np.float32)
    write_adapter(tmp_path / "a", [("q", np.zeros((5, 4), np.float32), A, 1.0)])
    (fit,) = resize_adapter(tmp_path / "a", tmp_path / "b", Keep(energy=0.99))
    assert (fit.r, fit.missed, fit.norm) == (1, 0, 0) and total_errors([fit]) == (0, 0)
    with open_adapter(tmp_path / "b") as new:
        B, A = new.modules["q"].factors()
    assert not B.any() and norm(A) == pytest.approx(1)


def test_factors_of_two_types_stay_exact(tmp_path, rng):
    B, A = factors(rng, 4, 2, 3)
    write_adapter(tmp_path / "a", [("q", B, A, 1.0)], dtype="float64")
    names = (f"base_model.model.q.lora_{half}.weight" for half in "BA")
    tensors = dict(zip(names, (B, A.astype(np.float16))))
    save_tensors(tmp_path / "a" / "adapter_model.safetensors", tensors)
    resize_adapter(tmp_path / "a", tmp_path / "b", Keep(rank=2))
    with open_adapter(tmp_path / "b") as new:
        assert np.array_equal(new.modules["q"].factors()[0], B)


def test_a_rank_beyond_the_matrix_is_cut_to_its_sides_by_a_rule_and_left_by_a_rank(tmp_path, rng):
    write_adapter(tmp_path / "a", modules_of(rng, {"q": (3, 8, 5, 1.0)}), dtype="float64")
    (fit,) = resize_adapter(tmp_path / "a", tmp_path / "b", Keep(energy=1.0))
    assert fit.r == 3 and fit.written < EXACT * fit.norm
    (fit,) = resize_adapter(tmp_path / "a", tmp_path / "c", Keep(rank=8))
    assert fit.r == 8 and deltas(tmp_path / "c")[0]["q"].tolist() == (
        deltas(tmp_path / "a")[0]["q"].tolist()
    )


# ----------------------------------------------------------------------------------------- extract


@pytest.fixture
def checkpoints(tmp_path, rng):
    """A base and a tuned checkpoint: two linear layers, an embedding, a norm and a bias changed."""
    W0 = {
        "layers.0.q.weight": rng.standard_normal((14, 10)),
        "layers.0.c_fc.weight": rng.standard_normal((10, 16)),
        "layers.0.k.weight": rng.standard_normal((10, 10)),
        "layers.0.q.bias": rng.standard_normal(14),
        "norm.weight": np.ones(10),
        "embed_tokens.weight": rng.standard_normal((20, 10)),
    }
    W = {name: x + 0.1 * rng.standard_normal(x.shape) for name, x in W0.items()}
    W["layers.0.k.weight"] = W0["layers.0.k.weight"]
    W["score.weight"] = np.ones((2, 10))
    for name, tensors in (("base", W0), ("tuned", W)):
        (tmp_path / name).mkdir()
        save_tensors(tmp_path / name / "model.safetensors", tensors)
    return tmp_path / "base", tmp_path / "tuned", W0, W


@pytest.mark.parametrize("keep", [Keep(rank=3), Keep(energy=0.7), Keep(error=0.4)], ids=str)
@pytest.mark.parametrize("large", [False, True], ids=["dense", "randomised"])
def test_an_extracted_adapter_is_the_best_of_its_rank(
    tmp_path, checkpoints, keep, large, monkeypatch
):
    if large:
        monkeypatch.setattr(weights, "DENSE_WORK", 0)
        monkeypatch.setattr("lora_np.adapters.extract.FIRST", 2)
    base, tuned, W0, W = checkpoints
    found = extract_adapter(base, tuned, tmp_path / "a", keep)
    after, ranks = deltas(tmp_path / "a")
    assert set(after) == {"layers.0.q", "layers.0.c_fc"}
    for fit in found.fits:
        delta = W[f"{fit.name}.weight"] - W0[f"{fit.name}.weight"]
        sigma = np.linalg.svd(delta, compute_uv=False)
        energy = (sigma**2).cumsum() / (sigma @ sigma)
        k = keep.rank or int(np.argmax(energy >= 1 - keep.missed_share)) + 1
        assert fit.r == ranks[fit.name] == k and fit.shape == delta.shape
        # with ten more probes than directions, the random space holds all of these small matrices
        assert fit.missed == pytest.approx(norm(sigma[k:]), rel=EXACT)
        assert fit.written == pytest.approx(norm(after[fit.name] - delta), rel=EXACT)
        assert abs(fit.written - fit.missed) < SINGLE * fit.norm


def test_what_an_adapter_cannot_hold_is_named_with_its_size(tmp_path, checkpoints):
    base, tuned, W0, W = checkpoints
    found = extract_adapter(base, tuned, tmp_path / "a", Keep(rank=1))
    names = ("layers.0.q.bias", "norm.weight", "embed_tokens.weight")
    assert found.beyond == {n: pytest.approx(norm(W[n] - W0[n])) for n in found.beyond}
    assert set(found.beyond) == set(names)
    assert found.unmatched == [f"score.weight: only in {tuned / 'model.safetensors'}"]


@pytest.mark.parametrize("kind, transposed", [("gpt2", True), ("llama", False), (None, False)])
def test_gpt2s_conv1d_weights_are_transposed_and_no_others(tmp_path, checkpoints, kind, transposed):
    base, tuned, W0, W = checkpoints
    if kind:
        save_json(base / "config.json", {"model_type": kind})
    extract_adapter(base, tuned, tmp_path / "a", Keep(rank=10))
    after, _ = deltas(tmp_path / "a")
    for name, turned in (("layers.0.c_fc", transposed), ("layers.0.q", False)):
        delta = W[f"{name}.weight"] - W0[f"{name}.weight"]
        np.testing.assert_allclose(after[name], delta.T if turned else delta, atol=1e-6)
    with open_adapter(tmp_path / "a") as adapter:
        assert adapter.fan_in_fan_out is transposed


def test_checkpoints_that_differ_in_no_linear_layer_give_no_adapter(tmp_path, checkpoints):
    base, _, W0, _ = checkpoints
    save_tensors(tmp_path / "t.safetensors", {**W0, "norm.weight": np.zeros(10)})
    with pytest.raises(ValueError, match="differ in no matrix that an adapter can hold"):
        extract_adapter(base, tmp_path / "t.safetensors", tmp_path / "a", Keep(rank=1))
    assert not (tmp_path / "a").exists()


def test_extract_undoes_merge(tmp_path, rng, adapter):
    names = {f"{name}.weight": (out, in_) for name, (out, _, in_, _) in SHAPES.items()}
    W0 = {name: rng.standard_normal(shape) for name, shape in names.items()}
    modules = modules_of(rng, SHAPES, np.float64)
    write_adapter(tmp_path / "x", modules, dtype="float64")
    save_tensors(tmp_path / "base.safetensors", W0)
    merge_adapter(tmp_path / "base.safetensors", tmp_path / "x", tmp_path / "merged.safetensors")
    found = extract_adapter(
        tmp_path / "base.safetensors",
        tmp_path / "merged.safetensors",
        tmp_path / "y",
        Keep(error=1e-6),
    )
    before, ranks = deltas(tmp_path / "x")
    after, again = deltas(tmp_path / "y")
    assert ranks == again and not found.beyond
    assert all(norm(before[n] - after[n]) < SINGLE * norm(before[n]) for n in before)


# ------------------------------------------------------------------------------------------- merge


def base_for(rng, shapes, dtype, extra=()):
    names = {f"{name}.weight": (out, in_) for name, (out, _, in_, _) in shapes.items()}
    return {**{n: rng.standard_normal(s).astype(dtype) for n, s in names.items()}, **dict(extra)}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BF16], ids=str)
def test_a_merged_checkpoint_is_the_rounded_sum_and_the_rounding_is_told(tmp_path, rng, dtype):
    write_adapter(tmp_path / "a", modules_of(rng, SHAPES), dtype="float16")
    extra = {"norm.weight": np.ones(9, np.float32), "head.weight": np.ones((2, 3)).astype(dtype)}
    W0 = base_for(rng, SHAPES, dtype, extra)
    save_tensors(tmp_path / "base.safetensors", W0, {"format": "pt"})
    merged = merge_adapter(
        tmp_path / "base.safetensors", tmp_path / "a", tmp_path / "m.safetensors"
    )
    dense, _ = deltas(tmp_path / "a")
    assert {m.name for m in merged} == {f"{name}.weight" for name in dense}
    with TensorFile(tmp_path / "m.safetensors") as file:
        assert set(file.names) == set(W0) and file.metadata == {"format": "pt"}
        for name in extra:
            found = file.read(name, None)
            assert found.dtype == W0[name].dtype and found.tobytes() == W0[name].tobytes()
        for m in merged:
            change = dense[m.name.removesuffix(".weight")]
            exact = W0[m.name].astype(np.float64) + change
            found = file.read(m.name, None)
            assert found.tobytes() == exact.astype(dtype).tobytes()
            assert m.norm == pytest.approx(norm(change), rel=EXACT)
            assert m.rounding == pytest.approx(norm(found.astype(np.float64) - exact))
            assert (m.rounding > 0) is (dtype != np.float64) and m.dtype == np.dtype(dtype).name


def test_what_is_no_float_is_copied_too(tmp_path, rng):
    write_adapter(tmp_path / "a", modules_of(rng, SHAPES))
    W0 = base_for(rng, SHAPES, np.float32, {"ids": np.arange(5), "mask": np.array([True, False])})
    save_any(tmp_path / "base.safetensors", W0)
    merge_adapter(tmp_path / "base.safetensors", tmp_path / "a", tmp_path / "m.safetensors")
    from safetensors.numpy import load_file

    found = load_file(tmp_path / "m.safetensors")
    assert found["ids"].tolist() == [0, 1, 2, 3, 4] and found["mask"].tolist() == [True, False]


def test_a_checkpoint_in_several_files_becomes_one(tmp_path, rng):
    write_adapter(tmp_path / "a", modules_of(rng, SHAPES))
    W0 = base_for(rng, SHAPES, np.float32, {"norm.weight": np.ones(3, np.float16)})
    names = sorted(W0)
    parts = {"1.safetensors": names[:2], "2.safetensors": names[2:]}
    for file, held in parts.items():
        save_tensors(tmp_path / file, {name: W0[name] for name in held}, {"format": "pt"})
    places = {name: file for file, held in parts.items() for name in held}
    save_json(tmp_path / "model.safetensors.index.json", {"weight_map": places})
    save_tensors(tmp_path / "whole.safetensors", W0)
    merge_adapter(tmp_path, tmp_path / "a", tmp_path / "m.safetensors")
    merge_adapter(tmp_path / "whole.safetensors", tmp_path / "a", tmp_path / "n.safetensors")
    with TensorFile(tmp_path / "m.safetensors") as m, TensorFile(tmp_path / "n.safetensors") as n:
        assert set(m.names) == set(n.names) == set(W0) and m.metadata == {"format": "pt"}
        assert all(np.array_equal(m.read(name, None), n.read(name, None)) for name in W0)


def test_one_weight_is_in_memory_at_a_time(tmp_path, rng):
    import tracemalloc

    shapes = {f"layers.{i}.q": (200, 2, 200, 1.0) for i in range(40)}
    write_adapter(tmp_path / "a", modules_of(rng, shapes))
    save_tensors(tmp_path / "base.safetensors", base_for(rng, shapes, np.float32))
    arguments = (tmp_path / "base.safetensors", tmp_path / "a")
    merge_adapter(*arguments, tmp_path / "first.safetensors")  # what is imported and cached
    tracemalloc.start()
    merge_adapter(*arguments, tmp_path / "m.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 4 * 200 * 200 / 3  # a third of the checkpoint; float64 takes some of one


def test_a_prefix_that_the_checkpoint_has_not_is_left_off_if_all_have_it(tmp_path, rng):
    shapes = {f"transformer.{name}": shape for name, shape in SHAPES.items()}
    write_adapter(tmp_path / "a", modules_of(rng, shapes))
    save_tensors(tmp_path / "base.safetensors", base_for(rng, SHAPES, np.float32))
    merged = merge_adapter(
        tmp_path / "base.safetensors", tmp_path / "a", tmp_path / "m.safetensors"
    )
    assert {m.name for m in merged} == {f"{name}.weight" for name in SHAPES}


def test_prefixes_that_differ_are_not_left_off(tmp_path, rng):
    write_adapter(tmp_path / "a", modules_of(rng, {"x.q": (4, 1, 3, 1.0), "y.k": (4, 1, 3, 1.0)}))
    W0 = {"q.weight": np.ones((4, 3)), "k.weight": np.ones((4, 3))}
    save_tensors(tmp_path / "base.safetensors", W0)
    with pytest.raises(CheckpointError, match=r"adapts: x\.q, y\.k; it holds k\.weight"):
        merge_adapter(tmp_path / "base.safetensors", tmp_path / "a", tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "kind, said, square", [("gpt2", False, True), (None, True, True), ("gpt2", True, False)]
)
def test_a_gpt2s_weights_are_merged_as_they_lie(tmp_path, rng, kind, said, square):
    """The base's config decides; without one, what the adapter's says."""
    name = "h.0.attn.c_proj"
    out, in_ = (6, 6) if square else (9, 6)
    write_adapter(tmp_path / "a", modules_of(rng, {name: (out, 2, in_, 1.0)}), fan_in_fan_out=said)
    W0 = rng.standard_normal((in_, out))
    save_tensors(tmp_path / "model.safetensors", {f"{name}.weight": W0})
    if kind:
        save_json(tmp_path / "config.json", {"model_type": kind})
    merge_adapter(tmp_path, tmp_path / "a", tmp_path / "m.safetensors")
    with TensorFile(tmp_path / "m.safetensors") as file:
        found = file.read(f"{name}.weight", np.float64)
    np.testing.assert_allclose(found, W0 + deltas(tmp_path / "a")[0][name].T, rtol=1e-13)


def test_modules_that_the_checkpoint_lacks_are_named_and_nothing_is_written(tmp_path, rng, adapter):
    W0 = base_for(rng, SHAPES, np.float32)
    del W0["model.layers.1.q_proj.weight"]
    save_tensors(tmp_path / "base.safetensors", W0)
    before = files_in(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"does not have modules that .* adapts: model\.layers\.1\.q_proj$"
    ):
        merge_adapter(tmp_path / "base.safetensors", adapter, tmp_path / "m.safetensors")
    W0["model.layers.1.q_proj.weight"] = np.ones((9, 12), np.float32)
    save_tensors(tmp_path / "base.safetensors", W0)
    with pytest.raises(
        CheckpointError, match=r"shape \(9, 12\), but the adapter's has shape \(12, 9\)"
    ):
        merge_adapter(tmp_path / "base.safetensors", adapter, tmp_path / "m.safetensors")
    assert set(files_in(tmp_path)) == set(before)


def test_a_sum_too_large_for_the_type_is_refused_and_an_existing_file_stays(tmp_path):
    big = np.full((2, 1), 300.0)
    write_adapter(tmp_path / "a", [("q", big, big.T, 1.0)])
    save_tensors(tmp_path / "base.safetensors", {"q.weight": np.ones((2, 2), np.float16)})
    arguments = (tmp_path / "base.safetensors", tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"'q\.weight' is not finite in float16"):
        merge_adapter(*arguments, tmp_path / "m.safetensors")
    assert {p.name for p in tmp_path.iterdir()} == {"a", "base.safetensors"}
    with pytest.raises(CheckpointError, match="exists already"):
        merge_adapter(*arguments, tmp_path / "base.safetensors")


def test_the_header_of_a_merged_file_is_padded_and_its_numbers_are_aligned(tmp_path, rng, adapter):
    parts = {
        "1.safetensors": {"odd": np.ones(3, np.float16)},
        "2.safetensors": {"wide": np.ones(3)},
    }
    parts["2.safetensors"] |= base_for(rng, SHAPES, np.float32)
    for file, held in parts.items():
        save_tensors(tmp_path / file, held)
    places = {name: file for file, held in parts.items() for name in held}
    save_json(tmp_path / "model.safetensors.index.json", {"weight_map": places})
    merge_adapter(tmp_path, adapter, tmp_path / "m.safetensors")
    raw = (tmp_path / "m.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    width = {"F64": 8, "F32": 4, "F16": 2}
    assert length % 8 == 0
    assert all(e["data_offsets"][0] % width[e["dtype"]] == 0 for e in header.values())


# ----------------------------------------------------------------------------------------- combine

OTHER = {
    "model.layers.0.q_proj": (12, 5, 9, 2.0),
    "model.layers.0.up_proj": (20, 4, 9, 0.25),
    "model.layers.1.q_proj": (12, 1, 9, 1.0),
}


@pytest.fixture
def two(tmp_path, rng, adapter):
    modules = modules_of(rng, OTHER)
    write_adapter(tmp_path / "b", modules, base_model="mine", lora_dropout=0.1)
    return [adapter, tmp_path / "b"]


def weighted_sum(paths, weights):
    found = {}
    for path, weight in zip(paths, weights):
        for name, dense in deltas(path)[0].items():
            found[name] = found.get(name, 0) + weight * dense
    return found


@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.5, -0.3)], ids=str)
def test_cat_is_the_weighted_sum_with_the_sum_of_ranks(tmp_path, two, weights):
    fits = combine_adapters(two, weights, tmp_path / "c")
    after, ranks = deltas(tmp_path / "c")
    for name, expected in weighted_sum(two, weights).items():
        assert norm(after[name] - expected) < SINGLE * norm(expected)
        assert ranks[name] == SHAPES[name][1] + OTHER[name][1]
    assert all(f.missed == 0 and f.written < SINGLE * f.norm for f in fits)
    with open_adapter(tmp_path / "c") as c:
        assert (c.base_model, c.fan_in_fan_out, c.lora_dropout) == ("mine", False, 0.1)


def test_adapters_of_float64_are_combined_exactly(tmp_path, rng):
    for name in "ab":
        write_adapter(tmp_path / name, modules_of(rng, SHAPES, np.float64), dtype="float64")
    paths = [tmp_path / "a", tmp_path / "b"]
    combine_adapters(paths, (0.7, 0.3), tmp_path / "c")
    after, _ = deltas(tmp_path / "c")
    for name, expected in weighted_sum(paths, (0.7, 0.3)).items():
        assert norm(after[name] - expected) < EXACT * norm(expected)


def test_svd_is_the_best_of_its_rank_and_its_error_is_told(tmp_path, two):
    weights = (0.8, -0.4)
    fits = combine_adapters(two, weights, tmp_path / "c", "svd", rank=3)
    after, ranks = deltas(tmp_path / "c")
    expected = weighted_sum(two, weights)
    for fit in fits:
        U, sigma, Vt = np.linalg.svd(expected[fit.name])
        best = (U[:, : fit.r] * sigma[: fit.r]) @ Vt[: fit.r]
        assert fit.r == ranks[fit.name] == min(3, fit.before)
        assert norm(after[fit.name] - best) < SINGLE * fit.norm
        assert abs(fit.missed - norm(sigma[fit.r :])) < EXACT * fit.norm
        assert abs(fit.written - norm(after[fit.name] - expected[fit.name])) < EXACT * fit.norm


def test_linear_sums_the_factors_and_tells_the_cross_terms(tmp_path, two):
    weights = (0.5, -0.7)
    fits = combine_adapters(two, weights, tmp_path / "c", "linear")
    after, ranks = deltas(tmp_path / "c")
    true = weighted_sum(two, weights)
    with open_adapter(two[0]) as x, open_adapter(two[1]) as y:
        for fit in fits:
            (B1, A1), (B2, A2) = (wide(f.modules[fit.name].factors()) for f in (x, y))
            s1, s2 = 0.5 * x.modules[fit.name].scale, 0.7 * y.modules[fit.name].scale
            cross = np.sqrt(s1 * s2) * (B2 @ A1 - B1 @ A2)
            assert fit.missed == pytest.approx(norm(cross), rel=1e-9)
            assert norm(after[fit.name] - true[fit.name] - cross) < SINGLE * norm(cross)
            assert ranks[fit.name] == SHAPES[fit.name][1]
    assert total_errors(fits)[0] > 0.1


def test_linear_makes_two_equal_halves_twice_what_they_should_be(tmp_path, adapter):
    fits = combine_adapters([adapter, adapter], (0.5, 0.5), tmp_path / "c", "linear")
    before, after = deltas(adapter)[0], deltas(tmp_path / "c")[0]
    assert all(norm(after[n] - 2 * before[n]) < SINGLE * norm(before[n]) for n in before)
    assert total_errors(fits)[0] == pytest.approx(1)


def test_a_module_of_one_adapter_alone_is_weighted_and_linear_refuses_it(tmp_path, rng, adapter):
    shapes = {"new": (3, 2, 4, 1.0), "model.layers.0.q_proj": (12, 2, 9, 1.0)}
    write_adapter(tmp_path / "b", modules_of(rng, shapes))
    paths = [adapter, tmp_path / "b"]
    for method, rank in (("cat", None), ("svd", 9)):
        combine_adapters(paths, (0.5, 2.0), tmp_path / method, method, rank)
        after, _ = deltas(tmp_path / method)
        for name, expected in weighted_sum(paths, (0.5, 2.0)).items():
            assert norm(after[name] - expected) < SINGLE * norm(expected)
        with open_adapter(tmp_path / method) as c:
            assert c.base_model is None and c.lora_dropout == 0
    with pytest.raises(ValueError, match="linear needs"):
        combine_adapters(paths, (0.5, 2.0), tmp_path / "linear", "linear")
    assert not (tmp_path / "linear").exists()


def test_adapters_that_do_not_fit_together_are_refused(tmp_path, rng, adapter):
    def other(name, shape, **options):
        write_adapter(tmp_path / name, modules_of(rng, {"model.layers.0.q_proj": shape}), **options)
        return [adapter, tmp_path / name]

    cases = [
        (other("shape", (12, 5, 8, 1.0)), "cat", r"is \(12, 9\) in .*\(12, 8\)"),
        (other("layout", (12, 5, 9, 1.0), fan_in_fan_out=True), "cat", "differ in fan_in_fan_out"),
        (other("rank", (12, 4, 9, 1.0)), "linear", "linear needs equal ranks"),
        (other("less", (12, 5, 9, 1.0)), "linear", "has no '.*': linear needs"),
    ]
    for paths, method, message in cases:
        with pytest.raises(ValueError, match=message):
            combine_adapters(paths, (1.0, 1.0), tmp_path / "c", method)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    "first, second, kept",
    [("mine", "mine/", "mine"), ("mine/", "mine", "mine"), (None, "mine", None)],
)
def test_adapters_of_one_base_are_combined(tmp_path, rng, first, second, kept):
    for name, base in (("a", first), ("b", second)):
        write_adapter(tmp_path / name, modules_of(rng, SHAPES), base_model=base)
    combine_adapters([tmp_path / "a", tmp_path / "b"], [1, 1], tmp_path / "c")
    with open_adapter(tmp_path / "c") as c:
        assert c.base_model == kept


def test_adapters_of_two_bases_are_refused_and_both_are_named(tmp_path, rng):
    for name, base in (("a", "gpt2"), ("b", None), ("c", "gpt2-medium")):
        write_adapter(tmp_path / name, modules_of(rng, SHAPES), base_model=base)
    paths = [tmp_path / name for name in "abc"]
    with pytest.raises(ValueError, match=r"a adapts 'gpt2', .*c adapts 'gpt2-medium'"):
        combine_adapters(paths, [1, 1, 1], tmp_path / "d")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("method, rank", [("cat", None), ("svd", 2), ("linear", None)])
@pytest.mark.parametrize("weights", [(0.7, -0.7), (1 / 3, 1 / 3, -2 / 3)], ids=str)
def test_a_sum_that_cancels_has_norm_and_error_0(tmp_path, adapter, method, rank, weights):
    if method == "linear" and len(weights) == 3:
        weights = (2.0, -2.0)  # of three, the cross terms do not cancel
    fits = combine_adapters([adapter] * len(weights), weights, tmp_path / "c", method, rank)
    size = max(norm(x) for x in deltas(adapter)[0].values())
    assert {(fit.norm, fit.missed) for fit in fits} == {(0.0, 0.0)}
    found = deltas(tmp_path / "c")[0]
    for fit in fits:  # three weights rounded to float32 may leave something, which is then told
        assert abs(fit.written - norm(found[fit.name])) < EXACT * size
        assert fit.written < SINGLE * size
    assert total_errors(fits) == (0.0, 0.0) or str(fit_table(fits)).count("inf") >= 2


def test_what_is_written_in_place_of_a_zero_is_told(tmp_path, rng):
    """B A - B' A' = 0 in other factors: linear's cross terms are all that is left."""
    (B, A) = factors(rng, 6, 2, 5)
    write_adapter(tmp_path / "a", [("q", B, A, 1.0)])
    write_adapter(tmp_path / "b", [("q", 2 * B, A / 2, 1.0)])
    paths = [tmp_path / "a", tmp_path / "b"]
    fits = combine_adapters(paths, [1, -1], tmp_path / "c", "linear")
    left = norm(deltas(tmp_path / "c")[0]["q"])
    assert fits[0].norm == 0 and fits[0].written == pytest.approx(left) and left > 1
    assert str(fit_table(fits)).splitlines() == [
        "module  shape       r  norm  error  as written",
        "q       6 x 5  4 -> 2     0    inf         inf",
        "all                       0    inf         inf",
        f"the sum is zero in q; the factors have norm {left:.2e}",
    ]


# ------------------------------------------------------- what an adapter's or a base's files tell


QUANTISED = {  # tensors of the layer q, the config's method, what is told
    "4-bit": (
        {"weight": (18, 1), "weight.quant_state.bitsandbytes__nf4": (9,)},
        "bitsandbytes",
        "nf4'",
    ),
    "8-bit": ({"weight": (6, 6), "SCB": (6,)}, None, "q.SCB'"),
    "gptq": ({"qweight": (1, 6), "qzeros": (1, 1)}, "gptq", "q.qweight'"),
    "by the config": ({"weight": (6, 6)}, "hqq", "quantised, by hqq: it holds 'q.weight'"),
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_quantised_base_is_named_as_the_cause(tmp_path, rng, kind):
    shapes, method, words = QUANTISED[kind]
    (tmp_path / "base").mkdir()
    tensors = {f"q.{name}": np.ones(shape, np.uint8) for name, shape in shapes.items()}
    save_any(tmp_path / "base" / "model.safetensors", {**tensors, "norm.weight": np.ones(6)})
    config = {"quantization_config": {"quant_method": method}} if method else {}
    save_json(tmp_path / "base" / "config.json", config)
    write_adapter(tmp_path / "a", modules_of(rng, {"q": (6, 2, 6, 1.0)}))
    save_tensors(
        tmp_path / "t.safetensors", {"q.weight": np.ones((6, 6)), "norm.weight": np.ones(6)}
    )
    for work in (
        lambda: merge_adapter(tmp_path / "base", tmp_path / "a", tmp_path / "m.safetensors"),
        lambda: extract_adapter(
            tmp_path / "base", tmp_path / "t.safetensors", tmp_path / "x", Keep(rank=1)
        ),
        lambda: analyse_checkpoints(tmp_path / "base", tmp_path / "t.safetensors"),
    ):
        with pytest.raises(CheckpointError, match="quantised") as error:
            work()
        assert words in str(error.value) and "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "a", "t.safetensors"}


def test_a_base_that_is_quantised_elsewhere_takes_an_adapter_of_its_floats(tmp_path, rng):
    tensors = {"head.weight": np.ones((6, 5)), "q.weight": np.ones((18, 1), np.uint8)}
    save_any(tmp_path / "b.safetensors", {**tensors, "q.weight.absmax": np.ones(2, np.float32)})
    write_adapter(tmp_path / "a", modules_of(rng, {"head": (6, 2, 5, 1.0)}))
    merge_adapter(tmp_path / "b.safetensors", tmp_path / "a", tmp_path / "m.safetensors")
    with TensorFile(tmp_path / "m.safetensors") as file:
        found = file.read("head.weight", np.float64)
    np.testing.assert_allclose(found, 1 + deltas(tmp_path / "a")[0]["head"], rtol=1e-12)


@pytest.mark.parametrize("tie", [True, None, False])
def test_a_tied_head_is_named_as_the_cause(tmp_path, rng, tie):
    (tmp_path / "base").mkdir()
    tensors = {"model.embed_tokens.weight": np.ones((9, 6)), "model.q.weight": np.ones((6, 6))}
    save_tensors(tmp_path / "base" / "model.safetensors", tensors)
    if tie is not None:
        save_json(tmp_path / "base" / "config.json", {"tie_word_embeddings": tie})
    shapes = {"model.q": (6, 2, 6, 1.0), "lm_head": (9, 2, 6, 1.0)}
    write_adapter(tmp_path / "a", modules_of(rng, shapes))
    with pytest.raises(
        CheckpointError, match=r"does not have modules that .*a adapts: lm_head"
    ) as error:
        merge_adapter(tmp_path / "base", tmp_path / "a", tmp_path / "m.safetensors")
    assert ("the head is tied to the embedding" in str(error.value)) is (tie is not False)


# -------------------------------------------------------------------------------- the command line


def test_the_commands_print_what_they_did(tmp_path, two, checkpoints, rng, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tensors("plain.safetensors", base_for(rng, SHAPES, np.float16))
    write_adapter("plain", modules_of(rng, SHAPES))
    lines = {
        "resize a --rank 2 --out s": "5 -> 2",
        "extract --base base --tuned tuned --energy 0.9 --out e": "embed_tokens.weight",
        "merge --base plain.safetensors --adapter plain --out m.safetensors": "rounding / norm",
        "combine a b --weights 0.5 -0.5 --out c": "10 -> 10",
        "combine a b --weights 0.5 0.5 --method svd --rank 2 --out d": "10 -> 2",
        "combine a b --weights 0.5 0.5 --method linear --out l": "10 -> 5",
        "combine a b --weights 1.5 -5e-1 --out n": "10 -> 10",
        "combine a b --out o --weights -5.E-1 -.5": "10 -> 10",
    }
    for line, words in lines.items():
        status, said, error = command(*line.split())
        assert status == 0 and words in said, error
        assert f"written to {line.split('--out ')[1].split()[0]}" in said


MISTAKES = {
    "resize none --rank 2 --out s": "none does not exist",
    "resize a --rank 0 --out s": "expected at least 1",
    "resize a --energy 1.5 --out s": "expected more than 0",
    "resize a --rank 2 --out b": "already exists",
    "resize nan --rank 1 --out s": "not finite",
    "extract --base base --tuned none --rank 1 --out s": "does not exist",
    "extract --base base --tuned base --rank 1 --out s": "differ in no matrix",
    "merge --base base --adapter a --out m.safetensors": "does not have modules that a adapts",
    "combine a --weights 1 --out s": "at least two",
    "combine a b --weights 1 --out s": "give one for each",
    "combine a b --weights 1 0 --out s": "weight 0",
    "combine a b --weights 1 nan --out s": "weight nan",
    "combine a b --weights 1 -inf --out s": "weight -inf",
    "resize a --error -1e-3 --out s": "error -0.001: expected at least 0",
    "resize a --energy -5e-1 --out s": "energy -0.5: expected more than 0",
    "combine a b --weights 1 1 --method svd --out s": "svd needs a rank",
    "combine a b --weights 1 1 --rank 2 --out s": "takes no rank",
    "combine a kohya.safetensors --weights 1 1 --out s": "kohya",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(
    tmp_path, two, checkpoints, rng, command, monkeypatch, line
):
    monkeypatch.chdir(tmp_path)
    B, A = factors(rng, 4, 2, 3)
    save_tensors("kohya.safetensors", {"x.lora_up.weight": B, "x.lora_down.weight": A})
    tampered(tmp_path / "nan", rng, tensors={"h.0.q.lora_A.weight": np.full((2, 5), np.nan)})
    before = files_in(tmp_path)
    status, said, error = command(*line.split())
    assert (status, said, error.count("\n")) == (2, "", 1) and MISTAKES[line] in error
    assert files_in(tmp_path) == before and {p.name for p in tmp_path.iterdir()} == {
        "a", "b", "base", "tuned", "nan", "kohya.safetensors"
    }  # fmt: skip


def test_where_nothing_tells_the_scale_nothing_is_made_of_it(tmp_path, two, checkpoints):
    alone = tmp_path / "alone.safetensors"
    shutil.copy(tmp_path / "a" / "adapter_model.safetensors", alone)
    for make in (
        lambda: resize_adapter(alone, tmp_path / "s", Keep(rank=1)),
        lambda: merge_adapter(tmp_path / "base", alone, tmp_path / "m.safetensors"),
        lambda: combine_adapters([tmp_path / "a", alone], [1, 1], tmp_path / "c"),
    ):
        with pytest.raises(CheckpointError, match=r"no adapter_config\.json .* give PEFT's folder"):
            make()
    assert not {"s", "m.safetensors", "c"} & {path.name for path in tmp_path.iterdir()}
    notes = analyse_adapter(alone).notes()
    assert any("norms are given at scale 1" in note for note in notes)
    assert analyse_adapter(tmp_path / "a").notes() == []


def test_a_convolution_is_not_written_in_pefts_form(tmp_path, rng):
    write_adapter(tmp_path / "a", [("conv", *factors(rng, 8, 2, 27), 1.0)])
    up, down = rng.standard_normal((8, 2, 1, 1)), rng.standard_normal((2, 3, 3, 3))
    names = [f"base_model.model.conv.lora_{half}.weight" for half in "BA"]
    save_tensors(tmp_path / "a" / "adapter_model.safetensors", dict(zip(names, (up, down))))
    for make in (
        lambda: resize_adapter(tmp_path / "a", tmp_path / "s", Keep(rank=9)),
        lambda: combine_adapters([tmp_path / "a"] * 2, [1, 1], tmp_path / "s"),
    ):
        with pytest.raises(CheckpointError, match="'conv', a convolution"):
            make()
    assert not (tmp_path / "s").exists()


def test_the_class_of_the_base_stays_in_the_config(tmp_path, two):
    path = tmp_path / "a" / "adapter_config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "task_type": "CAUSAL_LM", "revision": "v2"}))
    resize_adapter(tmp_path / "a", tmp_path / "s", Keep(rank=1))
    kept = json.loads((tmp_path / "s" / "adapter_config.json").read_text())
    assert (kept["task_type"], kept["revision"]) == ("CAUSAL_LM", "v2")


def test_numbers_that_leave_the_range_are_an_error_that_names_the_module(tmp_path, rng):
    huge = [("big", np.full((3, 2), 1e200), np.full((2, 4), 1e200), 1.0)]
    write_adapter(tmp_path / "a", huge, dtype="float64")
    with pytest.raises(CheckpointError, match="'big': the singular values leave"):
        resize_adapter(tmp_path / "a", tmp_path / "s", Keep(rank=1))


def test_a_square_weight_of_unknown_layout_is_not_merged(tmp_path, rng):
    write_adapter(tmp_path / "a", [("q", *factors(rng, 4, 2, 4), 1.0)], fan_in_fan_out=True)
    (tmp_path / "base").mkdir()
    save_tensors(tmp_path / "base" / "model.safetensors", {"q.weight": rng.standard_normal((4, 4))})
    config, out = tmp_path / "base" / "config.json", tmp_path / "m.safetensors"
    config.write_text('{"model_type": "imagegpt"}')
    with pytest.raises(CheckpointError, match="unknown for the model type imagegpt"):
        merge_adapter(tmp_path / "base", tmp_path / "a", out)
    assert not out.exists()
    config.write_text('{"model_type": "openai-gpt"}')
    merge_adapter(tmp_path / "base", tmp_path / "a", tmp_path / "deep" / "m.safetensors")
    assert (tmp_path / "deep" / "m.safetensors").exists()


def test_tensors_of_other_types_are_named_and_not_left_out_in_silence(tmp_path, rng):
    for name, step in (("base", 0.0), ("tuned", 1.0)):
        tensors = {"a.weight": np.full(4, step).reshape(2, 2), "q.weight": np.eye(2, dtype=np.int8)}
        safetensors.numpy.save_file(tensors, tmp_path / f"{name}.safetensors")
    analysis = analyse_checkpoints(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    assert analysis.unmatched == ["q.weight: of types I8 and I8, not floats"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_kohyas_adapter_is_resized_in_its_own_form(tmp_path, rng, dtype):
    shapes = {"up": (8, 4, 1, 1), "down": (4, 3, 3, 2)}
    kernels = {n: rng.standard_normal(s).astype(dtype) for n, s in shapes.items()}
    B, A = (x.astype(dtype) for x in factors(rng, 6, 5, 7))
    tensors = {f"unet_conv.lora_{half}.weight": x for half, x in kernels.items()}
    tensors |= {"unet_conv.alpha": np.array(-6)}  # an integer, as some tools write it
    tensors |= {"unet_q.lora_up.weight": B, "unet_q.lora_down.weight": A}  # alpha = r
    safetensors.numpy.save_file(tensors, tmp_path / "style.safetensors", {"ss_v2": "True"})
    fits = resize_adapter(tmp_path / "style.safetensors", tmp_path / "small", Keep(rank=2))
    small = tmp_path / "small" / "style.safetensors"
    assert [p.name for p in (tmp_path / "small").iterdir()] == ["style.safetensors"]
    with TensorFile(small) as file:
        assert file.shape("unet_conv.lora_down.weight") == (2, 3, 3, 2)
        assert file.shape("unet_conv.lora_up.weight") == (8, 2, 1, 1)
        assert file.dtype("unet_q.lora_up.weight") == np.dtype(dtype).name
        assert file.dtype("unet_conv.alpha") == np.dtype(dtype).name
        assert file.metadata == {"ss_v2": "True"}
    with open_adapter(tmp_path / "style.safetensors") as old, open_adapter(small) as new:
        assert new.naming == "kohya" and list(new.modules) == list(old.modules)
        for fit in fits:
            before, after = old.modules[fit.name], new.modules[fit.name]
            assert (after.r, after.shape, after.scale) == (2, before.shape, before.scale)
            changes = [m.scale * np.matmul(*(x.astype(float) for x in m.factors()))
                       for m in (before, after)]  # fmt: skip
            error = np.linalg.norm(changes[1] - changes[0])
            assert error == pytest.approx(fit.written, rel=1e-9) and error > 0.01


@pytest.mark.parametrize("options", ["", "--rank 1 --energy 0.5"])
def test_no_rule_or_two_are_a_mistake_of_the_command(command, options, capsys):
    with pytest.raises(SystemExit) as stop:
        command(*f"resize a {options} --out s".split())
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
