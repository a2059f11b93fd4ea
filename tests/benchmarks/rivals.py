"""The step of every method / LoRA's step, and its peak memory, on the largest size of the plan."""

from __future__ import annotations

from typing import Any

from lora_np.methods import MethodConfig, make_method
from tests.benchmarks.measure import Result, Row, Spread, Turn, take_turns
from tests.benchmarks.models import TARGETS, lora_config
from tests.benchmarks.plan import RANK, Plan
from tests.benchmarks.workers import Worker

ON = {"target_modules": TARGETS}  # as LoRA; prompt and prefix need a longer context than a batch
ADALORA = {"init_r": RANK, "target_r": RANK, "total_step": 10**6}
RIVALS: dict[str, tuple[str, dict[str, Any], float | None]] = {  # method, options, goal
    "LoRA-FA": ("lora", {"r": RANK, "train_A": False, **ON}, 1.15),
    "PiSSA": ("lora", {"r": RANK, "init_lora_weights": "pissa", **ON}, 1.15),
    "DoRA": ("dora", {"r": RANK, **ON}, 1.15),
    "DoRA, exact": ("dora", {"r": RANK, "exact": True, **ON}, None),
    "AdaLoRA": ("adalora", {**ADALORA, **ON}, 1.10),
    "VeRA, r = 256": ("vera", {"r": 256, **ON}, 1.25),
    "LoHa": ("loha", {"r": RANK, **ON}, 1.15),
    "LoKr": ("lokr", {"r": RANK, **ON}, 1.15),
    "OFT": ("oft", ON, 1.15),
    "HiRA": ("hira", {"r": RANK, **ON}, 1.15),
    "MiSS": ("miss", {"r": RANK, **ON}, 1.15),
    "SHiRA": ("shira", {"r": RANK, **ON}, 1.15),
    "IA3": ("ia3", {**ON, "feedforward_modules": ()}, 1.15),
    "DyLoRA": ("dylora", {"r": RANK, **ON}, 1.15),
    "BitFit": ("bitfit", {}, None),
    "LayerNorm tuning": ("ln_tuning", {}, None),
    "bottleneck": ("bottleneck", {}, None),
    "QLoRA": ("nf4", {"of": lora_config(RANK)}, None),
}


def configured(label: str) -> MethodConfig:
    """Return the configuration of a rival."""
    name, options, _ = RIVALS[label]
    return make_method(name, **options)


def measure_rivals(plan: Plan) -> Result:
    """Measure a step of each method / one of LoRA; in CPU seconds of one process, one thread."""
    result, size = Result(), plan.sizes[-1]
    for label, (_, _, goal) in RIVALS.items():
        with Worker("numpy_side.NumpySide", threads=1, cpu_time=True) as worker:
            worker.call("add_step", "LoRA", size, lora_config(RANK))
            worker.call("add_step", label, size, configured(label))
            turns: dict[str, Turn] = {name: (worker, name) for name in ("LoRA", label)}
            times = take_turns(turns, plan.rounds, plan.slice_seconds)
            ratio = times[label].over(times["LoRA"])
            result.add(Row(f"{label} / LoRA, step", size.name, ratio, goal))
    return result


def measure_rivals_memory(plan: Plan) -> Result:
    """Measure the most memory held during a step of each method / one of LoRA; a count."""
    result, size = Result(), plan.sizes[-1]
    with Worker("numpy_side.NumpySide", threads=plan.threads) as worker:
        lora = worker.call("peak_memory", size, lora_config(RANK))
        for label in RIVALS:
            peak = worker.call("peak_memory", size, configured(label))
            goal = 1.0 if label == "LoRA-FA" else None
            ratio = Spread((peak / lora,))
            result.add(Row(f"{label} / LoRA, peak memory", size.name, ratio, goal))
    return result
