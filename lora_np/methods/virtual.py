"""What prompt and prefix tuning share: trainable rows before those of a text, and PEFT's file.

The pair puts rows P (n, d) before x (..., T, d). All texts of a batch have the same P, so its
gradients add up::

    y = [P; x]                (..., n + T, d)
    dP = sum over the batch of dy[:n]          dx = dy[n:]

PEFT's file holds one tensor, prompt_embeddings: n rows, and side by side the columns of the adapted
layers, in their order. Of an MLP that returns the rows, only its result is written.

Source: the formats of PEFT 0.21.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np

from lora_np.backend import Array, get_xp, like, to_host
from lora_np.layers import Layer, TextStart
from lora_np.methods.contract import (
    Adapter,
    Fields,
    FileForm,
    MethodConfig,
    NoPeftForm,
    Places,
    Tensors,
    adapters,
    inject,
)
from lora_np.methods.file_form import fill_tensors, tensors_of
from lora_np.methods.options import check_whole
from lora_np.ops.contract import Need, expect_shape, wanted
from lora_np.parameters import Parameter
from lora_np.reading import shown
from lora_np.tables import first_of

TENSOR = "prompt_embeddings"


class PrependCache(NamedTuple):
    """What :func:`prepend_backward` reads."""

    n: int
    shape: tuple[int, ...]  # of y


def prepend_forward(x: Array, P: Array) -> tuple[Array, PrependCache]:
    """Return y = [P; x] (..., n + T, d) for x (..., T, d) and P (n, d), and the cache.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.methods.virtual import prepend_backward, prepend_forward
    >>> y, cache = prepend_forward(np.ones((2, 3, 1)), np.zeros((1, 1)))  # two texts, one row
    >>> y[..., 0].tolist()
    [[0.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]]
    >>> dx, dP = prepend_backward(np.ones((2, 4, 1)), cache)
    >>> dx.shape, dP.tolist()
    ((2, 3, 1), [[2.0]])
    """
    expect_shape("P", P, None, x.shape[-1])
    (n, d), T = P.shape, x.shape[-2]
    shape, dtype = (*x.shape[:-2], n + T, d), np.result_type(x.dtype, P.dtype)
    y = get_xp(x).empty_like(x, shape=shape, dtype=dtype)
    y[..., :n, :], y[..., n:, :] = P, x
    return y, PrependCache(n, y.shape)


def prepend_backward(
    dy: Array, cache: PrependCache, need: Need = None
) -> tuple[Array | None, Array | None]:
    """Return (dx, dP) of :func:`prepend_forward`."""
    expect_shape("dy", dy, *cache.shape)
    need_x, need_P = wanted(need, 2)
    n, d = cache.n, cache.shape[-1]
    dx = dy[..., n:, :] if need_x else None  # (..., T, d)
    dP = dy[..., :n, :].reshape(-1, n, d).sum(axis=0) if need_P else None  # (n, d)
    return dx, dP


class VirtualAdapter(Adapter):
    """An adapter with n trainable rows, which stand before those of the text."""

    def virtual_tokens(self) -> tuple[Array, Any]:
        """Return the rows (n, columns) as PEFT's file holds them, and the cache of their making."""
        raise TypeError(f"{type(self).__name__} has no virtual_tokens of its own")

    def merged(self) -> Any:
        """Raise ValueError with the reason."""
        raise ValueError("virtual tokens do not merge: no weight of the base adds rows to a text's")


class VirtualTokens(MethodConfig):
    """A method with `num_virtual_tokens` trainable rows before the text, whose root is wrapped."""

    starts_at_base = False
    merges = False
    peft_type: ClassVar[str]
    num_virtual_tokens: int

    def __post_init__(self) -> None:
        for name, number in vars(self).items():
            if isinstance(number, int) and not isinstance(number, bool):
                check_whole(name, number)

    def places(self, model: Any) -> list[str]:
        """Return the root, after a check that the rows fit in the context."""
        self.start_of(model)
        return [""]

    def start_of(self, model: Any) -> TextStart:
        """Return what a model puts before its text, after a check that the rows fit."""
        n = self.num_virtual_tokens
        found = [layer for layer in model.modules().values() if isinstance(layer, TextStart)]
        if not found:
            raise ValueError(
                f"{type(model).__name__} has no place before a text: {self.name} tuning needs a "
                "language model"
            )
        if n >= model.block_size:
            raise ValueError(
                f"num_virtual_tokens = {n} leaves no room for a text in the model's block_size = "
                f"{model.block_size}: choose at most {model.block_size - 1}"
            )
        return found[0]

    # ------------------------------------------------------------------------- PEFT's files

    of_model = (TENSOR,)

    @classmethod
    def of_fields(cls, saved: Fields) -> MethodConfig | None:
        """Return the configuration in the fields of a file of PEFT's type, else None."""
        if saved.get("peft_type") != cls.peft_type:
            return super().of_fields(saved)
        n = saved.get("num_virtual_tokens")
        if not isinstance(n, int) or isinstance(n, bool):
            raise ValueError(f"num_virtual_tokens = {shown(n)}, expected a whole number")
        return cls(num_virtual_tokens=n)  # pyright: ignore[reportCallIssue]

    def to_peft(self, adapted: Layer, places: Places) -> FileForm:
        """Return PEFT's fields and its tensor; PEFT takes the base's sizes from its config."""
        layers = adapters(adapted).values()
        written = {p for layer in layers for p in layer.own().values()}
        others = [name for name, p in tensors_of(adapted).items() if p not in written]
        if others:
            raise NoPeftForm(f"the model also trains {first_of(others)}, which PEFT cannot hold")
        fields = {
            "peft_type": self.peft_type,
            "task_type": "CAUSAL_LM",
            "num_virtual_tokens": self.num_virtual_tokens,
        }
        rows = [to_host(layer.virtual_tokens()[0]) for layer in layers]
        return fields, {TENSOR: np.concatenate(rows, axis=1)}

    @classmethod
    def of_peft(cls, saved: Fields, tensors: Tensors, base: Layer, places: Places) -> Any:
        """Return `base` with the rows of a PEFT file."""
        config = cls.of_fields(saved)
        assert isinstance(config, cls), "the class was chosen by these fields"
        adapted = inject(base, config, np.random.default_rng(0))
        held = [p for layer in adapters(adapted).values() for p in layer.own().values()]
        whole = Parameter(np.concatenate([to_host(p.value) for p in held], axis=1))
        fill_tensors({TENSOR: whole}, tensors)
        ends = np.cumsum([p.shape[1] for p in held])
        for p, columns in zip(held, np.split(whole.value, ends[:-1], axis=1)):
            p.value = like(columns.copy(), p.value)
        return adapted
