"""LoRA and its rivals on the text task: losses, costs, and what articles claim about them."""

from lora_np.experiments.compare.study import PRESETS, CompareSettings, compare_study

__all__ = ["PRESETS", "CompareSettings", "compare_study"]
