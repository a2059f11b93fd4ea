"""PEFT's layer with an adapter for each row: imported in the process of that side only."""

from __future__ import annotations

from typing import Any

import numpy as np
import peft
import torch

from tests.benchmarks.many import SCALE, numbers
from tests.benchmarks.torch_side import TorchSide


class RowsOfPeft(TorchSide):
    """PEFT's layer, with the names of the rows' adapters."""

    def add_layer(self, rows: int, ranks: tuple[int, ...], d: int) -> None:
        """Prepare the layer with the numbers of ours."""
        x, W0, adapters, ids = numbers(rows, ranks, d)
        linear = torch.nn.Linear(d, d, bias=False)
        linear.weight.data = torch.tensor(W0)
        configs = [
            peft.LoraConfig(r=r, lora_alpha=SCALE * r, target_modules=["0"])  # pyright: ignore
            for r in ranks
        ]
        model = peft.get_peft_model(torch.nn.Sequential(linear), configs[0], "0")  # pyright: ignore
        for a, config in enumerate(configs[1:], start=1):
            model.add_adapter(str(a), config)
        layer: Any = model.eval().base_model.model[0]
        for a, (A, B) in enumerate(adapters):
            layer.lora_A[str(a)].weight.data = torch.tensor(A)
            layer.lora_B[str(a)].weight.data = torch.tensor(B)
        inputs, names = torch.tensor(x), [str(a) for a in ids]

        def forward() -> np.ndarray:
            with torch.inference_mode():
                return layer(inputs, adapter_names=names).numpy()

        self.actions["layer"] = forward
