"""A Llama against transformers and PEFT: LoRA steps, their memory, generation; few bits at rest.

With one thread, the sides are compared in CPU seconds, which depend less on what else the machine
does; with two, in seconds. Memory is the most that a process held, its code included.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np

from tests.benchmarks.llama_models import Case, found
from tests.benchmarks.measure import Result, Row, Spread, Turn, take_turns
from tests.benchmarks.plan import (
    LLAMA_EDGE_GOAL,
    LLAMA_GENERATION_GOALS,
    LLAMA_MEMORY_GOALS,
    LLAMA_QUANTISED_GOALS,
    LLAMA_STEP_GOALS,
    Plan,
)
from tests.benchmarks.steps import CHECKED_STEPS, LOSS_TOLERANCE, Disagreement
from tests.benchmarks.workers import Worker

OURS, THEIRS = "lora_np", "PyTorch + PEFT"
MB = 1e6
FORMS = {"float32": False, "quantised": True}
MEASURED_STEPS = 2  # for the peak of memory, after one that warms up


def sides(plan: Plan, stack: ExitStack, threads: int, cpu_time: bool) -> dict[str, Worker]:
    """Start a process for each side."""
    model, _ = found(plan.llama.model)
    options = {"model": model, "threads": threads, "cpu_time": cpu_time}
    names = {OURS: "llama_numpy.LlamaSide"}
    if plan.peers:
        names[THEIRS] = "llama_torch.LlamaTorchSide"
    return {label: stack.enter_context(Worker(name, **options)) for label, name in names.items()}


def started(plan: Plan) -> Result:
    """Return a result that says which model is measured, if it is not SmolLM2."""
    _, note = found(plan.llama.model)
    return Result(left_out=[f"llama: {note}"] if note else [])


def goal_of(plan: Plan, goal: float | None) -> float | None:
    """Return a goal for SmolLM2, or None if another model is measured."""
    _, note = found(plan.llama.model)
    return None if note else goal


def measure_steps(plan: Plan) -> Result:
    """Measure a LoRA step / PEFT's, with one thread and with all of the plan."""
    result = started(plan)
    for threads in sorted({1, plan.threads}):
        with ExitStack() as stack:
            workers = sides(plan, stack, threads, cpu_time=threads == 1)
            for case in map(Case._make, plan.llama.cases):
                measure_step(plan, case, threads, workers, result)
    return result


def measure_step(
    plan: Plan, case: Case, threads: int, workers: Mapping[str, Worker], result: Result
) -> None:
    """Measure one batch and add its row."""
    for worker in workers.values():
        worker.call("forget")
        worker.call("add_lora_step", "step", case)
    check_losses(workers, case)
    turns: dict[str, Turn] = {label: (worker, "step") for label, worker in workers.items()}
    times = take_turns(turns, plan.rounds, plan.slice_seconds)
    result.note(times, f"{case.name}, threads {threads}")
    counted = f"{threads} thread{'s' * (threads > 1)}"
    if THEIRS in times:
        goal = goal_of(plan, LLAMA_STEP_GOALS.get(threads, {}).get(case.name))
        ratio = times[OURS].over(times[THEIRS])
        result.add(Row(f"LoRA step, {OURS} / {THEIRS}, {counted}", case.name, ratio, goal))
    tokens = Spread(tuple(case.B * case.T / s for s in times[OURS].rounds))
    result.add(Row(f"LoRA step, {OURS}, {counted}", case.name, tokens, unit="tokens/s"))


def check_losses(workers: Mapping[str, Worker], case: Case) -> None:
    """Raise Disagreement unless all sides' first losses agree, step after step."""
    losses = [worker.call("results", "step", CHECKED_STEPS) for worker in workers.values()]
    if not np.allclose(losses, losses[0], rtol=LOSS_TOLERANCE, atol=0.0):
        raise Disagreement(f"llama, {case.name}: losses of {', '.join(workers)}: {losses}")


def measure_memory(plan: Plan) -> Result:
    """Measure the peak memory of a LoRA step / PEFT's, each in a process that does nothing else."""
    result, case = started(plan), Case(*plan.llama.memory)
    for label, recompute in {"plain": False, "recompute": True}.items():
        peaks = {}
        with ExitStack() as stack:
            for side, worker in sides(plan, stack, 1, cpu_time=True).items():
                worker.call("add_lora_step", "step", case, recompute)
                peaks[side] = worker.call("peak_bytes", "step", MEASURED_STEPS)
        for side, peak in peaks.items():
            result.add(memory_row(f"peak memory, {side}, {label}", case.name, peak))
        if THEIRS in peaks:
            ratio = Spread((peaks[OURS] / peaks[THEIRS],))
            goal = goal_of(plan, LLAMA_MEMORY_GOALS[label])
            what = f"peak memory, {OURS} / {THEIRS}, {label}"
            result.add(Row(what, case.name, ratio, goal))
    return result


def memory_row(what: str, case: str, peak: int, goal: float | None = None) -> Row:
    """Return a row with a peak of memory."""
    return Row(what, case, Spread((peak / MB,)), goal, unit="MB")


