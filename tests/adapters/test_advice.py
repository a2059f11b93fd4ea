"""The last line of ``analyse``: a command that runs, and the error that it then really makes."""

import re
import shlex
from dataclasses import replace

import numpy as np
import pytest

from lora_np import analyse_adapter, write_adapter
from lora_np.adapters.advice import next_command
from lora_np.files import save_tensors

pytestmark = pytest.mark.usefixtures("unpainted")

SHAPES = {"h.0.q_proj": (24, 16), "h.0.up_proj": (40, 16), "h.1.q_proj": (24, 16)}
STATED = r"next: lora-np (.*?)   \(relative error (about )?(\S+)\)"


def modules(rng, decays, r=8):
    """Modules whose singular values fall by these factors."""
    for (name, (out, in_)), decay in zip(SHAPES.items(), decays, strict=True):
        B = rng.standard_normal((out, r)) * decay ** np.arange(r)  # (out, r)
        yield name, B, rng.standard_normal((r, in_)), 0.5


def stated(said):
    """The command of the last line, as words, and the error that it names."""
    found = re.fullmatch(STATED, said.splitlines()[-1])
    assert found, said
    return shlex.split(found[1]), found[3]


def made(said):
    """The relative error of all modules before rounding, as the command prints it."""
    (row,) = [line.split() for line in said.splitlines() if line.startswith("all  ")]
    return row[2]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("decays, rule", [((0.4, 0.5, 0.3), "--rank"), ((0.4, 1, 0.9), "--energy")])
def test_the_cut_that_is_named_makes_the_error_that_is_named(
    decays, rule, dtype, tmp_path, rng, command, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_adapter("my adapter", modules(rng, decays), dtype=dtype)
    _, said, _ = command("analyse", "my adapter")
    words, error = stated(said)
    assert words[:2] == ["resize", "my adapter"] and rule in words
    status, shown, _ = command(*words)
    assert (status, made(shown)) == (0, error) and 0 < float(error) <= 0.1
    assert "written to my adapter-" in shown


def test_the_extraction_that_is_named_makes_the_error_that_is_named(
    tmp_path, rng, command, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    base = {f"{name}.weight": rng.standard_normal(shape) for name, shape in SHAPES.items()}
    base["embed_tokens.weight"] = rng.standard_normal((30, 16))  # of no adapter
    tuned = {name: W + 0.1 for name, W in base.items()}
    for name, B, A, scale in modules(rng, (0.4, 0.6, 0.3)):
        tuned[f"{name}.weight"] = base[f"{name}.weight"] + scale * B @ A
    save_tensors("base.safetensors", base)
    save_tensors("tuned.safetensors", tuned)
    _, said, _ = command("analyse", "tuned.safetensors", "--base", "base.safetensors")
    words, error = stated(said)
    assert words[0] == "extract" and words[-1] == f"tuned-r{words[words.index('--rank') + 1]}"
    status, shown, _ = command(*words)
    assert (status, made(shown)) == (0, error) and 0 < float(error) <= 0.1


def test_an_adapter_that_needs_all_of_its_rank_is_not_cut(tmp_path, rng, command):
    write_adapter(tmp_path / "a", modules(rng, (1, 1, 1), r=2))
    _, said, _ = command("analyse", tmp_path / "a", "--out", tmp_path / "out")
    assert said.splitlines()[-1].startswith("next: nothing to cut, since every module needs its")


def test_an_adapter_of_zeros_keeps_rank_1(tmp_path, command):
    write_adapter(tmp_path / "a", [("q_proj", np.zeros((6, 4)), np.ones((4, 5)), 1.0)])
    _, said, _ = command("analyse", tmp_path / "a", "--out", tmp_path / "out")
    words, error = stated(said)
    assert words[words.index("--rank") + 1] == "1" and float(error) == 0
    assert command(*words)[0] == 0


def test_more_directions_than_were_computed_are_no_advice(tmp_path, rng):
    write_adapter(tmp_path / "a", modules(rng, (0.4, 0.5, 0.3)))
    known = analyse_adapter(tmp_path / "a")
    assert next_command(known, "a").startswith("next: lora-np resize a --rank")
    first, *others = known.modules
    ranks = {**first.energy_ranks, 0.99: None}  # as of a large difference that is not of low rank
    unknown = replace(known, modules=[replace(first, energy_ranks=ranks), *others])
    assert next_command(unknown, "a") == ""


def test_a_text_sweep_ends_with_the_model_of_the_rank_that_is_enough(finished, tmp_path, command):
    folder = finished[0]
    _, said, _ = command("analyse", folder, "--out", tmp_path / "out")
    found = re.fullmatch(r"next: lora-np (.*?)   \(validation loss (\S+)\)", said.splitlines()[-1])
    words = shlex.split(found[1])
    assert words[:3] == ["generate", "--run", str(folder)]
    assert command(*words, "--tokens", 5)[0] == 0
    runs, rank = finished[1]["runs"], int(words[-1])
    losses = [run["validation_loss"] for run in runs if run["rank"] == rank]
    assert found[2] == f"{min(losses):.4g}"
