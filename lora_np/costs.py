"""What a method costs on a model: parameters, floating-point operations, bytes."""

from __future__ import annotations

from dataclasses import dataclass

from lora_np.layers import Flops, Layer
from lora_np.methods.contract import adapters
from lora_np.tables import Table, Tabular


@dataclass(frozen=True)
class Account(Tabular):
    """What it costs to train a model; prints as a table.

    Attributes
    ----------
    base, adapter : int
        Number of parameters of the model itself, and of those that adapters add.
    trainable : int
        Number of trainable parameters.
    T : int
        Tokens in a sequence: the cost of attention depends on it.
    flops : Flops
        Operations of the matrix products for one token, forward and backward.
    weight_bytes, gradient_bytes, optimizer_bytes : int
        Memory for the weights as they are stored, the gradients and the optimizer's state.
    """

    base: int
    adapter: int
    trainable: int
    T: int
    flops: Flops
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int

    @property
    def total(self) -> int:
        """All parameters, adapters included."""
        return self.base + self.adapter

    @property
    def share(self) -> float:
        """The number of trainable parameters over the number in the base."""
        return self.trainable / self.base

    def table(self) -> Table:
        """Return the figures as a table."""
        figures = {
            "parameters": self.total,
            "of which adapters": self.adapter,
            "trainable": self.trainable,
            "trainable / base": f"{100 * self.share:.2f} %",
            f"FLOPs a token forward, T = {self.T}": self.flops.forward,
            f"FLOPs a token backward, T = {self.T}": self.flops.backward,
            "bytes of weights": self.weight_bytes,
            "bytes of gradients": self.gradient_bytes,
            "bytes of optimizer state": self.optimizer_bytes,
        }
        columns = {"figure": list(figures), "value": list(figures.values())}
        return Table(columns, {"value": ","}, headings=False)


def account(model: Layer, T: int | None = None, *, state_per_parameter: int = 2) -> Account:
    """Count parameters, FLOPs per token and bytes.

    Parameters
    ----------
    model : Layer
        A plain or an adapted model.
    T : int, optional
        Tokens in a sequence; by default the model's block_size, or 1 if it has none.
    state_per_parameter : int
        Numbers that the optimizer keeps for each trainable parameter: 2 for Adam and AdamW, 0 for
        SGD, 1 for SGD with momentum.

    Returns
    -------
    Account

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Linear, LoraConfig, account, inject
    >>> rng = np.random.default_rng(0)
    >>> base = Linear(1000, 1000, rng, bias=False)
    >>> found = account(inject(base, LoraConfig(r=8, target_modules="all-linear"), rng))
    >>> found.base, found.trainable, f"{found.share:.1%}"  # r (in + out) = 8 x 2000
    (1000000, 16000, '1.6%')
    """
    if T is None:
        T = int(getattr(model, "block_size", 1))
    if T < 1:
        raise ValueError(f"T = {T}, expected at least 1 token in a sequence")
    parameters = model.parameters().values()
    added = {p for layer in adapters(model).values() for p in layer.own().values()}
    adapter = sum(p.size for p in added)  # a Parameter shared by several layers counts once
    trainable = [p for p in parameters if p.trainable]
    gradient_bytes = sum(p.size * p.dtype.itemsize for p in trainable)
    return Account(
        base=sum(p.size for p in parameters) - adapter,
        adapter=adapter,
        trainable=sum(p.size for p in trainable),
        T=T,
        flops=model.flops(T, False),
        weight_bytes=sum(p.nbytes for p in parameters),
        gradient_bytes=gradient_bytes,
        optimizer_bytes=state_per_parameter * gradient_bytes,
    )


# model: adapted matrices as (count, out, in), r, number of parameters of the base
KNOWN_MODELS = {
    "one 4096 x 4096 matrix": ([(1, 4096, 4096)], 8, 4096 * 4096),
    "BERT-base, q k v o": ([(12 * 4, 768, 768)], 8, 109_482_240),
    "LLaMA-7B, q k v o": ([(32 * 4, 4096, 4096)], 8, 6_738_415_616),
    "GPT-3 175B, q v": ([(96 * 2, 12288, 12288)], 4, 174_604_259_328),
}


def known_models() -> Table:
    """Return a table of the parameters that LoRA adds to well-known models.

    An adapter of rank r on an (out, in) matrix has r (in + out) parameters. The shapes come from
    Devlin et al. (2018), Touvron et al. (2023) and Brown et al. (2020).

    Examples
    --------
    >>> from lora_np.costs import known_models
    >>> print(known_models())
    model, matrices adapted  r     adapter   / base  fp16 MB
    one 4096 x 4096 matrix   8      65,536  0.391 %      0.1
    ...
    """
    rows = []
    for name, (matrices, r, base) in KNOWN_MODELS.items():
        adapter = sum(count * r * (d_out + d_in) for count, d_out, d_in in matrices)
        of_model = {"model, matrices adapted": name, "r": r, "adapter": adapter}
        rows.append({**of_model, "/ base": adapter / base, "fp16 MB": 2 * adapter / 1e6})
    return Table.of_rows(rows, {"adapter": ",", "/ base": ".3f %", "fp16 MB": ".1f"})
