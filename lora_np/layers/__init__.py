"""Layers: Parameters, and the pairs of ops composed; forward stands beside backward."""

from lora_np.layers.attention import CausalSelfAttention, SelfAttention
from lora_np.layers.base import Flops, Layer, Rng
from lora_np.layers.basic import Dropout, Embedding, Gelu, LayerNorm, RMSNorm, probability
from lora_np.layers.compose import MLP, Chain, Composed, GatedMLP, Residual
from lora_np.layers.conv import Conv1d, Conv2d
from lora_np.layers.linear import Linear, lean, normal, product_flops
from lora_np.layers.modulated import Modulated
from lora_np.layers.recompute import Recompute
from lora_np.layers.recurrent import GRU, RNN
from lora_np.layers.rotary import RotaryAttention
from lora_np.layers.start import TextStart
from lora_np.layers.tree import as_pair, copy_model, rebuild

__all__ = [
    "GRU",
    "MLP",
    "RNN",
    "CausalSelfAttention",
    "Chain",
    "Composed",
    "Conv1d",
    "Conv2d",
    "Dropout",
    "Embedding",
    "Flops",
    "GatedMLP",
    "Gelu",
    "Layer",
    "LayerNorm",
    "Linear",
    "Modulated",
    "RMSNorm",
    "Recompute",
    "Residual",
    "Rng",
    "RotaryAttention",
    "SelfAttention",
    "TextStart",
    "as_pair",
    "copy_model",
    "lean",
    "normal",
    "probability",
    "product_flops",
    "rebuild",
]
