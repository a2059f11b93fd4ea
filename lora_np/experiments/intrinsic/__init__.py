"""Intrinsic dimension: how many directions does training need? The projection, the model, d90."""

from lora_np.experiments.intrinsic.dimension import Problem, d90, intrinsic_dimension
from lora_np.experiments.intrinsic.fastfood import Fastfood, walsh_hadamard
from lora_np.experiments.intrinsic.model import IntrinsicModel
from lora_np.experiments.intrinsic.report import Listener, table
from lora_np.experiments.intrinsic.text import QUICK, IntrinsicSettings, intrinsic_run

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
