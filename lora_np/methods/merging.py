"""From an adapted model to a plain model and back: merge and unmerge, for methods that merge."""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_np.backend import Array, to_host
from lora_np.layers import Layer, copy_model, rebuild
from lora_np.methods.contract import Adapter, adapters, check_adapted, head_of
from lora_np.parameters import Parameter
from lora_np.tables import first_of


def merge(adapted: Any) -> Any:
    """Return a plain model that computes the same, without adapters and with its own memory.

    All its Parameters are trainable. A merged weight is computed and rounded in its dtype, so the
    outputs of the merged and the adapted model are equal to rounding.

    Parameters
    ----------
    adapted : Layer
        From :func:`lora_np.inject` or :func:`lora_np.load_adapter`.

    Raises
    ------
    ValueError
        If the model is not adapted, or the method does not merge.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Linear, LoraConfig, inject, merge
    >>> rng = np.random.default_rng(0)
    >>> adapted = inject(Linear(6, 5, rng), LoraConfig(r=2, target_modules="all-linear"), rng)
    >>> adapted.B.value[...] = 1.0  # as if it had been trained
    >>> plain, x = merge(adapted), np.ones((3, 6), np.float32)
    >>> np.allclose(plain.forward(x)[0], adapted.forward(x)[0], atol=1e-5)
    True
    >>> type(plain).__name__, len(plain.parameters())
    ('Linear', 2)
    """
    check_adapted(adapted)

    def plain(path: str, layer: Layer) -> Layer | None:
        return layer.merged() if isinstance(layer, Adapter) else None

    merged = rebuild(copy_model(adapted, decode=True), lambda p: p, plain)
    vars(merged).pop("method", None)
    for parameter in merged.parameters().values():
        parameter.trainable = True
    _check_head(adapted, merged)
    return merged


def _check_head(adapted: Any, merged: Any) -> None:
    """Raise ValueError if merging changed the matrix of a language model's head."""
    old, new = head_of(adapted), head_of(merged)
    if old is None or new is None:
        return
    if not np.array_equal(to_host(old.value), to_host(new.value), equal_nan=True):
        raise ValueError(
            "the model does not merge: its head is tied to an embedding that the method changes "
            "for the input alone"
        )


def unmerge(merged: Any, adapted: Any) -> Any:
    """Return a plain model with the adapters' changes subtracted from `merged`: W0, to rounding.

    Merging rounds W = W0 + scale B A, and subtracting rounds again. So an entry of W0 is restored
    to within one unit in the last place of the larger of ``|W0|`` and ``|W|``, a relative 1.2e-7
    in float32. The larger the change, the more entries are not bit-equal: 2 % if the change is a
    hundredth of W0, 11 % at a tenth, a third if both are of one size. If bits matter, keep the base
    from which `adapted` borrows: it has the exact W0.

    Parameters
    ----------
    merged : Layer
        The result of ``merge(adapted)``.
    adapted : Layer
        The model that was merged, with the same adapters.

    Raises
    ------
    ValueError
        If `adapted` has no adapters, the two models do not belong together, or the method trained
        Parameters of the base itself, whose old values neither model holds.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Linear, LoraConfig, inject, merge, unmerge
    >>> rng = np.random.default_rng(0)
    >>> base = Linear(6, 5, rng)
    >>> adapted = inject(base, LoraConfig(r=2, target_modules="all-linear"), rng)
    >>> adapted.B.value[...] = 1.0
    >>> again = unmerge(merge(adapted), adapted)
    >>> np.allclose(again.W.value, base.W.value, atol=1e-5)
    True
    """
    check_adapted(adapted)
    changes, shifts = {}, {}
    for path, layer in adapters(adapted).items():
        changes[path], shifts[path] = layer.delta(), _shift(layer)
    own = {p for layer in adapters(adapted).values() for p in layer.own().values()}
    trained = [name for name, p in adapted.parameters().items() if p.trainable and p not in own]
    if trained:
        raise ValueError(
            f"the method trained {first_of(trained)} of the base itself: the old values are in the "
            "base that it was injected into, which is as it was"
        )
    modules = {"": merged, **merged.modules()}
    for path, change in changes.items():
        W = getattr(modules.get(path), "W", None)
        if not isinstance(W, Parameter) or W.shape != change.shape:
            raise ValueError(f"the merged model has no layer of shape {change.shape} at {path!r}")
    plain = copy_model(merged)
    for path, change in changes.items():
        layer, shift = {"": plain, **plain.modules()}[path], shifts[path]
        layer.W.value = layer.W.value - change
        if shift is not None:
            layer.b.value = layer.b.value - shift
    return plain


def _shift(adapter: Adapter) -> Array | None:
    """Return what merging adds to the base's bias (out,); None where that stays as it is."""
    b, old = (getattr(layer, "b", None) for layer in (adapter.merged(), adapter.base))
    if b is None or b is old:
        return None
    return b.value if old is None else b.value - old.value
