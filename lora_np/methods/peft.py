"""The form of a method in PEFT's files: one set of tensors for each adapted module.

A method that PEFT has too is a :class:`PeftMethod`. Its adapters name their tensors as PEFT does
(``tensors()``), and its options are fields of adapter_config.json. A field of PEFT's that would
change what the adapter computes, and that the method does not have, is refused by name.

Source: the configurations and the saved state of PEFT 0.21.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from difflib import get_close_matches
from typing import Any, ClassVar

import numpy as np

from lora_np.backend import to_host
from lora_np.layers import Layer, rebuild
from lora_np.methods.contract import (
    METHOD_FIELD,
    Adapter,
    Fields,
    FileForm,
    FilePlace,
    MethodConfig,
    NoPeftForm,
    Places,
    Tensors,
    adapters,
    wrapped,
)
from lora_np.methods.file_form import fill_tensors, tensors_of
from lora_np.methods.stacked import homes_of, place_of
from lora_np.parameters import Parameter
from lora_np.reading import shown
from lora_np.tables import first_of

AT_REST = (None, False, "", [], {}, "none")
NO_EFFECT = {  # which modules are adapted is read from the tensors; the rest is the file's origin
    *("peft_type", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("base_model_name_or_path", "fan_in_fan_out", "revision", "task_type", "auto_mapping"),
    *("inference_mode", "peft_version", "runtime_config", "init_weights"),
}
Group = Sequence[tuple[FilePlace, Adapter]]


class PeftMethod(MethodConfig):
    """A method that PEFT has.

    Attributes
    ----------
    peft_type : str
        PEFT's name of the method.
    peft_names : mapping of str to str
        PEFT's names of our options, where they differ.
    peft_defaults : mapping of str to any
        The values of PEFT's further fields with which PEFT computes what we compute; other values
        are refused.
    """

    peft_type: ClassVar[str] = ""
    peft_names: ClassVar[Mapping[str, str]] = {}
    peft_defaults: ClassVar[Mapping[str, Any]] = {}

    def peft_fields(self) -> dict[str, Any]:
        """Return the fields of PEFT's adapter_config.json, without the modules."""
        ours = asdict(self)  # pyright: ignore[reportArgumentType]
        for name in ("target_modules", "layers_to_transform"):
            ours.pop(name, None)
        named = {self.peft_names.get(name, name): value for name, value in ours.items()}
        return {"peft_type": self.peft_type, **self.peft_defaults, **named}

    @classmethod
    def of_fields(cls, saved: Fields) -> Any:
        """Return the configuration in the fields of a file of PEFT's type, or of our own."""
        if METHOD_FIELD in saved or saved.get("peft_type") != cls.peft_type:
            return super().of_fields(saved)
        names = [field.name for field in fields(cls)]  # pyright: ignore[reportArgumentType]
        ours = {cls.peft_names.get(name, name): name for name in names}
        for field, value in saved.items():
            rest = (cls.peft_defaults.get(field), *AT_REST)
            if field not in ours and field not in NO_EFFECT and value not in rest:
                raise ValueError(f"{field} = {shown(value)}, which lora_np does not implement")
        given = {ours[field]: x for field, x in saved.items() if field in ours and x is not None}
        try:
            return cls(**given)
        except TypeError as error:  # a field holds another type than PEFT writes
            raise ValueError(f"the fields of {cls.peft_type} are not PEFT's: {error}") from None

    # ------------------------------------------------------------------------------ to a file

    def to_peft(self, adapted: Layer, places: Places) -> FileForm:
        """Return PEFT's fields and tensors, or raise NoPeftForm with the reason."""
        groups: dict[str, list[tuple[FilePlace, Adapter]]] = {}
        for path, adapter in adapters(adapted).items():
            place = place_of(path, adapter, places)
            groups.setdefault(place.name, []).append((place, adapter))
        if "" in groups:
            raise NoPeftForm("PEFT adapts the parts of a model, not the whole")
        own = {p for adapter in adapters(adapted).values() for p in adapter.own().values()}
        trained = {name: p for name, p in adapted.parameters().items() if p.trainable}
        others = [name for name, p in trained.items() if p not in own]
        if others:
            raise NoPeftForm(f"the model also trains {first_of(others)}, which PEFT does not save")
        tensors = {
            self.in_file(f"{name}.{tensor}"): value
            for name, group in groups.items()
            for tensor, value in self.stack(name, group).items()
        }
        return {**self.peft_fields(), "target_modules": list(groups)}, tensors

    @classmethod
    def in_file(cls, name: str) -> str:
        """Return the file's name of a tensor; the path of one that all layers share is dropped."""
        last = name.rpartition(".")[2]
        return next((n for n in cls.of_model if n.rpartition(".")[2] == last), name)

    def stack(self, name: str, group: Group) -> dict[str, np.ndarray]:
        """Return the tensors of the module `name` of a file, for our layers in it."""
        place, adapter = group[0]
        if len(group) > 1 or place.total != adapter.d_out:
            raise NoPeftForm(
                f"PEFT adapts {name!r} as a whole: {self.name!r} on a part of it has no form there"
            )
        return {tensor: to_host(p.value) for tensor, p in adapter.tensors().items()}

    # ---------------------------------------------------------------------------- from a file

    @classmethod
    def of_peft(cls, saved: Fields, tensors: Tensors, base: Layer, places: Places) -> Any:
        """Return `base` with the adapters of a PEFT file.

        Raises
        ------
        ValueError
            If a tensor is left over or missing, has another shape, or belongs to a module that the
            model does not have.
        """
        homes = homes_of(base, places, cls.kinds)
        parts: dict[str, dict[str, np.ndarray]] = {}
        shared = {name: x for name, x in tensors.items() if name in cls.of_model}
        of_layers = {name: x for name, x in tensors.items() if name not in shared}
        for name, own in by_module(of_layers, homes).items():
            parts |= cls.split(name, own, homes[name])
        config = replace(cls.of_fields(saved), target_modules=tuple(parts))
        twin = rebuild(base, Parameter.share)
        adapted = wrapped(twin, config, parts, np.random.default_rng(0))
        for path, adapter in adapters(adapted).items():
            config.hold(adapter, parts[path])
        named = {f"{path}.{tensor}": x for path, own in parts.items() for tensor, x in own.items()}
        expected = {cls.in_file(name): p for name, p in tensors_of(adapted).items()}
        fill_tensors(expected, {**shared, **named})
        return adapted

    def hold(self, adapter: Any, tensors: Tensors) -> None:
        """Let an adapter have the Parameters of a file, where the names there decide which."""

    @classmethod
    def split(
        cls, name: str, tensors: dict[str, np.ndarray], homes: Sequence[tuple[str, FilePlace, Any]]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Return the tensors of the module `name` of a file by our layers' paths in it."""
        if len(homes) > 1:
            raise ValueError(
                f"the file adapts {name!r} as a whole, which this model holds as "
                f"{first_of([path for path, *_ in homes])}: {cls.name!r} cannot be split"
            )
        return {homes[0][0]: tensors}


def by_module(tensors: Tensors, homes: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Return tensors by module, each by the rest of its name.

    Raises
    ------
    ValueError
        If no module in `homes` begins a tensor's name.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, value in tensors.items():
        ends = [i for i, letter in enumerate(name) if letter == "." and name[:i] in homes]
        if not ends:
            near = get_close_matches(name, homes, n=1, cutoff=0.0)
            raise ValueError(
                f"the file holds {name!r}, of a module that the model does not have: nearest is "
                f"{', '.join(map(repr, near)) or 'none'}"
            )
        found.setdefault(name[: ends[-1]], {})[name[ends[-1] + 1 :]] = value
    return found
