"""What a user waits for at the command line: the first trained step, and a sweep on both cores."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.benchmarks.measure import Result, Row, Spread
from tests.benchmarks.models import LEARNING_RATE, TARGETS
from tests.benchmarks.plan import FIRST_STEP_GOAL, RANK, SMALL, SWEEP_GOAL, THREADS, Plan
from tests.benchmarks.workers import thread_settings

ROOT = Path(__file__).parents[2]
SIZES = {
    "vocab_size": SMALL.vocab_size,
    "block_size": SMALL.T,
    "n_layer": SMALL.n_layer,
    "n_head": SMALL.n_head,
    "d_model": SMALL.d_model,
}
LORA = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": list(TARGETS)}
SHAPE = (SMALL.batch_size, SMALL.T)
PEER = "PyTorch + PEFT"

# The shortest program that trains one LoRA step, as a user of each library would write it.
FIRST_STEP = {
    "lora_np": f"""
import numpy as np
from lora_np import GPT, GPTConfig, LoraConfig, fit, inject

rng = np.random.default_rng(0)
model = inject(GPT(GPTConfig(**{SIZES}), rng), LoraConfig(**{LORA}), rng)
batch = rng.integers(0, {SMALL.vocab_size}, (2, *{SHAPE}))
options = {{"lr": {LEARNING_RATE}, "clip": None, "processes": {THREADS}}}
assert np.isfinite(fit(model, lambda: batch, steps=1, **options).loss[0])
""",
    "bare NumPy": "import numpy",
    PEER: f"""
from types import SimpleNamespace
import torch
from peft import LoraConfig, get_peft_model
from tests.peers.torch_gpt import TorchGPT

torch.set_num_threads({THREADS})
model = get_peft_model(TorchGPT(SimpleNamespace(**{SIZES})), LoraConfig(**{LORA}))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad],
                              lr={LEARNING_RATE})
tokens, targets = torch.randint(0, {SMALL.vocab_size}, (2, *{SHAPE}))
loss = model.base_model.model.loss(tokens, targets)
loss.backward()
optimizer.step()
assert torch.isfinite(loss)
""",
}


def measure_first_step(plan: Plan) -> Result:
    """Measure programs from process start to the first trained step."""
    names = [name for name in FIRST_STEP if plan.peers or name != PEER]
    commands = {name: [sys.executable, "-c", FIRST_STEP[name]] for name in names}
    times = run_in_turn(commands, plan.slow_rounds, threads=None, warm=True)
    result = Result()
    result.note(times)
    ours, bare, peer = times["lora_np"], times["bare NumPy"], times.get(PEER)
    if peer is not None:
        what = f"time to first step, {PEER}"
        result.add(Row(f"{what} / lora_np", "small", peer.over(ours), FIRST_STEP_GOAL, "at least"))
        result.add(Row(f"{what} / import numpy", "small", peer.over(bare)))
    what = "time to first step, lora_np / import numpy"
    result.add(Row(what, "small", ours.over(bare)))
    return result


def measure_sweep(plan: Plan) -> Result:
    """Measure a sweep in one process and in two, both with BLAS at one thread."""
    result = Result()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lora_np", "sweep", "--quick", *plan.sweep]
        run_in_turn({"base": [*command, "--out", f"{folder}/base"]}, 1, threads=1)
        command += ["--base", f"{folder}/base"]  # what is measured is the trials alone
        rounds = []
        for number in range(plan.slow_rounds):
            jobs = ("1", "2") if number % 2 == 0 else ("2", "1")
            commands = {n: [*command, "--jobs", n, "--out", f"{folder}/{number}-{n}"] for n in jobs}
            rounds.append(run_in_turn(commands, 1, threads=1))
    times = {
        f"{n} process{'' if n == '1' else 'es'}": Spread(tuple(r[n].median for r in rounds))
        for n in ("1", "2")
    }
    result.note(times)
    speed_up = times["1 process"].over(times["2 processes"])
    what = "speed-up of a sweep, 2 processes / 1"
    result.add(Row(what, "text", speed_up, SWEEP_GOAL, "at least"))
    return result


def run_in_turn(
    commands: Mapping[str, Sequence[str]], rounds: int, threads: int | None, warm: bool = False
) -> dict[str, Spread]:
    """Return the seconds that each command took in each round.

    Parameters
    ----------
    commands : mapping of str to sequence of str
    rounds : int
    threads : int, optional
        Setting for BLAS; None for the user's default.
    warm : bool
        Whether a round goes before that is not counted: files are then in memory.
    """
    found: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(-int(warm), rounds):
        order = list(commands) if number % 2 == 0 else list(reversed(commands))
        for name in order:
            seconds = seconds_of(commands[name], threads)
            if number >= 0:
                found[name].append(seconds)
    return {name: Spread(tuple(seconds)) for name, seconds in found.items()}


def seconds_of(command: Sequence[str], threads: int | None) -> float:
    """Return how long a command takes, process start included.

    Raises
    ------
    subprocess.CalledProcessError
        If it fails.
    """
    with thread_settings(threads):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start
