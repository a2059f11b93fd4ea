"""Read PEFT's adapter_config.json: ranks, scales and the modules they belong to.

If a field of PEFT's changes what the adapter computes and lora_np does not implement it, the file
is refused with the name of the field. The field may be present with a value that has no effect: its
default, None, False or empty. A field that PEFT does not know, such as a trainer's learning rate,
is ignored with a note; PEFT ignores it too.

Source: LoraConfig of PEFT 0.21, including its rules for matching names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_np.files.arrays import CheckpointError, load_json
from lora_np.files.names import WRAPPERS
from lora_np.methods import LoraConfig
from lora_np.methods.contract import METHOD_FIELD
from lora_np.methods.file_form import method_of_fields
from lora_np.methods.peft_lora import OURS
from lora_np.methods.targets import matches
from lora_np.patterns import PLAIN, Pattern, PatternError
from lora_np.reading import brief, shown
from lora_np.tables import listed

READ = {
    *("peft_type", "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern"),
    *("use_rslora", "fan_in_fan_out", "bias", "init_lora_weights", "base_model_name_or_path"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
}
AT_REST: dict[str, Any] = {  # PEFT's fields that are not implemented here, and their defaults
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "kasa_config": None,
    "layer_replication": None,
    "loftq_config": {},
    "lora_bias": False,
    "lora_ga_config": None,
    "megatron_config": None,
    "modules_to_save": None,
    "monteclora_config": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "velora_config": None,
}
NO_EFFECT = {  # the origin of an adapter, and options of features that other fields switch on
    *("auto_mapping", "revision", "task_type", "inference_mode", "peft_version"),
    *("megatron_core", "qalora_group_size", "runtime_config"),
}
WRAPPED = re.compile(rf"(?:{'|'.join(WRAPPERS)})\\?\.(?![*+?{{])")  # in names and expressions
MOST_WORK = 10**8  # in units of one comparison with a plain name
TO_MATCH, TO_COMPILE = 5000, 10_000  # cost of matching a regular expression; of compiling a key
ORIGIN = ("task_type", "auto_mapping", "revision")  # the class and version of the base
NOTHING = (None, False, "", [], {})
BASE_UNCHANGED = (True, False, "gaussian", "orthogonal")  # other values alter the base at the start


class PeftConfig:
    """The ranks, scales and modules that an adapter_config.json defines.

    Parameters
    ----------
    path : str or Path
        The JSON file.
    variants : sequence of str
        Fields that are not plain LoRA, which the caller implements.

    Attributes
    ----------
    lora : LoraConfig
        Ranks, scales and dropout.
    fan_in_fan_out : bool
        Whether the base stores its weights as (in, out). A and B do not depend on it.
    base_model : str or None
        The name of the base.
    origin : dict
        The fields of ``ORIGIN`` that are set.
    notes : list of str
        A note that lists the ignored fields, if any.

    Raises
    ------
    CheckpointError
        If the file is not a config, or a field of PEFT's is not supported; the message names it.
    """

    def __init__(self, path: str | Path, variants: Sequence[str] = ()) -> None:
        self.path = path
        fields = load_json(path)
        if not isinstance(fields, dict):
            raise CheckpointError(f"{path} holds a {type(fields).__name__}, expected an object")
        self._fields = _without_wrappers(fields)
        self._refuse_what_is_not_computed(variants)
        self.check_work(1)
        self.lora = self._lora_config()
        self.fan_in_fan_out = self._flag("fan_in_fan_out")
        self.base_model = fields.get("base_model_name_or_path")
        self.origin = {key: fields[key] for key in ORIGIN if fields.get(key) is not None}
        self.notes = _unknown(fields)
        self._check_modules()

    def _wrong(self, field: str, expected: str) -> CheckpointError:
        name, value = brief(field), shown(self._fields.get(field))
        return CheckpointError(f"{self.path}: {name} = {value}, {expected}")

    def _refuse_what_is_not_computed(self, variants: Sequence[str]) -> None:
        fields = self._fields
        if "fine_tune_type" in fields:
            raise self._wrong("fine_tune_type", "which mlx writes: adapters of mlx are not read")
        if METHOD_FIELD in fields:
            unknown = "which is not defined: import the file that defines it, and use load_adapter"
            raise self._wrong(METHOD_FIELD, self._way_out(METHOD_FIELD, unknown))
        if fields.get("peft_type") != "LORA":
            expected = "expected 'LORA': lora_np does not read this method"
            raise self._wrong("peft_type", self._way_out("peft_type", expected))
        if fields.get("bias", "none") not in ("none", None):
            raise self._wrong("bias", "expected 'none': biases are not read")
        start = fields.get("init_lora_weights", True)
        if not isinstance(start, bool | str) or start not in BASE_UNCHANGED:
            raise self._wrong(
                "init_lora_weights",
                "which may alter the base too: convert the adapter to plain LoRA with PEFT",
            )
        for field, default in AT_REST.items():
            if field not in variants and fields.get(field) not in (default, *NOTHING):
                raise self._wrong(
                    field, self._way_out(field, "which lora_np does not implement", default)
                )

    def _way_out(self, field: str, otherwise: str, plain: Any = "LORA") -> str:
        """Return how to use the file if a method of ours reads it by this field."""
        of_file = _method_name(self._fields)
        if of_file is None or of_file == _method_name({**self._fields, field: plain}):
            return otherwise
        return "not plain LoRA: load it onto its model (load_adapter) or use lora-np convert"

    def _flag(self, field: str) -> bool:
        value = self._fields.get(field, False)
        if not isinstance(value, bool):
            raise self._wrong(field, "expected true or false")
        return value

    def _pattern(self, field: str) -> Mapping[str, Any]:
        value = self._fields.get(field) or {}
        if not isinstance(value, dict):
            raise self._wrong(field, "expected an object")
        return value

    def _lora_config(self) -> LoraConfig:
        ranks, alphas = self._pattern("rank_pattern"), self._pattern("alpha_pattern")
        alpha = self._fields.get("lora_alpha", 8)  # PEFT's default
        for field, value in [
            ("lora_alpha", alpha),
            *(("alpha_pattern", a) for a in alphas.values()),
        ]:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value < 1e300:
                raise self._wrong(field, "expected a number above 0")
        use_rslora = self._flag("use_rslora")
        try:
            return LoraConfig(
                r=self._fields.get("r", 8),
                lora_alpha=alpha,
                lora_dropout=self._fields.get("lora_dropout", 0.0),
                use_rslora=use_rslora,
                rank_pattern=ranks,
                alpha_pattern=alphas,
            )
        except ValueError as error:
            raise CheckpointError(f"{self.path}: {error}") from None

    def _check_modules(self) -> None:
        for field in ("target_modules", "exclude_modules", "layers_pattern"):
            value = self._fields.get(field)
            many = isinstance(value, list) and all(isinstance(name, str) for name in value)
            if not many and not isinstance(value, str | None):
                raise self._wrong(field, "expected a list of names or a regular expression")
        blocks = self._fields.get("layers_to_transform")
        if not all(type(b) is int for b in (blocks if isinstance(blocks, list) else [blocks or 0])):
            raise self._wrong("layers_to_transform", "expected whole numbers")

    def check_work(self, modules: int) -> None:
        """Raise CheckpointError if matching so many modules takes more work than any real file."""
        fields = [self._fields.get(field) for field in ("target_modules", "exclude_modules")]
        names = sum(len(names) for names in fields if isinstance(names, list))
        keys = [*self._pattern("rank_pattern"), *self._pattern("alpha_pattern")]
        slow = sum(not PLAIN.fullmatch(key) for key in keys)
        if modules * (names + len(keys) + TO_MATCH * slow) + TO_COMPILE * len(keys) > MOST_WORK:
            raise CheckpointError(
                f"{self.path} has {len(keys)} patterns and {names} names for {modules} modules, "
                "more than an adapter needs"
            )

    def check_module(self, name: str) -> None:
        """Raise CheckpointError if this config does not adapt the module `name` in PEFT.

        PEFT would then ignore tensors that the file holds.
        """
        fields = self._fields
        targets, excluded = fields.get("target_modules"), fields.get("exclude_modules")
        try:
            if targets is not None and targets != "all-linear" and not matches(targets, name):
                raise self._wrong("target_modules", f"which excludes {name!r} of the file")
            if excluded and matches(excluded, name):
                raise self._wrong("exclude_modules", f"which excludes {name!r} of the file")
            if fields.get("layers_to_transform") not in (None, []) and not self._in_layers(name):
                raise self._wrong("layers_to_transform", f"which excludes {name!r} of the file")
        except PatternError as error:
            raise CheckpointError(
                f"{self.path}: target_modules, exclude_modules or layers_pattern: {error}"
            ) from None

    def _in_layers(self, name: str) -> bool:
        blocks = self._fields["layers_to_transform"]
        patterns = self._fields.get("layers_pattern") or [r"[^.]*"]
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            numbers = _numbers_after(Pattern(rf"{pattern}\."), name)
            if len(numbers) > 1:
                raise self._wrong("layers_pattern", f"which finds {numbers} in {name!r}")
            if numbers:
                return numbers[0] in (blocks if isinstance(blocks, list) else [blocks])
        return False


def _method_name(fields: Mapping[str, Any]) -> str | None:
    """Return the name of our method that reads these fields, or None."""
    try:
        return method_of_fields(fields).name
    except ValueError:
        return None


def _unknown(fields: Mapping[str, Any]) -> list[str]:
    """Return a note that names the fields that are not PEFT's, if there are any."""
    known = {*READ, *NO_EFFECT, *AT_REST, OURS}
    found = [field for field, x in fields.items() if field not in known and x not in NOTHING]
    return [f"config fields ignored, unknown to PEFT: {listed(found)}"] if found else []


def _without_wrappers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with the parts of wrappers removed from names and expressions."""
    plain = dict(fields)
    for field in ("target_modules", "exclude_modules", "layers_pattern"):
        value = plain.get(field)
        if isinstance(value, str):
            plain[field] = WRAPPED.sub("", value)
        elif isinstance(value, list):
            plain[field] = [WRAPPED.sub("", x) if isinstance(x, str) else x for x in value]
    for field in ("rank_pattern", "alpha_pattern"):
        if isinstance(value := plain.get(field), dict):
            plain[field] = {WRAPPED.sub("", key): x for key, x in value.items()}
    return plain


def _numbers_after(pattern: Pattern, name: str) -> list[int]:
    """Return the numbers between dots that follow the first match of `pattern`."""
    for start in (0, *(dot.end() for dot in re.finditer(r"\.", name))):
        ends = pattern.ends(name, start)
        found = [number for number in re.finditer(r"(\d+)\.", name) if number.start() in ends]
        if found:
            return [int(number[1]) for number in found]
    return []
