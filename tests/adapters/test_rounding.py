"""What of the difference of two files is rounding: its size, its edge, and the answers above it."""

import json

import numpy as np
import pytest

from lora_np.adapters import Keep, extract_adapter, open_adapter, weights
from lora_np.adapters.analyse import analyse_checkpoints
from lora_np.adapters.rounding import cell_width, is_rounded_copy, rounding_noise
from lora_np.files import float_dtype, save_tensors
from lora_np.rank import marchenko_pastur_edge, spectrum, uneven_noise_edge

SHAPES = {"layers.0.q": (48, 40), "layers.0.up": (64, 40), "layers.1.q": (48, 40)}
TRAINED = "layers.0.q", "layers.1.q"  # the others only pass through the tuned file's type
NARROW = ["bfloat16", "float16"]
FRACTIONS = (0.90, 0.95, 0.99)


def cast(x, dtype):
    """Numbers of a type, held in float64."""
    return x.astype(float_dtype(dtype)).astype(np.float64)


def planted(rng, out, in_, k=4, size=1.0):
    """A change of rank k, whose singular values fall by halves."""
    U, V = (np.linalg.qr(rng.standard_normal((n, k)))[0] for n in (out, in_))
    return (U * (size * 0.5 ** np.arange(k))) @ V.T


@pytest.fixture
def pair(tmp_path):
    """Write two checkpoints, each in its type, and return their paths."""

    def write(W0, W, base="float32", tuned="bfloat16"):
        for file, arrays, dtype in (("base", W0, base), ("tuned", W, tuned)):
            held = {
                name + ("" if x.ndim == 1 else ".weight"): x.astype(float_dtype(dtype))
                for name, x in arrays.items()
            }
            save_tensors(tmp_path / f"{file}.safetensors", held)
        return tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"

    return write


@pytest.fixture
def start(rng):
    """Weights in float32."""
    return {n: cast(0.05 * rng.standard_normal(s), "float32") for n, s in SHAPES.items()}


def tuned_from(W0, rng, size=1.0):
    return {n: x + planted(rng, *x.shape, size=size) if n in TRAINED else x for n, x in W0.items()}


# ---------------------------------------------------------------------------------- cells and noise


@pytest.mark.parametrize("dtype", NARROW)
def test_a_cell_is_half_the_gap_to_either_neighbour_for_every_number_of_the_type(dtype):
    infinity = np.array(np.inf, float_dtype(dtype)).view(np.uint16)
    positive = np.arange(infinity, dtype=np.uint16).view(float_dtype(dtype)).astype(np.float64)
    numbers = np.concatenate([-positive[:0:-1], positive])  # all that are finite, ascending
    gaps = np.diff(numbers)
    expected = (gaps[:-1] + gaps[1:]) / 2
    np.testing.assert_array_equal(cell_width(numbers[1:-1], dtype), expected)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_cells_of_wide_types_are_numpys_spacing(rng, dtype):
    x = cast(rng.standard_normal(1000) * 10.0 ** rng.integers(-30, 30, 1000), dtype)
    np.testing.assert_array_equal(cell_width(x, dtype), np.spacing(np.abs(x).astype(dtype)))


@pytest.mark.parametrize("dtype", NARROW)
def test_the_noise_is_as_large_as_rounding_is(rng, dtype):
    W0 = cast(rng.standard_normal((300, 300)), "float32")
    change = rng.standard_normal(W0.shape)
    once = cast(W0 + change, dtype)
    base = cast(W0, dtype)
    cases = [  # (W0, W, error, relative size of the answer)
        (base, cast(base + change, dtype), 1.0),  # base on the tuned type's grid: one rounding
        (W0, cast(base + change, dtype), 1.0),  # training began from the rounded base: two
    ]
    for W0_file, W, ratio in cases:
        error = (W - W0_file) - change
        noise = rounding_noise(W0_file, W, ("float32", dtype))
        assert np.sqrt(np.mean(error**2) / np.mean(noise**2)) == pytest.approx(ratio, rel=0.02)
    error = once - W0 - change  # began from W0 itself: the start's rounding is allowed for
    noise = rounding_noise(W0, once, ("float32", dtype))
    assert np.mean(error**2) < np.mean(noise**2) < 2 * np.mean(error**2)


