"""Methods of fine-tuning: the contract of a method, and one file per method."""

from lora_np.methods.contract import (
    METHODS,
    Adapter,
    FilePlace,
    MethodConfig,
    adapters,
    check_adapted,
    inject,
    is_adapted,
    method_of,
    target_paths,
    tensors_of,
)
from lora_np.methods.intrinsic import IntrinsicConfig, IntrinsicModel
from lora_np.methods.lora import LoraConfig, LoRALinear
from lora_np.methods.merging import merge, unmerge
from lora_np.methods.prefix import PrefixConfig
from lora_np.methods.prompt import PromptConfig

__all__ = [
    "METHODS",
    "Adapter",
    "FilePlace",
    "IntrinsicConfig",
    "IntrinsicModel",
    "LoRALinear",
    "LoraConfig",
    "MethodConfig",
    "PrefixConfig",
    "PromptConfig",
    "adapters",
    "check_adapted",
    "inject",
    "is_adapted",
    "merge",
    "method_of",
    "target_paths",
    "tensors_of",
    "unmerge",
]
