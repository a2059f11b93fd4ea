"""Learned arrays: Parameters, their gradients, and one flat vector of all trainable Parameters.

A layer holds Parameters; backward adds their gradients to a :class:`Grads`, which the caller owns.
:func:`pack` lays the trainable Parameters end to end in one vector and turns their arrays into
views of that vector: an optimizer's step, clipping and a snapshot are then each one operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakSet

from lora_np.backend import Array, ShapeError, get_xp, read_only_view, to_device
from lora_np.tables import first_of


class Parameter:
    """An array that a model holds, trainable or frozen.

    Attributes
    ----------
    value : array
    trainable : bool
        Whether backward forms its gradient.
    borrowed : bool
        Whether `value` is a read-only view of another model's array.
    stored_as : str
        The packed form of a :class:`lora_np.StoredParameter`, such as "nf4"; "" for an
        array.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Parameter
    >>> W0 = Parameter(np.zeros((2, 3), np.float32))
    >>> W0.share()  # an adapted model holds such views of its base's arrays
    Parameter((2, 3), float32, frozen)
    >>> np.shares_memory(W0.value, W0.share().value)
    True
    """

    stored_as: str = ""

    def __init__(self, value: Array, trainable: bool = True) -> None:
        self.value = value
        self.trainable = trainable
        self.borrowed = False
        self._borrowers: WeakSet[Parameter] = WeakSet()

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.value.shape

    @property
    def size(self) -> int:
        """The array's number of entries."""
        return self.value.size

    @property
    def dtype(self) -> Any:
        """The array's dtype."""
        return self.value.dtype

    def take(self, rows: Array | slice) -> Array:
        """Return ``value[rows]``; `rows` is an integer array of any shape, or a slice."""
        return self.value[rows]

    def product(self, x: Array) -> Array:
        """Return x W^T (..., out) for x (..., in), where this is W (out, in); for no gradient."""
        y = x.reshape(-1, x.shape[-1]) @ self.value.T  # (N, out)
        return y.reshape(*x.shape[:-1], -1)

    def arrays(self) -> dict[str, Array]:
        """Return the arrays in memory by the ends of their names in files; {"": value} if plain."""
        return {"": self.value}

    @property
    def held(self) -> Array:
        """An array in memory, which says on which device the Parameter is: nothing is decoded."""
        return next(iter(self.arrays().values()))

    @property
    def nbytes(self) -> int:
        """The bytes of the arrays in memory."""
        return sum(array.size * array.dtype.itemsize for array in self.arrays().values())

    @property
    def shared(self) -> bool:
        """Whether the memory was borrowed, or a living model has borrowed it."""
        return self.borrowed or len(self._borrowers) > 0

    def share(self) -> Parameter:
        """Return a frozen Parameter whose array is a read-only view of the same memory."""
        view = self._converted(read_only_view)
        view.trainable = False
        view.borrowed = True
        self._borrowers.add(view)
        return view

    def copy(self, dtype: Any = None, device: str | None = None) -> Parameter:
        """Return an equal Parameter with memory of its own, in another dtype or on a device."""
        value = self.value.copy() if dtype is None else self.value.astype(dtype)
        return Parameter(value if device is None else to_device(value, device), self.trainable)

    def decoded(self) -> Parameter:
        """Return a Parameter that holds an array: this one, unless it is stored in another form."""
        return self

    def _converted(self, convert: Callable[[Array], Array]) -> Parameter:
        """Return a Parameter over what `convert` returns for each array in memory."""
        return Parameter(convert(self.value), self.trainable)

    def spread(self, gradient: Array) -> Iterable[tuple[Parameter, Array]]:
        """Return the Parameters to which a gradient of this one belongs, each with its part.

        Usually that is this one. One that is computed from others gives them its gradient.
        """
        return ((self, gradient),)

    def __copy__(self) -> Parameter:
        return self.copy()  # otherwise two Parameters would hold one array without knowing it

    def __reduce__(self) -> tuple:
        return _restored, (self.value, self.trainable)

    def __repr__(self) -> str:
        kind = "trainable" if self.trainable else "frozen"
        return f"Parameter({self.shape}, {self.dtype}, {kind})"


