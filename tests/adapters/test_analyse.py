"""analyse: ranks of adapters, of pairs of checkpoints and of sweeps, against dense SVDs."""

import json

import numpy as np
import pytest

from lora_np.adapters import Keep, extract_adapter, open_adapter, weights, write_adapter
from lora_np.adapters.analyse import (
    analyse_adapter,
    analyse_checkpoints,
    check_folder,
)
from lora_np.adapters.kinds import layers_and_kinds
from lora_np.experiments.rank_sweep.analyse import analyse_sweep
from lora_np.files import CheckpointError, save_tensors
from lora_np.rank import intruder_dimensions, spectrum
from tests.compare import PNG
from tests.sample_files import factors, modules_of, tampered

TIGHT = 1e-9  # relative, float64
SHAPES = {
    "model.layers.0.attn.q_proj": (12, 3, 9, 2.0),
    "model.layers.0.mlp.up_proj": (20, 4, 9, 0.5),
    "model.layers.1.attn.q_proj": (12, 1, 9, 2.0),
}


def energy_rank(sigma, fraction):
    """The slow way."""
    total = sum(s * s for s in sigma)
    return next(k for k in range(1, len(sigma) + 1) if sum(sigma[:k] ** 2) >= fraction * total)


# -------------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_every_measure_of_an_adapter_is_that_of_its_dense_products(tmp_path, rng, dtype):
    write_adapter(tmp_path / "a", modules_of(rng, SHAPES), dtype=dtype)
    found = analyse_adapter(tmp_path / "a")
    squares = []
    with open_adapter(tmp_path / "a") as adapter:
        assert {m.name for m in found.modules} == set(adapter.modules)
        for module in found.modules:
            held = adapter.modules[module.name]
            B, A = (x.astype(np.float64) for x in held.factors())
            sigma = np.linalg.svd(held.scale * B @ A, compute_uv=False)[: held.r]
            squares.append(np.sum(sigma**2))
            np.testing.assert_allclose(module.singular_values, sigma, rtol=TIGHT)
            assert module.norm == pytest.approx(np.linalg.norm(sigma), rel=TIGHT)
            assert module.stable_rank == pytest.approx(np.sum(sigma**2) / sigma[0] ** 2, rel=TIGHT)
            q = sigma / sigma.sum()
            assert module.effective_rank == pytest.approx(np.exp(-q @ np.log(q)), rel=TIGHT)
            assert module.energy_ranks == {f: energy_rank(sigma, f) for f in (0.90, 0.95, 0.99)}
            assert (module.r, module.shape) == (held.r, held.shape)
    np.testing.assert_allclose(found.shares, np.array(squares) / sum(squares), rtol=TIGHT)


def test_factors_have_no_noise_floor_and_no_base_so_these_columns_are_absent(tmp_path, rng):
    write_adapter(tmp_path / "a", modules_of(rng, SHAPES))
    found = analyse_adapter(tmp_path / "a")
    assert all(m.bulk_rank is m.hard_threshold_rank is m.intruders is None for m in found.modules)
    assert "G-D" not in found.table().columns and "share" in found.table().columns


def test_the_sentence_has_the_largest_rank_of_each_kind_and_of_all(tmp_path):
    def exact(sigma, out, in_):
        return np.eye(out, len(sigma)) * sigma, np.eye(len(sigma), in_)

    ranks = {"layers.0.q": [1, 1, 1], "layers.1.q": [1, 1], "layers.0.v": [5, 0, 0, 0]}
    modules = [(n, *exact(np.array(s, float), 6, 5), 1.0) for n, s in ranks.items()]
    write_adapter(tmp_path / "a", modules)
    found = analyse_adapter(tmp_path / "a")
    assert found.largest_rank() == {"q": 3, "v": 1}
    assert found.sentence().endswith("q 3, v 1; 3 over all.")


def test_an_adapter_that_changes_nothing_has_rank_and_share_0(tmp_path, rng):
    write_adapter(tmp_path / "a", [("q", np.zeros((4, 2)), rng.standard_normal((2, 3)), 1.0)])
    found = analyse_adapter(tmp_path / "a")
    assert found.shares == [0.0] and found.modules[0].energy_ranks[0.99] == 0
    assert "0 over all" in found.sentence()


