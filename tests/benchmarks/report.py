"""What comes out: the machine, tables in text, JSON, and a picture."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from lora_np import plots
from lora_np.crew import cores
from lora_np.plots import BLUE, GREY, INK, ORANGE
from tests.benchmarks.measure import Result, Row, as_dict
from tests.benchmarks.plan import Plan
from tests.benchmarks.workers import Worker

PEERS = ("torch", "peft", "transformers")
BUSY = 0.05  # CPU seconds a second of waiting, above which a side is said not to be idle


# ------------------------------------------------------------------------------------- the machine


def missing_peers() -> list[str]:
    """Return the peers that are not installed."""
    return [name for name in PEERS if importlib.util.find_spec(name) is None]


def machine(plan: Plan) -> dict[str, Any]:
    """Describe the machine, and the versions."""
    with Worker("numpy_side.NumpySide", threads=plan.threads) as worker:
        versions = worker.call("versions")
    if plan.peers:
        versions |= {name: metadata.version(name) for name in PEERS}
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
    }


def cpu_model() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def load() -> float | None:
    """Return how many processes were running in the last minute, where the system says so."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


# ----------------------------------------------------------------------------------------- in text


def machine_text(facts: Mapping[str, Any]) -> str:
    """Return the machine as lines."""
    return "\n".join(f"{name:<14}{value}" for name, value in facts.items())


def table(title: str, result: Result) -> str:
    """Return a benchmark's rows as a table: the median, the middle half, the goal."""
    head = f"{'':<52}{'':<9}{'median':>9}   {'middle half':<18}"
    lines = [f"{title}", head.rstrip()]
    before = None
    for row in result.grouped():
        what = row.what if row.what != before else ""
        lines.append(line(what, row))
        before = row.what
    for name, used in result.idle_cpu.items():
        if used > BUSY:
            lines.append(f"{name} was not idle while it waited: {used:.2f} of a core")
    return "\n".join(lines)


def line(what: str, row: Row) -> str:
    """Return one row of a table."""
    found = row.measured
    middle = "" if len(found.rounds) == 1 else f"{figure(found.low)} .. {figure(found.high)}"
    goal = ""
    if row.reference is not None:
        goal = f"{row.reference_is} {figure(row.reference)}"
        goal += f": {row.verdict()}" if row.verdict() else ""
    unit = f" {row.unit}" if row.unit else ""
    text = f"{what:<52}{row.case:<9}{figure(found.median):>9}   {middle + unit:<18}{goal}"
    return text.rstrip()


def figure(x: float) -> str:
    """Return a number with three digits, as many as its whole part has, or as a power of ten."""
    if 0 < abs(x) < 0.001:
        return f"{x:.0e}"
    return f"{x:.2f}" if abs(x) < 10 else f"{x:.1f}" if abs(x) < 100 else f"{x:,.0f}"


# ----------------------------------------------------------------------------------------- in files


def write_json(
    path: Path,
    facts: Mapping[str, Any],
    plan: Plan,
    results: Mapping[str, Result],
    left_out: list[str],
) -> None:
    """Write everything that was measured; the fields are described in the package's docstring."""
    content = {
        "machine": dict(facts),
        "settings": asdict(plan),
        "left_out": left_out,
        "rows": [as_dict(name, row) for name, r in results.items() for row in r.grouped()],
        "seconds": {f"{n}: {side}": s for n, r in results.items() for side, s in r.seconds.items()},
        "idle_cpu": {f"{n}: {w}": u for n, r in results.items() for w, u in r.idle_cpu.items()},
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


PANELS = {
    "Full fine-tuning: step / PyTorch eager": {
        "lora_np": "full: lora_np / PyTorch eager",
        "PyTorch, fused AdamW": "full: PyTorch fused AdamW / eager",
        "PyTorch, compiled, fused AdamW": "full: PyTorch compiled, fused AdamW / eager",
    },
    "LoRA r = 8 on q, k, v, o: step / PyTorch eager + PEFT": {
        "lora_np": "LoRA: lora_np / PyTorch eager",
        "PyTorch, fused AdamW": "LoRA: PyTorch fused AdamW / eager",
        "PyTorch, compiled, fused AdamW": "LoRA: PyTorch compiled, fused AdamW / eager",
    },
    "LoRA step / full step": {
        "lora_np": "LoRA / full step, lora_np",
        "PyTorch eager": "LoRA / full step, PyTorch eager",
        "FLOPs of account()": "LoRA / full step, FLOPs of account()",
    },
}
STYLES = (
    {"color": BLUE, "marker": "o", "markersize": 8},
    {"color": ORANGE, "marker": "s", "markersize": 6, "markerfacecolor": "none"},
    {"color": GREY, "marker": "^", "markersize": 6, "markerfacecolor": "none"},
)


def draw(path: Path, result: Result, caption: str) -> bool:
    """Draw the ratios of the steps, size by size; return whether there was anything to draw.

    Points are medians over the rounds, bars the middle half, bold ticks the goals.
    """
    rows = {(row.what, row.case): row for row in result.rows}
    cases = list(dict.fromkeys(row.case for row in result.rows))
    whats = {what for what, _ in rows}
    panels = {t: s for t, s in PANELS.items() if whats & set(list(s.values())[:1])}
    if not panels:
        return False
    size = 4.6 * len(panels), 4.8  # inches
    with plots.drawing(path, None, size, columns=len(panels)) as picture:
        for axis, (title, series) in zip(picture.axes, panels.items()):
            draw_panel(axis, series, rows, cases)
            axis.set_title(title, fontsize="medium")
        picture.figure.supxlabel(caption, fontsize="x-small")
    return True


def caption(facts: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return what stands below the picture: the machine, the versions, the date."""
    said = (
        f"{facts['cpu']}, {settings['threads']} threads, NumPy {facts['numpy']} ({facts['blas']})"
    )
    if "torch" in facts:
        said += f", PyTorch {facts['torch']}"
    return f"{said}; {facts['date']}. Bars: the middle half of {settings['rounds']} rounds."


def draw_panel(
    axis: Any, series: Mapping[str, str], rows: Mapping[tuple[str, str], Row], cases: list[str]
) -> None:
    """Draw one panel: a marker for each series, a tick for each goal, and the line at 1."""
    axis.axhline(1.0, color=INK, linewidth=1)
    for number, (label, what) in enumerate(series.items()):
        found = [(i, rows[what, case]) for i, case in enumerate(cases) if (what, case) in rows]
        x = [i + 0.18 * (number - 1) for i, _ in found]
        spreads = [row.measured for _, row in found]
        y = [s.median for s in spreads]
        bars = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
        if found:
            axis.errorbar(x, y, yerr=bars, linestyle="none", capsize=4, label=label,
                          **STYLES[number])  # fmt: skip
        goals = [(i, row.reference) for i, row in found if row.reference is not None]
        if goals:
            at, heights = zip(*goals)
            left, right = [i - 0.36 for i in at], [i + 0.36 for i in at]
            axis.hlines(heights, left, right, color=BLUE, linewidth=2.5, alpha=0.5, label="goal")
    axis.set_xticks(range(len(cases)), cases)
    axis.set_xlim(-0.5, len(cases) - 0.5)
    axis.set_ylim(bottom=0.0)
    axis.set_ylabel("ratio of step times (below 1 is faster)")
    axis.grid(axis="y", alpha=0.25)
    plots.legend_below(axis, 2)
