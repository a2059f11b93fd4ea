"""``python -m tests.benchmarks``: measure, print, write."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tests.benchmarks import (
    adapters,
    commands,
    generation,
    inside,
    ledger,
    llama,
    many,
    report,
    rivals,
    steps,
)
from tests.benchmarks.measure import Result
from tests.benchmarks.plan import DEFAULT, QUICK, Plan
from tests.benchmarks.workers import WorkerError

FAILURES = (WorkerError, steps.Disagreement, subprocess.CalledProcessError)
BENCHMARKS: dict[str, tuple[str, Callable[[Plan], Result]]] = {
    "steps": ("Training step (AdamW, float32); below 1 is faster", steps.measure),
    "twins": ("Training step, a textbook pair in the place of its fast twin", inside.measure_twins),
    "allocator": ("Training step, freed memory given back / kept", inside.measure_allocator),
    "rivals": ("Training step of each method / LoRA's step", rivals.measure_rivals),
    "rivals-memory": (
        "Peak memory of a step of each method / LoRA's",
        rivals.measure_rivals_memory,
    ),
    "memory": ("Peak memory of a step, activations included", inside.measure_memory),
    "inference": ("Forward only", inside.measure_inference),
    "generation": ("Greedy generation with the KV cache, batch 1", generation.measure),
    "ledger": ("FLOPs of account() against time", ledger.measure),
    "first-step": ("From process start to the first trained step", commands.measure_first_step),
    "rank": ("Singular values of a product, r = 16, float64", inside.measure_spectra),
    "adapters": ("LoRA adapters as files", adapters.measure),
    "many": ("A linear layer with an adapter for each row, one thread", many.measure),
    "sweep": ("lora-np sweep, BLAS at one thread", commands.measure_sweep),
    "llama-steps": (
        "LoRA step of a Llama (AdamW, float32); below 1 is faster",
        llama.measure_steps,
    ),
    "llama-memory": (
        "Peak memory of a LoRA step of a Llama, in a process of its own",
        llama.measure_memory,
    ),
    "llama-quantised": ("LoRA step over quantised weights, one thread", llama.measure_quantised),
    "llama-generation": (
        "Greedy generation with a Llama, one thread; below 1 is faster",
        llama.measure_generation,
    ),
    "llama-twins": (
        "LoRA step of a Llama, the textbook pair in the place of its fast twin, one thread",
        llama.measure_twins,
    ),
    "llama-edge": ("What a chat with a Llama costs, one thread", llama.measure_edge),
}
GROUPS = {"llama": tuple(name for name in BENCHMARKS if name.startswith("llama-"))}


def main(argv: Sequence[str] | None = None, plan: Plan | None = None) -> int:
    """Run the command line; `plan` takes the place of the default or quick one."""
    arguments = parser().parse_args(argv)
    plan = plan or (QUICK if arguments.quick else DEFAULT)
    if arguments.rounds is not None:
        slow = min(arguments.rounds, plan.slow_rounds)
        plan = replace(plan, rounds=arguments.rounds, slow_rounds=slow)
    missing = report.missing_peers()
    plan = replace(plan, peers=plan.peers and not missing)
    left_out = []
    if not plan.peers:
        names = ", ".join(missing or report.PEERS)
        left_out.append(f"all comparisons with PyTorch, PEFT and transformers ({names} missing)")
    out = arguments.out or Path("runs") / f"benchmarks-{time.strftime('%Y%m%d-%H%M%S')}"
    out.mkdir(parents=True, exist_ok=True)
    return run(plan, arguments.only, out, left_out)


def run(plan: Plan, names: Sequence[str], out: Path, left_out: list[str]) -> int:
    """Measure these benchmarks, print each as it ends, and write the files."""
    facts = report.machine(plan)
    load = report.load()
    print(report.machine_text(facts))
    print(f"{'threads':<14}{plan.threads} on either side; our side keeps freed memory")
    if load is not None:
        print(f"{'load':<14}{load:.2f} before the start; a quiet machine has less than 0.3")
    results, failed = {}, False
    for name in names:
        title, measure = BENCHMARKS[name]
        say(f"{name} ...")
        start = time.perf_counter()
        try:
            results[name] = measure(plan)
        except FAILURES as error:
            failed = True
            left_out.append(f"{name}, which FAILED: {reason(error)}")
            continue
        left_out += [reason for reason in results[name].left_out if reason not in left_out]
        print(f"\n{report.table(title, results[name])}", flush=True)
        say(f"{name}: {time.perf_counter() - start:.0f} s")
    facts |= {"load": None if load is None else round(load, 2), "date": time.strftime("%Y-%m-%d")}
    written = write(out, facts, plan, results, left_out)
    print("".join(f"\nleft out: {reason}" for reason in left_out))
    print(f"written to {out}/: {', '.join(written)}")
    return int(failed)


def reason(error: Exception) -> str:
    """Return what a failed benchmark has to say."""
    stderr = getattr(error, "stderr", None)
    return f"{error}\n{stderr.decode(errors='replace')}" if stderr else str(error)


def write(
    out: Path, facts: dict, plan: Plan, results: dict[str, Result], left_out: list[str]
) -> list[str]:
    """Write the files; return their names."""
    report.write_json(out / "benchmarks.json", facts, plan, results, left_out)
    caption = report.caption(facts, asdict(plan))
    drawn = "steps" in results and report.draw(out / "benchmarks.png", results["steps"], caption)
    return ["benchmarks.json", *(["benchmarks.png"] if drawn else [])]


def say(text: str) -> None:
    """Say on standard error how far we are."""
    print(text, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measured comparisons, as ratios with their spread.",
        epilog=f"The benchmarks: {', '.join(BENCHMARKS)}. Groups: {', '.join(GROUPS)}.",
    )
    add = found.add_argument
    add("--only", type=_names, default=tuple(BENCHMARKS), metavar="NAME,...")
    add("--rounds", type=_rounds, metavar="N", help=f"default: {DEFAULT.rounds}")
    add("--quick", action="store_true", help="two sizes, few rounds, no torch.compile")
    add("--out", type=Path, metavar="DIR", help="default: runs/benchmarks-<time>/")
    return found


def _names(text: str) -> tuple[str, ...]:
    names = tuple(n for name in text.split(",") for n in GROUPS.get(name, (name,)))
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        known = ", ".join(BENCHMARKS)
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no benchmark: choose from {known}")
    return names


def _rounds(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
