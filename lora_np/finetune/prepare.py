"""From the files that the settings name to a model, its tokenizer, and samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_np.adapters import load_adapter
from lora_np.data import (
    Sample,
    SampleReport,
    data_hash,
    read_records,
    samples_of,
    split_records,
)
from lora_np.files import CheckpointError, load_json
from lora_np.finetune.settings import Settings
from lora_np.pretrained import Tokenizer, fingerprint, load_llm
from lora_np.reading import open_file
from lora_np.tables import counted

RECORD = "training.json"  # what made an adapter, beside it


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a run needs of the files that the settings name.

    Attributes
    ----------
    model : LanguageModel
        The base, or the adapter that is trained on.
    tokenizer : Tokenizer
    train, validation : list of Sample
    report : SampleReport
        Of the samples to train on.
    duplicates : int
        Records that are equal to an earlier one; both are on the same side of the split.
    fingerprint, sha256 : str
        Of the base's weights, and of the data file.
    """

    model: Any
    tokenizer: Tokenizer
    train: list[Sample]
    validation: list[Sample]
    report: SampleReport
    duplicates: int
    fingerprint: str
    sha256: str


def prepare(settings: Settings) -> Prepared:
    """Read the data, load the model, and make the samples; nothing is written.

    Raises
    ------
    ValueError
        If a file cannot be used; the message names the file and the cause.
    """
    s = settings
    if s.data is None:
        raise ValueError("no data: name your file with --data")
    sha256, records = data_hash(s.data), read_records(s.data, turns=s.turns)
    train, validation, duplicates = records, [], 0
    if s.validation:
        train, validation, duplicates = split_records(records, s.validation, s.seed)
    llm = load_llm(s.model, keep_quantised=s.keep_quantised)
    base = fingerprint(llm.model)
    model, tokenizer = llm.model, llm.tokenizer
    if s.resume_adapter is not None:
        model = resumed(model, base, Path(s.resume_adapter))
    if s.template is not None:
        tokenizer = tokenizer.with_template(template_in(s.template))
    room = llm.model.block_size
    if s.longest is not None and s.longest > room:
        raise ValueError(f"longest = {s.longest}, but the model's context has {room} tokens")
    longest = s.longest or room
    samples, report = samples_of(train, tokenizer, longest=longest, long=s.long)
    held: list[Sample] = []
    if validation:
        held, _ = samples_of(validation, tokenizer, longest=longest, long=s.long)
    return Prepared(model, tokenizer, samples, held, report, duplicates, base, sha256)


def template_in(name: str) -> str:
    """Return the chat template of a file, or the name of a known one."""
    if name == "chatml":
        return name
    with open_file(name, ValueError) as file:
        try:
            return file.read().decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{name} is not UTF-8: expected a chat template") from None


def resumed(base: Any, base_fingerprint: str, folder: Path) -> Any:
    """Return the model with the adapters of a folder, to train them on.

    Raises
    ------
    CheckpointError
        If the folder says that its adapter was trained on another base, or does not fit.
    """
    record = folder / RECORD
    if record.is_file():
        found = load_json(record)
        made_on = found.get("base", {}) if isinstance(found, dict) else {}
        if isinstance(made_on, dict) and made_on.get("fingerprint", "") != base_fingerprint:
            raise CheckpointError(
                f"{folder} was trained on another base ({made_on.get('name')}, fingerprint "
                f"{made_on.get('fingerprint')}; this one has {base_fingerprint})"
            )
    return load_adapter(base, folder)


def samples_line(prepared: Prepared) -> str:
    """Say in one line what there is to learn from."""
    report, line = prepared.report, [counted(len(prepared.train), "sample") + " to train on"]
    line.append(f"{len(prepared.validation)} to validate on")
    line.append(f"{report.tokens} tokens, {100 * report.labelled_share:.0f} % of them learned")
    line += [f"{report.dropped} dropped"] if report.dropped else []
    line += [f"{report.truncated} truncated"] if report.truncated else []
    if prepared.duplicates:
        line.append(f"{prepared.duplicates} duplicates, each on the side of its original")
    return ", ".join(line)