def test_shares_of_a_tiny_adapter_do_not_underflow(tmp_path):
    modules = [(n, np.full((2, 1), 1e-170), np.full((1, 2), 1e-3), 1.0) for n in "ab"]
    write_adapter(tmp_path / "a", modules, dtype="float64")
    assert analyse_adapter(tmp_path / "a").shares == [0.5, 0.5]


def test_layers_are_in_the_order_of_their_numbers(tmp_path, rng):
    shapes = {f"layers.{i}.q": (3, 1, 2, 1.0) for i in (10, 2, 1)}
    write_adapter(tmp_path / "a", modules_of(rng, shapes))
    found = analyse_adapter(tmp_path / "a")
    assert [layer for layer, _ in found.places] == ["1", "2", "10"]


def test_one_module_is_in_memory_at_a_time(tmp_path, rng):
    import tracemalloc

    n, r, count = 1000, 16, 16
    shapes = {f"layers.{i}.q": (n, r, n, 1.0) for i in range(count)}
    write_adapter(tmp_path / "a", modules_of(rng, shapes))
    analyse_adapter(tmp_path / "a")  # what is imported and cached
    tracemalloc.start()
    analyse_adapter(tmp_path / "a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    one = 8 * 2 * n * r  # bytes of its factors in float64
    assert peak < 6 * one < 8 * n * n  # neither the adapter (8 modules' worth) nor a dense product


# ------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    "names, expected",
    [
        (["model.layers.3.self_attn.q_proj"], [("3", "q_proj")]),
        (["lora_te_layers_3_self_attn_q_proj"], [("3", "self_attn_q_proj")]),
        (
            ["h.0.attn.c_proj", "h.0.mlp.c_proj"],  # GPT-2: the last name alone says too little
            [("0", "attn.c_proj"), ("0", "mlp.c_proj")],
        ),
        (
            ["encoder.0.attn.q", "decoder.0.attn.q", "head"],
            [("encoder.0", "attn.q"), ("decoder.0", "attn.q"), ("", "head")],
        ),
        (["base.l2norm.w1"], [("", "w1")]),  # digits inside a word are no layer
    ],
)
def test_names_are_parsed_to_layer_and_kind_without_two_in_one_place(names, expected):
    assert layers_and_kinds(names) == expected


# ------------------------------------------------------------------------------------------ pairs


@pytest.fixture
def pair(tmp_path, rng):
    """A base, and a tuned copy: a planted change of rank 2 in noise, a merged one, equal ones."""
    W0 = {
        "layers.0.q.weight": rng.standard_normal((40, 30)),
        "layers.1.q.weight": rng.standard_normal((24, 30)),
        "embed.weight": rng.standard_normal((50, 30)),
        "norm.weight": np.ones(30),
    }
    B, A = factors(rng, 40, 2, 30, np.float64)
    W = dict(W0)
    W["layers.0.q.weight"] = (
        W0["layers.0.q.weight"] + 5 * B @ A + 0.01 * rng.standard_normal((40, 30))
    )
    W["layers.1.q.weight"] = W0["layers.1.q.weight"] + 0.1 * np.eye(24, 30)
    W["norm.weight"] = 2 * W0["norm.weight"]
    W["head.weight"] = np.ones((2, 2))
    save_tensors(tmp_path / "base.safetensors", W0)
    save_tensors(tmp_path / "tuned.safetensors", W)
    return tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", W0, W


def test_a_pair_is_measured_by_its_differences_and_against_its_base(pair):
    base, tuned, W0, W = pair
    found = analyse_checkpoints(base, tuned)
    assert {m.name for m in found.modules} == {"layers.0.q", "layers.1.q"}
    for module in found.modules:
        before, after = W0[f"{module.name}.weight"], W[f"{module.name}.weight"]
        expected = spectrum(after - before)
        np.testing.assert_allclose(
            module.singular_values, np.linalg.svd(after - before, compute_uv=False), atol=1e-12
        )
        assert module.effective_rank == pytest.approx(expected.effective_rank)
        assert module.intruders == intruder_dimensions(before, after).count
    planted = next(m for m in found.modules if m.name == "layers.0.q")
    assert (planted.bulk_rank, planted.hard_threshold_rank, planted.intruders) == (2, 2, 2)
    assert found.unchanged == ["embed.weight"]
    assert found.unmatched == [f"head.weight: only in {tuned}"]


