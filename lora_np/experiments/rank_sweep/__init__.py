"""Rank versus loss: the plan of trials, the three tasks, and the sweep on any executor."""

from lora_np.experiments.folder import SweepError
from lora_np.experiments.rank_sweep.linear import LinearSettings
from lora_np.experiments.rank_sweep.llm import LlmSettings
from lora_np.experiments.rank_sweep.plan import Trial
from lora_np.experiments.rank_sweep.results import SweepResults
from lora_np.experiments.rank_sweep.run import rank_sweep
from lora_np.experiments.rank_sweep.text import TextSettings

__all__ = [
    "LinearSettings",
    "LlmSettings",
    "SweepError",
    "SweepResults",
    "TextSettings",
    "Trial",
    "rank_sweep",
]
