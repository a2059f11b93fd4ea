"""The contract of a fine-tuning method, and the functions that work with every method.

A method is one file: its mathematics as a pair, its layer, and its configuration::

    Adapter         a layer that replaces a layer `base`:              own, merged, tensors
    MethodConfig    which layers are replaced, and how they start:     places, wrap, trains

The same functions then inject, merge, count, save, load, train and sweep every method; LoRA is the
first method and has no special case. A method without layers of its own, such as training only the
biases, has a configuration without places whose `trains` names the biases.

Most methods define ``wrap`` alone and inherit the rest of MethodConfig. inject() calls places,
prepare, trains, wrapper; a step of training calls draw, use, penalty, after_step, in this order.

Defining a configuration class with a ``name`` adds it to the table ``METHODS``.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lora_np.backend import Array
from lora_np.layers import Flops, Layer, Linear, rebuild
from lora_np.methods.options import check_types
from lora_np.methods.targets import linear_paths
from lora_np.parameters import Grads, Parameter
from lora_np.reading import shown

METHODS: dict[str, type[MethodConfig]] = {}
Fields = Mapping[str, Any]  # of an adapter_config.json
Tensors = Mapping[str, np.ndarray]  # of a file, by name
METHOD_FIELD = "lora_np_method"  # in adapter_config.json, for methods that PEFT does not have


def _after_types(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return a check of options that is made after the one of their types."""

    def checked(config: Any) -> None:
        check_types(config)
        check(config)

    return checked


class NoPeftForm(ValueError):
    """PEFT cannot hold this adapter; the message gives the reason."""


class FilePlace(NamedTuple):
    """The place of a layer in other people's files: module `name`, rows from `start` on.

    A file may stack several of our layers in one matrix of `total` rows.
    """

    name: str
    start: int
    total: int


Places = Mapping[str, FilePlace]  # by our layers' paths

FileForm = tuple[dict[str, Any], dict[str, np.ndarray]]  # fields and tensors


def name_in(path: str, places: Places) -> str:
    """Return the name of the layer at `path` in other people's files."""
    return places[path].name if path in places else path


class Adapter(Layer):
    """A layer that replaces another layer, its `base`, and holds the Parameters of `base`.

    Attributes
    ----------
    base : Layer
        The replaced layer; an attribute or a property.
    """

    base: Any

    def own(self) -> dict[str, Parameter]:
        """Return the Parameters that the adapter adds to those of its base, by name."""
        of_base = set(self.base.parameters().values())
        return {name: p for name, p in self.parameters().items() if p not in of_base}

    def delta(self) -> Array:
        """Return the change that merging adds to the base's weight (out, in)."""
        return self.merged().W.value - self.base.W.value

    def merged(self) -> Any:
        """Return one plain layer that computes the same, or raise ValueError with the reason."""
        raise ValueError(f"{type(self).__name__} does not merge: no plain layer computes the same")

    def tensors(self) -> dict[str, Parameter]:
        """Return the Parameters in an adapter file by their names there, to write and to read."""
        return self.own()

    def config(self) -> MethodConfig | None:
        """Return a configuration for a model whose adapters were not made by inject()."""
        return None

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the base's cost, to which a layer with products of its own adds them."""
        return self.base.flops(T, need_dx)

    @property
    def d_out(self) -> int:
        """The length of an output."""
        return self.base.d_out


