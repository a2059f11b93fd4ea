"""A fine-tuning run in a folder: continued after a kill, and an adapter for PEFT at the end.

``training.json`` is written before the first step, ``state.npz`` every half minute and after every
epoch, each in one step. So the same command continues bit for bit, whenever it was killed. At the
end the folder is an adapter: ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT
reads them, ``README.md`` (the card), and ``training.json`` with all losses.
"""

from __future__ import annotations

import datetime
import json
import math
import platform
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from lora_np import __version__
from lora_np.adapters import save_adapter
from lora_np.data import data_hash
from lora_np.files import load_json, save_json, save_text
from lora_np.files.atomic import beside, strangers
from lora_np.files.lock import ELSEWHERE, clear, held
from lora_np.finetune.card import card
from lora_np.finetune.prepare import Prepared, adapter_hash, prepare, samples_hash
from lora_np.finetune.run import After, Result, Training, jobs_of
from lora_np.finetune.settings import Settings
from lora_np.finetune.terminal import TrainingBar
from lora_np.pretrained.find import HUB, RECORD, fingerprint, load_llm
from lora_np.reading import shown
from lora_np.train import load_state, save_state

STATE = "state.npz"
EVERY = 30.0  # seconds between two states
SHARE = 0.05  # of the time that may go into writing them
NOT_COMPARED = ("model", "data", "jobs")  # the first two are compared by their content


class FinetuneError(ValueError):
    """A run that cannot begin or continue as asked; the message names the way out."""


def finetune(
    settings: Settings,
    out: str | Path,
    *,
    command: str = "",
    take_over: bool = False,
    progress: bool = False,
    after: After | None = None,
) -> dict[str, Any]:
    """Fine-tune a model on a file, in a folder that survives anything.

    Parameters
    ----------
    settings : Settings
        `model` and `data` name the model and the file.
    out : str or Path
        A new folder, or one in which an equal run was stopped, which continues bit for bit if
        `jobs` is the same; by default it is.
    command : str
        For the card.
    take_over : bool
        As for :func:`lora_np.files.lock.hold`.
    progress, after
        As for :func:`lora_np.finetune.train_adapter`.

    Returns
    -------
    dict
        The content of ``training.json``. A complete run is only read.

    Raises
    ------
    ValueError
        If a setting or a file cannot be used, or the folder is in use, of other settings, data,
        base or adapter to train on, or holds anything else. Nothing is then written.
    """
    out = Path(out)
    begun = _read(out, settings)
    if begun is not None:
        _expect_same(out, "data", begun["data"]["sha256"], data_hash(settings.data or ""))
        _expect_same_adapter(out, begun, adapter_hash(settings.resume_adapter))
        if begun["complete"]:
            if _name(settings) != begun["base"]["name"]:
                base = fingerprint(load_llm(settings.model, keep_quantised=True).model)
                _expect_same(out, "base", begun["base"]["fingerprint"], base)
            clear(out)
            return begun
        settings = replace(settings, jobs=settings.jobs or begun["jobs"])
    settings = replace(settings, jobs=jobs_of(settings))
    prepared = prepare(settings)
    training = Training(prepared.model, prepared.train, prepared.validation, settings)
    with held(out, FinetuneError, take_over):
        record = _begin(out, settings, prepared, training, command)
        saving = _Saving(out, after)
        with ExitStack() as stack:
            bar = stack.enter_context(TrainingBar(training, saving)) if progress else saving
            result = training.run(bar)
        _finish(out, record, result)
    return record


def _begin(
    out: Path, settings: Settings, prepared: Prepared, training: Training, command: str
) -> dict[str, Any]:
    """Write the record of a new run, or load the state of one that was stopped; return the record.

    The folder is held: what it holds is read again, because another process may have written since.
    """
    begun = _read(out, settings)
    record = begun or _new_record(settings, prepared, command)
    _expect_same(out, "base", record["base"]["fingerprint"], prepared.fingerprint)
    _expect_same(out, "data", record["data"]["sha256"], prepared.sha256)
    _expect_same_adapter(out, record, prepared.adapter)
    tokens = samples_hash(prepared)
    _expect_same(out, "template or tokenizer", record["data"].setdefault("tokens", tokens), tokens)
    if begun is None:
        save_json(out / RECORD, record)
    elif (out / STATE).exists():
        training.load(load_state(out / STATE))
    return record


class _Saving:
    """Writes the state from time to time; to be called after every step."""

    def __init__(self, out: Path, after: After | None) -> None:
        self.out, self.after, self.next, self.started = out, after, EVERY, time.perf_counter()

    def __call__(self, training: Training) -> None:
        """Save the state if it is time."""
        now = time.perf_counter() - self.started
        if now >= self.next or training.trainer.position % training.steps_in_epoch == 0:
            save_state(self.out / STATE, training.state())
            took = time.perf_counter() - self.started - now
            self.next = now + took + max(EVERY, took / SHARE)
        if self.after is not None:
            self.after(training)


