"""Adapters as files: made smaller, taken from checkpoints, merged into them, combined."""

from lora_np.adapterfiles.combine import combine_adapters
from lora_np.adapterfiles.cut import Fit, Keep, fit_table, total_errors
from lora_np.adapterfiles.extract import Extracted, beyond_table, extract_adapter
from lora_np.adapterfiles.merge import Merged, merge_adapter, merge_table
from lora_np.adapterfiles.on_model import load_adapter, save_adapter
from lora_np.adapterfiles.resize import resize_adapter

__all__ = [
    "Extracted",
    "Fit",
    "Keep",
    "Merged",
    "beyond_table",
    "combine_adapters",
    "extract_adapter",
    "fit_table",
    "load_adapter",
    "merge_adapter",
    "merge_table",
    "resize_adapter",
    "save_adapter",
    "total_errors",
]