class MethodConfig:
    """The options of a method; a subclass is a frozen dataclass, usually with a `name`.

    ``target_modules`` and ``layers_to_transform`` say which layers are adapted. A subclass whose
    users may choose them declares them as fields.

    Attributes
    ----------
    name : str
        The method's name; a subclass with a name is added to ``METHODS``.
    starts_at_base, merges : bool
        Two promises, which :func:`lora_np.check_method` checks: an adapted model at the start
        computes exactly what its base does; merging gives a plain model that computes the same.
    kinds : tuple of types
        The kinds of layers that target_modules may name; by default linear layers.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> import numpy as np
    >>> from lora_np import MLP, MethodConfig, inject
    >>> @dataclass(frozen=True)
    ... class Biases(MethodConfig):  # BitFit: Ben Zaken et al. (2021), arXiv:2106.10199
    ...     def places(self, model):
    ...         return []
    ...     def trains(self, name):
    ...         return name.endswith(".b")
    >>> rng = np.random.default_rng(0)
    >>> adapted = inject(MLP(4, 8, rng), Biases(), rng)
    >>> [name for name, p in adapted.parameters().items() if p.trainable]
    ['up_proj.b', 'down_proj.b']
    """

    name: ClassVar[str] = ""
    starts_at_base: ClassVar[bool] = True
    merges: ClassVar[bool] = True
    kinds: ClassVar[tuple[type[Layer], ...]] = (Linear,)
    target_modules: Sequence[str] | str = "all-linear"
    layers_to_transform: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        """Check what the types of the options cannot say; they are checked before."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__post_init__ = _after_types(cls.__post_init__)  # pyright: ignore[reportAttributeAccessIssue]
        if not vars(cls).get("name"):
            return  # a subclass without its own name is the same method
        if not cls.name.isidentifier():  # the name is part of file names too
            raise ValueError(f"a method's name is {cls.name!r}, expected a plain name like 'lora'")
        other = METHODS.get(cls.name, cls)
        same = (other.__module__, other.__qualname__) == (cls.__module__, cls.__qualname__)
        if not same:
            raise ValueError(f"method {cls.name!r} is already defined in {other.__module__}")
        METHODS[cls.name] = cls  # running a notebook cell again replaces the class

    def prepare(self, model: Layer) -> Layer:
        """Return the model to adapt; by default `model`, and never a change of it."""
        return model

    def places(self, model: Layer) -> list[str]:
        """Return the paths of the layers to wrap; by default the targeted layers of its kinds."""
        return linear_paths(model, self.target_modules, self.layers_to_transform, self.kinds)

    def wrap(self, path: str, layer: Any, rng: np.random.Generator) -> Layer:
        """Return a layer to replace `layer`; the new layer holds the Parameters of `layer`.

        The path "" is the model itself: its replacement must be a model too.
        """
        raise TypeError(f"{type(self).__name__} has places but does not define wrap()")

    def wrapper(
        self, layers: Mapping[str, Any], rng: np.random.Generator
    ) -> Callable[[str, Any], Layer]:
        """Return ``wrap(path, layer)`` for one model; what all its places share is made here.

        `layers` holds the layers that will be wrapped, by path.
        """
        return lambda path, layer: self.wrap(path, layer, rng)

    def with_drawn(self, drawn: MethodConfig) -> MethodConfig:
        """Return this configuration with the options that wrapping the model has drawn."""
        return drawn

    def trains(self, name: str) -> bool:
        """Whether the base's Parameter of this name is trained too."""
        return False

    def lr_factor(self, name: str) -> float:
        """Return the factor on the learning rate for the Parameter of this name."""
        return 1.0

    def draw(self, rng: np.random.Generator | None) -> Any:
        """Return what a step draws, once for all parts of its batch; by default None."""
        return None

    def use(self, model: Layer, drawn: Any) -> None:
        """Let the model compute with `drawn` while a step forms its gradients.

        None, before the optimizer moves, is the state of a model that is not in training.
        """

    def penalty(self, model: Layer, grads: Grads) -> float:
        """Return what a step adds once to its loss, and add its gradients; by default 0."""
        return 0.0

    def after_step(self, model: Layer, step: int, gradient: Array) -> None:
        """Do what the method needs after every training step; by default nothing.

        `step` counts from 0. `gradient` (n,) holds the gradients of the trainable Parameters after
        clipping, end to end; ``gradients_of`` in parameters.py takes them apart.
        """

    def of_rank(self, r: int) -> MethodConfig:
        """Return the same configuration with rank `r`, for a sweep over ranks."""
        if not is_dataclass(self) or "r" not in {field.name for field in fields(self)}:
            raise ValueError(f"method {self.name!r} has no rank r to sweep over")
        return replace(self, r=r)  # pyright: ignore[reportCallIssue]

    # ----------------------------------------------------------------------------- files

    def fields(self) -> dict[str, Any]:
        """Return what adapter_config.json says of this method in our own form."""
        return {METHOD_FIELD: self.name, **asdict(self)}  # pyright: ignore[reportArgumentType]

    @classmethod
    def of_fields(cls, saved: Fields) -> MethodConfig | None:
        """Return the configuration in the fields of a file; None if they are another method's."""
        if not cls.name or saved.get(METHOD_FIELD) != cls.name:
            return None
        names = [field.name for field in fields(cls)]  # pyright: ignore[reportArgumentType]
        for name in names:
            if name not in saved:
                raise ValueError(f"the fields of {cls.name!r} lack {name!r}")
        return cls(**{name: saved[name] for name in names})

    peft_transposes: ClassVar[bool] = True  # whether PEFT adapts weights stored (in, out), Conv1D
    of_model: ClassVar[Sequence[str]] = ()  # tensors of a PEFT file that all layers share

    def to_peft(self, adapted: Layer, places: Places) -> FileForm:
        """Return PEFT's fields and tensors, or raise NoPeftForm with the reason."""
        raise NoPeftForm(f"PEFT does not have the method {self.name!r}")

    @classmethod
    def of_peft(cls, saved: Fields, tensors: Tensors, base: Layer, places: Places) -> Any:
        """Return `base` with the adapters of a PEFT file."""
        raise NoPeftForm(f"PEFT does not have the method {cls.name!r}")


# ------------------------------------------------------------------------- what every method gets


