"""The mathematics, one file per family; each operation is a forward / backward pair.

Forward returns the result and a cache, which backward reads::

    y, cache = op_forward(x, W)
    dx, dW = op_backward(dy, cache, need)

``dy`` is the gradient of the loss with respect to ``y``, and has its shape. Backward returns the
gradients of forward's arrays, in order; tokens, class targets and masks have no gradient. ``need``
holds one bool for each gradient: backward returns None for a gradient that is not needed, and does
not form it. By default all gradients are formed.

These are the textbook forms. Some have a faster twin in :mod:`lora_np.ops.fast`, which layers call.
"""

from lora_np.ops.activation import (
    gelu_backward,
    gelu_forward,
    relu_backward,
    relu_forward,
    silu_backward,
    silu_forward,
    softmax_backward,
    softmax_forward,
)
from lora_np.ops.attention import attention_backward, attention_forward
from lora_np.ops.conv import im2col_backward, im2col_forward
from lora_np.ops.dropout import dropout_backward, dropout_forward, dropout_mask
from lora_np.ops.embedding import embedding_backward, embedding_forward
from lora_np.ops.grouped import gqa_backward, gqa_forward
from lora_np.ops.head_loss import head_loss_backward, head_loss_forward
from lora_np.ops.linear import linear_backward, linear_forward
from lora_np.ops.lora import lora_linear_backward, lora_linear_forward
from lora_np.ops.loss import (
    cross_entropy_backward,
    cross_entropy_forward,
    mse_backward,
    mse_forward,
)
from lora_np.ops.many import Rows, lora_rows_backward, lora_rows_forward
from lora_np.ops.modulated import modulated_norm_backward, modulated_norm_forward
from lora_np.ops.norm import (
    layernorm_backward,
    layernorm_forward,
    rmsnorm_backward,
    rmsnorm_forward,
)
from lora_np.ops.recurrent import (
    gru_cell_backward,
    gru_cell_forward,
    rnn_cell_backward,
    rnn_cell_forward,
)
from lora_np.ops.rope import Llama3Scaling, rope_angles, rope_backward, rope_forward
from lora_np.ops.swiglu import swiglu_backward, swiglu_forward

__all__ = [
    "Llama3Scaling",
    "Rows",
    "attention_backward",
    "attention_forward",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "dropout_backward",
    "dropout_forward",
    "dropout_mask",
    "embedding_backward",
    "embedding_forward",
    "gelu_backward",
    "gelu_forward",
    "gqa_backward",
    "gqa_forward",
    "gru_cell_backward",
    "gru_cell_forward",
    "head_loss_backward",
    "head_loss_forward",
    "im2col_backward",
    "im2col_forward",
    "layernorm_backward",
    "layernorm_forward",
    "linear_backward",
    "linear_forward",
    "lora_linear_backward",
    "lora_linear_forward",
    "lora_rows_backward",
    "lora_rows_forward",
    "modulated_norm_backward",
    "modulated_norm_forward",
    "mse_backward",
    "mse_forward",
    "relu_backward",
    "relu_forward",
    "rmsnorm_backward",
    "rmsnorm_forward",
    "rnn_cell_backward",
    "rnn_cell_forward",
    "rope_angles",
    "rope_backward",
    "rope_forward",
    "silu_backward",
    "silu_forward",
    "softmax_backward",
    "softmax_forward",
    "swiglu_backward",
    "swiglu_forward",
]
