"""A pair and its inputs, ready for a check of its gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lora_np.gradcheck.check import check_gradients
from lora_np.gradcheck.report import GradientReport


@dataclass(frozen=True)
class Case:
    """A pair and its inputs, in float64.

    Attributes
    ----------
    name : str
    forward, backward : callables
    inputs : tuple or dict
    kwargs : dict
        Arguments of forward without a gradient.
    methods : tuple of str
        The methods of :func:`lora_np.check_gradients` to use.
    """

    name: str
    forward: Callable
    backward: Callable
    inputs: Any
    kwargs: dict[str, Any]
    methods: tuple[str, ...] = ("central", "complex")

    def check(self, method: str) -> GradientReport:
        """Check the gradients by one method."""
        return check_gradients(
            self.forward, self.backward, self.inputs, method=method, **self.kwargs
        )
