"""The settings of a fine-tuning run: one table for Python, the TOML file and the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from lora_np.methods.options import check_types
from lora_np.methods.table import hint
from lora_np.reading import shown


def _option(default: Any, said: str, **more: Any) -> Any:
    """Return a field of the table, with the words of its help."""
    return field(default=default, metadata={"help": said, **more})


@dataclass(frozen=True)
class Settings:
    """Everything that a fine-tuning run can be told.

    A setting that a method does not have, such as the rank of BitFit, is refused when the run
    starts. Files (`model`, `data` and so on) are read by
    :func:`lora_np.finetune.finetune` alone; :func:`lora_np.finetune.train_adapter` gets the model
    and the samples from its caller.

    Raises
    ------
    ValueError
        If a setting has another type or is out of range; the message names it.

    Examples
    --------
    >>> from lora_np.finetune import Settings
    >>> settings = Settings(r=16, target_modules="all-linear", top_layers=8, epochs=2)
    >>> settings.method, settings.lr
    ('lora', 0.0003)
    >>> Settings(epochs=0)
    Traceback (most recent call last):
        ...
    ValueError: epochs = 0, expected at least 1
    """

    model: str = _option("smollm2", "smollm2, or a folder, a .gguf file or a wheel")
    data: str | None = _option(None, "your file: JSON lines, or a .txt", metavar="FILE")
    template: str | None = _option(None, "chatml, or a file that holds a chat template")
    turns: Literal["all", "last"] = _option("all", "which answers of a conversation are learned")
    long: Literal["refuse", "drop", "truncate"] = _option("refuse", "what becomes of long samples")
    longest: int | None = _option(None, "most tokens in a sample; default: the model's context")
    validation: float = _option(0.1, "share of the records to validate on; 0: none")
    validate_every: int = _option(0, "validate after so many steps too; 0: after epochs alone")

    method: str = _option("lora", "what is trained: lora, dora, bitfit, full, ...")
    r: int | None = _option(None, "the rank; default: the method's own")
    alpha: float | None = _option(None, "the scale is alpha / r; default: the method's own")
    dropout: float | None = _option(None, "dropout in the adapters; default: none")
    target_modules: Sequence[str] | str | None = _option(
        None, "names of layers, all-linear, or an expression; default: the method's own"
    )
    top_layers: int | None = _option(None, "adapt only the last N blocks; default: all")
    options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"help": "further options of the method"}
    )
    resume_adapter: str | None = _option(None, "train this adapter on", metavar="DIR")
    keep_quantised: bool = _option(False, "keep the file's bytes in memory, decode at use")

    epochs: int = _option(3, "times that every sample is seen")
    batch_size: int = _option(8, "samples in a step")
    together: int = _option(
        1, "samples that begin alike kept in one step, where their common start is computed once"
    )
    accumulate: int = _option(1, "parts of a step, one after the other, to save memory")
    lr: float = _option(3e-4, "the largest learning rate")
    schedule: Literal["cosine", "linear", "constant"] = _option("cosine", "of the learning rate")
    warmup: int = _option(0, "steps over which the learning rate rises")
    weight_decay: float = _option(0.0, "of AdamW")
    clip: float = _option(1.0, "largest norm of the gradient; 0: no limit")
    recompute: bool = _option(False, "compute caches again in backward, to save memory")
    hidden_mb: int = _option(
        1024, "most MB for what enters the lowest trained layer, kept for each sample; 0: none"
    )
    seed: int = _option(0, "of the start, of the split, and of the order of the samples")
    jobs: int | None = _option(None, "processes that share a step; default: one per core")

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("model", "data", "template", "resume_adapter"):
            if getattr(self, name) == "":
                raise ValueError(f"{name} is empty: expected a name")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} = {shown(value)}, expected at least {least}")
        for name in ("lr", "alpha"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} = {shown(value)}, expected a number above 0")
        for name in ("validation", "dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} = {shown(value)}, expected at least 0 and below 1")
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate = {self.accumulate} parts of batch_size = {self.batch_size} samples"
            )

    @property
    def clip_norm(self) -> float | None:
        """The largest norm of the gradient, None for no limit."""
        return self.clip or None


LEAST = {
    **{"longest": 2, "validate_every": 0, "r": 1, "top_layers": 1, "epochs": 1, "batch_size": 1},
    **{
        "together": 1,
        "accumulate": 1,
        "warmup": 0,
        "weight_decay": 0,
        "clip": 0,
        "hidden_mb": 0,
        "seed": 0,
    },
    "jobs": 1,
}
OF_METHOD = ("method", "r", "alpha", "dropout", "target_modules", "top_layers", "options")


def default_of(name: str) -> Any:
    """Return the default of a setting."""
    (found,) = (f for f in fields(Settings) if f.name == name)
    return {} if found.default is MISSING else found.default


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return the settings in a TOML file, with names as in :class:`Settings`.

    A name may be written with hyphens, as on the command line. The types are checked when the
    settings are made.

    Raises
    ------
    ValueError
        If the file is not TOML, or holds a setting that does not exist.
    """
    from lora_np.reading import open_file

    with open_file(path, ValueError) as file:
        try:
            found = tomllib.loads(file.read().decode("utf-8"))
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8") from None
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is not TOML: {error}") from None
    known = [f.name for f in fields(Settings)]
    settings: dict[str, Any] = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in known:
            raise ValueError(f"{path}: there is no setting {shown(key)}: {hint(name, known)}")
        if name in settings:
            raise ValueError(f"{path}: {name} is set twice")
        settings[name] = value
    return settings
