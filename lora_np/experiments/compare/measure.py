"""What a contender costs: numbers, bytes, and times that take turns.

Everything is measured in this process, one contender after the other, after all training: workers
that train beside it would slow it down. Times are measured in rounds, and each contender has its
turn in every round, so that a machine that is slow for a while slows all of them; only ratios
within a round are reported. A new measurement gives other times: they are kept in
``results.json``, and nothing about losses depends on them.
"""

from __future__ import annotations

import math
import statistics
import time
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lora_np.adapters import save_adapter
from lora_np.adapters.file import TENSORS
from lora_np.costs import account
from lora_np.crew import one_blas_thread
from lora_np.experiments.rank_sweep.text import TEXTS, DeviceBatches, TextSettings, rebuild_base
from lora_np.experiments.runner import Arrays
from lora_np.experiments.study import Contender, Study
from lora_np.experiments.study.trial import model_of, settings_of, texts_of
from lora_np.methods import is_adapted, merge
from lora_np.train import Trainer, save_parameters

LR = 1e-6  # the time of a step does not depend on it
LATENCIES = (1, 32)  # batch sizes
LEAST, MOST = 2, 40  # calls in a turn, whose time is their median
TIMES = ("step_seconds", *(f"latency_{size}" for size in LATENCIES))


def measure(study: Study, arrays: Arrays, rounds: int, seconds: float) -> dict[str, Any]:
    """Return what every contender costs, by label.

    Parameters
    ----------
    study : Study
    arrays : mapping of str to ndarray
        The base and the texts.
    rounds : int
    seconds : float
        What a contender gets for each of its actions in a round, at least two calls.

    Returns
    -------
    dict
        By label: ``base`` and ``trainable`` (numbers), ``optimizer_bytes``, ``file_bytes`` (None
        where the method has no file), ``merges``, ``inference_numbers`` (merged where it merges),
        ``peak_bytes`` of a step, and lists of median seconds, one for each round:
        ``step_seconds``, ``latency_1`` and ``latency_32``.
    """
    found, actions = {}, {}
    with one_blas_thread():
        for contender in study.contenders:
            found[contender.label] = _numbers(study, contender, arrays)
            actions[contender.label] = _actions(study, contender, arrays)
        for label, times in take_turns(actions, rounds, seconds).items():
            found[label] |= times
    return found


Actions = Mapping[str, Callable[[], Any]]  # by what they measure


def take_turns(
    actions: Mapping[str, Actions], rounds: int, seconds: float
) -> dict[str, dict[str, list[float]]]:
    """Return by label and action the median seconds of a call in every round.

    Every other round goes through the labels backwards.
    """
    counts = {
        label: {name: _calls(act, seconds) for name, act in own.items()}
        for label, own in actions.items()
    }
    found = {label: {name: [] for name in own} for label, own in actions.items()}
    for number in range(rounds):
        for label in list(actions)[:: 1 if number % 2 == 0 else -1]:
            for name, act in actions[label].items():
                times = [_timed(act) for _ in range(counts[label][name])]
                found[label][name].append(statistics.median(times))
    return found


def _calls(act: Callable[[], Any], seconds: float) -> int:
    """Return how many calls fill the time; the first call is not counted."""
    _timed(act)
    return min(MOST, max(LEAST, math.ceil(seconds / max(_timed(act), 1e-9))))


def _timed(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def _numbers(study: Study, contender: Contender, arrays: Arrays) -> dict[str, Any]:
    """Return what is counted, not timed."""
    base = rebuild_base(study.text, arrays)
    model = model_of(base, contender, 0)
    plain, merges = at_inference(model)
    numbers = sum(p.size for p in set(plain.parameters().values()))
    return {
        "base": sum(p.size for p in set(base.parameters().values())),
        "trainable": account(model).trainable,
        "optimizer_bytes": account(model).optimizer_bytes,
        "file_bytes": file_bytes(model),
        "merges": merges,
        "inference_numbers": numbers,
        "peak_bytes": _peak_bytes(study, contender, arrays),
    }


def at_inference(model: Any) -> tuple[Any, bool]:
    """Return the model as it is used after training, and whether it has merged."""
    if not is_adapted(model):
        return model, False
    try:
        return merge(model), True
    except ValueError:
        return model, False


def file_bytes(model: Any) -> int | None:
    """Return the bytes of the file that training leaves; None where there is no file form."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "adapter" / TENSORS
        try:
            if is_adapted(model):
                save_adapter(model, path.parent)
            else:
                path = Path(folder) / "model.npz"
                save_parameters(path, model)
        except ValueError:
            return None
        return path.stat().st_size


def _peak_bytes(study: Study, contender: Contender, arrays: Arrays) -> int:
    """Return the most bytes that Python and NumPy hold in a step: weights, state, activations."""
    texts, settings = texts_of(arrays, contender), settings_of(study.text, contender)
    tracemalloc.start()
    own = {name: array.copy() for name, array in arrays.items() if name not in TEXTS}
    model = model_of(rebuild_base(study.text, own), contender, 0)
    del own
    step = _step(model, settings, texts["train"])
    step()
    tracemalloc.reset_peak()
    step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def _actions(study: Study, contender: Contender, arrays: Arrays) -> Actions:
    """Return what is timed: a training step, and a forward at each batch size."""
    settings, texts = settings_of(study.text, contender), texts_of(arrays, contender)
    model = model_of(rebuild_base(study.text, arrays), contender, 0)
    plain, _ = at_inference(model)
    actions = {"step_seconds": _step(model, settings, texts["train"])}
    tokens = np.resize(texts["validation"], (max(LATENCIES), settings.block_size)).astype(np.int64)
    for size in LATENCIES:
        actions[f"latency_{size}"] = lambda size=size: plain.forward(tokens[:size])
    return actions


def _step(model: Any, settings: TextSettings, tokens: Any) -> Callable[[], None]:
    """Return a function that takes a training step, always on the same batch."""
    rng = np.random.default_rng(0)
    batch = DeviceBatches(settings, tokens, np.random.default_rng([0, 0]))()
    trainer = Trainer(model, lambda: batch, steps=10**6, lr=LR, rng=rng)

    def step() -> None:
        with trainer.gradient:
            trainer.step(batch)

    return step
