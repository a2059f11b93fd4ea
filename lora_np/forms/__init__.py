"""Packed forms of arrays, for frozen weights: float16, bfloat16, NF4."""

from lora_np.forms.form import Form
from lora_np.forms.narrow import Bfloat16, Float16, narrowed
from lora_np.forms.nf4 import Nf4, check_block

__all__ = ["Bfloat16", "Float16", "Form", "Nf4", "check_block", "narrowed"]