def test_where_an_entry_is_equal_in_both_there_is_no_noise(rng):
    W0 = cast(rng.standard_normal((20, 20)), "bfloat16")
    W = W0.copy()
    W[:5] = cast(W0[:5] + 0.3, "bfloat16")
    noise = rounding_noise(W0, W, ("bfloat16", "bfloat16"))
    np.testing.assert_array_equal(noise > 0, W != W0)


def test_even_noise_has_the_edge_of_marchenko_and_pastur():
    for shape in ((30, 70), (1, 5), (9, 9)):
        edge = marchenko_pastur_edge(0.2, shape)
        assert uneven_noise_edge(np.full(shape, 0.2)) == pytest.approx(edge)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("shape", [(4, 4), (8, 40), (64, 64), (200, 30)], ids=str)
@pytest.mark.parametrize("kind", ["normal", "one binade", "heavy tails", "uneven rows"])
def test_no_direction_of_rounding_stands_above_the_edge(rng, dtype, shape, kind):
    for _ in range(20):
        W0 = rng.standard_normal(shape)
        if kind == "one binade":
            W0 = 1 + rng.random(shape)
        elif kind == "heavy tails":
            W0 = rng.standard_t(2, shape)
        elif kind == "uneven rows":
            W0 *= 10.0 ** -np.arange(shape[0])[:, None].clip(max=3)
        W0 = cast(W0, "float32")
        W = cast(W0, dtype)
        edge = uneven_noise_edge(rounding_noise(W0, W, ("float32", dtype)))
        assert np.linalg.norm(W - W0, 2) < edge


def test_the_edge_is_no_more_than_twice_what_rounding_reaches(rng):
    W0 = cast(rng.standard_normal((200, 150)), "float32")
    W = cast(W0, "bfloat16")
    edge = uneven_noise_edge(rounding_noise(W0, W, ("float32", "bfloat16")))
    assert np.linalg.norm(W - W0, 2) > 0.5 * edge


@pytest.mark.parametrize("dtype", [*NARROW, "float32"])
def test_a_change_between_files_of_one_type_is_never_only_rounding(rng, dtype):
    """However few entries differ, by the least step, up or down, and at powers of two."""
    for _ in range(200):
        shape = tuple(rng.integers(1, 12, 2))
        W0 = rng.standard_normal(shape) * 10.0 ** rng.integers(-12, 3)
        W0 = np.where(rng.random(shape) < 0.5, 2.0 ** rng.integers(-30, 3, shape), W0)
        W0 = cast(W0, dtype).astype(float_dtype(dtype))
        towards = np.array(np.inf if rng.random() < 0.5 else 0, W0.dtype)
        moved = rng.random(shape) < rng.choice([0.05, 0.5, 1.0])
        W = np.where(moved, np.nextafter(W0, towards), W0).astype(np.float64)
        W0 = W0.astype(np.float64)
        if (W != W0).any():
            edge = uneven_noise_edge(rounding_noise(W0, W, (dtype, dtype)))
            assert np.linalg.norm(W - W0, 2) > 1.1 * edge


def test_a_rounded_copy_is_told_from_training_that_moved_little(rng):
    fine = cast(0.05 * rng.standard_normal((60, 50)), "float32")
    W0 = cast(fine, "bfloat16")
    assert is_rounded_copy(W0, fine, "bfloat16")
    for change in (0.2 * cell_width(W0, "bfloat16"), 1e-5 * np.ones(W0.shape), 0.0 * W0):
        assert not is_rounded_copy(W0, cast(W0 + change, "float32"), "bfloat16")
    assert not is_rounded_copy(W0[:4], fine[:4], "bfloat16")  # too few to tell


