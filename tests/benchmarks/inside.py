"""NumPy against itself: fast twins, kept memory, LoRA's memory, merged inference, spectra."""

from __future__ import annotations

from dataclasses import replace

from tests.benchmarks.measure import Result, Row, Spread, Turn, take_turns
from tests.benchmarks.plan import (
    MERGED_GOAL,
    METHODS,
    RANK,
    SPECTRUM_GOALS,
    SPECTRUM_RANK,
    UNMERGED_GOALS,
    Plan,
)
from tests.benchmarks.workers import Worker

SIDE = "numpy_side.NumpySide"
SPECTRA_APART = 1e-6  # of two routes in float64
TWINS = {"full": ("gelu", "attention"), "LoRA": ("gelu", "attention", "lora_linear")}


def measure_twins(plan: Plan) -> Result:
    """Measure a step in which the layers call a textbook pair / one with its fast twin.

    In CPU seconds of one process with BLAS at one thread, on half a batch, as each of two processes
    has. The gains are small, so the turns are short and many.
    """
    result = Result()
    with Worker(SIDE, threads=1, cpu_time=True) as worker:
        for size in plan.sizes:
            half = replace(size, batch_size=max(1, size.batch_size // 2))
            for method, pairs in TWINS.items():
                worker.call("forget")
                turns: dict[str, Turn] = {}
                for pair in (None, *pairs):
                    name = f"textbook {pair}" if pair else "fast"
                    worker.call("add_step", name, half, METHODS[method], pair)
                    turns[name] = (worker, name)
                times = take_turns(turns, 3 * plan.rounds, plan.slice_seconds / 3)
                result.note(times, f"{method}, {size.name}")
                for name in list(turns)[1:]:
                    ratio = times[name].over(times["fast"])
                    result.add(Row(f"{method}: {name} / fast", size.name, ratio))
    return result


def measure_allocator(plan: Plan) -> Result:
    """Measure a step where freed memory goes back to the system / where it is kept.

    Only the first two sizes: in larger ones the products hide the difference. In threads: the
    processes of a crew always keep theirs.
    """
    result = Result()
    with (
        Worker(SIDE, threads=plan.threads, keep=False, workers="threads") as plain,
        Worker(SIDE, threads=plan.threads, keep=True, workers="threads") as kept,
    ):
        for size in plan.sizes[:2]:
            turns: dict[str, Turn] = {}
            for label, worker in {"given back": plain, "kept": kept}.items():
                worker.call("forget")
                for method, rank in METHODS.items():
                    worker.call("add_step", method, size, rank)
                    turns[f"{label}, {method}"] = (worker, method)
            times = take_turns(turns, plan.rounds, plan.slice_seconds / 2)
            result.note(times, size.name)
            for method in METHODS:
                ratio = times[f"given back, {method}"].over(times[f"kept, {method}"])
                result.add(Row(f"{method}: memory given back / kept", size.name, ratio))
        result.waited({"given back": plain, "kept": kept})
    return result


def measure_memory(plan: Plan) -> Result:
    """Measure the most memory held during a LoRA step / a full one; a count, without spread."""
    result = Result()
    with Worker(SIDE, threads=plan.threads) as worker:
        for size in plan.sizes:
            peaks = {name: worker.call("peak_memory", size, r) for name, r in METHODS.items()}
            ratio = Spread((peaks["LoRA"] / peaks["full"],))
            result.add(Row("LoRA / full, peak memory", size.name, ratio))
            for method, peak in peaks.items():
                what = f"peak memory, {method}"
                result.add(Row(what, size.name, Spread((peak / 2**20,)), unit="MiB"))
    return result


def measure_inference(plan: Plan) -> Result:
    """Measure the forward of a merged and of an unmerged model / the base's."""
    result = Result()
    with Worker(SIDE, threads=plan.threads) as worker:
        for size in plan.sizes:
            worker.call("forget")
            worker.call("add_inference", size, RANK)
            turns = {name: (worker, name) for name in ("base", "merged", "unmerged")}
            times = take_turns(turns, plan.rounds, plan.slice_seconds)
            result.note(times, size.name)
            goals = {"merged": MERGED_GOAL, "unmerged": UNMERGED_GOALS.get(size.name)}
            for name, goal in goals.items():
                ratio = times[name].over(times["base"])
                result.add(Row(f"{name} / base, forward", size.name, ratio, goal))
    return result


def measure_spectra(plan: Plan) -> Result:
    """Measure the dense SVD of B A / ``spectrum((B, A))``, and the largest difference of values.

    The dense one takes half a minute at the largest size: it is taken as often as the plan says,
    and not warmed up.
    """
    result = Result()
    with Worker(SIDE, threads=plan.threads) as worker:
        for size, count in plan.spectra:
            rounds = [worker.call("spectra", size, SPECTRUM_RANK) for _ in range(count)]
            dense, factors, apart = (Spread(figures) for figures in zip(*rounds))
            case = str(size)
            result.note({"dense SVD": dense, "spectrum of factors": factors}, case)
            goal = SPECTRUM_GOALS.get(size)
            ratio = dense.over(factors)
            result.add(Row("dense SVD of B A / spectrum((B, A))", case, ratio, goal, "at least"))
            result.add(Row("largest difference of values / sigma_1", case, apart, SPECTRA_APART))
    return result
