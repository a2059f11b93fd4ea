"""Files in and out: a model's arrays, other people's tensors, and adapters in PEFT's form."""

from lora_np.checkpoint.adapter import (
    AdapterFile,
    AdapterModule,
    open_adapter,
    write_adapter,
    write_like,
)
from lora_np.checkpoint.arrays import (
    CheckpointError,
    fill,
    load_arrays,
    load_json,
    load_parameters,
    save_arrays,
    save_json,
    save_parameters,
    save_text,
)
from lora_np.checkpoint.atomic import replacing
from lora_np.checkpoint.peft import load_adapter, save_adapter
from lora_np.checkpoint.tensors import TensorFile, float_dtype, open_weights, save_tensors

__all__ = [
    "AdapterFile",
    "AdapterModule",
    "CheckpointError",
    "TensorFile",
    "fill",
    "float_dtype",
    "load_adapter",
    "load_arrays",
    "load_json",
    "load_parameters",
    "open_adapter",
    "open_weights",
    "replacing",
    "save_adapter",
    "save_arrays",
    "save_json",
    "save_parameters",
    "save_tensors",
    "save_text",
    "write_adapter",
    "write_like",
]
