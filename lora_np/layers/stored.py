"""Frozen weights stored in few bits, and decoded whenever they are used.

A :class:`StoredParameter` holds a packed form in place of an array and decodes it when its `value`
is read. Layers, methods and models read ``p.value`` as before, so none of them knows about forms::

    base = store_model(model, Bfloat16.encode)
    adapted = inject(base, LoraConfig(r=8), rng)    # trains A and B in the compute dtype

The products run in the compute dtype, the dtype of `value`: NumPy computes a product of two float16
arrays without BLAS, hundreds of times more slowly. What is saved is the memory at rest. During a
training step, the caches of forward hold the decoded matrices that backward will read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any
from weakref import WeakSet

import numpy as np

from lora_np.backend import Array, get_xp, read_only_view, to_device
from lora_np.forms import Form, RowForm
from lora_np.layers.base import Layer
from lora_np.layers.tree import rebuild
from lora_np.parameters import Parameter, writable
from lora_np.tables import first_of

AT_ONCE = 2**18  # numbers decoded at once in a product: 1 MB in float32


class StoredParameter(Parameter):
    """A frozen Parameter that keeps a packed form, and decodes it when `value` is read.

    Parameters
    ----------
    form : lora_np.forms.Form
    dtype : numpy dtype
        The compute dtype, in which `value` is decoded.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import StoredParameter
    >>> from lora_np.forms import Bfloat16
    >>> W = StoredParameter(Bfloat16.encode(np.full((2, 2), 0.1)))
    >>> W, W.nbytes, W.value[0].tolist()
    (StoredParameter((2, 2), float32 from bfloat16), 8, [0.10009765625, 0.10009765625])
    >>> try:
    ...     W.trainable = True
    ... except ValueError as error:
    ...     print(error)
    a Parameter stored as bfloat16 cannot be trained or changed: train an adapter over it, or use
    copy_model(model, decode=True)
    """

    def __init__(self, form: Form, dtype: Any = np.float32) -> None:
        self.form, self._dtype = form, np.dtype(dtype)
        self.borrowed = False
        self._borrowers = WeakSet()

    @property
    def value(self) -> Array:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A new decoded array at every use; it is read-only, because a change would be lost."""
        return read_only_view(self.form.decode(self._dtype))

    @value.setter
    def value(self, value: Array) -> None:
        """Raise ValueError."""
        raise self._refusal()

    def take(self, rows: Array | slice) -> Array:
        """Return ``value[rows]``; a form that keeps rows one by one decodes only these."""
        return read_only_view(self.form.take(rows, self._dtype))

    def product(self, x: Array) -> Array:
        """Return x W^T (..., out) for x (..., in), where this is W (out, in); for no gradient.

        A form that keeps rows one by one decodes a few rows at a time, which stay in the
        processor's cache: the whole of W is never in memory.
        """
        if not isinstance(self.form, RowForm):
            return super().product(x)
        d_out, d_in = self.shape
        x_rows = x.reshape(-1, d_in)  # (N, in)
        y = get_xp(x).empty((len(x_rows), d_out), x.dtype)
        step = max(1, AT_ONCE // d_in)
        for first in range(0, d_out, step):
            part = slice(first, first + step)
            y[:, part] = x_rows @ self.take(part).T
        return y.reshape(*x.shape[:-1], d_out)

    @property
    def trainable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """False."""
        return False

    @trainable.setter
    def trainable(self, trainable: bool) -> None:
        """Raise ValueError for True."""
        if trainable:
            raise self._refusal()

    def _refusal(self) -> ValueError:
        return ValueError(
            f"a Parameter stored as {self.stored_as} cannot be trained or changed: train an "
            "adapter over it, or use copy_model(model, decode=True)"
        )

    @property
    def stored_as(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The name of the form."""
        return self.form.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The decoded array's shape."""
        return self.form.shape

    @property
    def size(self) -> int:
        """The decoded array's number of entries."""
        return math.prod(self.form.shape)

    @property
    def dtype(self) -> Any:
        """The compute dtype."""
        return self._dtype

    def arrays(self) -> dict[str, Array]:
        """Return the form's parts by the ends of their names in files, such as ".nf4.codes"."""
        return {f".{self.form.name}.{name}": part for name, part in self.form.parts.items()}

    def copy(self, dtype: Any = None, device: str | None = None) -> StoredParameter:
        """Return an equal Parameter with memory of its own; `dtype` is the new compute dtype."""
        form = self.form.converted(lambda part: part.copy())
        if device is not None:
            form = form.converted(lambda part: to_device(part, device))
        return StoredParameter(form, self._dtype if dtype is None else dtype)

    def decoded(self) -> Parameter:
        """Return a frozen Parameter that holds the decoded array."""
        return Parameter(self.form.decode(self._dtype), trainable=False)

    def _converted(self, convert: Callable[[Array], Array]) -> StoredParameter:
        return StoredParameter(self.form.converted(convert), self._dtype)

    def __reduce__(self) -> tuple:
        return _restored, (self.form, self._dtype)

    def __repr__(self) -> str:
        return f"StoredParameter({self.shape}, {self.dtype} from {self.stored_as})"


def _restored(form: Form, dtype: Any) -> StoredParameter:
    return StoredParameter(form.converted(writable), dtype)


def store_model(
    model: Layer,
    encode: Callable[[Array], Form],
    names: Collection[str] | None = None,
) -> Any:
    """Return a frozen model whose Parameters are stored in another form: a base for inject().

    Parameters
    ----------
    model : Layer
        Stays unchanged, and lends the Parameters that are not stored.
    encode : callable
        ``encode(array)`` returns the form, for example ``lora_np.forms.Bfloat16.encode``.
    names : collection of str, optional
        The Parameters to store; by default all.

    Raises
    ------
    ValueError
        If a name is unknown, or numbers cannot be stored in this form; the message names the
        Parameter.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Linear, account, store_model
    >>> from lora_np.forms import Bfloat16
    >>> layer = Linear(30, 20, np.random.default_rng(0))
    >>> base = store_model(layer, Bfloat16.encode)
    >>> account(layer).weight_bytes, account(base).weight_bytes
    (2480, 1240)
    """
    parameters = model.parameters()
    if unknown := sorted(set(names or ()) - set(parameters)):
        raise ValueError(f"the model has no Parameter {first_of(unknown)} to store")
    chosen = {p: name for name, p in parameters.items() if names is None or name in names}

    def make(p: Parameter) -> Parameter:
        if p not in chosen:
            return p.share()
        try:
            return StoredParameter(encode(p.value), p.dtype)
        except ValueError as error:
            raise ValueError(f"{chosen[p]}: {error}") from None

    return rebuild(model, make)