# ------------------------------------------------------------------------------- answers above it


@pytest.mark.parametrize("tuned", NARROW)
@pytest.mark.parametrize("large", [False, True], ids=["dense", "randomised"])
def test_modules_that_only_pass_through_a_narrow_type_do_not_set_the_rank(
    pair, start, rng, tuned, large, monkeypatch, tmp_path
):
    if large:
        monkeypatch.setattr(weights, "DENSE_WORK", 0)
        monkeypatch.setattr("lora_np.adapters.ranks.LEADING", 8)
        monkeypatch.setattr("lora_np.adapters.extract.FIRST", 2)
    files = pair(start, tuned_from(start, rng), tuned=tuned)
    found = analyse_checkpoints(*files)
    assert found.only_rounding == ["layers.0.up"]
    assert found.sentence().endswith("q 4, up 0; 4 over all.")
    assert "only rounding: layers.0.up" in found.notes()
    assert found.as_dict()["only_rounding"] == ["layers.0.up"]
    extracted = extract_adapter(*files, tmp_path / "a", Keep(energy=0.999))
    assert extracted.rounding == ["layers.0.up"]
    with open_adapter(tmp_path / "a") as adapter:
        assert {name: m.r for name, m in adapter.modules.items()} == dict.fromkeys(TRAINED, 4)


def test_energy_is_counted_above_the_rounding_where_rounding_is_much_of_the_change(
    pair, start, rng, tmp_path
):
    """The planted directions hold less than 99 % of the difference, and all that is above it."""
    files = pair(start, tuned_from(start, rng, size=0.015))
    for module in analyse_checkpoints(*files).modules:
        if module.name in TRAINED:
            sigma = module.singular_values
            assert spectrum(np.diag(sigma)).energy_rank(0.99) > 10  # of all energy
            assert module.energy_ranks[0.99] <= 4 and sigma[0] > 2 * module.rounding
    by = {"energy": Keep(energy=0.99), "error": Keep(error=0.1), "rank": Keep(rank=12)}
    ranks = {
        name: [fit.r for fit in extract_adapter(*files, tmp_path / name, keep).fits]
        for name, keep in by.items()
    }
    assert max(ranks["energy"]) <= 4
    assert ranks["rank"] == [12, 12]  # so many were asked for
    assert min(ranks["error"]) > 10  # an error bounds the distance from what the file holds


def test_a_base_that_is_a_narrow_copy_has_its_rounding_in_every_module(pair, start, rng, tmp_path):
    files = pair(start, tuned_from(start, rng, size=0.015), base="bfloat16", tuned="float32")
    found = {m.name: m for m in analyse_checkpoints(*files).modules}
    assert [m.name for m in found.values() if m.only_rounding] == ["layers.0.up"]
    assert all(found[name].energy_ranks[0.99] <= 4 for name in TRAINED)
    assert extract_adapter(*files, tmp_path / "a", Keep(energy=0.9)).rounding == ["layers.0.up"]


@pytest.mark.parametrize("size", [1e-6, 1e-5, 1e-3])
def test_a_model_trained_in_float32_from_a_narrow_base_differs_exactly(pair, start, rng, size):
    """All of it is training's, even where it is smaller than the base's own steps."""
    W0 = {name: cast(x, "bfloat16") for name, x in start.items()}
    W = {name: cast(x + size * rng.standard_normal(x.shape), "float32") for name, x in W0.items()}
    found = analyse_checkpoints(*pair(W0, W, base="bfloat16", tuned="float32"))
    assert found.only_rounding == []
    for module in found.modules:
        whole = spectrum(W[module.name] - W0[module.name])
        assert module.energy_ranks == {f: whole.energy_rank(f) for f in FRACTIONS}


