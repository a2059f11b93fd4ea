"""What lora_np runs on a Llama."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from typing import Any

import numpy as np

from lora_np import Llama, load_adapter, save_adapter
from tests.benchmarks.llama_models import Case, adapted, base_model, prompts, token_batches
from tests.benchmarks.numpy_side import NumpySide, Training


class LlamaSide(NumpySide):
    """lora_np with a Llama in a process of its own.

    Parameters
    ----------
    model : str
        As for :func:`tests.benchmarks.llama_models.base_model`.
    **options
        As for :class:`NumpySide`.
    """

    def __init__(self, model: str, **options: Any) -> None:
        super().__init__(**options)
        self.base = lru_cache(lambda quantised: base_model(model, quantised))

    def add_lora_step(
        self,
        name: str,
        case: Case,
        recompute: bool = False,
        quantised: bool = False,
        textbook: str | None = None,
    ) -> None:
        """Prepare a LoRA step; a batch of a single text is not split, and BLAS gets the threads."""
        model: Llama = adapted(self.base(quantised))
        model.recompute = recompute
        crew = {self.workers: self.threads} if self.threads <= case.B else {}
        data = token_batches(model.vocab_size, case)
        self.add_training(name, Training(model, data, textbook, **crew))

    def add_continuation(self, name: str, case: Case, new: int, quantised: bool = False) -> None:
        """Prepare the greedy continuation of prompts by `new` tokens each."""
        model: Llama = self.base(quantised)
        tokens = prompts(model.vocab_size, case)
        self.actions[name] = lambda: model.generate(tokens, new, temperature=0)

    def add_switch(self, name: str, quantised: bool) -> None:
        """Prepare the reading of an adapter from its folder and the first token with it."""
        model: Llama = self.base(quantised)
        folder = tempfile.TemporaryDirectory()
        save_adapter(adapted(model), folder.name)
        tokens = np.zeros((1, 1), int)

        def switch() -> np.ndarray:
            return load_adapter(model, folder.name).generate(tokens, 1, temperature=0)

        self.actions[name] = switch
        self.folder = folder  # is removed with this side
