"""Adapters as files: analysed at the size of Llama-7B's, and resized against the dense route."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lora_np.adapters import open_adapter, write_adapter
from lora_np.adapters.cut import Keep, factors_of
from lora_np.rank import best_rank_error, svd_of_factors
from tests.benchmarks.commands import ROOT
from tests.benchmarks.measure import Result, Row, Spread
from tests.benchmarks.numpy_side import NumpySide
from tests.benchmarks.plan import ADAPTER_RANK, ADAPTER_SMALLER, AdapterSize, Plan
from tests.benchmarks.workers import Worker, thread_settings

APART = 1e-6  # of two routes in float64, relative

# Run in a fresh process: what it prints is measured inside, the imports not counted as time.
ANALYSE = """
import json, re, resource, sys, time
import ml_dtypes, safetensors
from lora_np import analyse_adapter

start = time.perf_counter()
if sys.argv[1:]:
    assert analyse_adapter(sys.argv[1]).sentence()
seconds = time.perf_counter() - start
try:  # ru_maxrss remembers the parent's size from before exec
    peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
except OSError:
    unit = 1 if sys.platform == "darwin" else 1024
    peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([seconds, peak]))
"""


class AdapterSide(NumpySide):
    """Holds what is timed in a process of its own."""

    def resize(self, folder: str, number: int, rank: int) -> tuple[float, float, float, float]:
        """Resize one module by its factors, and by the SVD of the dense product.

        The dense route is that of PEFT and kohya, by NumPy in float64: form B A, take its whole
        SVD (thin, which is less than PEFT's default), keep the first directions.

        Returns
        -------
        float, float, float, float
            Seconds of the dense route and of ours; the largest relative difference of the singular
            values that are kept; that of the errors.
        """
        with open_adapter(folder) as adapter:
            B, A = (x.astype(np.float64) for x in list(adapter.modules.values())[number].factors())
        start = time.perf_counter()
        U, sigma, Vt = svd_of_factors(B, A)
        k = Keep(rank=rank).of(sigma, (len(B), A.shape[1]))
        factors_of(U, sigma, Vt, k)
        ours = time.perf_counter() - start
        start = time.perf_counter()
        delta = B @ A
        U, dense, Vt = np.linalg.svd(delta, full_matrices=False)
        best = factors_of(U, dense, Vt, k)
        theirs = time.perf_counter() - start
        error = float(np.linalg.norm(delta - best[0] @ best[1]))
        values = float(np.abs(sigma[:k] / dense[:k] - 1).max())
        return theirs, ours, values, abs(best_rank_error(sigma, k, relative=False) / error - 1)


def modules(size: AdapterSize) -> Iterator[tuple[str, np.ndarray, np.ndarray, float]]:
    """Yield random factors for every module, in the names of a Llama."""
    rng = np.random.default_rng(0)
    for layer in range(size.layers):
        for kind in ("q_proj", "k_proj", "v_proj", "o_proj"):
            B = rng.standard_normal((size.side, ADAPTER_RANK)) * 0.8 ** np.arange(ADAPTER_RANK)
            A = rng.standard_normal((ADAPTER_RANK, size.side))
            yield f"model.layers.{layer}.self_attn.{kind}", 0.01 * B, 0.01 * A, 2.0


def measure(plan: Plan) -> Result:
    """Measure seconds and memory of an analysis, and the two routes to a smaller adapter."""
    size, result = plan.adapter, Result()
    case = f"{size.layers} layers x 4, {size.side} x {size.side}, r = {ADAPTER_RANK}, float16"
    with tempfile.TemporaryDirectory() as parent:
        folder = f"{parent}/adapter"
        write_adapter(folder, modules(size), dtype="float16")
        _measure_analysis(result, plan, folder, case)
        with Worker("adapters.AdapterSide", threads=plan.threads) as worker:
            rounds = [
                worker.call("resize", folder, number, ADAPTER_SMALLER)
                for number in range(size.resized)
            ]
    dense, ours, values, errors = (Spread(figures) for figures in zip(*rounds))
    case = f"{size.side} x {size.side}, r = {ADAPTER_RANK} to {ADAPTER_SMALLER}"
    result.note({"resize, dense SVD": dense, "resize, factors": ours}, case)
    result.add(
        Row("resize: dense SVD of B A / SVD of factors", case, dense.over(ours)),
        Row("resize: singular values apart, relative", case, values, APART),
        Row("resize: errors apart, relative", case, errors, APART),
    )
    return result


def _measure_analysis(result: Result, plan: Plan, folder: str, case: str) -> None:
    dense = 4 * plan.adapter.side**2 / 2**20  # MiB of one product in float32
    seconds, peaks = [], []
    for _ in range(plan.slow_rounds):
        _, bare = _in_a_process(plan.threads)
        took, peak = _in_a_process(plan.threads, folder)
        seconds.append(took)
        peaks.append((peak - bare) / 2**20)
    result.note({"analyse": Spread(tuple(seconds))}, case)
    result.add(
        Row("analyse: seconds", case, Spread(tuple(seconds)), unit="s"),
        Row(
            "analyse: peak memory above the imports'", case, Spread(tuple(peaks)), dense, unit="MiB"
        ),
    )


def _in_a_process(threads: int, *arguments: str) -> tuple[float, float]:
    """Return the seconds and the peak memory in bytes of a fresh process."""
    with thread_settings(threads):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ANALYSE, *arguments]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, cwd=Path(ROOT))
    seconds, peak = json.loads(done.stdout)
    return seconds, peak