def inject(model: Any, config: MethodConfig, rng: np.random.Generator) -> Any:
    """Return an adapted model; `model` stays unchanged and lends its frozen arrays.

    Parameters
    ----------
    model : Layer
        For example a GPT.
    config : MethodConfig
        For example a LoraConfig: it draws A and sets B to zero, so that the adapted model starts
        with the outputs of `model`.
    rng : numpy.random.Generator
        Draws the adapters' initial values, in the order of the modules' paths.

    Returns
    -------
    Layer
        A model of the same type, or an adapter around the whole model that is used like one. Its
        frozen Parameters are read-only views of the model's arrays. Trainable are the Parameters
        that the method adds and those that ``config.trains`` names. The attribute ``method`` holds
        `config`, with what the method has drawn of it.

    Raises
    ------
    ValueError
        If the model is adapted already, a target matches nothing, or a layer does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, LoraConfig, inject
    >>> rng, tokens = np.random.default_rng(0), np.array([[1, 2, 3]])
    >>> base = GPT(GPTConfig(vocab_size=9, block_size=4, n_layer=1, n_head=2, d_model=8), rng)
    >>> adapted = inject(base, LoraConfig(r=2), rng)
    >>> np.array_equal(adapted.forward(tokens)[0], base.forward(tokens)[0])  # as B is zero
    True
    >>> [name for name, p in adapted.parameters().items() if p.trainable]
    ['h.0.attn.q_proj.A', 'h.0.attn.q_proj.B', 'h.0.attn.v_proj.A', 'h.0.attn.v_proj.B']
    """
    places = set(target_paths(model, config))
    model = config.prepare(model)
    trained = {p for name, p in model.parameters().items() if config.trains(name)}
    if not places and not trained:
        raise ValueError(f"{config} names no layer and no Parameter of the model to train")

    def lend(p: Parameter) -> Parameter:
        return Parameter(p.value.copy()) if p in trained else p.share()

    return wrapped(rebuild(model, lend), config, places, rng)


def target_paths(model: Layer, config: MethodConfig) -> list[str]:
    """Return the paths of the layers that a configuration targets, in order.

    Raises
    ------
    ValueError
        If the model is adapted already, or a target matches no layer; the message suggests the
        nearest names.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import MLP, LoraConfig
    >>> from lora_np.methods import target_paths
    >>> target_paths(MLP(4, 16, np.random.default_rng(0)), LoraConfig(target_modules=["up_proj"]))
    ['up_proj']
    """
    if not isinstance(config, MethodConfig):
        raise ValueError(f"config = {shown(config)}, expected a configuration like LoraConfig()")
    if is_adapted(model):
        raise ValueError("the model is adapted already: inject into its base, or merge() it first")
    return config.places(model)


def wrapped(
    twin: Layer, config: MethodConfig, places: Container[str], rng: np.random.Generator
) -> Any:
    """Return `twin` with the layers at `places` wrapped by a method."""
    layers = {path: layer for path, layer in {"": twin, **twin.modules()}.items() if path in places}
    wrap = config.wrapper(layers, rng)
    return with_adapters(twin, lambda p, layer: wrap(p, layer) if p in layers else None, config)


def with_adapters(
    twin: Layer, adapt: Callable[[str, Any], Layer | None], config: MethodConfig
) -> Any:
    """Return `twin` with each layer replaced by ``adapt(path, layer)`` unless that is None.

    The model itself, path "", comes last: it then has the adapters of its parts.
    """
    adapted = rebuild(twin, lambda p: p, lambda path, part: adapt(path, part) if path else None)
    whole = adapt("", adapted)
    drawn = getattr(whole, "method", None)
    method = config if drawn is None else config.with_drawn(drawn)
    adapted = whole or adapted
    vars(adapted)["method"] = method
    return adapted


def adapters(model: Layer) -> dict[str, Any]:
    """Return a model's adapters by path, in order."""
    modules = {"": model, **model.modules()}
    return {path: layer for path, layer in modules.items() if isinstance(layer, Adapter)}


def method_of(model: Layer) -> MethodConfig | None:
    """Return the configuration with which a model was adapted, or None."""
    method = getattr(model, "method", None)
    if method is None and isinstance(model, Layer):
        method = next((layer.config() for layer in adapters(model).values()), None)
    return method


def head_of(model: Any) -> Parameter | None:
    """Return the matrix of a language model's head, or None for another model."""
    head = getattr(model, "head", None)
    found = head() if callable(head) else None
    return found if isinstance(found, Parameter) else None


def is_adapted(model: Layer) -> bool:
    """Whether a method has been injected into the model."""
    return bool(adapters(model)) or method_of(model) is not None


def check_adapted(model: Layer) -> None:
    """Raise ValueError if the model is not adapted."""
    if not is_adapted(model):
        raise ValueError("the model has no adapters: add them with inject()")
