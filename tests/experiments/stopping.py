"""Run an experiment again and again, stopped at its first, second, ... operation on a file.

Usage: python -m tests.experiments.stopping WHAT HOW FOLDER FIRST STEP

WHAT is "sweep" (of the linear task), "intrinsic", "study" or "compare" (of the text task, with
its pretraining), or "sql", "personal" or "instructions" (of tiny language models). HOW is "kill"
(by the system, at once), "interrupt" (Ctrl-C) or "full" (the disk is full from there on).
The run is stopped at each of the FIRST operations, and after them at every STEP-th. Each time the
same call must continue and reach what a call that was never stopped reaches.
Prints how many operations there are.
"""

import errno
import json
import os
import shutil
import signal
import sys
import traceback
from dataclasses import replace
from itertools import count
from pathlib import Path

from lora_np import LoraConfig
from lora_np.experiments.compare import CompareSettings, compare_study
from lora_np.experiments.instructions import InstructionSettings, run_instructions
from lora_np.experiments.intrinsic import IntrinsicSettings, intrinsic_run
from lora_np.experiments.personal import Plan, Task, User, run_personal
from lora_np.experiments.rank_sweep import (
    LinearSettings,
    SweepError,
    TextSettings,
    rank_sweep,
)
from lora_np.experiments.sql.study import run_sql
from lora_np.experiments.study import Contender, Study, run_study
from lora_np.train import resume
from tests.experiments.personal import byte_model
from tests.experiments.sql.tiny import tiny_sql
from tests.finetune.tiny import llama
from tests.pretrained.tiny_tokenizer import tiny_tokenizer
from tests.tiny import TINY, write_texts

LINEAR = LinearSettings(ranks=(1,), seeds=1, d_in=4, d_out=3, steps=5)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("open", "os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir")
GROWS = ("open", "os.mkdir", "os.link")  # what a full disk refuses
STOPPED = {"kill": -signal.SIGKILL, "interrupt": 130, "full": 28}


def changes(event, arguments, folder):
    """Whether an audited event is an operation that changes something in the folder."""
    if event not in CHANGES or not str(arguments[0]).startswith(str(folder)):
        return False
    return event != "open" or bool(arguments[2] & WRITES)


def stop_at(n, how, folder):
    """From now on, stop at the n-th operation that changes something in the folder."""
    seen = count(1)

    def hook(event, arguments):
        if not changes(event, arguments, folder):
            return
        now = next(seen)
        if how == "kill" and now == n:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "interrupt" and now == n:
            raise KeyboardInterrupt
        if how == "full" and now >= n and event in GROWS:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sys.addaudithook(hook)


def experiment(what, folder):
    """Return a function that runs the experiment in the folder."""
    if what == "sweep":
        return lambda: rank_sweep(LINEAR, folder)
    if what == "sql":
        tiny = tiny_sql(folder.parent / "model")
        return lambda: run_sql(tiny, folder)
    if what in TINY_MODELS:
        return TINY_MODELS[what](folder)
    english, code = write_texts(folder.parent)
    settings = TextSettings(seeds=1, pretrain_text=english, adapt_text=code, **TINY)
    resume.KEEP_EVERY = 0.0  # the state of pretraining is kept after every step
    if what == "compare":
        compared = replace(settings, block_size=20, full_lr=None)
        compared = CompareSettings(compared, ("full", "lora"), rounds=1, turn=0.0)
        return lambda: run_study(compare_study(compared), folder)
    if what == "study":
        lora = LoraConfig(r=2, target_modules="all-linear")
        contenders = [Contender("full", None, 1e-2), Contender("LoRA", lora, 1e-2, around=1)]
        return lambda: run_study(Study("stopped", settings, contenders), folder)
    return lambda: intrinsic_run(IntrinsicSettings((4,), settings), folder)


def personal(folder):
    """Return a run of four adapters over a tiny model of bytes."""
    files = {name: folder.parent / f"{name}.jsonl" for name in ("yes", "nay")}
    for said, path in files.items():
        rows = [{"prompt": f"q{i}?", "response": said} for i in range(24)]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    tasks = tuple(Task(name, file=path) for name, path in files.items())
    plan = Plan(tasks, (User("ben", "upper"), User("cleo", "lower")), validation=2, held_out=2)
    return lambda: run_personal(plan, byte_model.base(), folder, byte_model.TOOLS)


def instructions(folder):
    """Return a run of instruction tuning on a tiny Llama."""
    training = {"r": 2, "top_layers": 1, "epochs": 1, "batch_size": 16, "lr": 0.01}
    settings = InstructionSettings(seeds=3, train=1, held_out=1, training=training)
    model, tokenizer = llama(context=512, n_layer=1, d_model=8), tiny_tokenizer()
    return lambda: run_instructions(settings, model, tokenizer, folder)


TINY_MODELS = {"personal": personal, "instructions": instructions}


def outcome(run, folder):
    """Run it; return its results without times, and the names of its files."""
    results = json.loads(json.dumps(run()))
    for entry in (*results["trials"], *results.get("runs", ()), *results.get("scores", ())):
        for name in ("seconds", "cpu_seconds", "wall_seconds"):
            entry.pop(name, None)
    if "measured" in results:  # times, and the claims about them
        results["measured"] = list(results["measured"])
        results["claims"] = [claim["says"] for claim in results["claims"]]
    return results, sorted(str(path) for path in folder.rglob("*"))


def child(n, how, run, folder):
    """Run it, stopped at the n-th operation; return the exit status."""
    stop_at(n, how, folder)
    try:
        run()
    except KeyboardInterrupt:
        run()  # the process that was interrupted may go on itself
        return 130
    except (OSError, SweepError) as error:
        said = str(error)
        assert "cannot be written" in said and "No space left" in said, said
        assert "\n" not in said and ".lora-np" not in said, said
        return 28
    return 0


def main(what, how, folder, first, step):
    """Stop at the operations in turn, until there is none left to stop at."""
    os.fsync = lambda handle: None  # nobody cuts the power here
    run = experiment(what, folder)
    expected = outcome(run, folder)
    for n in (n for n in count(1) if n <= first or n % step == 0):
        shutil.rmtree(folder)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = child(n, how, run, folder)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found = outcome(run, folder)
        assert found == expected, (n, found, expected)
        if ended == 0:
            print(n)
            return
        assert ended == STOPPED[how], (n, ended)


if __name__ == "__main__":
    main(*sys.argv[1:3], Path(sys.argv[3]), *map(int, sys.argv[4:]))
