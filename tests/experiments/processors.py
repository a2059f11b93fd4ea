"""The linear task on every kind of processor that this machine's OpenBLAS can work as."""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORE_TYPES = ("Prescott", "Nehalem", "Sandybridge", "Haswell", "Zen", "SkylakeX")
REPORTED = """
import numpy, threadpoolctl
print([library.get("architecture") for library in threadpoolctl.threadpool_info()])
"""
SWEEP = """
import json, sys, tempfile
from threadpoolctl import threadpool_limits
from lora_np.experiments.rank_sweep import LinearSettings, rank_sweep, report
settings = eval(sys.argv[1])
for threads in (1, 2):
    with threadpool_limits(threads), tempfile.TemporaryDirectory() as folder:
        results = rank_sweep(settings, folder)
    print(json.dumps([str(report.table(results)), results]))
"""


def run_as(core_type, code, *arguments):
    """Run Python code in a process whose OpenBLAS works as on such a processor."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "OPENBLAS_CORETYPE": core_type, "OPENBLAS_NUM_THREADS": "2"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


@cache
def core_types():
    """Return a core type for each architecture that OpenBLAS then reports.

    A core type that this processor cannot run is reported as another, which is here already.
    """
    found = {}
    for core_type in CORE_TYPES:
        done = run_as(core_type, REPORTED)
        if done.returncode == 0:
            found.setdefault(done.stdout, core_type)
    return list(found.values())


def sweeps(settings):
    """Yield the core type, the table and the results of a sweep on each, at 1 and 2 threads."""
    for core_type in core_types():
        done = run_as(core_type, SWEEP, repr(settings))
        assert done.returncode == 0, done.stderr
        for line in done.stdout.splitlines():
            yield core_type, *json.loads(line)


def above_the_floor(results):
    """Return by how much each run ended above its floor, as a share of the loss before training."""
    base = results["base_validation_loss"]
    return [(run["validation_loss"] - run.get("floor", 0.0)) / base for run in results["runs"]]


def figures(table):
    """Return what a linear sweep's table says, line by line, but not what is rounding.

    Rounding are the deviation over seeds, and the losses of full training, which are zero.
    """
    lines = [re.sub(r" \+- \S+", "", line).split() for line in table.splitlines()[1:]]
    return [line[:3] if line[0] == "full" else line for line in lines]


def figures_of_the_page():
    """Return the figures of docs/rank_vs_loss.md's table of the linear task."""
    text = (ROOT / "docs" / "rank_vs_loss.md").read_text(encoding="utf-8")
    blocks = [body for _, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)]
    (table,) = (block for block in blocks if block.splitlines()[0].endswith("floor"))
    return figures(table)
