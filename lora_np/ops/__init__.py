"""The mathematics, one family a file: each operation a forward / backward pair.

A forward returns its result and a cache, which the backward reads::

    y, cache = op_forward(x, W)
    dx, dW = op_backward(dy, cache, need)

``dy`` is the gradient of the loss with respect to ``y``, of the same shape. What comes back are the
gradients of forward's arrays, in order; tokens, targets of classes and masks have none. ``need``
holds one bool for each: what nobody needs is not formed and comes back as None. By default all are.

These are the textbook forms. Layers call the faster twins of some of them, :mod:`lora_np.ops.fast`.
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
from lora_np.ops.dropout import dropout_backward, dropout_forward, dropout_mask
from lora_np.ops.embedding import embedding_backward, embedding_forward
from lora_np.ops.linear import linear_backward, linear_forward
from lora_np.ops.lora import lora_linear_backward, lora_linear_forward
from lora_np.ops.loss import (
    cross_entropy_backward,
    cross_entropy_forward,
    mse_backward,
    mse_forward,
)
from lora_np.ops.norm import layernorm_backward, layernorm_forward

__all__ = [
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
    "layernorm_backward",
    "layernorm_forward",
    "linear_backward",
    "linear_forward",
    "lora_linear_backward",
    "lora_linear_forward",
    "mse_backward",
    "mse_forward",
    "relu_backward",
    "relu_forward",
    "silu_backward",
    "silu_forward",
    "softmax_backward",
    "softmax_forward",
]
