"""What every test may use."""

import os

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("shared machine", deadline=None, max_examples=30, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "shared machine"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
