"""Packed forms of arrays, for frozen weights: float16, bfloat16, NF4, and the blocks of GGUF."""

from lora_np.forms.form import Form, RowForm
from lora_np.forms.gguf import BLOCKS, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, BlockForm
from lora_np.forms.narrow import (
    Bfloat16,
    Float16,
    bfloat16_bits,
    bfloat16_numbers,
    in_bfloat16,
    narrowed,
)
from lora_np.forms.nf4 import Nf4, check_block

__all__ = [
    "BLOCKS",
    "Q4_0",
    "Q4_1",
    "Q4_K",
    "Q5_0",
    "Q5_1",
    "Q5_K",
    "Q6_K",
    "Q8_0",
    "Bfloat16",
    "BlockForm",
    "Float16",
    "Form",
    "Nf4",
    "RowForm",
    "bfloat16_bits",
    "bfloat16_numbers",
    "check_block",
    "in_bfloat16",
    "narrowed",
]
