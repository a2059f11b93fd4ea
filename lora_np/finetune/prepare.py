"""From the files that the settings name to a model, its tokenizer, and samples."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_np.adapters import load_adapter
from lora_np.adapters.file import CONFIG, TENSORS
from lora_np.data import (
    Sample,
    SampleReport,
    data_hash,
    read_records,
    samples_of,
    split_records,
)
from lora_np.finetune.settings import Settings
from lora_np.pretrained import Tokenizer, fingerprint, load_llm, template_in
from lora_np.tables import counted


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
    fingerprint, sha256, adapter : str
        Of the base's weights, of the data file, and of the adapter that is trained on: "" for none.
    """

    model: Any
    tokenizer: Tokenizer
    train: list[Sample]
    validation: list[Sample]
    report: SampleReport
    duplicates: int
    fingerprint: str
    sha256: str
    adapter: str


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
    base, resumed = fingerprint(llm.model), adapter_hash(s.resume_adapter)
    model, tokenizer = llm.model, llm.tokenizer
    if s.resume_adapter is not None:
        model = load_adapter(model, s.resume_adapter)
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
    return Prepared(model, tokenizer, samples, held, report, duplicates, base, sha256, resumed)


def adapter_hash(adapter: str | None) -> str:
    """Return the SHA-256 of an adapter's files: of its fields and tensors; "" for no adapter.

    Parameters
    ----------
    adapter : str or None
        A folder, or a single file.
    """
    if adapter is None:
        return ""
    path, digest = Path(adapter), hashlib.sha256()
    for file in (path / CONFIG, path / TENSORS) if path.is_dir() else (path,):
        if file.is_file():
            digest.update(data_hash(file).encode())
    return digest.hexdigest()


def samples_hash(prepared: Prepared) -> str:
    """Return the SHA-256 of the tokens and labels, which the data alone do not decide."""
    digest = hashlib.sha256()
    for sample in [*prepared.train, *prepared.validation]:
        digest.update(len(sample).to_bytes(8, "little"))
        digest.update(sample.tokens.astype("<i4").tobytes() + sample.labelled.tobytes())
    return digest.hexdigest()


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