def test_a_large_difference_is_measured_by_a_randomised_svd_and_says_so(pair, monkeypatch):
    base, tuned, W0, W = pair
    monkeypatch.setattr(weights, "DENSE_WORK", 0)
    monkeypatch.setattr("lora_np.adapters.ranks.LEADING", 5)
    name = "layers.0.q"
    delta = W[f"{name}.weight"] - W0[f"{name}.weight"]
    sigma = np.linalg.svd(delta, compute_uv=False)
    found = {m.name: m for m in analyse_checkpoints(base, tuned).modules}
    large = found[name]
    assert len(large.singular_values) == 5
    np.testing.assert_allclose(large.singular_values[:2], sigma[:2], rtol=1e-6)
    assert large.norm == pytest.approx(np.linalg.norm(delta), rel=TIGHT)
    assert large.stable_rank == pytest.approx(np.sum(sigma**2) / sigma[0] ** 2, rel=1e-6)
    assert large.energy_ranks == {f: energy_rank(sigma, f) for f in (0.90, 0.95, 0.99)}
    assert large.missed >= np.linalg.norm(sigma[5:]) / np.linalg.norm(sigma) - TIGHT
    assert large.missed_at_most > sigma[5]
    assert large.effective_rank is large.bulk_rank is large.intruders is None
    spread = found["layers.1.q"]  # 24 equal values: 5 of them hold 21 %
    assert spread.energy_ranks == {0.90: None, 0.95: None, 0.99: None}
    found = analyse_checkpoints(base, tuned)
    assert found.largest_rank() == {"q": None} and ">5 over all" in found.sentence()
    assert "randomised SVD" in found.notes()[0] and ">5" in str(found.table())


def test_a_gpt2s_intruders_are_sought_among_its_outputs(tmp_path, rng):
    """Its weights lie as (in, out): left singular vectors are those of the transpose."""
    W0 = np.diag([5.0, 4, 3, 2, 1, 1, 1, 1])[:, :6]  # (in, out)
    W = W0.copy()
    W[7, 0] += 100.0  # a new input direction, an old output direction
    for name, x in (("base", W0), ("tuned", W)):
        (tmp_path / name).mkdir()
        save_tensors(tmp_path / name / "model.safetensors", {"h.0.attn.c_attn.weight": x})
        (tmp_path / name / "config.json").write_text('{"model_type": "gpt2"}')
    (module,) = analyse_checkpoints(tmp_path / "base", tmp_path / "tuned").modules
    assert (module.shape, module.intruders) == ((6, 8), 0)
    (tmp_path / "base" / "config.json").write_text('{"model_type": "bert"}')
    (module,) = analyse_checkpoints(tmp_path / "base", tmp_path / "tuned").modules
    assert (module.shape, module.intruders) == ((8, 6), 1)


def test_equal_or_unrelated_checkpoints_are_an_error(tmp_path, pair):
    base, *_ = pair
    with pytest.raises(ValueError, match="differ in no matrix"):
        analyse_checkpoints(base, base)
    save_tensors(tmp_path / "other.safetensors", {"x": np.ones(2)})
    with pytest.raises(ValueError, match="no tensor of the same name and shape"):
        analyse_checkpoints(base, tmp_path / "other.safetensors")


