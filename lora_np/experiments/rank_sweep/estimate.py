"""How long will a sweep take? A few steps are timed, and the others are counted."""

from __future__ import annotations

import math
import time
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from lora_np.crew import InProcess
from lora_np.experiments.rank_sweep.linear import LinearSettings
from lora_np.experiments.rank_sweep.llm import FEWEST, LlmSettings, LlmTask
from lora_np.experiments.rank_sweep.plan import Trial, expected_number
from lora_np.experiments.rank_sweep.run import TASKS, TRIALS, Settings
from lora_np.experiments.rank_sweep.text import TextSettings
from lora_np.experiments.runner import Arrays, with_mapped
from lora_np.models import GPT


def estimate(settings: Settings, executor: Executor | None = None, jobs: int = 1) -> float:
    """Return about how many seconds the sweep takes.

    A few steps are timed in `jobs` trials at once, since busy neighbours slow each other down; the
    others are counted.
    """
    trials = expected_number(settings) + len(settings.ranks) // 2  # some searches go further
    rounds, before = math.ceil(trials / jobs), 0.0
    if isinstance(settings, LinearSettings):
        arrays = TASKS["linear"](settings).prepare(Path(), False)
        small, large = replace(settings, steps=20), replace(settings, steps=220)
    elif isinstance(settings, LlmSettings):
        task, start = LlmTask(replace(settings, samples=FEWEST)), time.perf_counter()
        arrays = task.prepare(Path(), False)
        before = settings.samples / FEWEST * (time.perf_counter() - start)
        small, large = replace(settings, steps=1), replace(settings, steps=4)
    else:
        arrays = _random_text(settings)
        small = replace(settings, steps=2, windows=1)
        large = replace(small, steps=12)

    def timed(arrays: Arrays) -> tuple[float, float]:
        _slowest(small, arrays, executor, jobs)  # starts the workers
        return _slowest(small, arrays, executor, jobs), _slowest(large, arrays, executor, jobs)

    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        once, more = with_mapped(arrays, Path(folder), executor, timed)
    step = max(more - once, 0.0) / (large.steps - small.steps)
    seconds = before + rounds * (settings.steps * step)
    if isinstance(settings, TextSettings):
        # A forward alone costs a third of a step; there are three slices to evaluate.
        evaluation = settings.windows / settings.batch_size * step
        seconds += step * settings.pretrain_steps + rounds * evaluation
    if isinstance(settings, LlmSettings):
        # Three quarters of the samples are evaluated.
        seconds += rounds * 0.75 * settings.samples / settings.batch_size * step / 3
    return seconds + 1.0


def _random_text(settings: TextSettings) -> dict[str, np.ndarray]:
    """Return arrays of the sizes of the text task."""
    rng = np.random.default_rng(0)
    model = GPT(settings.gpt(), rng)
    arrays = {name: p.value for name, p in model.parameters().items()}
    arrays["adapt"] = rng.integers(0, 256, 100 * settings.block_size).astype(np.uint8)
    return arrays


def _slowest(settings: Settings, arrays: Arrays, executor: Executor | None, jobs: int) -> float:
    """Run `jobs` equal trials at once; return the seconds of the slowest."""
    where = executor or InProcess()
    futures = [where.submit(time_trial, settings, arrays) for _ in range(jobs)]
    return max(future.result() for future in futures)


def time_trial(settings: Settings, arrays: Arrays) -> float:
    """Return how many seconds a trial takes."""
    start = time.perf_counter()
    TRIALS[settings.task](settings, arrays, Trial("full", None, 0, 1e-4))
    return time.perf_counter() - start
