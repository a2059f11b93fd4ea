"""Methods of fine-tuning: the contract of a method, and one file per method.

Read contract.py, lora.py and dora.py first. Methods of one form stand on one class::

    LoRA's A and B, or more of them  lora, lora_fa, dora, adalora, dylora   LoRALinear
    a weight W made of W0            hira, loha, shira                      Reweighted
    a pair from x to y               lokr, miss, oft                        PairedLinear
    a layer of its own               vera, wrg, ia3, bottleneck, tokens,
                                     lora_embedding                         Adapter
    rows before a text               prompt, prefix                         VirtualAdapter
    all Parameters of a model        intrinsic                              WholeModel
    some Parameters of the base      bitfit, ln_tuning                      no layer: ``trains``
    a base in few bits               nf4, under any of the others           no layer: ``prepare``

Some methods have a second file: lora_config and start (LoRA), adalora_ranks, encoder (prefix),
subspace (intrinsic). The files peft*.py, stacked.py and file_form.py hold the form of an adapter in
files.
"""

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
from lora_np.methods.dylora import DyLoraConfig, DyLoRALinear, at_rank
from lora_np.methods.file_form import tensors_of
from lora_np.methods.full import FullConfig
from lora_np.methods.hira import HiraConfig
from lora_np.methods.ia3 import IA3Config, IA3Linear
from lora_np.methods.intrinsic import IntrinsicConfig, IntrinsicModel
from lora_np.methods.ln_tuning import LNTuningConfig
from lora_np.methods.loha import LoHaConfig
from lora_np.methods.lokr import LoKrConfig
from lora_np.methods.lora import LoRALinear
from lora_np.methods.lora_config import LoraConfig
from lora_np.methods.lora_embedding import LoRAEmbedding
from lora_np.methods.many import Together
from lora_np.methods.merging import merge, unmerge
from lora_np.methods.miss import MissConfig
from lora_np.methods.nf4 import Nf4Config, quantise
from lora_np.methods.oft import OFTConfig
from lora_np.methods.prefix import PrefixConfig
from lora_np.methods.prompt import PromptConfig
from lora_np.methods.rows import RowsLoRA, with_rows
from lora_np.methods.shira import ShiraConfig
from lora_np.methods.table import make_method
from lora_np.methods.tokens import TokensConfig, TokensEmbedding
from lora_np.methods.vera import VeraConfig, VeraLinear
from lora_np.methods.wrg import WRGConfig, WRGLinear

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
    "DyLoRALinear",
    "DyLoraConfig",
    "FilePlace",
    "FullConfig",
    "HiraConfig",
    "IA3Config",
    "IA3Linear",
    "IntrinsicConfig",
    "IntrinsicModel",
    "LNTuningConfig",
    "LoHaConfig",
    "LoKrConfig",
    "LoRAEmbedding",
    "LoRALinear",
    "LoraConfig",
    "MethodConfig",
    "MissConfig",
    "Nf4Config",
    "OFTConfig",
    "PrefixConfig",
    "PromptConfig",
    "RowsLoRA",
    "ShiraConfig",
    "Together",
    "TokensConfig",
    "TokensEmbedding",
    "VeraConfig",
    "VeraLinear",
    "WRGConfig",
    "WRGLinear",
    "adapters",
    "at_rank",
    "check_adapted",
    "inject",
    "is_adapted",
    "make_method",
    "merge",
    "method_of",
    "quantise",
    "target_paths",
    "tensors_of",
    "unmerge",
    "with_rows",
]
