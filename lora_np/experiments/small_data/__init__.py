"""LoRA and full fine-tuning as the text to adapt to shrinks."""

from lora_np.experiments.small_data.study import QUICK, SmallDataSettings, small_data_study

__all__ = ["QUICK", "SmallDataSettings", "small_data_study"]
