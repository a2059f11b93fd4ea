"""What PyTorch, PEFT and transformers run: imported in the process of that side only."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import peft
import torch
import transformers

from lora_np.methods import adapters
from lora_np.models import GPT
from tests.benchmarks.models import (
    LEARNING_RATE,
    adapted_model,
    base_model,
    batches,
    lora_config,
    prompt,
)
from tests.benchmarks.plan import Size
from tests.benchmarks.workers import Side
from tests.peers.test_torch import gpt2_state
from tests.peers.torch_gpt import tensor, twin_of


def peft_model(size: Size, rank: int) -> Any:
    """Return PEFT's model with the base, the A and the B of ours."""
    ours, config = adapted_model(size, rank), lora_config(rank)
    theirs = peft.get_peft_model(
        twin_of(base_model(size)),
        peft.LoraConfig(
            r=config.r, lora_alpha=config.lora_alpha, target_modules=list(config.target_modules)
        ),
    )
    for path, layer in adapters(ours).items():
        module = theirs.get_submodule(f"base_model.model.transformer.{path}")
        with torch.no_grad():
            module.lora_A["default"].weight.copy_(tensor(layer.A.value))
            module.lora_B["default"].weight.copy_(tensor(layer.B.value))
    return theirs.base_model.model


def training(size: Size, rank: int | None, setting: str) -> Callable[[], float]:
    """Return a function that takes one step after the other on a model of its own."""
    model = twin_of(base_model(size)) if rank is None else peft_model(size, rank)
    loss_of: Any = model.loss
    if "compiled" in setting:
        loss_of = torch.compile(loss_of, dynamic=False)
    trainable = [p for p in model.parameters() if p.requires_grad]
    fused = {"fused": True} if "fused" in setting else {}
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, **fused)
    data = [(tensor(x), tensor(y)) for x, y in batches(size)]
    turn = itertools.cycle(data)
    if "compiled" in setting:
        loss_of(*data[0]).backward()  # compiles both ways, and moves nothing

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(*next(turn))
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def gpt2(model: GPT, size: Size) -> Any:
    """Return transformers' GPT-2 with the values of ours, in its fast settings."""
    config = transformers.GPT2Config(
        vocab_size=size.vocab_size,
        n_positions=size.T,
        n_embd=size.d_model,
        n_layer=size.n_layer,
        n_head=size.n_head,
        activation_function="gelu_pytorch_tanh",  # one kernel; the default is eight
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.load_state_dict(gpt2_state(model, tensor))
    return theirs


class TorchSide(Side):
    """PyTorch in a process of its own.

    Parameters
    ----------
    threads : int
    cpu_time : bool
        Whether to count this process's CPU seconds.
    """

    def __init__(self, threads: int, cpu_time: bool = False) -> None:
        super().__init__()
        self.clock = time.process_time if cpu_time else time.perf_counter
        transformers.logging.set_verbosity_error()
        torch.set_num_threads(threads)

    def add_step(self, name: str, size: Size, rank: int | None, setting: str) -> None:
        """Prepare a training step; `setting` may name "fused" and "compiled"."""
        self.actions[name] = training(size, rank, setting)

    def forget(self) -> None:
        """Drop all actions and what was compiled for them."""
        super().forget()
        torch.compiler.reset()

    def add_generation(self, name: str, size: Size) -> None:
        """Prepare the greedy continuation of the prompt up to the full block."""
        model, tokens = gpt2(base_model(size), size), tensor(prompt(size))[None]
        mask, n = torch.ones_like(tokens), size.T - tokens.shape[1]

        def generate() -> np.ndarray:
            options = {"do_sample": False, "use_cache": True, "max_new_tokens": n}
            return model.generate(tokens, attention_mask=mask, **options)[0].numpy()

        self.actions[name] = generate

    def logits(self, size: Size) -> np.ndarray:
        """Return GPT-2's logits (B, T, V) for the first batch."""
        with torch.no_grad():
            return gpt2(base_model(size), size)(tensor(batches(size)[0][0])).logits.numpy()
