"""The models that are trained beforehand for a browser, and the page that writes with one."""

import importlib.util
import re

import numpy as np
import pytest

from lora_np import GPT, GPTConfig, load_adapter
from lora_np.files import load_json
from lora_np.images import BaseSettings
from lora_np.images.folder import load_base
from lora_np.images.judge import load_judge
from lora_np.train import load_parameters
from tests.notebooks.test_notebooks import FOLDER, cells_of_source

LARGEST = 200_000  # bytes


@pytest.fixture(scope="module")
def tiny():
    spec = importlib.util.spec_from_file_location("tiny", FOLDER / "tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """The folder, hardly trained."""
    folder = tmp_path_factory.mktemp("site") / "tiny"
    tiny.make(folder, steps=3, adapter_steps=2)
    return folder


def test_the_base_and_its_adapters_are_small_and_fit_together(tiny, made):
    assert sum(file.stat().st_size for file in made.rglob("*") if file.is_file()) < LARGEST
    base = GPT(GPTConfig(**load_json(made / "config.json")), np.random.default_rng(0))
    load_parameters(made / "base.npz", base)
    tokens = np.array([[72, 105]])
    found = [base.forward(tokens)[0]]
    for r in tiny.RANKS:
        model = load_adapter(base, made / f"rank-{r}")
        trainable = sum(p.size for p in model.parameters().values() if p.trainable)
        assert trainable == r * 2 * (4 * (32 + 32) + 2 * (32 + 128))
        found.append(model.forward(tokens)[0])
    assert all(abs(a - b).max() > 1e-6 for i, a in enumerate(found) for b in found[:i])


def test_the_page_writes_with_the_base_and_each_adapter(made, monkeypatch, capsys):
    monkeypatch.chdir(made.parent)
    source = (FOLDER / "write_here.py").read_text(encoding="utf-8")
    names = {}
    for kind, text in cells_of_source(source):
        if kind == "code":
            exec(text, names)
    out = capsys.readouterr().out
    assert re.findall("--- (.*)", out) == ["base", "rank 1", "rank 4", "rank 16"]
    assert out.count("The class ") == 4 and "\ndef " in out
    assert re.search(r"rank 16: +18,432 numbers", out)


def test_the_image_base_is_the_one_that_chapter_15_trains(tiny):
    source = (FOLDER / "15_images.py").read_text(encoding="utf-8")
    lines = re.search(r"^sizes = .*\n^recipe = .*\n^settings = .*", source, re.MULTILINE)[0]
    names = {"BaseSettings": BaseSettings}
    exec(lines, names)
    assert names["settings"] == tiny.IMAGE_BASE
    assert "train_judge(np.random.default_rng(9), n=3000, steps=1000)" in source


def test_an_image_base_is_written_as_chapter_15_reads_it(tiny, tmp_path):
    sizes = {"images": 60, "k": 8, "d": 16, "d_hidden": 16, "n_block": 1, "d_c": 8}
    settings = BaseSettings(**sizes, steps=2, batch=8, processes=1)
    tiny.make_image_base(tmp_path / "image_base", settings, judge_steps=2)
    base, judge = load_base(tmp_path / "image_base"), load_judge(tmp_path / "image_base/judge.npz")
    assert base.codec.basis.shape == (8, 256) and judge.size == 16
