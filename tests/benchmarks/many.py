"""A linear layer with an adapter for each row: beside the base alone, and beside PEFT."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np

from lora_np.ops import Rows, fast, lora_rows_forward
from tests.benchmarks.measure import Result, Row, Spread, Turn, take_turns
from tests.benchmarks.numpy_side import NumpySide
from tests.benchmarks.plan import RANK, ManyPlan, Plan
from tests.benchmarks.steps import Disagreement
from tests.benchmarks.workers import Worker

SCALE = 0.5
RANKS = (4, 8, 16, 32, 64)
APART = 1e-4  # of two sides in float32, relative to the largest output
GOALS = {(64, 62): 1.45, (1024, 100): 1.35, (1024, 642): 1.90}  # by rows and distinct adapters
PEFT_GOALS = {10: 10.0, 100: 20.0}  # by distinct adapters
MIXED_GOAL = 1.10


def numbers(
    rows: int, ranks: tuple[int, ...], d: int
) -> tuple[np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """Return x (rows, d), W0 (d, d), an adapter for each rank, and ids, every adapter once."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))

    adapters = [(normal(r, d), normal(d, r)) for r in ranks]
    n = len(ranks)
    ids = rng.permutation([*range(n), *rng.integers(0, n, rows - n)])
    return normal(rows, d), normal(d, d), adapters, ids


class RowsSide(NumpySide):
    """lora_np's layer in a process of its own."""

    def add_layer(self, rows: int, ranks: tuple[int, ...], d: int) -> None:
        """Prepare the layer, its textbook form, and W0 alone: plain, and as for a few rows."""
        x, W0, adapters, ids = numbers(rows, ranks, d)
        which = Rows(ids, len(ranks))

        def layer() -> np.ndarray:
            return fast.lora_rows_forward(x, W0, adapters, which, scale=SCALE)[0]

        self.actions |= {
            "layer": layer,
            "textbook": lambda: lora_rows_forward(x, W0, adapters, which, scale=SCALE)[0],
            "product": lambda: x @ W0.T,
            "few rows": lambda: fast.linear_forward(x, W0)[0],
        }

    def add_ranks(self, rows: int, ranks: tuple[int, ...], d: int) -> None:
        """Prepare the layer over unequal ranks, and over the rows of each rank by themselves."""
        x, W0, adapters, ids = numbers(rows, ranks, d)
        of_rank = np.array(ranks)[ids]  # (rows,)

        def of(here: np.ndarray) -> Any:
            own, which = x[here], Rows(ids[here], len(ranks))
            return lambda: fast.lora_rows_forward(own, W0, adapters, which, scale=SCALE)

        self.actions["mixed"] = of(np.arange(rows))
        for r in sorted(set(ranks)):
            self.actions[f"rank {r}"] = of(np.flatnonzero(of_rank == r))


def measure(plan: Plan) -> Result:
    """Measure every case, in CPU seconds of one thread."""
    result, many = Result(), plan.many
    with ExitStack() as stack:
        ours = stack.enter_context(Worker("many.RowsSide", threads=1, cpu_time=True))
        for rows, distinct in many.cases:
            ours.call("forget")
            ours.call("add_layer", rows, (RANK,) * distinct, many.d)
            sides = ("layer", "textbook", "product", "few rows")
            turns: dict[str, Turn] = {name: (ours, name) for name in sides}
            times = take_turns(turns, 3 * plan.rounds, plan.slice_seconds / 3)
            case = f"{rows} rows, {distinct} distinct"
            result.note(times, case)
            goal = GOALS.get((rows, distinct))
            result.add(
                Row("layer / x @ W0.T", case, times["layer"].over(times["product"]), goal),
                Row("layer / the layer's own W0", case, times["layer"].over(times["few rows"])),
                Row("textbook / fast", case, times["textbook"].over(times["layer"])),
            )
        _measure_ranks(plan, ours, result)
        if plan.peers:
            theirs = stack.enter_context(Worker("many_torch.RowsOfPeft", threads=1, cpu_time=True))
            for distinct in many.peft:
                _measure_peft(plan, many, distinct, (ours, theirs), result)
    return result


def _measure_ranks(plan: Plan, ours: Worker, result: Result) -> None:
    rows, distinct = plan.many.mixed
    ranks = tuple(np.resize(RANKS, distinct).tolist())
    ours.call("forget")
    ours.call("add_ranks", rows, ranks, plan.many.d)
    own = [f"rank {r}" for r in sorted(set(ranks))]
    turns: dict[str, Turn] = {name: (ours, name) for name in ("mixed", *own)}
    times = take_turns(turns, 3 * plan.rounds, plan.slice_seconds / 3)
    apart = Spread(tuple(map(sum, zip(*(times[name].rounds for name in own)))))
    case = f"{rows} rows, {distinct} distinct"
    what = "ranks 4 to 64 in one batch / each by itself"
    result.add(Row(what, case, times["mixed"].over(apart), MIXED_GOAL))


def _measure_peft(
    plan: Plan, many: ManyPlan, distinct: int, sides: tuple[Worker, Worker], result: Result
) -> None:
    ours, theirs = sides
    for side in sides:
        side.call("forget")
        side.call("add_layer", many.peft_rows, (RANK,) * distinct, many.d)
    y, their_y = (side.call("results", "layer", 1)[0] for side in sides)
    error = float(np.abs(y - their_y).max() / np.abs(y).max())
    if not error <= APART:
        raise Disagreement(f"{distinct} distinct: the outputs differ by {error:.1e} of the largest")
    turns: dict[str, Turn] = {"lora_np": (ours, "layer"), "PEFT": (theirs, "layer")}
    times = take_turns(turns, plan.rounds, plan.slice_seconds)
    case = f"{many.peft_rows} rows, {distinct} distinct"
    result.note(times, case)
    ratio, goal = times["PEFT"].over(times["lora_np"]), PEFT_GOALS.get(distinct)
    result.add(Row("PEFT's adapter_names / lora_np", case, ratio, goal, "at least"))
