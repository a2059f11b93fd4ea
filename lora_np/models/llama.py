"""The Llama family's architecture: SmolLM2, TinyLlama, Llama 3, Qwen2.

From tokens to logits::

    x = embed_tokens[tokens]                                       positions come with attention
    x = x + self_attn(input_layernorm(x))                          n_layer pre-norm residual blocks
    x = x + mlp(post_attention_layernorm(x))
    logits = norm(x) W^T                                           W = embed_tokens if tied

It differs from GPT-2 in five places: RMSNorm in place of LayerNorm, rotary positions in place of a
table of positions, groups of queries that share keys and values, a gated MLP, and no biases (Qwen2
has them on q, k and v). Paths are those of Hugging Face's LlamaForCausalLM, so that its files and
PEFT's adapters need no other names.

Source: Touvron et al. (2023), arXiv:2302.13971, section 2.2; grouped queries: Grattafiori et al.
(2024), arXiv:2407.21783, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_np.layers import (
    Chain,
    Composed,
    Embedding,
    GatedMLP,
    Layer,
    Linear,
    Residual,
    RMSNorm,
    RotaryAttention,
    normal,
)
from lora_np.layers.rotary import Angles
from lora_np.models.language import LanguageModel
from lora_np.ops.rope import Llama3Scaling
from lora_np.parameters import Parameter

Make = Callable[[str, tuple[int, ...]], Parameter]  # (name, shape) -> the Parameter


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a Llama.

    Parameters
    ----------
    vocab_size : int
        Number of tokens.
    block_size : int
        Longest sequence.
    n_layer : int
        Number of blocks.
    n_head, n_kv_head : int
        Heads of queries in a block, and of keys and values; the second divides the first.
    d_model, d_hidden : int
        Width of the model, and inside the MLP.
    d_head : int, optional
        Width of a head, an even number; by default d_model / n_head.
    rope_base : float
        The base of the rotary wavelengths.
    rope_scaling : lora_np.ops.rope.Llama3Scaling, optional
        Llama 3's change of the wavelengths for long texts.
    eps : float
        Added to the mean square in RMSNorm.
    tied : bool
        Whether the head is the table of tokens.
    qkv_bias : bool
        Whether q_proj, k_proj and v_proj have biases, as Qwen2's do.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Llama, LlamaConfig, account
    >>> config = LlamaConfig(256, 64, n_layer=2, n_head=4, n_kv_head=2, d_model=64, d_hidden=96)
    >>> account(Llama(config, np.random.default_rng(0))).total
    78144
    """

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_kv_head: int
    d_model: int
    d_hidden: int
    d_head: int | None = None
    rope_base: float = 10000.0
    rope_scaling: Llama3Scaling | None = None
    eps: float = 1e-5
    tied: bool = True
    qkv_bias: bool = False

    def __post_init__(self) -> None:
        sizes = (
            "vocab_size",
            "block_size",
            "n_layer",
            "n_head",
            "n_kv_head",
            "d_model",
            "d_hidden",
        )
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.n_head % self.n_kv_head:
            raise ValueError(
                f"n_head = {self.n_head} is not a multiple of n_kv_head = {self.n_kv_head}"
            )
        if self.d_head is None and self.d_model % self.n_head:
            raise ValueError(
                f"d_model = {self.d_model} does not divide into n_head = {self.n_head} equal heads"
            )
        if self.head_width < 2 or self.head_width % 2:
            raise ValueError(f"d_head is {self.head_width}, expected an even number")

    @property
    def head_width(self) -> int:
        """The width of a head, d_head."""
        return self.d_model // self.n_head if self.d_head is None else self.d_head


