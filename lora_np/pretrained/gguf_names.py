"""The names and the order of rows in GGUF files of Llama models, and in Hugging Face's.

llama.cpp calls ``model.layers.3.self_attn.q_proj`` ``blk.3.attn_q``. It also rotates other pairs of
numbers of a head for RoPE: numbers 2 i and 2 i + 1, where Hugging Face's models rotate i and
i + d/2. So that both compute the same, its converter permutes the rows of the projections of
queries and keys, and of nothing else, head by head::

    row 2 i + j of a head in a GGUF file  is  row i + j d/2 in Hugging Face's,  j = 0 or 1

The queries have ``n_head`` heads; the keys may have fewer, and are permuted by their own number.
"""

from __future__ import annotations

import re

import numpy as np

from lora_np.backend import Array

OUTSIDE = {  # modules outside the layers
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
INSIDE = {  # modules of a layer
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
PERMUTED = ("attn_q", "attn_k")  # modules whose rows llama.cpp permutes
_OUTSIDE = {theirs: ours for ours, theirs in OUTSIDE.items()}
_INSIDE = {theirs: ours for ours, theirs in INSIDE.items()}
_NUMBER = "(0|[1-9][0-9]{0,5})"


def gguf_name(path: str) -> str:
    """Return the name in a GGUF file of a module of a Llama model in Hugging Face's.

    Parameters
    ----------
    path : str
        Without ".weight" or ".bias", which are the same in both.

    Raises
    ------
    ValueError
        If a Llama model has no such module.

    Examples
    --------
    >>> from lora_np.pretrained.gguf_names import gguf_name
    >>> gguf_name("model.layers.3.self_attn.q_proj"), gguf_name("model.embed_tokens")
    ('blk.3.attn_q', 'token_embd')
    """
    found = re.fullmatch(rf"model\.layers\.{_NUMBER}\.(.+)", path)
    if found and found[2] in INSIDE:
        return f"blk.{found[1]}.{INSIDE[found[2]]}"
    if path in OUTSIDE:
        return OUTSIDE[path]
    raise ValueError(f"{path!r:.100} has no name in the GGUF file of a Llama model")


def path_of(name: str) -> str:
    """Return the path in Hugging Face's models of a module that a GGUF file names.

    Parameters
    ----------
    name : str
        Without ".weight" or ".bias".

    Raises
    ------
    ValueError
        If a Llama model has no such module.

    Examples
    --------
    >>> from lora_np.pretrained.gguf_names import path_of
    >>> path_of("blk.3.ffn_down"), path_of("output_norm")
    ('model.layers.3.mlp.down_proj', 'model.norm')
    """
    found = re.fullmatch(rf"blk\.{_NUMBER}\.(.+)", name)
    if found and found[2] in _INSIDE:
        return f"model.layers.{found[1]}.{_INSIDE[found[2]]}"
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    raise ValueError(f"{name!r:.100} is not a module of a Llama model")


def is_permuted(name: str) -> bool:
    """Whether llama.cpp permutes the rows of a module, by its name in a GGUF file.

    Examples
    --------
    >>> from lora_np.pretrained.gguf_names import is_permuted
    >>> is_permuted("blk.0.attn_q"), is_permuted("blk.0.attn_v")
    (True, False)
    """
    return name.rpartition(".")[2] in PERMUTED


def permuted_rows(n_head: int, d_head: int) -> np.ndarray:
    """Return the index that gives the rows their order in GGUF: ``W[index]`` is ``permuted(W)``.

    Examples
    --------
    >>> from lora_np.pretrained.gguf_names import permuted_rows
    >>> permuted_rows(n_head=2, d_head=4).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return np.arange(n_head * d_head).reshape(n_head, 2, -1).swapaxes(1, 2).reshape(-1)


def unpermuted_rows(n_head: int, d_head: int) -> np.ndarray:
    """Return the index that gives the rows of a GGUF file Hugging Face's order.

    Rows of a packed form are reordered without decoding them: ``form.rows(index)``.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.pretrained.gguf_names import permuted_rows, unpermuted_rows
    >>> unpermuted_rows(n_head=1, d_head=6).tolist()
    [0, 2, 4, 1, 3, 5]
    >>> permuted_rows(2, 6)[unpermuted_rows(2, 6)].tolist() == np.arange(12).tolist()
    True
    """
    return np.arange(n_head * d_head).reshape(n_head, -1, 2).swapaxes(1, 2).reshape(-1)


def permuted(W: Array, n_head: int) -> Array:
    """Return the weight (out, in), or the factor B (out, r), of queries or keys as GGUF has it.

    Parameters
    ----------
    W : array, shape (out, ...)
    n_head : int
        The heads of the queries or of the keys; out is ``n_head * d_head``.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.pretrained.gguf_names import permuted
    >>> permuted(np.arange(8), n_head=2).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return W[permuted_rows(n_head, len(W) // n_head)]


def unpermuted(W: Array, n_head: int) -> Array:
    """Return the weight of queries or keys in a GGUF file in Hugging Face's order of rows.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.pretrained.gguf_names import permuted, unpermuted
    >>> unpermuted(permuted(np.arange(12), n_head=3), n_head=3).tolist() == list(range(12))
    True
    """
    return W[unpermuted_rows(n_head, len(W) // n_head)]