def test_where_nothing_can_be_compared_the_error_names_what_is_on_either_side(tmp_path, rng):
    """Not "no change": the two files share a norm, equal in both, and no matrix."""
    W = rng.standard_normal((3, 3))
    base, tuned = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    norm = {"norm.weight": np.ones(3)}
    save_tensors(base, {f"encoder.layers.{i}.q.weight": W for i in range(12)} | norm)
    save_tensors(tuned, {f"layers.{i}.q.weight": W for i in range(12)} | norm)
    for compare in (
        lambda: analyse_checkpoints(base, tuned),
        lambda: extract_adapter(base, tuned, tmp_path / "a", Keep(rank=1)),
    ):
        with pytest.raises(
            ValueError, match=r"have no matrix .*of the same name and shape"
        ) as error:
            compare()
        said = str(error.value)
        assert f"only in {base}: encoder.layers.0.q.weight" in said
        assert f"only in {tuned}: layers.0.q.weight" in said
        assert said.count("and 4 more") == 2 and "\n" not in said
    save_tensors(tuned, {f"layers.{i}.q.weight": W for i in range(12)})
    with pytest.raises(ValueError, match=r"no tensor of the same name .*; only in .* 4 more"):
        analyse_checkpoints(base, tuned)
    save_tensors(tuned, {"encoder.layers.0.q.weight": W, "head.weight": W})
    with pytest.raises(ValueError, match=r"differ in no matrix .* of 1 compared; only in .*: e"):
        analyse_checkpoints(base, tuned)


def test_what_a_partial_comparison_leaves_out_is_in_the_notes(tmp_path, rng):
    W = rng.standard_normal((3, 3))
    base, tuned = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    save_tensors(base, {"q.weight": W, "k.weight": W, "v.weight": W, "o.weight": W[:2]})
    save_tensors(tuned, {"q.weight": 2 * W, "encoder.k.weight": W, "o.weight": W})
    notes = analyse_checkpoints(base, tuned).notes()
    assert f"not compared, only in {base}: k.weight, v.weight" in notes
    assert f"not compared, only in {tuned}: encoder.k.weight" in notes
    assert "not compared, of shapes (2, 3) and (3, 3): o.weight" in notes


def test_intruders_are_counted_of_as_many_directions_as_a_matrix_has(tmp_path, rng):
    shapes = {"small.weight": (4, 6), "large.weight": (20, 30)}
    W0 = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    base, tuned = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    save_tensors(base, W0)
    save_tensors(tuned, {name: x + 0.01 * rng.standard_normal(x.shape) for name, x in W0.items()})
    found = analyse_checkpoints(base, tuned)
    looked = {module.name: module.intruders_of for module in found.modules}
    assert looked == {"small": 4, "large": 10}
    large, small = found.table().text().splitlines()[1:3]
    assert small.endswith(" of 4") and large.endswith(" of 10")
    assert "of 10" not in "\n".join(found.notes())


# ------------------------------------------------------------------------------------ the command


@pytest.mark.parametrize("name", ["json", "csv", "markdown"])
def test_another_format_has_standard_output_to_itself(name, tmp_path, rng, command):
    write_adapter(tmp_path / "a", modules_of(rng, SHAPES))
    how = ("analyze", tmp_path / "a", "--out", tmp_path / "out", "--format", name)
    status, said, notes = command(*how)
    found = analyse_adapter(tmp_path / "a")
    assert (status, said) == (0, found.table().in_format(name).rstrip("\n") + "\n")
    assert found.sentence() in (said if name == "markdown" else notes) and "written to" in notes


def test_the_notes_stand_below_the_table_wherever_it_is_shown(tmp_path, rng):
    write_adapter(tmp_path, modules_of(rng, SHAPES))
    found = analyse_adapter(tmp_path)
    assert str(found).endswith(f"\n\n{found.sentence()}")
    assert f"<p>{found.sentence()}</p>" in found._repr_html_()


def test_the_command_prints_the_table_and_writes_the_same_figures(tmp_path, rng, command):
    write_adapter(tmp_path / "a", modules_of(rng, SHAPES))
    out = tmp_path / "out"
    status, said, _ = command("analyse", tmp_path / "a", "--out", out)
    found = analyse_adapter(tmp_path / "a")
    assert status == 0 and str(found.table()) in said and found.sentence() in said
    held = json.loads((out / "analysis.json").read_text())
    assert [m["name"] for m in held["modules"]] == list(SHAPES)
    assert [m["energy_ranks"]["0.99"] for m in held["modules"]] == [
        m.energy_ranks[0.99] for m in found.modules
    ]
    assert [m["layer"] for m in held["modules"]] == ["0", "0", "1"]
    assert sum(m["share"] for m in held["modules"]) == pytest.approx(1)
    assert (out / "ranks.png").read_bytes().startswith(PNG)
    assert {p.name for p in out.iterdir()} == {"analysis.json", "ranks.png"}
    assert command("analyse", tmp_path / "a", "--out", out)[0] == 0  # the same again