def _restored(value: Array, trainable: bool) -> Parameter:
    """Return the Parameter that was pickled, with an array that can be written to."""
    return Parameter(writable(value), trainable)


def writable(array: Array) -> Array:
    """Return an unpickled array, or a copy if it cannot be written to.

    Pickle's protocol 5 returns a read-only array if the array was read-only, as a borrowed one is,
    or if it lies in a buffer that the caller passed.
    """
    flags = getattr(array, "flags", None)
    return array if getattr(flags, "writeable", True) else array.copy()


def freeze(parameters: Mapping[str, Parameter] | Iterable[Parameter]) -> None:
    """Freeze Parameters: backward then forms no gradient for them.

    Parameters
    ----------
    parameters : mapping of str to Parameter, or iterable of Parameter
        What ``model.parameters()`` returns, or some of its values.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Linear, freeze
    >>> layer = Linear(3, 2, np.random.default_rng(0))
    >>> freeze(layer.parameters())
    >>> layer.trainable
    False
    """
    values = parameters.values() if isinstance(parameters, Mapping) else parameters
    for parameter in values:
        parameter.trainable = False


class Grads:
    """The gradient of each Parameter; every thread needs a Grads of its own.

    A Parameter that is used twice, such as a tied embedding, receives two gradients: their sum is
    the gradient of the loss.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Grads, Parameter
    >>> W, grads = Parameter(np.zeros(2)), Grads()
    >>> grads.add(W, np.array([1.0, 2.0]))
    >>> grads.add(W, np.array([0.0, 5.0]))  # W was used twice: the two gradients add up
    >>> grads[W].tolist()
    [1.0, 7.0]
    """

    def __init__(self) -> None:
        self._sums: dict[Parameter, Array] = {}

    def add(self, parameter: Parameter, gradient: Array | None) -> None:
        """Add `gradient` to the Parameter's gradient; None adds nothing."""
        if gradient is None:
            return
        if not parameter.trainable:
            raise ValueError(f"a gradient was formed for a frozen {parameter!r}")
        if gradient.shape != parameter.shape:
            raise ShapeError(f"gradient has shape {gradient.shape}, expected {parameter.shape}")
        for owner, part in parameter.spread(gradient):
            held = self._sums.get(owner)
            self._sums[owner] = part if held is None else held + part

    def add_all(
        self, parameters: Iterable[Parameter | None], gradients: Iterable[Array | None]
    ) -> None:
        """Add to each Parameter its gradient; None is a Parameter that a layer does not have."""
        for parameter, gradient in zip(parameters, gradients):
            if parameter is not None:
                self.add(parameter, gradient)

    def get(self, parameter: Parameter) -> Array | None:
        """Return the Parameter's gradient, or None if none was added."""
        return self._sums.get(parameter)

    def __getitem__(self, parameter: Parameter) -> Array:
        return self._sums[parameter]

    def __contains__(self, parameter: Parameter) -> bool:
        return parameter in self._sums

    def __len__(self) -> int:
        return len(self._sums)


def gradients_of(parameters: Mapping[str, Parameter], gradient: Array) -> dict[Parameter, Array]:
    """Return the gradients of the trainable Parameters, in their shapes, from one vector (n,).

    The vector holds them end to end, as that of :func:`pack` does.
    """
    found, start = {}, 0
    for p in parameters.values():
        if p.trainable:
            found[p] = gradient[start : start + p.size].reshape(p.shape)
            start += p.size
    return found


