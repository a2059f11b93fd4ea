"""Intrinsic dimension: how many directions does training need? The projection, the model, d90."""

from lora_np.intrinsic.dimension import Problem, d90, intrinsic_dimension
from lora_np.intrinsic.fastfood import Fastfood, walsh_hadamard
from lora_np.intrinsic.model import IntrinsicModel
from lora_np.intrinsic.report import Listener, table
from lora_np.intrinsic.text import QUICK, IntrinsicSettings, intrinsic_run

__all__ = [
    "QUICK",
    "Fastfood",
    "IntrinsicModel",
    "IntrinsicSettings",
    "Listener",
    "Problem",
    "d90",
    "intrinsic_dimension",
    "intrinsic_run",
    "table",
    "walsh_hadamard",
]
