"""The FLOPs that ``account()`` predicts against measured time, over T, d, L and r.

Along each axis one number grows. Where products of matrices are all that counts, time grows like
FLOPs: to the power 1 in L, between 1 and 2 in d and T, hardly at all in r. Work on single entries
(GELU, softmax, LayerNorm, the optimizer) and small products that do not reach the peak make time's
exponent differ from that of FLOPs; by how much is what the table shows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from tests.benchmarks.measure import Result, Row, Spread, Turn, exponent, take_turns
from tests.benchmarks.models import step_flops
from tests.benchmarks.numpy_side import PRODUCT_FLOPS
from tests.benchmarks.plan import Plan, Size
from tests.benchmarks.workers import Worker

ORIGIN = Size("ledger", d_model=128, n_layer=2, n_head=4, T=64, batch_size=8, vocab_size=256)
FIELDS = {"T": "T", "d": "d_model", "L": "n_layer"}


class Point(NamedTuple):
    """A model on an axis; `rank` None is full fine-tuning."""

    value: int
    size: Size
    rank: int | None


def points(axis: str, values: tuple[int, ...]) -> list[Point]:
    """Return the models along an axis: "T", "d", "L" with full fine-tuning, "r" with LoRA."""
    if axis == "r":
        return [Point(r, ORIGIN, r) for r in values]
    return [Point(v, replace(ORIGIN, **{FIELDS[axis]: v}), None) for v in values]


def measure(plan: Plan) -> Result:
    """Measure every axis."""
    result = Result()
    with Worker("numpy_side.NumpySide", threads=plan.threads) as worker:
        for axis, values in plan.ledger.items():
            measure_axis(plan, axis, points(axis, values), worker, result)
    return result


def measure_axis(plan: Plan, axis: str, along: list[Point], worker: Worker, result: Result) -> None:
    """Let all models of an axis take turns, and compare the exponents."""
    worker.call("forget")
    worker.call("add_product", "product")
    turns: dict[str, Turn] = {"product": (worker, "product")}
    for point in along:
        name = f"{axis} = {point.value}"
        worker.call("add_step", name, point.size, point.rank)
        turns[name] = (worker, name)
    times = take_turns(turns, plan.rounds, plan.slice_seconds / 2)
    product = times.pop("product")
    result.note(times)
    values = [point.value for point in along]
    flops = [step_flops(point.size, point.rank) for point in along]
    measured = [exponent(values, seconds) for seconds in zip(*(s.rounds for s in times.values()))]
    what, reference = "growth exponent of a step's time", exponent(values, flops)
    result.add(Row(what, f"in {axis}", Spread(tuple(measured)), reference, "predicted"))
    for name, work in zip(times, flops):
        share = product.over(times[name]).times(work / PRODUCT_FLOPS)
        result.add(Row("share of the sgemm peak", name, share))
