"""A training step: lora_np / PyTorch eager, the share of the sgemm peak, LoRA / full.

For one size, every side and the product that finds the peak take turns in the same rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack

from tests.benchmarks.measure import Result, Row, Spread, Turn, take_turns
from tests.benchmarks.models import step_flops
from tests.benchmarks.numpy_side import PRODUCT_FLOPS
from tests.benchmarks.plan import (
    LORA_GOALS,
    METHODS,
    SHARE_GOALS,
    STEP_GOALS,
    STRONGER,
    Plan,
    Size,
)
from tests.benchmarks.workers import Worker, WorkerError

TITLE = "Training step"
LOSS_TOLERANCE = 1e-4  # float32, relative
CHECKED_STEPS = 3
OURS, EAGER = "lora_np", "PyTorch eager"


class Disagreement(ArithmeticError):
    """The two sides do not compute the same; a ratio of their times would mean nothing."""


def measure(plan: Plan) -> Result:
    """Measure every size."""
    result = Result()
    with ExitStack() as stack:
        numpy = stack.enter_context(Worker("numpy_side.NumpySide", threads=plan.threads))
        torch = None
        if plan.peers:
            torch = stack.enter_context(Worker("torch_side.TorchSide", threads=plan.threads))
        for size in plan.sizes:
            measure_size(plan, size, numpy, torch, result)
        result.waited({"lora_np": numpy, "PyTorch": torch})
    if not plan.compile and torch is not None:
        result.left_out.append("steps: torch.compile, which this plan does not wait for")
    return result


def measure_size(
    plan: Plan, size: Size, numpy: Worker, torch: Worker | None, result: Result
) -> None:
    """Measure one size and add its rows."""
    turns = prepare_numpy(numpy, size)
    if torch is not None:
        turns |= prepare_torch(torch, plan, size, result)
        check_losses(turns, size)
    times = take_turns(turns, plan.rounds, plan.slice_seconds)
    result.note(times, size.name)
    result.add(*peer_rows(times, size), *peak_rows(times, size), *lora_rows(times, size))


def prepare_numpy(numpy: Worker, size: Size) -> dict[str, Turn]:
    """Build our models; return their turns, and the product's."""
    numpy.call("forget")
    numpy.call("add_product", "product")
    turns: dict[str, Turn] = {"product": (numpy, "product")}
    for method, rank in METHODS.items():
        name = f"{OURS}, {method}"
        numpy.call("add_step", name, size, rank)
        turns[name] = (numpy, name)
    return turns


def prepare_torch(torch: Worker, plan: Plan, size: Size, result: Result) -> dict[str, Turn]:
    """Build PyTorch's models in every setting; one that fails is left out with its reason."""
    torch.call("forget")
    turns: dict[str, Turn] = {}
    for method, rank in METHODS.items():
        for setting in ("eager", *STRONGER):
            if "compiled" in setting and not plan.compile:
                continue
            name = f"PyTorch {setting}, {method}"
            try:
                torch.call("add_step", name, size, rank, setting)
            except WorkerError as error:
                if "compiled" not in setting:
                    raise
                reason = str(error).strip().splitlines()[-1]  # no compiler, most often
                result.left_out.append(f"steps: {name}, {size.name}: {reason}")
                continue
            turns[name] = (torch, name)
    return turns


def check_losses(turns: Mapping[str, Turn], size: Size) -> None:
    """Raise Disagreement unless all sides' first losses agree, step after step."""
    for method in METHODS:
        ours = losses(turns[f"{OURS}, {method}"])
        for name in sides_of(turns, method):
            theirs = losses(turns[name])
            error = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs))
            if not error <= LOSS_TOLERANCE:
                raise Disagreement(
                    f"{size.name}, {method}: losses of {OURS} {ours}, of {name} {theirs}"
                )


def sides_of(turns: Iterable[str], method: str) -> list[str]:
    """Return PyTorch's sides that train with this method."""
    return [n for n in turns if n.startswith("PyTorch") and n.endswith(f", {method}")]


def losses(turn: Turn) -> list[float]:
    """Return the losses of a side's first steps."""
    worker, action = turn
    return worker.call("results", action, CHECKED_STEPS)


def peer_rows(times: Mapping[str, Spread], size: Size) -> list[Row]:
    """Return lora_np / PyTorch eager, and PyTorch's stronger settings / eager."""
    rows = []
    for method, goals in STEP_GOALS.items():
        eager = times.get(f"{EAGER}, {method}")
        if eager is None:
            continue
        ours = times[f"{OURS}, {method}"]
        what = f"{method}: {OURS} / {EAGER}"
        rows.append(Row(what, size.name, ours.over(eager), goals.get(size.name)))
        for setting in STRONGER:
            theirs = times.get(f"PyTorch {setting}, {method}")
            if theirs is not None:
                what = f"{method}: PyTorch {setting} / eager"
                rows.append(Row(what, size.name, theirs.over(eager)))
    return rows


def peak_rows(times: Mapping[str, Spread], size: Size) -> list[Row]:
    """Return the shares of the sgemm peak: predicted FLOPs over time over peak."""
    rows = []
    for side in (OURS, EAGER):
        for method, rank in METHODS.items():
            step = times.get(f"{side}, {method}")
            if step is not None:
                work = step_flops(size, rank) / PRODUCT_FLOPS
                share = times["product"].over(step).times(work)
                goal = SHARE_GOALS[method].get(size.name) if side == OURS else None
                what = f"{method}: share of the sgemm peak, {side}"
                rows.append(Row(what, size.name, share, goal, "at least"))
    return rows


def lora_rows(times: Mapping[str, Spread], size: Size) -> list[Row]:
    """Return a LoRA step / a full one, within each side and in FLOPs."""
    rows = []
    for side in (OURS, EAGER):
        if f"{side}, full" in times:
            ratio = times[f"{side}, LoRA"].over(times[f"{side}, full"])
            goal = LORA_GOALS.get(size.name) if side == OURS else None
            rows.append(Row(f"LoRA / full step, {side}", size.name, ratio, goal))
    flops = step_flops(size, METHODS["LoRA"]) / step_flops(size, None)
    rows.append(Row("LoRA / full step, FLOPs of account()", size.name, Spread((flops,))))
    return rows
