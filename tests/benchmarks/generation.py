"""Greedy generation with the KV cache, batch 1: tokens a second against transformers' GPT-2."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from tests.benchmarks.measure import Result, Row, Spread, Turn, take_turns
from tests.benchmarks.models import prompt
from tests.benchmarks.plan import GENERATION_GOAL, Plan, Size
from tests.benchmarks.steps import Disagreement
from tests.benchmarks.workers import Worker

NUMPY = "numpy_side.NumpySide"
LOGITS_TOLERANCE = 1e-4  # float32, of the largest logit


def measure(plan: Plan) -> Result:
    """Measure every size."""
    result = Result()
    with ExitStack() as stack:
        sides = {"lora_np": stack.enter_context(Worker(NUMPY, threads=plan.threads))}
        if plan.peers:
            torch = stack.enter_context(Worker("torch_side.TorchSide", threads=plan.threads))
            sides["transformers"] = torch
        for size in plan.sizes:
            measure_size(plan, size, sides, result)
        result.waited(sides)
    return result


def measure_size(plan: Plan, size: Size, sides: dict[str, Worker], result: Result) -> None:
    """Let both sides continue the same prompt to a full block."""
    turns: dict[str, Turn] = {}
    for label, worker in sides.items():
        worker.call("forget")
        worker.call("add_generation", "generate", size)
        turns[label] = (worker, "generate")
    if len(sides) > 1:
        check_logits(sides, size)
    times = take_turns(turns, plan.rounds, plan.slice_seconds)
    result.note(times, size.name)
    if len(sides) > 1:
        ratio = times["transformers"].over(times["lora_np"])
        what = "tokens a second, lora_np / transformers"
        result.add(Row(what, size.name, ratio, GENERATION_GOAL, "at least"))
    new = size.T - len(prompt(size))
    for label, seconds in times.items():
        rate = Spread(tuple(new / s for s in seconds.rounds))
        result.add(Row(f"tokens a second, {label}", size.name, rate, unit="/ s"))


def check_logits(sides: dict[str, Worker], size: Size) -> None:
    """Raise Disagreement unless both models are the same function."""
    ours, theirs = (worker.call("logits", size) for worker in sides.values())
    error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not error <= LOGITS_TOLERANCE:
        raise Disagreement(f"{size.name}: the logits differ by {error:.1e} of the largest")
