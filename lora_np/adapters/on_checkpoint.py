"""Apply an adapter of any method to the weights of a checkpoint, without a model.

A file in PEFT's form names a module, and the checkpoint has the module's weight. So each weight
becomes a linear layer, the method wraps this layer, and merging gives W beside W0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.adapters.extract import Extracted, can_adapt
from lora_np.adapters.on_model import read_adapter
from lora_np.adapters.weights import (
    is_transposed,
    model_type,
    refuse_quantised,
    require_floats,
    tensors_of_modules,
)
from lora_np.files import CheckpointError, TensorFile
from lora_np.files.names import plain_names
from lora_np.layers import Layer, Linear
from lora_np.methods.contract import Fields, adapters
from lora_np.methods.file_form import method_of_fields
from lora_np.parameters import Parameter
from lora_np.tables import natural

Change = tuple[str, np.ndarray, np.ndarray]  # a module's name in the file, W0 and W (out, in)


class Modules(Layer):
    """Layers by their paths in a checkpoint, without a model around them.

    Parameters
    ----------
    layers : mapping of str to Layer
    """

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        vars(self).update(layers)


class Weights:
    """The weights of a checkpoint that an adapter changes, by its names of their modules.

    Parameters
    ----------
    file : TensorFile
    modules : sequence of str
    fan_in_fan_out : bool
        What the adapter says of weights whose model type is unknown.
    source : str
        The adapter, for errors.
    """

    def __init__(
        self, file: TensorFile, modules: Sequence[str], fan_in_fan_out: bool, source: str
    ) -> None:
        refuse_quantised(file)
        self.file, self.fan_in_fan_out, self.kind = file, fan_in_fan_out, model_type(file.path)
        self.held = {plain: name for name, plain in plain_names(file.names, file.path).items()}
        self.modules = tensors_of_modules(modules, file, source)

    def linear(self, module: str) -> Linear:
        """Return a linear layer over the weight of a module and its bias, in float64."""
        tensor, plain = self.modules[module]
        shape = self.file.shape(tensor)
        if not can_adapt(plain, shape):
            raise CheckpointError(
                f"{self.file.path} holds {tensor!r} of shape {shape}, and the adapter changes it: "
                "plain LoRA holds changes of linear layers' matrices only"
            )
        require_floats(self.file, tensor)
        W = self.file.read(tensor, np.float64)
        bias = self.held.get(f"{plain.removesuffix('weight')}bias")
        b = None if bias is None else Parameter(self.file.read(bias, np.float64))
        transposed = is_transposed(self.kind, plain, shape, self.fan_in_fan_out)
        return Linear.over(Parameter(W.T if transposed else W), b)


def of_checkpoint(
    adapter: str | Path, file: TensorFile, fan_in_fan_out: bool, found: Extracted
) -> Iterator[Change]:
    """Yield W0 and W of each matrix of a checkpoint that an adapter in PEFT's form changes.

    A method with tensors of the whole model, such as VeRA, gets all layers at once; otherwise one
    weight is in memory at a time.

    Parameters
    ----------
    adapter : str or Path
    file : TensorFile
        The checkpoint.
    fan_in_fan_out : bool
        What the adapter says of weights whose model type is unknown.
    found : Extracted
        Gets the changes of biases.
    """
    fields, tensors = read_adapter(adapter)
    method = _merging(fields, adapter)
    shared = {name: x for name, x in tensors.items() if name in method.of_model}
    modules: dict[str, dict[str, np.ndarray]] = {}
    for name in tensors.keys() - shared.keys():
        modules.setdefault(module_of(name), {})[name] = tensors[name]
    if not modules:
        raise CheckpointError(f"{adapter} holds no tensor of a module")
    weights = Weights(file, sorted(modules, key=natural), fan_in_fan_out, str(adapter))
    groups = [list(modules)] if method.of_model else [[name] for name in weights.modules]
    for group in groups:
        layers = {name: weights.linear(name) for name in group}
        own = {tensor: x for name in group for tensor, x in modules[name].items()}
        try:
            adapted = method.of_peft(fields, {**shared, **own}, Modules(layers), {})
            merged = {path: layer.merged() for path, layer in adapters(adapted).items()}
        except ValueError as error:
            raise CheckpointError(f"{adapter}: {error}") from None
        for path, layer in merged.items():
            base = layers[path]
            if layer.b is not None:
                old = 0.0 if base.b is None else base.b.value
                found.leave_out(f"{path}.bias", old, layer.b.value)
            yield path, base.W.value, layer.W.value


def _merging(fields: Fields, source: str | Path) -> Any:
    """Return the class of the method that wrote a file, or raise if it does not merge."""
    try:
        method = method_of_fields(fields)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from None
    config = method.of_fields(fields)
    if config is not None and not config.merges:
        raise ValueError(
            f"{source}: method {method.name!r} does not merge, so no plain LoRA computes the same"
        )
    return method


def module_of(tensor: str) -> str:
    """Return the module to which a tensor of an adapter belongs.

    Parameters
    ----------
    tensor : str

    Examples
    --------
    >>> from lora_np.adapters.on_checkpoint import module_of
    >>> module_of("layers.0.up_proj.lora_A.weight"), module_of("layers.0.up_proj.ia3_l")
    ('layers.0.up_proj', 'layers.0.up_proj')
    """
    stem, _, last = tensor.rpartition(".")
    return stem.rpartition(".")[0] if last in ("weight", "bias") else stem
