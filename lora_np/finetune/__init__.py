"""Fine-tuning of a language model: settings, a run in memory, a run in a folder."""

from lora_np.finetune.run import Result, Training, train_adapter
from lora_np.finetune.settings import Settings, read_toml

__all__ = ["Result", "Settings", "Training", "read_toml", "train_adapter"]