class LlamaBlock(Composed):
    """x + self_attn(input_layernorm(x)), then x + mlp(post_attention_layernorm(x))."""

    def __init__(self, config: LlamaConfig, path: str, make: Make, angles: Angles) -> None:
        c, d = config, config.d_model
        queries, keys = c.n_head * c.head_width, c.n_kv_head * c.head_width

        def linear(name: str, d_in: int, d_out: int, bias: bool = False) -> Linear:
            b = make(f"{path}.{name}.b", (d_out,)) if bias else None
            return Linear.over(make(f"{path}.{name}.W", (d_out, d_in)), b)

        def norm(name: str) -> RMSNorm:
            return RMSNorm.over(make(f"{path}.{name}.gamma", (d,)), c.eps)

        self.self_attn = RotaryAttention(
            linear("self_attn.q_proj", d, queries, c.qkv_bias),
            linear("self_attn.k_proj", d, keys, c.qkv_bias),
            linear("self_attn.v_proj", d, keys, c.qkv_bias),
            linear("self_attn.o_proj", queries, d),
            n_head=c.n_head,
            n_kv_head=c.n_kv_head,
            angles=angles,
        )
        self.mlp = GatedMLP(
            linear("mlp.gate_proj", d, c.d_hidden),
            linear("mlp.up_proj", d, c.d_hidden),
            linear("mlp.down_proj", c.d_hidden, d),
        )
        self.input_layernorm = norm("input_layernorm")
        self.post_attention_layernorm = norm("post_attention_layernorm")

    def path(self) -> Chain:
        """Return the two residual branches."""
        return Chain(
            Residual(Chain(self.input_layernorm, self.self_attn)),
            Residual(Chain(self.post_attention_layernorm, self.mlp)),
        )


class Decoder(Layer):
    """The parts of a Llama below its head, under Hugging Face's names."""

    def __init__(self, config: LlamaConfig, make: Make) -> None:
        shape = (config.vocab_size, config.d_model)
        angles = Angles(config.head_width, config.rope_base, config.rope_scaling)
        self.embed_tokens = Embedding.over(make("model.embed_tokens.W", shape))
        self.layers = [
            LlamaBlock(config, f"model.layers.{i}", make, angles) for i in range(config.n_layer)
        ]
        self.norm = RMSNorm.over(make("model.norm.gamma", (config.d_model,)), config.eps)


class OutputHead(Layer):
    """The matrix W (V, d) of an untied head: no method takes it for one of the linear layers."""

    def __init__(self, W: Parameter) -> None:
        self.W = W


class Llama(LanguageModel):
    """A model of the Llama family.

    Parameters
    ----------
    config : LlamaConfig
    rng : numpy.random.Generator
        Draws the weights from N(0, 0.02^2).
    dtype : numpy dtype
        float32 to train, float64 to check.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Llama, LlamaConfig
    >>> config = LlamaConfig(256, 8, n_layer=1, n_head=2, n_kv_head=1, d_model=16, d_hidden=24)
    >>> model = Llama(config, np.random.default_rng(0))
    >>> logits, cache = model.forward(np.array([[1, 2, 3]]))
    >>> logits.shape
    (1, 3, 256)
    >>> [path for path in model.modules() if path.endswith("q_proj")]
    ['model.layers.0.self_attn.q_proj']
    """

    def __init__(
        self, config: LlamaConfig, rng: np.random.Generator, dtype: Any = np.float32
    ) -> None:
        def drawn(name: str, shape: tuple[int, ...]) -> Parameter:
            if name.endswith(".W"):
                return Parameter(normal(rng, shape, 0.02, dtype))
            fill = np.ones if name.endswith(".gamma") else np.zeros
            return Parameter(fill(shape, dtype))

        self._build(config, drawn)

    @classmethod
    def of(cls, config: LlamaConfig, make: Make) -> Llama:
        """Return a Llama whose Parameters are ``make(name, shape)``: nothing is drawn.

        Examples
        --------
        >>> import numpy as np
        >>> from lora_np import Llama, LlamaConfig, Parameter
        >>> config = LlamaConfig(9, 8, n_layer=1, n_head=1, n_kv_head=1, d_model=2, d_hidden=3)
        >>> model = Llama.of(config, lambda name, shape: Parameter(np.ones(shape, np.float32)))
        >>> len(model.parameters())
        11
        """
        model = cls.__new__(cls)
        model._build(config, make)
        return model

    def _build(self, config: LlamaConfig, make: Make) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config, make)
        shape = (config.vocab_size, config.d_model)
        self.lm_head = None if config.tied else OutputHead(make("lm_head.W", shape))

    @property
    def block_size(self) -> int:
        """The longest sequence."""
        return self.config.block_size

    def embeddings(self) -> list[Parameter]:
        """Return the Parameters of the table of tokens."""
        return list(self.model.embed_tokens.parameters().values())

    def table(self) -> Embedding:
        """Return the table of tokens."""
        return self.model.embed_tokens

    def body(self) -> Chain:
        """Return the blocks and the last RMSNorm."""
        return Chain(*self.model.layers, self.model.norm)

    def head(self) -> Parameter:
        """Return the table of tokens, or the head's own matrix if it is not tied."""
        return self.model.embed_tokens.W if self.lm_head is None else self.lm_head.W
