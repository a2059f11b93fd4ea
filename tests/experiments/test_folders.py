"""A run's folder: stopped anywhere it goes on, one process writes, a finished one is only read."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from dataclasses import replace

import pytest

from lora_np.experiments.intrinsic.text import IntrinsicSettings, check_intrinsic
from lora_np.experiments.paper.run import run_paper
from lora_np.experiments.paper.settings import QUICK
from lora_np.experiments.rank_sweep import LinearSettings, SweepError, rank_sweep, run
from lora_np.experiments.rank_sweep.run import check_sweep
from lora_np.files import load_json, lock
from lora_np.files.lock import HeldError, hold
from lora_np.files.owner import Owner, this_process
from tests.files.test_atomic import killed_while_writing, names
from tests.source import PACKAGE
from tests.tiny import sweep_command

SMALL = LinearSettings(ranks=(1,), seeds=1, d_in=4, d_out=3, steps=5)
SWEEP = shlex.split("sweep --task linear --ranks 1 --seeds 1 --d-in 4 --d-out 3 --steps 5 --jobs 1")
HOLD = """
import sys
from pathlib import Path
from lora_np.files.lock import HeldError, hold
print("ready", flush=True)
input()
try:
    with hold(Path(sys.argv[1])):
        print("won", flush=True)
        input()
except HeldError as error:
    print(error, flush=True)
"""


def python(*arguments):
    """Start Python on this tree, to talk to in lines."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=PACKAGE.parent,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def say(process):
    """Send an empty line."""
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture
def holders(tmp_path):
    """Start processes that each hold the folder from one line that they are sent to the next."""
    with ExitStack() as stack:

        def start(number):
            started = [stack.enter_context(python("-c", HOLD, tmp_path)) for _ in range(number)]
            for process in started:
                stack.callback(process.kill)
                assert process.stdout.readline() == "ready\n"
            return started

        yield start


def write_lock(folder, owner, number=1):
    """Leave a lock in the folder, as that process would."""
    folder.mkdir(exist_ok=True)
    content = {**owner._asdict(), "since": "2026-01-02 03:04:05 +0000", "number": 0}
    (folder / f".lora-np-lock-{number}").write_text(json.dumps(content))


GONE = this_process()._replace(start="earlier")  # the number belongs to another process by now
ELSEWHERE = Owner("another-host", "", 4321, "x")


# ------------------------------------------------------------------------- stopped anywhere


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the stopped processes are forked")
@pytest.mark.parametrize(
    "what, how, first, step",
    [
        ("sweep", "kill", 24, 12),
        ("sweep", "interrupt", 24, 1000),
        ("sweep", "full", 24, 1000),
        ("intrinsic", "kill", 0, 13),
        ("intrinsic", "interrupt", 0, 41),
        ("intrinsic", "full", 0, 37),
        ("study", "kill", 0, 23),
        ("study", "interrupt", 0, 41),
        ("study", "full", 0, 37),
        ("compare", "kill", 0, 29),
        ("compare", "interrupt", 0, 53),
        ("sql", "kill", 0, 13),
        ("sql", "full", 0, 29),
        ("personal", "kill", 0, 13),
        ("personal", "full", 0, 29),
        ("instructions", "kill", 0, 23),
    ],
)
def test_a_run_that_is_stopped_at_any_operation_continues(tmp_path, what, how, first, step):
    arguments = "tests.experiments.stopping", what, how, tmp_path / "out", first, step
    process = python("-W", "error", "-m", *arguments)
    operations = int(process.communicate(timeout=300)[0])
    assert process.returncode == 0 and operations > 60


@pytest.mark.parametrize("left", [["models"], []], ids=["models", "nothing"])
def test_a_folder_in_which_nothing_was_begun_is_begun(tmp_path, left):
    for name in left:
        (tmp_path / name).mkdir()
    killed_while_writing(tmp_path / "results.json")
    write_lock(tmp_path, GONE)
    assert rank_sweep(SMALL, tmp_path)["complete"]
    assert names(tmp_path) == ["models", "results.json"]


def test_an_intrinsic_run_killed_at_its_first_write_is_begun_again(tmp_path, tiny):
    settings = IntrinsicSettings((4,), tiny)
    killed_while_writing(tmp_path / "results.json")
    write_lock(tmp_path, GONE)
    assert check_intrinsic(settings, tmp_path) is False
    assert load_json(tmp_path / "results.json")["complete"] is False
    assert names(tmp_path) == ["results.json"]


def test_models_that_a_sweep_killed_at_its_end_left_are_removed(tmp_path):
    results = rank_sweep(SMALL, tmp_path)
    before = names(tmp_path / "models")
    other = next(t for t in results["trials"] if t not in results["runs"])
    left = run.model_file(
        tmp_path, run.Trial(*[other[k] for k in ("method", "rank", "seed", "lr")])
    )
    left.touch()
    killed_while_writing(tmp_path / "rank_vs_loss.png")
    write_lock(tmp_path, GONE)
    assert rank_sweep(SMALL, tmp_path) == results
    assert names(tmp_path / "models") == before and names(tmp_path) == ["models", "results.json"]


