"""How the tests compare arrays."""

import numpy as np

PNG = b"\x89PNG\r\n\x1a\n"  # how every picture's file begins


def close(actual, expected, tolerance=1e-12):
    """Assert that arrays differ by at most `tolerance` times the largest entry, or 1 if larger."""
    assert actual.shape == np.shape(expected)
    limit = tolerance * max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)


def values(model):
    """Return copies of a model's arrays by name."""
    return {name: p.value.copy() for name, p in model.parameters().items()}
