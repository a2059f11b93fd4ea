"""Loss scaling: backward starts from a large number, so that float16 loses no small gradient.

float16 has no number between 0 and 6e-8. Where gradients of activations are kept in float16,
smaller ones become 0. Backward is linear, so it can start from dL = S instead of 1: every gradient
is then S times as large, and the sum over the batch is divided by S in float32::

    grads = backward(S) / S

A power of two changes no rounding as long as nothing underflows or overflows. If S is too large, a
gradient becomes infinite. The scale "dynamic" then repeats the step with S / 2, and doubles S after
many steps without such an overflow. (PyTorch skips the step instead of repeating it.)

Source: Micikevicius et al. (2017), arXiv:1710.03740, section 3.2.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lora_np.backend import Array

START = 2.0**16  # of a dynamic scale
GROW_AFTER = 2000  # steps without an overflow


class LossScale:
    """The number S from which backward starts.

    Parameters
    ----------
    setting : None, float or "dynamic"
        None for 1.
    grow_after : int
        Steps without an overflow after which a dynamic scale doubles.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.train.scaling import LossScale
    >>> scale = LossScale("dynamic")
    >>> scale.value, scale.accepts(np.array([np.inf])), scale.value
    (65536.0, False, 32768.0)
    """

    def __init__(self, setting: float | str | None, grow_after: int = GROW_AFTER) -> None:
        self.dynamic, self.grow_after = setting == "dynamic", grow_after
        first = START if self.dynamic else float(setting or 1.0)
        self._state = np.array([first, 0.0])  # S, and the steps since it last changed

    @property
    def value(self) -> float:
        """The scale S."""
        return float(self._state[0])

    def accepts(self, gradient: Array) -> bool:
        """Whether to take a step with this gradient of S L; if not, S is now smaller.

        A scale that is fixed, or has come down to 1, accepts every gradient.
        """
        if not self.dynamic:
            return True
        if not math.isfinite(float(abs(gradient).max())) and self.value > 1.0:
            self._state[:] = self.value / 2.0, 0.0
            return False
        self._state[1] += 1.0
        if self._state[1] >= self.grow_after:
            self._state[:] = self.value * 2.0, 0.0
        return True

    def state(self) -> dict[str, np.ndarray]:
        """Return the arrays that later steps depend on, by name."""
        return {"loss scale": self._state} if self.dynamic else {}


def check_scale(setting: Any) -> None:
    """Raise ValueError unless a setting of the loss scale is None, a number or "dynamic"."""
    if setting is None or setting == "dynamic":
        return
    if not isinstance(setting, int | float) or not 0.0 < setting < math.inf:
        raise ValueError(f"loss_scale = {setting!r}, expected a number above 0, 'dynamic' or None")
