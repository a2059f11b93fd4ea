"""Methods of fine-tuning: the contract of a method, and one file per method."""

from lora_np.methods.adalora import AdaLoraConfig, AdaLoraLinear
from lora_np.methods.bitfit import BitFitConfig
from lora_np.methods.bottleneck import Bottleneck, BottleneckConfig
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
)
from lora_np.methods.dora import DoraConfig, DoraLinear
from lora_np.methods.file_form import tensors_of
from lora_np.methods.ia3 import IA3Config, IA3Linear
from lora_np.methods.ln_tuning import LNTuningConfig
from lora_np.methods.lora import LoRALinear
from lora_np.methods.lora_config import LoraConfig
from lora_np.methods.merging import merge, unmerge
from lora_np.methods.table import make_method
from lora_np.methods.vera import VeraConfig, VeraLinear

__all__ = [
    "METHODS",
    "AdaLoraConfig",
    "AdaLoraLinear",
    "Adapter",
    "BitFitConfig",
    "Bottleneck",
    "BottleneckConfig",
    "DoraConfig",
    "DoraLinear",
    "FilePlace",
    "IA3Config",
    "IA3Linear",
    "LNTuningConfig",
    "LoRALinear",
    "LoraConfig",
    "MethodConfig",
    "VeraConfig",
    "VeraLinear",
    "adapters",
    "check_adapted",
    "inject",
    "is_adapted",
    "make_method",
    "merge",
    "method_of",
    "target_paths",
    "tensors_of",
    "unmerge",
]