class Packed:
    """The trainable Parameters of a model as one vector; made by :func:`pack`.

    From then on, write into a Parameter's array (``p.value[...] = x``): a new array in its place
    would no longer be part of the vector. What is trainable is settled here, too: freeze before.
    A Trainer that begins to run refuses what does neither.

    Attributes
    ----------
    vector : array, shape (n,)
        All values end to end; the Parameters' arrays are views of it.
    parameters : dict of str to Parameter
        The trainable Parameters by name, in the vector's order.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Grads, Parameter, pack
    >>> a, b, grads = Parameter(np.zeros(2)), Parameter(np.zeros((1, 1))), Grads()
    >>> packed = pack({"a": a, "b": b})
    >>> grads.add(b, np.array([[7.0]]))
    >>> packed.gather(grads).tolist(), packed.slices()["b"]
    ([0.0, 0.0, 7.0], slice(2, 3, None))
    """

    def __init__(self, vector: Array, parameters: dict[str, Parameter]) -> None:
        self.vector = vector
        self.parameters = parameters
        self.views: dict[str, Array] = {}  # by move_to

    def __reduce__(self) -> tuple:
        return pack, (self.parameters,)  # unpickled views would no longer share the vector's memory

    def slices(self) -> dict[str, slice]:
        """Return each Parameter's place in the vector."""
        places, start = {}, 0
        for name, parameter in self.parameters.items():
            places[name] = slice(start, start + parameter.size)
            start += parameter.size
        return places

    def move_to(self, vector: Array) -> None:
        """Copy the values to another vector (n,) and make the Parameters' arrays views of that."""
        vector[...] = self.vector
        self.vector = vector
        for name, place in self.slices().items():
            parameter = self.parameters[name]
            parameter.value = self.views[name] = vector[place].reshape(parameter.shape)

    def expect_whole(self) -> None:
        """Raise ValueError unless each Parameter is still trainable, and a view of the vector."""
        for name, parameter in self.parameters.items():
            if not parameter.trainable:
                raise ValueError(
                    f"{name} was frozen after pack(): freeze first, then make a Trainer"
                )
            if parameter.value is not self.views[name]:
                raise ValueError(
                    f"{name} has a new array since pack(), which would not be trained: write into "
                    "the old one, p.value[...] = x, or make a new Trainer"
                )

    def gather(self, grads: Grads, out: Array | None = None) -> Array:
        """Return the gradients as one vector (n,), zero where a Parameter received none."""
        gradient = get_xp(self.vector).zeros_like(self.vector) if out is None else out
        for name, place in self.slices().items():
            found = grads.get(self.parameters[name])
            gradient[place] = 0.0 if found is None else found.reshape(-1)
        return gradient


def pack(parameters: Mapping[str, Parameter]) -> Packed:
    """Lay the trainable Parameters end to end in one vector; frozen ones stay unchanged.

    Parameters
    ----------
    parameters : mapping of str to Parameter
        What ``model.parameters()`` returns.

    Returns
    -------
    Packed

    Raises
    ------
    ValueError
        If nothing is trainable, the dtypes differ or are not float32 or float64, or another living
        model shares an array: training would change that model too, so start from
        ``copy_model(base)``. Only pack() checks this: do not train a base any further once
        inject() has lent its arrays.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Parameter, pack
    >>> a, b = Parameter(np.array([1.0, 2.0])), Parameter(np.array([[3.0]]))
    >>> packed = pack({"a": a, "b": b})
    >>> packed.vector *= 10.0  # one operation on all Parameters
    >>> a.value.tolist(), b.value.tolist()
    ([10.0, 20.0], [[30.0]])
    """
    chosen = {name: p for name, p in parameters.items() if p.trainable}
    if not chosen:
        raise ValueError("nothing is trainable: every Parameter is frozen")
    shared = [name for name, p in chosen.items() if p.shared]
    if shared:
        raise ValueError(
            f"another model shares {first_of(shared)}: training would change that model too; "
            "for full fine-tuning start from copy_model(base)"
        )
    dtypes = {str(p.dtype) for p in chosen.values()}
    if len(dtypes) > 1 or not dtypes <= {"float32", "float64"}:
        raise ValueError(
            f"trainable arrays have dtypes {sorted(dtypes)}, expected one, float32 or float64"
        )
    values = [p.value.reshape(-1) for p in chosen.values()]
    packed = Packed(get_xp(values[0]).concatenate(values), chosen)
    packed.move_to(packed.vector)
    return packed
