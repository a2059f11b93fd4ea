"""What a sweep says: how long it will take, how far it is, and the table at the end."""

from __future__ import annotations

import math
import sys
import time
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.checkpoint import load_json
from lora_np.gpt import GPT
from lora_np.sweep.linear import LinearSettings
from lora_np.sweep.plan import Trial, expected_number
from lora_np.sweep.run import TASKS, TRIALS, InProcess, Progress, Settings
from lora_np.sweep.text import TextSettings


def estimate(settings: Settings, executor: Executor | None = None, jobs: int = 1) -> float:
    """Return about how many seconds the sweep takes.

    A few steps are timed in `jobs` trials at once, since busy neighbours slow each other down; the
    rest is counted.
    """
    rng = np.random.default_rng(0)
    trials = expected_number(settings) + len(settings.ranks) // 2  # some searches go further
    rounds = math.ceil(trials / jobs)
    if isinstance(settings, LinearSettings):
        arrays = TASKS["linear"](settings).prepare(Path(), False)
        small, large = replace(settings, steps=20), replace(settings, steps=220)
    else:
        model = GPT(settings.gpt(), rng)
        arrays = {name: p.value for name, p in model.parameters().items()}
        arrays["adapt"] = rng.integers(0, 256, 100 * settings.block_size).astype(np.uint8)
        small = replace(settings, steps=2, windows=1)
        large = replace(small, steps=12)
    _slowest(small, arrays, executor, jobs)  # starts the workers
    once, more = (_slowest(s, arrays, executor, jobs) for s in (small, large))
    step = max(more - once, 0.0) / (large.steps - small.steps)
    seconds = rounds * (settings.steps * step)
    if isinstance(settings, TextSettings):
        # A forward alone costs a third of a step; there are three slices to evaluate.
        evaluation = settings.windows / settings.batch_size * step
        seconds += step * settings.pretrain_steps + rounds * evaluation
    return seconds + 1.0


def _slowest(
    settings: Settings, arrays: dict[str, np.ndarray], executor: Executor | None, jobs: int
) -> float:
    """Run `jobs` equal trials at once; return the longest one's seconds."""
    where = executor or InProcess()
    futures = [where.submit(time_trial, settings, arrays) for _ in range(jobs)]
    return max(future.result() for future in futures)


def time_trial(settings: Settings, arrays: dict[str, np.ndarray]) -> float:
    """Return how many seconds a trial takes."""
    start = time.perf_counter()
    TRIALS[settings.task](settings, arrays, Trial("full", None, 0, 1e-4))
    return time.perf_counter() - start


class Terminal:
    """Tells the person in front of the terminal how the sweep goes, on standard error."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.is_screen = sys.stderr.isatty()
        self.bar: Any = None

    def start(self, seconds: float, jobs: int) -> None:
        """Say how long the whole sweep takes."""
        processes = "1 process" if jobs == 1 else f"{jobs} processes"
        print(
            f"about {spell(seconds)} in {processes}, less for what {self.out} already holds",
            file=sys.stderr,
        )

    def __call__(self, progress: Progress) -> None:
        """Hear of a finished trial."""
        if not self.is_screen:
            return
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(total=progress.expected, unit="run", initial=progress.done - 1)
        loss = progress.result["validation_loss"]
        shown = "diverged" if loss is None else f"{loss:.4g}"
        self.bar.total = progress.expected
        self.bar.set_postfix_str(f"{progress.trial}: {shown}", refresh=False)
        self.bar.update()

    def close(self) -> None:
        """Leave the bar where it is."""
        if self.bar is not None:
            self.bar.close()

    def interrupted(self) -> None:
        """Say what is kept."""
        self.close()
        path = self.out / "results.json"
        done = len(load_json(path)["trials"]) if path.exists() else 0
        runs = "1 run is" if done == 1 else f"{done} runs are"
        kept = f"{runs} kept in {self.out}" if done else "no run was finished"
        print(f"\nstopped: {kept}; the same command goes on", file=sys.stderr)


def spell(seconds: float) -> str:
    """Return a length of time as people say it."""
    if seconds < 90:
        return f"{max(5, 5 * round(seconds / 5))} seconds"
    return f"{seconds / 60:.1f} minutes"


def summary(results: dict[str, Any], key: str) -> dict[int | None, tuple[float, float, int]]:
    """Return by rank (None: full) the mean of `key` over seeds, its deviation, and the count.

    Runs that diverged are left out; the deviation is the sample's, zero for a single run.
    """
    found: dict[int | None, list[float]] = {}
    for run in results["runs"]:
        if run[key] is not None:
            found.setdefault(run["rank"], []).append(run[key])
    return {
        rank: (float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else 0.0, len(v))
        for rank, v in found.items()
    }


def trainable_parameters(results: dict[str, Any]) -> dict[int | None, int]:
    """Return by rank (None: full) how many parameters were trained, from runs that ended well."""
    ended = [run for run in results["runs"] if run["test_loss"] is not None]
    return {run["rank"]: run["trainable_parameters"] for run in ended}


def table(results: dict[str, Any]) -> str:
    """Return the curve as a table: losses are means over seeds, with the sample's deviation."""
    linear = results["settings"]["task"] == "linear"
    count = trainable_parameters(results)
    rate = {run["rank"]: run["lr"] for run in results["runs"]}
    columns = {k: summary(results, f"{k}_loss") for k in ("train", "validation", "test")}
    base, full = results["base_test_loss"], columns["test"].get(None, (math.nan,))[0]
    last = "floor" if linear else "of full's gain"
    lines = [
        f"{'':<8}{'trainable':>10}{'lr':>10}{'train':>10}{'validation':>12}{'test':>20}{last:>16}",
        f"{'base':<8}{0:>10}{'':>10}{'':>10}{results['base_validation_loss']:>12.4g}{base:>11.4g}",
    ]
    for rank in [*results["settings"]["ranks"], None]:
        if rank not in count:
            lines.append(f"{_label(rank):<8}  diverged at every learning rate that was tried")
            continue
        test, deviation, n = columns["test"][rank]
        spread = f" +- {deviation:.2g}" if n > 1 else ""
        if linear:
            final = "" if rank is None else f"{results['floors'][rank]:.4g}"
        else:
            final = f"{100 * (base - test) / (base - full):.0f} %" if full < base else ""
        lines.append(
            f"{_label(rank):<8}{count[rank]:>10,}{rate[rank]:>10.2g}"
            f"{columns['train'][rank][0]:>10.4g}{columns['validation'][rank][0]:>12.4g}"
            f"{test:>11.4g}{spread:<9}{final:>16}"
        )
    return "\n".join([*lines, *([] if linear else _flat(columns["test"]))])


def _label(rank: int | None) -> str:
    return "full" if rank is None else f"r = {rank}"


def _flat(test: dict[int | None, tuple[float, float, int]]) -> list[str]:
    """Say from which rank on a higher one gains nothing beyond the spread over seeds."""
    ranks = sorted(r for r in test if r is not None)
    if len(ranks) < 2 or min(test[r][2] for r in ranks) < 2:
        return []  # one seed has no spread to compare with

    def gains(low: int, high: int) -> bool:
        (a, da, n), (b, db, m) = test[low], test[high]
        return a - b > 2.0 * math.sqrt(da * da / n + db * db / m)  # two standard errors

    flat = [r for i, r in enumerate(ranks) if not any(gains(r, q) for q in ranks[i + 1 :])]
    if flat[0] == ranks[-1]:
        return [f"not flat yet: r = {ranks[-1]} still gains beyond two standard errors"]
    return [f"flat from r = {flat[0]} on: no higher rank gains beyond two standard errors"]
