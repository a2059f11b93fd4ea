"""Many LoRA adapters over one base, trained at once: each learns from its own rows of a batch.

Adapter a has the rows with ids[n] = a, and the loss L_a that it would have alone: the mean over the
targets of these rows. Together they have the loss::

    L = L_0 + L_1 + ...         dL/dA_a = dL_a/dA_a,    dL/dB_a = dL_a/dB_a

because only L_a depends on A_a and B_a. So each adapter has the gradient that it would have alone,
while the large products, with the frozen base, are computed once for all rows (ops/many.py). An
optimizer that computes entry by entry (SGD, Adam, AdamW) then makes the steps that it would make
for each adapter alone. Clipping takes the norm of each adapter's gradient by itself.

Each batch is computed by a tree of layers that know the adapters of its rows (rows.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array, get_xp, like, to_host
from lora_np.layers import Layer, Rng
from lora_np.methods.contract import MethodConfig, adapters, method_of
from lora_np.methods.lora import LoRALinear
from lora_np.methods.rows import with_rows
from lora_np.ops import Rows
from lora_np.ops.contract import expect_shape
from lora_np.ops.fast import head_loss_backward, head_loss_forward
from lora_np.ops.loss import IGNORE_INDEX
from lora_np.parameters import Grads, Parameter

_RATIO = "loraplus_lr_ratio"


class TogetherCache(NamedTuple):
    """The tree for the rows, the cache of its body, and the cache of each adapter's loss."""

    model: Any
    body: Any
    shape: tuple[int, ...]  # of the body's outputs
    losses: list[tuple[Array, Any]]  # the adapter's rows, and the cache


class Together(Layer):
    """Many models with LoRA over one base, which :func:`lora_np.fit` trains at once.

    A batch is (tokens, targets, ids): row n trains ``models[ids[n]]``; rows with the id -1 train
    nothing. The loss is the sum of the adapters' own mean losses. ``number(batch)`` is the number
    of targets of each adapter, an array, and the loss divides by it, so a batch may be split
    (`accumulate`, `threads`, `processes`). After training, the models hold the trained values.

    An adapter without a row in a batch has the gradient zero in this step, which Adam counts as a
    step: to train each as if alone, give every batch rows of all. If an rng is given, dropout of
    the base draws other masks than it would for one adapter alone.

    Parameters
    ----------
    models : sequence of LanguageModel
        From :func:`lora_np.inject` with LoRA over the same base; ranks and targets may differ.

    Raises
    ------
    ValueError
        If the models do not share one base's memory, train more than the A and B of plain LoRA, or
        have dropout in their adapters or different `loraplus_lr_ratio`.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, LoraConfig, fit, inject
    >>> from lora_np.methods import Together
    >>> rng = np.random.default_rng(0)
    >>> base = GPT(GPTConfig(9, 4, 1, 2, 8), rng)
    >>> models = [inject(base, LoraConfig(r), rng) for r in (2, 3)]
    >>> tokens, ids = np.array([[0, 1, 2], [2, 1, 0]]), np.array([0, 1])
    >>> history = fit(Together(models), lambda: (tokens, tokens, ids), steps=40, lr=0.05)
    >>> history.loss[-1] < history.loss[0]
    True
    """

    def __init__(self, models: Sequence[Any]) -> None:
        self.models = list(models)
        _expect_lora_over_one_base(self.models)
        self.method: MethodConfig | None = method_of(self.models[0])

    def parameters(self) -> dict[str, Parameter]:
        """Return the adapters' Parameters by name, with the number of the adapter in front."""
        return {
            f"{a}.{path}.{name}": p
            for a, model in enumerate(self.models)
            for path, layer in adapters(model).items()
            for name, p in layer.own().items()
        }

    def groups(self) -> list[list[str]]:
        """Return the names of each adapter's Parameters: clipping takes the norm of each group."""
        names = list(self.parameters())
        return [[n for n in names if n.startswith(f"{a}.")] for a in range(len(self.models))]

    def number(self, batch: Sequence[Array]) -> np.ndarray:
        """Return the number of targets of each adapter, (number of adapters,)."""
        ids = Rows(batch[2], len(self.models)).ids
        expect_shape("ids", ids, len(batch[1]))
        kept = to_host(batch[1] != IGNORE_INDEX).reshape(len(ids), -1).sum(axis=1)  # (n,)
        own = ids >= 0
        return np.bincount(ids[own], kept[own], len(self.models)).astype(int)

    def loss(
        self,
        tokens: Array,
        targets: Array,
        ids: Array,
        rng: Rng = None,
        count: np.ndarray | None = None,
    ) -> tuple[Array, TogetherCache]:
        """Return the sum of the adapters' mean losses, and the cache.

        `count` (number of adapters,) divides each adapter's sum; by default ``number(batch)``.
        """
        model = with_rows(self.models[0], self.models, ids)
        own = self.number((tokens, targets, ids))  # (number of adapters,)
        counts = own if count is None else count
        y, _, body = model.outputs(tokens, rng=rng)  # (n, T, d)
        total, losses = like(np.zeros((), y.dtype), y), []
        for a in np.flatnonzero(own).tolist():
            here = like(np.flatnonzero(to_host(ids) == a), y)
            loss, cache = head_loss_forward(
                y[here], model.head().value, targets[here], count=int(counts[a])
            )
            total = total + loss
            losses.append((here, cache._replace(kept=None)))
        return total, TogetherCache(model, body, y.shape, losses)

    def backward(
        self, dy: Array, cache: TogetherCache, grads: Grads, need_dx: bool = False
    ) -> None:
        """Add the gradients of the adapters that have a row."""
        model, body, shape, losses = cache
        if not losses:
            return
        first = losses[0][1].dx
        dx: Any = get_xp(first).zeros(shape, dtype=first.dtype)  # (n, T, d)
        for here, of_loss in losses:
            dx[here], _ = head_loss_backward(dy, of_loss, (True, False))
        model.layers_for(None).backward(dx, body, grads, False)


def _expect_lora_over_one_base(models: list[Any]) -> None:
    """Raise ValueError unless the models have plain LoRA over the memory of one base."""
    if not models:
        raise ValueError("there are no models to train together")
    first, bases = method_of(models[0]), [_base_of(model) for model in models]
    for a, (model, base) in enumerate(zip(models, bases)):
        layers, method = adapters(model).values(), method_of(model)
        if not layers or any(type(layer) is not LoRALinear for layer in layers):
            kinds = sorted({type(layer).__name__ for layer in layers}) or "no adapter"
            raise ValueError(f"models[{a}] has {kinds}, expected LoRALinear, the layer of LoRA")
        if any(layer.dropout for layer in layers):
            raise ValueError(f"models[{a}] has lora_dropout, which is not drawn here: set it to 0")
        if any(p.trainable for p in base):
            raise ValueError(f"models[{a}] trains Parameters of the base, which all models share")
        if getattr(method, _RATIO, 1.0) != getattr(first, _RATIO, 1.0):
            raise ValueError(f"models[{a}] has another {_RATIO} than models[0]: train it alone")
        shared = all(
            get_xp(p.held).may_share_memory(p.held, q.held) for p, q in zip(base, bases[0])
        )
        if len(base) != len(bases[0]) or not shared:
            raise ValueError(f"models[{a}] has another base than models[0]: inject into one model")


def _base_of(model: Any) -> list[Parameter]:
    """Return the Parameters that the adapters did not add, in order."""
    own = {p for layer in adapters(model).values() for p in layer.own().values()}
    return [p for p in model.parameters().values() if p not in own]
