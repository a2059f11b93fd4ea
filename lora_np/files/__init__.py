"""Files, written whole or not at all: JSON, arrays, safetensors, GGUF. None knows a model."""

from lora_np.files.arrays import (
    CheckpointError,
    load_arrays,
    load_json,
    save_arrays,
    save_json,
    save_text,
)
from lora_np.files.atomic import replacing
from lora_np.files.gguf import GgufFile, GgufTensor, write_gguf
from lora_np.files.tensors import TensorFile, float_dtype, open_weights, save_tensors

__all__ = [
    "CheckpointError",
    "GgufFile",
    "GgufTensor",
    "TensorFile",
    "float_dtype",
    "load_arrays",
    "load_json",
    "open_weights",
    "replacing",
    "save_arrays",
    "save_json",
    "save_tensors",
    "save_text",
    "write_gguf",
]
