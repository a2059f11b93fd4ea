"""Intrinsic dimension: how many directions does training need? d90, and a run on the text task."""

from lora_np.experiments.intrinsic.dimension import Problem, d90, intrinsic_dimension
from lora_np.experiments.intrinsic.report import Listener, report, table
from lora_np.experiments.intrinsic.text import QUICK, IntrinsicSettings, intrinsic_run
from lora_np.methods import IntrinsicModel
from lora_np.ops.fastfood import Fastfood, walsh_hadamard

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
    "report",
    "table",
    "walsh_hadamard",
]
