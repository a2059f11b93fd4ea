"""Is a pair right? Compare its backward with numeric derivatives of its forward."""

from lora_np.gradcheck.case import Case
from lora_np.gradcheck.check import STEP, TOLERANCE, check_gradients
from lora_np.gradcheck.report import GradientError, GradientReport, GradientRow

__all__ = [
    "STEP",
    "TOLERANCE",
    "Case",
    "GradientError",
    "GradientReport",
    "GradientRow",
    "check_gradients",
]
