"""What a run will need, before it starts: memory, time, the samples. Nothing is written.

Two things are measured on the step that has most tokens: the time of the step, and, with
``tracemalloc``, the most memory that one row's forward and backward hold at a time. The rest is
counted from shapes.
"""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

from lora_np.costs import account
from lora_np.data import histogram, sample_text
from lora_np.finetune.prepare import Prepared, prepare, samples_line
from lora_np.finetune.run import Training
from lora_np.finetune.settings import Settings
from lora_np.finetune.terminal import spell
from lora_np.parameters import Grads
from lora_np.tables import Table, counted
from lora_np.train import Batch

MB = 2**20
COPIES = "parameters, the last good ones, the best ones, two moments"  # of what is trained


def dry_run(settings: Settings) -> str:
    """Return a report of what the run would need; one step is carried out, in memory.

    Raises
    ------
    ValueError
        As :func:`lora_np.finetune.finetune`, of what does not depend on the folder.
    """
    prepared = prepare(settings)
    training = Training(prepared.model, prepared.train, prepared.validation, settings)
    lengths = [
        sum(map(len, training.epochs.samples(step))) for step in range(training.steps_in_epoch)
    ]
    largest = max(range(len(lengths)), key=lengths.__getitem__)
    samples = training.epochs.samples(largest)
    began = time.perf_counter()
    batch = training.layout(samples)
    laying = (time.perf_counter() - began) / sum(map(len, samples))  # seconds a token
    memory = memory_of(training, batch)
    step = timed_step(training, batch) / sum(map(len, samples))
    return "\n\n".join(
        [
            samples_line(prepared),
            str(histogram(prepared.report.lengths)),
            str(memory),
            _duration(training, prepared, laying, step),
            f"the first sample:\n{sample_text(prepared.train[0], prepared.tokenizer)}",
        ]
    )


def memory_of(training: Training, batch: Batch) -> Table:
    """Return a table of what is held in memory while a run trains."""
    costs, hidden = account(training.adapted, 1), training.layout.hidden
    trained, jobs = costs.gradient_bytes, training.jobs
    rows: dict[str, int] = {
        "weights, as they are stored": costs.weight_bytes,
        f"what is trained, 5 times ({COPIES})": 5 * trained,
        f"gradients, {counted(jobs, 'process', 'processes')}": jobs * trained,
        "hidden states, kept": 0 if hidden is None else hidden.rows.nbytes,
        "largest step (measured)": jobs * step_bytes(training.layout.model, batch),
    }
    rows["together"] = sum(rows.values())
    columns = {"memory": list(rows), "MB": [size / MB for size in rows.values()]}
    return Table(columns, {"MB": ",.1f"})


def step_bytes(model: Any, batch: Batch) -> int:
    """Return the most bytes that forward and backward of a batch's first row hold at a time."""
    tracemalloc.start()
    try:
        _, cache = model.loss(*(array[:1] for array in batch), count=1)
        model.backward(1.0, cache, Grads())
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def timed_step(training: Training, batch: Batch) -> float:
    """Return the seconds of one gradient; one before it starts the workers. Nothing moves."""
    gradient, rng = training.trainer.gradient, training.trainer.rng
    with gradient:
        gradient(batch, rng)
        began = time.perf_counter()
        gradient(batch, rng)
        return time.perf_counter() - began


def _duration(training: Training, prepared: Prepared, laying: float, step: float) -> str:
    """Say how many steps there are and how long they take, from seconds a token."""
    settings, steps = training.settings, training.trainer.steps
    tokens, held = (sum(map(len, part)) for part in (prepared.train, prepared.validation))
    every = settings.validate_every
    validations = 1 + settings.epochs + (steps // every if every else 0)
    once = 0.0 if training.layout.hidden is None else laying * (tokens + held)
    seconds = once + step * (settings.epochs * tokens + validations * held / 3)  # forward alone
    return (
        f"{counted(steps, 'step')}: {counted(settings.epochs, 'epoch')} of "
        f"{training.steps_in_epoch}; about {spell(seconds)} in "
        f"{counted(training.jobs, 'process', 'processes')}"
    )