# ------------------------------------------------------------------------- what a folder holds


def _read(out: Path, settings: Settings) -> dict[str, Any] | None:
    """Return the record that a folder holds, None for a new or an empty one."""
    path = out / RECORD
    if not path.exists():
        found = sorted(strangers(out)) if out.is_dir() else [out] if out.exists() else []
        if found:
            raise FinetuneError(f"{out} holds {found[0].name}, but no {RECORD}: {ELSEWHERE}")
        return None
    record = load_json(path)
    try:
        before, base = record["settings"], record["base"]
        made_of = (record["data"]["sha256"], base["name"], base["fingerprint"])
        made_of += (base.get("adapter", ""),)
        if not isinstance(before, dict) or not all(isinstance(name, str) for name in made_of):
            raise TypeError
        if type(record["complete"]) is not bool or type(record["jobs"]) is not int:
            raise TypeError
    except (KeyError, TypeError):
        raise FinetuneError(f"{path} is not the record of a fine-tuning: {ELSEWHERE}") from None
    now = compared(settings)
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise FinetuneError(
                f"{out} was begun with {name} = {shown(before.get(name))}, now "
                f"{shown(now.get(name))}: {ELSEWHERE}, or remove it"
            )
    return record


def compared(settings: Settings) -> dict[str, Any]:
    """Return the settings on which a run's result depends, as a JSON file returns them."""
    plain = {name: value for name, value in asdict(settings).items() if name not in NOT_COMPARED}
    return json.loads(json.dumps(plain))


def _name(settings: Settings) -> str:
    """Return the name by which PEFT finds the base."""
    return HUB.get(settings.model, settings.model)


def _expect_same(out: Path, what: str, before: str, now: str) -> None:
    if before != now:
        raise FinetuneError(
            f"the {what} changed since {out} was begun ({before[:16]}, now {now[:16]}): {ELSEWHERE}"
        )


def _expect_same_adapter(out: Path, record: dict[str, Any], now: str) -> None:
    """Raise if the adapter that is trained on is not the recorded one; older records have none."""
    _expect_same(out, "adapter that is trained on", record["base"].setdefault("adapter", now), now)


def _new_record(settings: Settings, prepared: Prepared, command: str) -> dict[str, Any]:
    report = prepared.report
    return {
        "complete": False,
        "base": {
            "name": _name(settings),
            "fingerprint": prepared.fingerprint,
            "adapter": prepared.adapter,
        },
        "data": {"file": Path(settings.data or "").name, "sha256": prepared.sha256},
        "samples": {
            "train": len(prepared.train),
            "validation": len(prepared.validation),
            "tokens": report.tokens,
            "labelled": report.labelled,
            "dropped": report.dropped,
            "truncated": report.truncated,
            "duplicates": prepared.duplicates,
        },
        "settings": compared(settings),
        "jobs": settings.jobs,
        "command": command,
        "begun": _today(),
        "versions": {
            "lora_np": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


# ---------------------------------------------------------------------------------- the end


def _finish(out: Path, record: dict[str, Any], result: Result) -> None:
    """Write the adapter, then the card, then the record of a complete run."""
    with beside(out / "adapter") as temporary:
        save_adapter(result.model, temporary, base_model=record["base"]["name"])
        for path in sorted(temporary.iterdir()):
            path.replace(out / path.name)
    history = result.history
    record |= {
        "best_step": result.best_step,
        "diverged": result.diverged,
        "steps": len(history.loss),
        "loss": history.loss,
        "validation": [[step, _plain(loss)] for step, loss in history.validation],
        "seconds": round(history.seconds, 1),
        "ended": _today(),
        "complete": True,
    }
    save_text(out / "README.md", card(record))
    save_json(out / RECORD, record)
    (out / STATE).unlink(missing_ok=True)


def _plain(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def summary(record: Mapping[str, Any]) -> str:
    """Say what a complete run reached."""
    lines = []
    validation = record["validation"]
    if validation:
        (_, before), *_ = validation
        best = dict(map(tuple, validation))[record["best_step"]]
        lines.append(
            f"validation loss {_said(before)} before, {_said(best)} at step "
            f"{record['best_step']} of {record['steps']}, which is kept"
        )
        if record["best_step"] == 0:
            lines.append("no step was better than the start: try another learning rate")
    else:
        lines.append(f"training loss {record['loss'][-1]:.4f} at the last step")
    if record["diverged"]:
        lines.append(f"stopped early: {record['diverged']}")
    return "\n".join(lines)


def _said(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.4f}"
