"""GPT-2's architecture in PyTorch with our names for the projections, to hold lora_np against.

Importing this file imports torch; the tests do so when they run, never when they are collected.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

torch.set_num_threads(1)
LEAF = {"W": "weight", "W0": "weight", "b": "bias", "gamma": "weight", "beta": "bias"}


class Attention(nn.Module):
    def __init__(self, d, n_head):
        super().__init__()
        self.n_head = n_head
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x):
        def split(y):
            return y.unflatten(-1, (self.n_head, -1)).transpose(-2, -3)

        q, k, v = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(heads.transpose(-2, -3).flatten(-2))


class MLP(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d, n_head):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(d), Attention(d, n_head)
        self.ln_2, self.mlp = nn.LayerNorm(d), MLP(d)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TorchGPT(nn.Module):
    """The twin of a lora_np GPT; its paths are ours behind "transformer."."""

    def __init__(self, config):
        super().__init__()
        d = config.d_model
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, d),
                "wpe": nn.Embedding(config.block_size, d),
                "h": nn.ModuleList(Block(d, config.n_head) for _ in range(config.n_layer)),
                "ln_f": nn.LayerNorm(d),
            }
        )

    def forward(self, tokens):
        t = self.transformer
        x = t["wte"](tokens) + t["wpe"](torch.arange(tokens.shape[-1]))
        for block in t["h"]:
            x = block(x)
        return F.linear(t["ln_f"](x), t["wte"].weight)  # the head is tied

    def loss(self, tokens, targets):
        return F.cross_entropy(self(tokens).flatten(0, -2), targets.flatten(), ignore_index=-100)

    def load_from(self, model):
        """Copy the values, and the dtype, of a plain lora_np GPT."""
        values = {torch_name(name): tensor(p.value) for name, p in model.parameters().items()}
        self.to(next(iter(values.values())).dtype)
        self.load_state_dict(values)  # strict: every name must match
        return self


def torch_name(name):
    """Our Parameter's name -> torch's: "h.0.ln_1.gamma" -> "transformer.h.0.ln_1.weight"."""
    path, _, leaf = name.rpartition(".")
    return f"transformer.{path}.{LEAF[leaf]}"


def tensor(x):
    return torch.from_numpy(np.array(x))


def twin_of(model):
    """A TorchGPT with the values of `model`."""
    return TorchGPT(model.config).load_from(model)


def relative_error(ours, theirs):
    """max|a - b| / max(1, max|b|), the error of a gradient check."""
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
    assert np.shape(ours) == theirs.shape
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))