def test_a_spread_change_well_above_rounding_is_kept(pair, start, rng, tmp_path):
    """Ten times the rounding, over all directions, in a narrow type."""
    steps = {name: cell_width(x, "bfloat16") / 12**0.5 for name, x in start.items()}
    W = {name: x + 10 * steps[name] * rng.standard_normal(x.shape) for name, x in start.items()}
    files = pair(start, W)
    found = analyse_checkpoints(*files)
    assert found.only_rounding == []
    for module in found.modules:
        whole = spectrum(np.diag(module.singular_values)).energy_rank(0.99)
        assert 0.8 * whole < module.energy_ranks[0.99] <= whole
    assert not extract_adapter(*files, tmp_path / "a", Keep(energy=0.99)).rounding


def test_where_half_of_the_rows_are_equal_the_edge_is_that_of_the_other_half(pair, start):
    W0 = {"layers.0.q": start["layers.0.q"]}
    half = len(W0["layers.0.q"]) // 2
    W0["layers.0.q"][:half] = cast(W0["layers.0.q"][:half], "bfloat16")  # pass unrounded
    (module,) = analyse_checkpoints(*pair(W0, W0)).modules
    W = cast(W0["layers.0.q"], "bfloat16")
    alone = rounding_noise(W0["layers.0.q"][half:], W[half:], ("float32", "bfloat16"))
    assert module.only_rounding and module.rounding == pytest.approx(uneven_noise_edge(alone))


def test_numbers_too_small_for_the_type_are_rounding_too(pair, start):
    tiny = {name: 1e-7 * x for name, x in start.items()}  # nearly all 0 in float16
    found = analyse_checkpoints(*pair(tiny, tiny, tuned="float16"))
    assert len(found.only_rounding) == len(SHAPES) and "0 over all" in found.sentence()


def test_biases_norms_and_embeddings_that_are_rounded_have_not_changed(pair, start, rng, tmp_path):
    more = {
        "norm": cast(1 + 0.1 * rng.standard_normal(40), "float32"),
        "bias": cast(rng.standard_normal(64), "float32"),
        "embed_tokens": cast(rng.standard_normal((50, 40)), "float32"),
    }
    W0 = {**start, **more}
    W = {**tuned_from(W0, rng), "bias": W0["bias"] + 0.5}
    found = extract_adapter(*pair(W0, W), tmp_path / "a", Keep(energy=0.99))
    assert set(found.rounding) == {"layers.0.up", "norm", "embed_tokens.weight"}
    assert list(found.beyond) == ["bias"]


def test_a_pair_that_differs_by_rounding_alone_gives_no_adapter(pair, start, tmp_path):
    with pytest.raises(ValueError, match="hold by more than rounding, of 3 compared"):
        extract_adapter(*pair(start, start), tmp_path / "a", Keep(rank=2))
    assert not (tmp_path / "a").exists()


def test_between_wide_files_the_energy_ranks_are_those_of_the_whole_difference(pair, start, rng):
    W = {
        name: cast(x + 1e-4 * rng.standard_normal(x.shape), "float32") for name, x in start.items()
    }
    for module in analyse_checkpoints(*pair(start, W, tuned="float32")).modules:
        whole = spectrum(W[module.name] - start[module.name])
        assert module.energy_ranks == {f: whole.energy_rank(f) for f in FRACTIONS}


@pytest.mark.usefixtures("unpainted")
def test_the_commands_name_what_is_only_rounding(pair, start, rng, command, tmp_path):
    base, tuned = pair(start, tuned_from(start, rng))
    status, said, _ = command("analyse", tuned, "--base", base, "--out", tmp_path / "an")
    assert status == 0 and "only rounding: layers.0.up\n" in said
    held = json.loads((tmp_path / "an" / "analysis.json").read_text())
    assert held["only_rounding"] == ["layers.0.up"]
    assert held["rank_for_99_percent"] == {"q": 4, "up": 0}
    options = ("--energy", "0.99", "--out", tmp_path / "ex")
    status, said, _ = command("extract", "--base", base, "--tuned", tuned, *options)
    assert status == 0 and "because they differ only by rounding: layers.0.up\n" in said
