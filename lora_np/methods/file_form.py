"""The file form of an adapted model: fields for adapter_config.json, and tensors by name.

A method that PEFT has is written in PEFT's form, if PEFT can hold it on this model. Any other is
written in our own form: the field ``METHOD_FIELD`` names the method, by which PEFT refuses the
file, and tensors are named by the paths of our layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_np.backend import like, to_host
from lora_np.layers import Layer
from lora_np.methods.contract import (
    METHOD_FIELD,
    METHODS,
    Fields,
    FileForm,
    MethodConfig,
    NoPeftForm,
    Places,
    Tensors,
    adapters,
    inject,
    method_of,
)
from lora_np.methods.table import hint
from lora_np.parameters import Parameter
from lora_np.reading import shown


def to_file(
    adapted: Layer, places: Places, peft_only: bool = False, transposed: bool = False
) -> FileForm:
    """Return the fields and the tensors of a file for an adapted model.

    Parameters
    ----------
    adapted : Layer
    places : mapping of str to FilePlace
        Places of the model's layers in other people's files.
    peft_only : bool
        Whether to raise NoPeftForm rather than to return our own form.
    transposed : bool
        Whether other people hold the weights as (in, out), as GPT-2's Conv1D does.
    """
    method = method_of(adapted)
    if method is None:
        raise ValueError("the adapters were made by hand: set model.method to their configuration")
    try:
        if transposed and not method.peft_transposes:
            raise NoPeftForm(
                f"PEFT does not have {method.name!r} on Conv1D, with weights (in, out)"
            )
        return method.to_peft(adapted, places)
    except NoPeftForm:
        if peft_only:
            raise
        return method.fields(), {n: to_host(p.value) for n, p in tensors_of(adapted).items()}


def of_file(
    saved: Fields,
    tensors: Tensors,
    base: Layer,
    places: Places,
) -> Any:
    """Return `base` with the adapters of a file, from its fields and tensors.

    Raises
    ------
    ValueError
        If no method knows the fields, or the file's tensors do not fit the model.
    """
    method = method_of_fields(saved)
    if METHOD_FIELD not in saved:
        return method.of_peft(saved, tensors, base, places)
    config = method.of_fields(saved)
    assert config is not None, "the class was chosen by these fields"
    adapted = inject(base, config, np.random.default_rng(0))
    if method_of(adapted) != config:  # inject() has drawn some of its options
        raise ValueError(
            f"the fields of {config.name!r} leave options to be drawn: {shown(config)}"
        )
    fill_tensors(tensors_of(adapted), tensors)
    return adapted


def method_of_fields(saved: Fields) -> type[MethodConfig]:
    """Return the class of the method that wrote these fields of a file.

    Raises
    ------
    ValueError
        If no class in ``METHODS`` knows the fields.
    """
    for method in METHODS.values():
        if method.of_fields(saved) is not None:
            return method
    if METHOD_FIELD not in saved:
        raise ValueError(f"peft_type {saved.get('peft_type')!r} is not a method of lora_np")
    name = saved[METHOD_FIELD]
    raise ValueError(
        f"method {name!r} is not defined: import the file that defines its configuration, or "
        f"{hint(str(name), METHODS)}"
    )


def tensors_of(adapted: Layer) -> dict[str, Parameter]:
    """Return all Parameters that a method has changed, by their names in our files.

    These are the adapters' tensors and the base's Parameters that are trained too.
    """
    found: dict[str, Parameter] = {}
    for path, adapter in adapters(adapted).items():
        prefix = f"{path}." if path else ""
        found |= {f"{prefix}{name}": p for name, p in adapter.tensors().items()}
    found |= {name: p for name, p in adapted.parameters().items() if p.trainable}
    first: dict[Parameter, str] = {}  # a Parameter that several places share is written once
    for name, p in found.items():
        first.setdefault(p, name)
    return {name: p for p, name in first.items()}


def fill_tensors(expected: Mapping[str, Parameter], tensors: Tensors) -> None:
    """Fill Parameters with the tensors of a file of the same names.

    Raises
    ------
    ValueError
        If a name is left over or missing, or a shape differs; no Parameter is then changed.
    """
    for odd in sorted(expected.keys() ^ tensors.keys()):
        which = "lacks" if odd in expected else "holds"
        raise ValueError(f"the file {which} {odd!r}: it belongs to another model or method")
    for name, p in expected.items():
        if tensors[name].shape != p.shape:
            raise ValueError(
                f"{name!r} has shape {tensors[name].shape} in the file, expected {p.shape}"
            )
        if tensors[name].dtype.kind in "iu" and p.dtype.kind == "f":
            raise ValueError(f"{name!r} holds {tensors[name].dtype} in the file, expected floats")
    for name, p in expected.items():
        p.value = like(tensors[name].astype(p.dtype), p.value)