# ------------------------------------------------------------------------- one at a time


@pytest.mark.parametrize("left", [None, GONE], ids=["free", "of a killed process"])
def test_of_processes_that_start_at_once_exactly_one_holds_the_folder(tmp_path, holders, left):
    if left is not None:
        write_lock(tmp_path, left)
    processes = holders(6)
    for process in processes:
        say(process)
    said = [process.stdout.readline() for process in processes]
    winner = processes[said.index("won\n")]
    refused = f"{tmp_path} is in use by process {winner.pid} on {this_process().host} since "
    assert sum(line.startswith(refused) for line in said) == 5
    say(winner)
    winner.wait(timeout=120)
    with hold(tmp_path):
        pass
    assert names(tmp_path) == []


def test_the_folder_of_a_killed_process_is_taken_without_a_word(tmp_path, holders, capfd):
    (holder,) = holders(1)
    say(holder)
    assert holder.stdout.readline() == "won\n"
    with pytest.raises(SweepError, match=f"in use by process {holder.pid} on .*: wait for it, or"):
        rank_sweep(SMALL, tmp_path)
    with pytest.raises(SweepError, match="choose another --out"):  # not from one that runs
        rank_sweep(SMALL, tmp_path, take_over=True)
    assert not (tmp_path / "results.json").exists()
    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=120)
    assert rank_sweep(SMALL, tmp_path)["complete"]
    assert names(tmp_path) == ["models", "results.json"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("end", [None, KeyboardInterrupt, ValueError])
def test_the_folder_is_free_again_however_the_run_ends(tmp_path, end):
    try:
        with hold(tmp_path):
            assert names(tmp_path) == [".lora-np-lock-1"]
            if end is not None:
                raise end
    except (KeyboardInterrupt, ValueError):
        pass
    assert names(tmp_path) == []


def test_a_second_thread_is_refused(tmp_path):
    refused = []

    def second():
        try:
            rank_sweep(SMALL, tmp_path)
        except SweepError as error:
            refused.append(str(error))

    def listen(progress):
        if progress.done == 1:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

    assert rank_sweep(SMALL, tmp_path, listen=listen)["complete"]
    assert len(refused) == 1 and f"in use by process {os.getpid()} on" in refused[0]


def test_one_process_may_check_and_then_run(tmp_path):
    assert [check_sweep(SMALL, tmp_path) for _ in range(2)] == [False, False]
    assert rank_sweep(SMALL, tmp_path)["complete"] and check_sweep(SMALL, tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"host": 1, "space": 2, "start": 3, "since": 4, "pid": "x"}']
)
def test_a_lock_that_cannot_be_read_is_respected_until_it_is_taken(tmp_path, content):
    (tmp_path / ".lora-np-lock-7").write_text(content)
    named = r"in use by a process that \.lora-np-lock-7 does not name: if that process has ended, "
    with pytest.raises(HeldError, match=named), hold(tmp_path):
        pass
    with hold(tmp_path, take_over=True):
        assert names(tmp_path) == [".lora-np-lock-8"]
    assert names(tmp_path) == []


@pytest.mark.parametrize("who", ["the file system", "Python, in a browser"])
def test_where_files_have_no_links_the_lock_is_made_all_the_same(tmp_path, monkeypatch, who):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    if who == "the file system":
        monkeypatch.setattr(os, "link", refuse)
    else:
        monkeypatch.delattr(os, "link")
    with hold(tmp_path):
        with pytest.raises(HeldError, match=f"process {os.getpid()} on"), hold(tmp_path):
            pass
        assert names(tmp_path) == [".lora-np-lock-1"]
    assert names(tmp_path) == []


def test_whoever_finds_another_lock_after_making_its_own_gives_it_up(tmp_path, monkeypatch):
    write_lock(tmp_path, ELSEWHERE, number=2)
    look, first = lock._locks, [[]]  # it looked before the other one was there
    monkeypatch.setattr(lock, "_locks", lambda folder: first.pop() if first else look(folder))
    with pytest.raises(HeldError, match="process 4321 on another-host"), hold(tmp_path):
        pass
    assert names(tmp_path) == [".lora-np-lock-2"]


