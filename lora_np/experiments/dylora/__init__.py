"""Which rank? DyLoRA, which can be cut to any, against LoRA of each rank and one LoRA, cut."""

from lora_np.experiments.dylora.study import QUICK, DyLoraSettings, dylora_study

__all__ = ["QUICK", "DyLoraSettings", "dylora_study"]
