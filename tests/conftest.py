"""What every test may use."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from lora_np import cli, plots
from lora_np.experiments.rank_sweep import TextSettings, rank_sweep
from tests.tiny import TINY, sweep_command, write_texts

settings.register_profile("shared machine", deadline=None, max_examples=30, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "shared machine"))
gc.set_threshold(20_000)  # thousands of tests are alive: looking for garbage takes long


def pytest_collection_finish(session):
    """Never look for garbage among the tests, which live to the end."""
    gc.freeze()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk():
    """Nobody cuts the power while tests run: files are written, not waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> TextSettings:
    """Settings of a text sweep that takes a second, with texts of its own."""
    english, code = write_texts(tmp_path_factory.mktemp("texts"))
    return TextSettings(ranks=(1, 2), seeds=2, pretrain_text=english, adapt_text=code, **TINY)


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory) -> tuple[Path, dict]:
    """The tiny sweep, run in this process: its folder, to be read only, and its results."""
    folder = tmp_path_factory.mktemp("tiny") / "finished"
    results = rank_sweep(tiny, folder)
    assert cli.main([*sweep_command(tiny), "--out", str(folder)]) == 0  # draws the pictures
    return folder, results


@pytest.fixture
def unpainted(monkeypatch):
    """Let every picture be an empty file: painting it takes longer than many a test."""
    monkeypatch.setattr(plots, "save", lambda figure, path: Path(path).touch())


@pytest.fixture
def command(capsys):
    """Run a command line in this process; return its status and what it said."""

    def call(*arguments):
        status = cli.main([str(a) for a in arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call