COMMANDS = {
    "sweep": SWEEP,
    "paper": ["paper", "--quick", "--jobs", "1"],
    "intrinsic": ["intrinsic", "--quick", "--jobs", "1"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_of_another_host_is_refused_by_name_until_it_is_taken_over(
    tmp_path, command, monkeypatch, name
):
    write_lock(tmp_path, ELSEWHERE)
    status, out, err = command(*COMMANDS[name], "--out", tmp_path)
    assert (status, out) == (2, "")
    assert err == (
        f"lora-np: {tmp_path} is in use by process 4321 on another-host since 2026-01-02 03:04:05 "
        "+0000: if that process has ended, --take-over takes the folder, or choose another --out\n"
    )
    assert not (tmp_path / "results.json").exists()

    def begun(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        "lora_np.experiments.rank_sweep.estimate.estimate", begun
    )  # stops all three once they hold
    monkeypatch.setattr("lora_np.experiments.rank_sweep.text.TextTask.prepare", begun)
    assert command(*COMMANDS[name], "--out", tmp_path, "--take-over")[0] == 130
    assert not list(tmp_path.glob(".lora-np-*")) and list(tmp_path.rglob("results.json"))


def test_a_paper_run_holds_its_folder_from_the_first_sweep_to_the_last(tmp_path, monkeypatch):
    found = []

    def one_sweep(sweep, folder, **_):
        with pytest.raises(HeldError, match=f"{tmp_path} is in use by process"), hold(tmp_path):
            pass
        found.append(folder)
        return {"trials": []}

    monkeypatch.setattr("lora_np.experiments.paper.run.rank_sweep", one_sweep)
    monkeypatch.setattr("lora_np.experiments.paper.run.measure", lambda *_: {})
    assert run_paper(QUICK, tmp_path) == {}
    assert len(found) == 10 and not list(tmp_path.rglob(".lora-np-*"))


# ------------------------------------------------------------------------ finished, and only read

READ_ONLY = """
import errno, os, shlex, sys
from lora_np import cli
from tests.experiments.stopping import changes
folder, *commands = sys.argv[1:]
def hook(event, values):
    if changes(event, values, folder):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(values[0]))
sys.addaudithook(hook)
sys.stderr = sys.stdout  # warnings in the same text
for command in commands:
    print(f"exit {cli.main(shlex.split(command))}")
"""


def read_only(folder, *commands):
    """Run commands that may not change the folder; return what each printed, and its status."""
    lines = [shlex.join(map(str, command)) for command in commands]
    process = python("-W", "error", "-c", READ_ONLY, folder, *lines)
    found = re.split(r"exit (\d+)\n", process.communicate(timeout=300)[0])
    assert process.returncode == 0 and found.pop() == ""
    return list(zip(found[::2], map(int, found[1::2]), strict=True))


def state(folder):
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (folder, *folder.rglob("*"))}


@pytest.fixture
def shown(tiny, finished):
    """The folder of the finished text sweep, and the command that shows it."""
    return finished[0], [*sweep_command(tiny), "--out", str(finished[0])]


def test_a_finished_sweep_is_shown_and_nothing_is_written(shown, command):
    folder, arguments = shown
    before = state(folder)
    status, out, err = command(*arguments)
    assert (status, err) == (0, "") and "of full's gain" in out
    assert out.endswith(f"held in {folder}/: results.json, rank_vs_loss.png, spectrum.png\n")
    assert state(folder) == before


def test_a_finished_sweep_on_a_read_only_disk_is_shown_analysed_and_read(shown, tmp_path):
    folder, arguments = shown
    generate = ["generate", "--run", folder, "--tokens", 4]
    analyse = ["analyse", folder, "--out", tmp_path / "ranks"]
    (out, status), (text, read), (_, analysed) = read_only(folder, arguments, generate, analyse)
    assert status == 0 and "of full's gain" in out and "not written" not in out
    assert read == 0 and text.startswith("def ")
    assert analysed == 0 and names(tmp_path / "ranks") == ["analysis.json", "ranks.png"]


def test_a_picture_that_a_read_only_disk_lacks_is_told(shown, tmp_path):
    folder, arguments = tmp_path / "copy", shown[1]
    shutil.copytree(shown[0], folder)
    (folder / "spectrum.png").unlink()
    arguments[-1] = str(folder)
    ((out, status),) = read_only(folder, arguments)
    assert status == 0 and "of full's gain" in out
    assert out.endswith(f"held in {folder}/: results.json, rank_vs_loss.png\n")
    missing = f"{folder}/spectrum.png cannot be written: Read-only file system\n"
    assert f"lora-np: warning: not written: {missing}" in out


def test_a_sweep_that_is_not_finished_needs_a_disk_that_can_be_written(tmp_path):
    check_sweep(SMALL, tmp_path)
    ((_, status),) = read_only(tmp_path, [*SWEEP, "--out", tmp_path])
    assert status == 2 and names(tmp_path) == ["models", "results.json"]


@pytest.mark.usefixtures("unpainted")
def test_a_finished_intrinsic_run_is_shown_and_nothing_is_written(
    tmp_path,
    tiny,
    command,
    monkeypatch,
):
    quick = IntrinsicSettings(ds=(8,), text=replace(tiny, seeds=1))
    monkeypatch.setattr("lora_np.experiments.intrinsic.QUICK", quick)
    arguments = ["intrinsic", "--quick", "--jobs", 1, "--out", tmp_path]
    status, first, _ = command(*arguments)
    assert status == 0 and first.endswith(
        f"written to {tmp_path}/: results.json, intrinsic_dimension.png\n"
    )
    before = state(tmp_path)
    status, again, _ = command(*arguments)
    assert status == 0 and state(tmp_path) == before
    assert again == first.replace("written to", "held in")