def measure_quantised(plan: Plan) -> Result:
    """Measure a step over quantised weights / over float32, both recomputing, and its memory."""
    result, case, goals = started(plan), Case(*plan.llama.memory), LLAMA_QUANTISED_GOALS
    options = {"model": found(plan.llama.model)[0], "threads": 1, "cpu_time": True}
    with Worker("llama_numpy.LlamaSide", **options) as worker:
        for label, quantised in FORMS.items():
            worker.call("add_lora_step", label, case, True, quantised)
        times = take_turns(
            {label: (worker, label) for label in FORMS}, plan.rounds, plan.slice_seconds
        )
    result.note(times, case.name)
    what = "step with recomputation, quantised / float32"
    ratio = times["quantised"].over(times["float32"])
    result.add(Row(what, case.name, ratio, goal_of(plan, goals["seconds"])))
    with Worker("llama_numpy.LlamaSide", **options) as worker:
        worker.call("add_lora_step", "step", case, True, True)
        peak = worker.call("peak_bytes", "step", MEASURED_STEPS)
    what = "peak memory of this step, quantised"
    result.add(memory_row(what, case.name, peak, goal_of(plan, goals["MB"])))
    return result


def measure_generation(plan: Plan) -> Result:
    """Measure greedy generation with the KV cache / transformers', in CPU seconds of one thread."""
    result, llama = started(plan), plan.llama
    with ExitStack() as stack:
        workers = sides(plan, stack, 1, cpu_time=True)
        for B in llama.prompts:
            case = Case(B, llama.prompt)
            for worker in workers.values():
                worker.call("forget")
                worker.call("add_continuation", "generate", case, llama.new)
            check_tokens(workers, case)
            turns: dict[str, Turn] = {side: (w, "generate") for side, w in workers.items()}
            times = take_turns(turns, plan.rounds, plan.slice_seconds)
            result.note(times, f"batch {B}")
            if THEIRS in times:
                what = f"greedy generation, {OURS} / transformers"
                goal = goal_of(plan, LLAMA_GENERATION_GOALS.get(B))
                ratio = times[OURS].over(times[THEIRS])
                result.add(Row(what, f"batch {B}", ratio, goal))
            rate = Spread(tuple(B * llama.new / s for s in times[OURS].rounds))
            result.add(Row(f"greedy generation, {OURS}", f"batch {B}", rate, unit="tokens/s"))
    return result


def measure_twins(plan: Plan) -> Result:
    """Measure a LoRA step with textbook grouped attention / with its fast twin, in CPU seconds."""
    result, textbook = started(plan), "textbook gqa"
    options = {"model": found(plan.llama.model)[0], "threads": 1, "cpu_time": True}
    with Worker("llama_numpy.LlamaSide", **options) as worker:
        for case in map(Case._make, plan.llama.cases):
            worker.call("forget")
            worker.call("add_lora_step", "fast", case)
            worker.call("add_lora_step", textbook, case, False, False, "gqa")
            turns: dict[str, Turn] = {name: (worker, name) for name in ("fast", textbook)}
            times = take_turns(turns, plan.rounds, plan.slice_seconds)
            result.note(times, case.name)
            ratio = times[textbook].over(times["fast"])
            result.add(Row(f"LoRA: {textbook} / fast", case.name, ratio))
    return result


def check_tokens(workers: Mapping[str, Worker], case: Case) -> None:
    """Raise Disagreement unless all sides choose the same first new token for each prompt."""
    texts = [np.asarray(worker.call("results", "generate", 1)[0]) for worker in workers.values()]
    if any(not np.array_equal(text[:, : case.T + 1], texts[0][:, : case.T + 1]) for text in texts):
        raise Disagreement(f"llama, {case.name}: the first new tokens differ")


def measure_edge(plan: Plan) -> Result:
    """Measure a chat from quantised weights and from float32: memory, tokens a second, a switch."""
    result, llama = started(plan), plan.llama
    case = Case(1, llama.prompt)
    options = {"model": found(llama.model)[0], "threads": 1, "cpu_time": True}
    for label, quantised in FORMS.items():
        with Worker("llama_numpy.LlamaSide", **options) as worker:
            worker.call("add_continuation", "generate", case, llama.new, quantised)
            peak = worker.call("peak_bytes", "generate", 1)
            worker.call("add_switch", "switch", quantised)
            turns: dict[str, Turn] = {name: (worker, name) for name in ("generate", "switch")}
            times = take_turns(turns, plan.slow_rounds, plan.slice_seconds)
        result.note(times, label)
        rate = Spread(tuple(llama.new / s for s in times["generate"].rounds))
        goal = goal_of(plan, LLAMA_EDGE_GOAL) if quantised else None
        result.add(
            Row("greedy generation, batch 1", label, rate, unit="tokens/s"),
            memory_row("peak memory of generation", label, peak, goal),
            Row("another adapter, read, to its first token", label, times["switch"], unit="s"),
        )
    return result
