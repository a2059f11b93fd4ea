"""What every comparison with a peer may use."""

import importlib

import pytest


@pytest.fixture
def torch():
    """Without torch this is an error, not a skip."""
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return torch
