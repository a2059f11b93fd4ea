"""What transformers and PEFT run on the same Llama: imported in the process of that side only."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import peft
import torch
import transformers

from lora_np import Llama
from lora_np.methods import adapters
from tests.benchmarks.llama_models import Case, adapted, base_model, prompts, token_batches
from tests.benchmarks.models import LEARNING_RATE, lora_config
from tests.benchmarks.plan import RANK
from tests.benchmarks.torch_side import TorchSide

LEAF = {"W": "weight", "gamma": "weight", "b": "bias"}
ATTENTIONS = ("sdpa", "eager")


def twin_of(ours: Llama) -> Any:
    """Return transformers' model with the values of ours."""
    c = ours.config
    if c.rope_scaling is not None or c.qkv_bias:
        raise ValueError("the benchmark's peer has plain rotary positions and no biases")
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        intermediate_size=c.d_hidden,
        num_hidden_layers=c.n_layer,
        num_attention_heads=c.n_head,
        num_key_value_heads=c.n_kv_head,
        head_dim=c.head_width,
        max_position_embeddings=c.block_size,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
        rms_norm_eps=c.eps,
        tie_word_embeddings=c.tied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,  # the gradient of that row would be zero
    )
    theirs = transformers.LlamaForCausalLM(config)
    named = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, p in ours.parameters().items():
            path, _, kind = name.rpartition(".")
            named.pop(f"{path}.{LEAF[kind]}").copy_(torch.from_numpy(p.value))
    if named:
        raise ValueError(f"transformers' model has {sorted(named)}, which ours lacks")
    return theirs


def peft_of(base: Llama) -> Any:
    """Return PEFT's model with the values of our base and of its adapters."""
    config, ours = lora_config(RANK), adapted(base)
    theirs = peft.get_peft_model(
        twin_of(base),
        peft.LoraConfig(
            r=config.r, lora_alpha=config.lora_alpha, target_modules=list(config.target_modules)
        ),
    )
    with torch.no_grad():
        for path, layer in adapters(ours).items():
            module = theirs.get_submodule(f"base_model.model.{path}")
            module.lora_A["default"].weight.copy_(torch.from_numpy(layer.A.value))
            module.lora_B["default"].weight.copy_(torch.from_numpy(layer.B.value))
    return theirs


class LlamaTorchSide(TorchSide):
    """transformers and PEFT with a Llama in a process of their own.

    Parameters
    ----------
    model : str
        As for :func:`tests.benchmarks.llama_models.base_model`.
    **options
        As for :class:`TorchSide`.
    """

    def __init__(self, model: str, **options: Any) -> None:
        super().__init__(**options)
        warnings.filterwarnings("ignore", category=FutureWarning)  # of names in transformers 5
        self.model = model

    def add_lora_step(self, name: str, case: Case, recompute: bool = False) -> None:
        """Prepare PEFT's step with AdamW, with gradient checkpointing if `recompute`."""
        model = peft_of(base_model(self.model)).train()
        if recompute:
            model.enable_input_require_grads()  # what PEFT's own guide says for checkpointing
            model.gradient_checkpointing_enable()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
        vocab_size = model.config.vocab_size
        data = token_batches(vocab_size, case)
        tensors = [tuple(map(torch.from_numpy, batch)) for batch in data]
        turn = itertools.cycle(tensors)

        def loss_of(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            logits = model(input_ids=tokens, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits.view(-1, vocab_size), targets.reshape(-1)
            )
            loss.backward()
            return loss

        def step() -> float:
            optimizer.zero_grad()
            loss = loss_of(*next(turn))
            optimizer.step()
            return loss.item()

        self.choose_attention(model, lambda: loss_of(*tensors[0]))
        self.actions[name] = step

    def add_continuation(self, name: str, case: Case, new: int) -> None:
        """Prepare the greedy continuation of prompts by `new` tokens each, with the KV cache."""
        model = twin_of(base_model(self.model)).eval()
        tokens = torch.from_numpy(prompts(model.config.vocab_size, case))
        mask = torch.ones_like(tokens)
        options = {"do_sample": False, "use_cache": True, "max_new_tokens": new}

        def generate() -> np.ndarray:
            return model.generate(tokens, attention_mask=mask, **options).numpy()

        self.choose_attention(model, generate)
        self.actions[name] = generate

    def choose_attention(self, model: Any, function: Callable[[], Any]) -> None:
        """Let the model take the implementation of attention with which a function is faster."""
        seconds = {}
        for attention in ATTENTIONS:
            use_attention(model, attention)
            function()
            start = self.clock()
            function()
            seconds[attention] = self.clock() - start
        use_attention(model, min(seconds, key=seconds.__getitem__))


def use_attention(model: Any, attention: str) -> None:
    """Set the implementation of attention."""
    inner = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    inner.set_attn_implementation(attention)
