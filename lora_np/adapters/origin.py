"""Which base an adapter was trained on, as the record beside it says."""

from __future__ import annotations

from pathlib import Path

from lora_np.files import CheckpointError, load_json
from lora_np.reading import shown

RECORD = "training.json"  # lora-np finetune writes it beside the adapter


def expect_base(adapter: str | Path, fingerprint: str) -> None:
    """Raise CheckpointError if the record beside an adapter names another base.

    A layer of equal shape in another model takes the adapter without a word. An adapter that has no
    such record, as those of PEFT, is accepted.

    Examples
    --------
    >>> from lora_np.adapters.origin import expect_base
    >>> expect_base("a folder without a record", "0123456789abcdef")
    """
    path = Path(adapter) / RECORD
    record = load_json(path) if path.is_file() else None
    base = record.get("base") if isinstance(record, dict) else None
    found = base.get("fingerprint") if isinstance(base, dict) else None
    if isinstance(base, dict) and isinstance(found, str) and found != fingerprint:
        raise CheckpointError(
            f"{adapter} was trained on another base ({shown(base.get('name'))}, fingerprint "
            f"{shown(found)}; this one has {fingerprint!r})"
        )