@pytest.mark.usefixtures("unpainted")
def test_without_out_the_folder_is_named_after_the_adapter(tmp_path, rng, command, monkeypatch):
    write_adapter(tmp_path / "mine", modules_of(rng, SHAPES))
    monkeypatch.chdir(tmp_path)
    assert command("analyse", "mine")[0] == 0
    assert (tmp_path / "runs" / "analyse-mine" / "analysis.json").exists()


@pytest.mark.usefixtures("unpainted")
def test_two_adapters_of_one_name_have_two_folders_and_each_keeps_its_own(
    tmp_path, rng, command, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for path in ("a/x", "b/x"):
        write_adapter(path, modules_of(rng, SHAPES))

    def written(path):
        status, said, error = command("analyse", path)
        assert status == 0, error
        (line,) = [line for line in said.splitlines() if line.startswith("written to")]
        return line.split()[2].rstrip("/:")

    first, second = written("a/x"), written("b/x")
    assert first == "runs/analyse-x" and second.startswith("runs/analyse-x-")
    for folder, path in ((first, "a/x"), (second, "b/x")):
        held = json.loads((tmp_path / folder / "analysis.json").read_text())
        assert held["source"] == {"path": str(tmp_path / path)}
        assert written(path) == folder
    for file in (tmp_path / first).iterdir():
        file.unlink()
    assert written("b/x") == second  # although the plain name is free again
    (tmp_path / first / "mine.txt").touch()
    assert written("a/x") not in (first, second)


@pytest.mark.usefixtures("unpainted")
def test_a_sweep_is_analysed_by_the_spectrum_that_it_kept(tmp_path, finished, command):
    folder, results = finished
    modules = {module.name: module for module in analyse_sweep(folder).modules}
    assert len(modules) == len(results["spectrum"]) == 6
    for held in results["spectrum"]:
        module = modules[held["name"].removesuffix(".W")]
        assert module.energy_ranks[0.95] == held["energy_ranks"]["0.95"]
        assert module.norm == pytest.approx(np.linalg.norm(held["singular_values"]))
    status, said, _ = command("analyse", folder, "--out", tmp_path / "o")
    assert status == 0
    assert "MP edge" in said.splitlines()[0]  # a column, which the footnote explains
    assert "MP edge, G-D: directions above" in said and "\nintruders: " not in said


@pytest.mark.usefixtures("unpainted")
def test_other_results_are_not_written_over_and_nothing_is_printed(tmp_path, rng, command):
    for name in "ab":
        write_adapter(tmp_path / name, modules_of(rng, SHAPES))
    assert command("analyse", tmp_path / "a", "--out", tmp_path / "out")[0] == 0
    before = (tmp_path / "out" / "analysis.json").read_bytes()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "x.txt").write_text("mine")
    for out in ("out", "notes", "notes/x.txt"):
        status, said, error = command("analyse", tmp_path / "b", "--out", tmp_path / out)
        assert (status, said, error.count("\n")) == (2, "", 1) and "choose another" in error
    assert (tmp_path / "out" / "analysis.json").read_bytes() == before
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["x.txt"]


def test_a_folder_of_no_analysis_is_refused_whatever_its_json_holds(tmp_path):
    for content in ("{", "[]", '{"source": {}}'):
        (tmp_path / "analysis.json").write_text(content)
        with pytest.raises(ValueError, match="holds something else"):
            check_folder(tmp_path, {"path": "x"})


def test_a_number_that_is_none_or_a_missing_file_is_one_line(tmp_path, rng, command):
    B = np.full((6, 2), np.nan, np.float32)
    tampered(tmp_path / "a", rng, tensors={"h.0.q.lora_B.weight": B})
    with pytest.raises(CheckpointError, match="not finite"):
        analyse_adapter(tmp_path / "a")
    for arguments in ((tmp_path / "a",), (tmp_path / "none",), (tmp_path / "a", "--base", "none")):
        status, said, error = command("analyse", *arguments, "--out", tmp_path / "out")
        assert (status, said, error.count("\n")) == (2, "", 1)
    assert not (tmp_path / "out").exists()
