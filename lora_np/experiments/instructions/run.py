"""Instruction tuning of a language model in a folder: asked, trained, asked again, for each seed.

Every step is kept as it ends, so that a stopped run continues with the step that it was in.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lora_np.adapters import load_adapter, save_adapter
from lora_np.experiments.asking import (
    adapter_of,
    answers,
    chat_samples,
    expect_trainable,
    longest_answer,
)
from lora_np.experiments.folder import Kind, Results, begin, opened, save_results
from lora_np.experiments.instructions.judge import judge_splits
from lora_np.experiments.instructions.records import TESTS, Record, instruction_set, write_jsonl
from lora_np.experiments.unchanged import check_unchanged, parameter_hashes, whole

ADAPTERS = "adapters"  # the folder of the adapters: adapters/seed-0


@dataclass(frozen=True)
class InstructionSettings:
    """The settings of the study; they decide its results.

    Parameters
    ----------
    seeds : int
        How many sets of records are drawn, each for a training of its own.
    train, held_out : int
        Records of each family to train on, and in each of the other splits.
    training : mapping
        Fields of :class:`lora_np.finetune.Settings`. The validation split decides which epoch's
        weights are kept.
    """

    seeds: int = 3
    train: int = 60
    held_out: int = 20
    training: Mapping[str, Any] = field(default_factory=lambda: dict(TRAINED_WITH))

    def __post_init__(self) -> None:
        for name in ("seeds", "train", "held_out"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}, expected at least 1")


# lr: the best of six from 5e-4 to 1.6e-2, each twice the last, by exact match on the validation
# split of seed 0.
TRAINED_WITH = {
    **{"r": 8, "target_modules": "all-linear", "top_layers": 15},
    **{"epochs": 1, "batch_size": 4, "lr": 4e-3},
}
QUICK = InstructionSettings(
    seeds=1, train=6, held_out=2, training={**TRAINED_WITH, "top_layers": 4}
)


def run_instructions(
    settings: InstructionSettings,
    base: Any,
    tokenizer: Any,
    out: str | Path,
    listen: Callable[[str], None] = lambda what: None,
    take_over: bool = False,
) -> Results:
    """Ask a model, train it, and ask it again, for every seed; a stopped run continues.

    Parameters
    ----------
    settings : InstructionSettings
    base : LanguageModel
        It stays as it is.
    tokenizer : lora_np.pretrained.Tokenizer
    out : str or Path
        Gets ``results.json``, and for every seed an adapter and the records it was trained on.
    listen : callable, optional
        ``listen(what)`` is called before each step with what comes next.
    take_over : bool
        As for :func:`lora_np.files.lock.hold`.

    Returns
    -------
    dict
        The content of ``results.json``. Each of its "trials" is of a seed: "train", the number of
        records; "seconds" of a processor that training took; and a row for each sample of the
        tests in "before" and "after", in one order.

    Raises
    ------
    SweepError
        If training diverges or changes the base, or the folder holds other results.
    ValueError
        If a record is longer than the model's context, or the settings do not fit the model.
    """
    out, before = Path(out), parameter_hashes(base)
    sha = whole(before)
    if not (out / "results.json").exists():  # before a folder is made: the model may not fit
        expect_trainable(base, settings.training)
        _steps(settings, 0, base, tokenizer, out)
    with opened(KIND, out, asdict(settings), sha, take_over) as results:
        if results["complete"]:
            return results
        begin(out, results, {"base_sha256": sha}, sha, lambda: {"base_sha256": sha})
        for seed in range(settings.seeds):
            if len(results["trials"]) == seed:
                results["trials"].append({"seed": seed})
            for step in _steps(settings, seed, base, tokenizer, out):
                if step.name not in results["trials"][seed]:
                    listen(f"seed {seed}: {step.said}")
                    results["trials"][seed].update(step.take())
                    check_unchanged(before, parameter_hashes(base), f"seed {seed}")
                    save_results(out, results)
        results["complete"] = True
        save_results(out, results)
    return results


@dataclass(frozen=True)
class _Step:
    """A part of a seed's work: the entry of the trial that says that it is done, and how."""

    name: str
    said: str
    take: Callable[[], dict[str, Any]]


def _steps(
    settings: InstructionSettings, seed: int, base: Any, tokenizer: Any, out: Path
) -> list[_Step]:
    """Return the steps of a seed, in order."""
    splits = instruction_set(seed, settings.train, settings.held_out)
    tests = {name: splits[name] for name in TESTS}
    every = [pair for split in splits.values() for pair in _pairs(split)]
    longest = longest_answer(chat_samples(every, tokenizer, base))
    folder = out / ADAPTERS / f"seed-{seed}"

    def asked(model: Any) -> list[dict[str, Any]]:
        return judge_splits(tests, lambda prompts: answers(model, tokenizer, prompts, longest))

    def train() -> dict[str, Any]:
        started = time.process_time()
        train, validation = _pairs(splits["train"]), _pairs(splits["validation"])
        training = {**settings.training, "seed": seed}
        adapted = adapter_of(base, tokenizer, train, validation, training)
        seconds = time.process_time() - started
        if folder.exists():
            shutil.rmtree(folder)  # of a run that was stopped before it said so
        save_adapter(adapted, folder)
        write_jsonl(folder / "train.jsonl", splits["train"])
        return {"train": len(train), "seconds": seconds}

    return [
        _Step("before", "the base answers", lambda: {"before": asked(base)}),
        _Step("train", "training", train),
        _Step("after", "the adapter answers", lambda: {"after": asked(load_adapter(base, folder))}),
    ]


def _pairs(records: Sequence[Record]) -> list[tuple[str, str]]:
    return [(record.prompt, record.output) for record in records]


def _check(results: Results) -> None:
    """Raise what a look-up raises if results are not those of this study."""
    _ = results["settings"]["held_out"], results["settings"]["training"]["lr"]
    if results["complete"] and not all(trial["after"] for trial in results["trials"]):
        raise ValueError


KIND = Kind("instruction tuning", (ADAPTERS,), _check)
