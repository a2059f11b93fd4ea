"""The card of an adapter: what it was made from and how, as Hugging Face shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lora_np.finetune.settings import Settings
from lora_np.tables import Table, counted

TEXT = """---
base_model: {base}
library_name: peft
tags:
- {method}
- lora_np
---

# An adapter of {base}

Trained with lora_np {lora_np} ({method}) on {file}: {train} with {tokens} tokens, of which
{labelled} are learned; {validation} to validate on.

## Losses

Nats per learned token; the kept weights are those after step {best}.

{losses}

## How it was made

- base: {base}, fingerprint {fingerprint}
- data: {file}, SHA-256 {sha256}
- date: {ended}
- versions: {versions}
- command: `{command}`

{settings}
"""


def card(record: Mapping[str, Any]) -> str:
    """Return the card of a complete run.

    Parameters
    ----------
    record : mapping
        The content of ``training.json``.
    """
    samples, settings = record["samples"], record["settings"]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return TEXT.format(
        base=_quoted(record["base"]["name"]),
        method=settings["method"],
        lora_np=record["versions"]["lora_np"],
        file=_quoted(record["data"]["file"]),
        train=counted(samples["train"], "sample"),
        validation=counted(samples["validation"], "sample"),
        tokens=samples["tokens"],
        labelled=samples["labelled"],
        best=record["best_step"],
        losses=losses_table(record).markdown(),
        fingerprint=record["base"]["fingerprint"],
        sha256=record["data"]["sha256"],
        ended=record["ended"],
        versions=versions,
        command=record["command"] or "lora_np.finetune.finetune, in Python",
        settings=_changed(settings).markdown(),
    )


def _quoted(name: str) -> str:
    """Return a name as YAML and Markdown show it: in JSON's quotes unless it is a plain one."""
    plain = all(c.isalnum() or c in "-_./" for c in name)
    return name if plain else json.dumps(name)


def losses_table(record: Mapping[str, Any]) -> Table:
    """Return a table of the losses: of training since the row before, and of validation."""
    loss = record["loss"]
    points = record["validation"] or [[len(loss), None]]
    rows, before = [], 0
    for step, validation in points:
        part = loss[before:step]
        trained = sum(part) / len(part) if part else None
        rows.append({"after step": step, "training": trained, "validation": validation})
        before = step
    return Table.of_rows(rows, {"training": ".4f", "validation": ".4f"})


def _changed(settings: Mapping[str, Any]) -> Table:
    """Return the settings as a table; those that stand at "the method's own" are left out."""
    names = [name for name in Settings.__dataclass_fields__ if name in settings]
    chosen = {name: settings[name] for name in names if settings[name] not in (None, {})}
    return Table({"setting": list(chosen), "value": list(map(json.dumps, chosen.values()))})
