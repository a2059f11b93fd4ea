"""Adapters as files: read, write, analyse, resize, extract, merge, combine and convert them."""

from lora_np.adapters.combine import combine_adapters
from lora_np.adapters.convert import convert_adapter, nearest_lora
from lora_np.adapters.cut import Keep, Truncation, fit_table, total_errors
from lora_np.adapters.export import export_model
from lora_np.adapters.extract import Extracted, beyond_table, extract_adapter
from lora_np.adapters.file import AdapterFile, AdapterModule, open_adapter
from lora_np.adapters.gguf import adapter_to_gguf, read_gguf_adapter, write_gguf_adapter
from lora_np.adapters.merge import Merged, merge_adapter, merge_table
from lora_np.adapters.on_model import AdapterReader, load_adapter, save_adapter
from lora_np.adapters.resize import resize_adapter
from lora_np.adapters.write import write_adapter, write_like

__all__ = [
    "AdapterFile",
    "AdapterModule",
    "AdapterReader",
    "Extracted",
    "Keep",
    "Merged",
    "Truncation",
    "adapter_to_gguf",
    "beyond_table",
    "combine_adapters",
    "convert_adapter",
    "export_model",
    "extract_adapter",
    "fit_table",
    "load_adapter",
    "merge_adapter",
    "merge_table",
    "nearest_lora",
    "open_adapter",
    "read_gguf_adapter",
    "resize_adapter",
    "save_adapter",
    "total_errors",
    "write_adapter",
    "write_gguf_adapter",
    "write_like",
]
