"""Fine-tuning of a language model: settings, a run in memory, a run in a folder."""

from lora_np.finetune.folder import FinetuneError, finetune
from lora_np.finetune.prepare import Prepared, prepare
from lora_np.finetune.run import Result, Training, train_adapter
from lora_np.finetune.settings import Settings, read_toml

__all__ = [
    "FinetuneError",
    "Prepared",
    "Result",
    "Settings",
    "Training",
    "finetune",
    "prepare",
    "read_toml",
    "train_adapter",
]
