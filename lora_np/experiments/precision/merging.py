"""What merging loses when the sum is rounded: entries that stay as they were, and their number.

A merged weight W = W0 + dW is rounded to the form in which W0 is stored. Where dW is smaller than
half the distance to the next number, the entry keeps its old value. Subtracting dW from W rounds
once more, so that W0 is not restored everywhere::

    unchanged     share of entries with  round(W0 + dW) = W0
    rounding      |round(W0 + dW) - (W0 + dW)| / |dW|, Frobenius norms
    not restored  share of entries with  round(round(W0 + dW) - dW) != W0

In NF4 an entry counts as unchanged if its code is: its value moves with the absmax of its block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lora_np.forms import Bfloat16, Float16, Form, Nf4, narrowed
from lora_np.layers import Layer, Linear
from lora_np.methods import adapters


class Float32(Form):
    """Numbers as float32: the form of a base that is not stored otherwise."""

    name = "float32"

    @classmethod
    def encode(cls, x: np.ndarray) -> Float32:
        """Return `x` rounded to float32."""
        return cls(x.shape, {"numbers": narrowed(x, "float32")})

    def decode(self, dtype: Any) -> np.ndarray:
        """Return the numbers in `dtype`."""
        return self.parts["numbers"].astype(dtype)


FORMS: dict[str, Any] = {form.name: form for form in (Float32, Bfloat16, Float16, Nf4)}


def stored_entries(form: Form) -> np.ndarray:
    """Return what a form keeps for each entry: its number, or its code in a block.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.experiments.precision.merging import stored_entries
    >>> from lora_np.forms import Bfloat16, Nf4
    >>> x = np.array([-1.0, 0.0, 1.0])
    >>> stored_entries(Bfloat16.encode(x)).tolist(), stored_entries(Nf4.encode(x)).tolist()
    ([-1.0, 0.0, 1.0], [0, 7, 15])
    """
    packed = form.parts.get("codes")
    if packed is None:
        return form.decode(np.float64)
    codes = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)
    return codes[: math.prod(form.shape)].reshape(form.shape)


def merge_row(name: str, adapted: Layer) -> dict[str, float]:
    """Return the shares and the norms of merging what was trained, over all adapted weights."""
    encode = FORMS[name].encode
    kept = restored = entries = 0
    squares = np.zeros(3)  # of W0, of dW, of the rounding
    for layer in adapters(adapted).values():
        W0, change = (x.astype(np.float64) for x in (layer.base.W.value, layer.delta()))
        old, new = encode(W0), encode(W0 + change)
        W = new.decode(np.float64)
        again = encode(W - change)
        kept += _equal(new, old)
        restored += _equal(again, old)
        entries += W0.size
        squares += [np.sum(x**2) for x in (W0, change, W - (W0 + change))]
    of_weight, of_change, of_rounding = (float(norm) for norm in np.sqrt(squares))
    return {
        "size": of_change / of_weight,
        "unchanged": kept / entries,
        "rounding": of_rounding / of_change,
        "not_restored": 1.0 - restored / entries,
    }


def unchanged_by_size(name: str, base: Layer, sizes: Sequence[float]) -> list[float]:
    """Return the shares of entries that random changes of these sizes leave as they were.

    A size is the norm of the change dW over that of the weight W0. The entries of dW are normal
    numbers, as those of a product B A of many terms nearly are.
    """
    encode = FORMS[name].encode
    weights = [layer.W.value for layer in base.modules().values() if isinstance(layer, Linear)]
    shares = []
    for size in sizes:
        rng, kept, entries = np.random.default_rng(0), 0, 0
        for weight in weights:
            old = encode(weight)
            W0 = old.decode(np.float64)
            change = rng.standard_normal(W0.shape)
            change *= size * np.linalg.norm(W0) / np.linalg.norm(change)
            kept += _equal(encode(W0 + change), old)
            entries += W0.size
        shares.append(kept / entries)
    return shares


def _equal(one: Form, other: Form) -> int:
    """Return how many entries two forms keep alike."""
    return int((stored_entries(one) == stored_entries(other)).sum())
