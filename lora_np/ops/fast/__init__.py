"""Faster twins of some pairs of :mod:`lora_np.ops`, with their names and their contract.

Read the textbook forms first; they are all you need to understand the library. Layers call these
twins. Each family has a file of the same name, which says why the twin is faster and how much it
gains; a twin that gains less than 2 % of a training step, or of generation, at every size is not
kept. Caches may differ. The tests check that both forms return the same outputs and gradients, to
rounding.

The twins compute their products with ``lora_np.backend.matmul``, which is ``@`` everywhere but
under Pyodide, whose NumPy is slow at products (:func:`lora_np.backend.blas_matmul`).

``python -m tests.benchmarks --only twins`` measures a training step with a textbook pair in place
of its twin; ``--only llama-twins`` does so for grouped attention.
"""

from lora_np.ops.fast.activation import gelu_backward, gelu_forward
from lora_np.ops.fast.attention import attention_backward, attention_forward
from lora_np.ops.fast.grouped import gqa_backward, gqa_forward
from lora_np.ops.fast.head_loss import head_loss_backward, head_loss_forward
from lora_np.ops.fast.linear import linear_backward, linear_forward
from lora_np.ops.fast.lora import lora_linear_backward, lora_linear_forward
from lora_np.ops.fast.many import lora_rows_backward, lora_rows_forward

__all__ = [
    "attention_backward",
    "attention_forward",
    "gelu_backward",
    "gelu_forward",
    "gqa_backward",
    "gqa_forward",
    "head_loss_backward",
    "head_loss_forward",
    "linear_backward",
    "linear_forward",
    "lora_linear_backward",
    "lora_linear_forward",
    "lora_rows_backward",
    "lora_rows_forward",
]
