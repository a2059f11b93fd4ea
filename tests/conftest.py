"""What every test may use."""

import os

import numpy as np
import pytest
from hypothesis import settings

from lora_np import cli

settings.register_profile("shared machine", deadline=None, max_examples=30, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "shared machine"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def command(capsys):
    """Run a command line in this process; return its status and what it said."""

    def call(*arguments):
        status = cli.main([str(a) for a in arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call
