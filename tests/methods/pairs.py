"""What the tests of every method's pair share."""

from lora_np import check_gradients

LIMITS = {"central": 1e-7, "complex": 1e-12}


def assert_exact(forward, backward, inputs, **options):
    """Hold a pair to central differences and to the complex step."""
    for method, limit in LIMITS.items():
        report = check_gradients(forward, backward, inputs, method=method, **options)
        assert report.max_error < limit, report
