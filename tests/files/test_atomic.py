"""lora_np.files.atomic: a file is whole or not there, whoever writes and whatever ends it."""

import ast
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from lora_np.adapters import write_adapter
from lora_np.files import load_json, replacing, save_arrays, save_json
from lora_np.files.atomic import OLD, beside, strangers
from lora_np.files.owner import Owner, _owner, has_ended, started, this_process
from tests.source import PACKAGE, every_file, nodes, tree_of

MODULE = [("q", np.ones((3, 1)), np.ones((1, 2)), 1.0)]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def killed_while_writing(path, writer="replacing"):
    """Write to `path` in another process, which is killed in the middle."""
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        f"from lora_np.files.atomic import {writer}\n"
        f"with {writer}(Path(sys.argv[1])) as temporary:\n"
        "    half = temporary / 'half' if temporary.is_dir() else temporary\n"
        "    half.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, path], cwd=PACKAGE.parent, timeout=120)
    assert ended.returncode == -signal.SIGKILL


# ----------------------------------------------------------------------------- one at a time


def test_two_writers_of_one_path_have_a_temporary_each(tmp_path):
    with beside(tmp_path / "a") as first, beside(tmp_path / "a") as second:
        assert first != second
    path = tmp_path / "a.txt"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # whose block ended last
    assert names(tmp_path) == ["a.txt"]


def test_threads_that_write_one_file_at_once_leave_a_whole_one(tmp_path):
    path, failed, together = tmp_path / "a.json", [], threading.Barrier(4)

    def write(number):
        together.wait()
        for _ in range(20):
            try:
                save_json(path, [number] * 1000)
            except OSError as error:
                failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = load_json(path)
    assert failed == [] and content == content[:1] * 1000
    assert names(tmp_path) == ["a.json"]


def test_the_content_is_on_the_disk_before_the_name_and_then_the_folder(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda f: (done.append(os.fstat(f).st_ino), fsync(f)))
    monkeypatch.setattr(Path, "replace", lambda a, b: (done.append("moved"), replace(a, b)))
    save_json(tmp_path / "a.json", {"a": 1})
    written, folder = (path.stat().st_ino for path in (tmp_path / "a.json", tmp_path))
    assert done == [written, "moved", folder]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_does_not_take_the_content_is_named_and_the_old_file_stays(
    tmp_path, monkeypatch, number
):
    def refuse(handle):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "a.npz"
    save_arrays(path, {"x": np.zeros(1)})
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(
        OSError, match=rf"^{path} cannot be written: {os.strerror(number)}$"
    ) as said:
        save_arrays(path, {"x": np.ones(1)})
    assert said.value.errno == number
    assert path.read_bytes() == before and names(tmp_path) == ["a.npz"]
    with pytest.raises(OSError, match=rf"^{tmp_path / 'new'} cannot be written: "):
        write_adapter(tmp_path / "new", MODULE)
    assert names(tmp_path) == ["a.npz"]


def test_a_file_system_that_cannot_flush_is_written_to_all_the_same(tmp_path, monkeypatch):
    def refuse(handle):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    save_json(tmp_path / "a.json", [1])
    assert load_json(tmp_path / "a.json") == [1]


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(
        OSError, match=r"none/a\.json cannot be written: No such file or directory$"
    ):
        save_json(tmp_path / "none" / "a.json", [])


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with (
        pytest.raises(OSError, match=r"out cannot be written: .*No such file .*source'$"),
        replacing(tmp_path / "out"),
    ):
        (tmp_path / "source").read_bytes()


# ------------------------------------------------------------------------ what is left behind


@pytest.mark.parametrize("writer", ["replacing", "replacing_folder"])
def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path, writer):
    killed_while_writing(tmp_path / "a.json", writer)
    assert len(names(tmp_path)) == 1 and strangers(tmp_path) == []
    save_json(tmp_path / "b.json", [])
    assert names(tmp_path) == ["b.json"]


def test_a_temporary_stays_unless_its_process_is_known_to_have_ended(tmp_path):
    with beside(tmp_path / "a") as mine:
        pass
    system, pid, start, _ = mine.name.removeprefix(".lora-np-").split("-")
    other_host = f".lora-np-{'0' * 8}-{pid}-{start}-0"
    written_now = f".lora-np-{system}-{pid}-{start}-0"  # by this process, perhaps in a thread
    parent = f".lora-np-{system}-{os.getppid()}-{started(os.getppid())}-0"
    reused = f".lora-np-{system}-{pid}-earlier-0"  # the number's process before this one
    users = [".lora-np-notes", f".lora-np-{system}", f"x{written_now}", f"{reused}.txt"]
    for name in (other_host, written_now, parent, reused, *users):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))  # 1970: age alone proves nothing
    save_json(tmp_path / "b.json", [])
    assert names(tmp_path) == sorted([other_host, written_now, parent, *users, "b.json"])


@pytest.mark.parametrize("age, kept", [(OLD - 1000, True), (OLD + 1000, False)])
def test_where_the_system_does_not_say_who_runs_only_an_old_temporary_is_removed(
    tmp_path, monkeypatch, age, kept
):
    monkeypatch.setattr("lora_np.files.owner.started", lambda pid: "")
    with beside(tmp_path / "a") as mine:
        system = mine.name.split("-")[2]
    left = tmp_path / f".lora-np-{system}-{os.getppid()}--0"
    left.touch()
    then = left.stat().st_mtime - age
    os.utime(left, (then, then))
    save_json(tmp_path / "b.json", [])
    assert left.exists() == kept


def test_a_long_name_is_written_too(tmp_path):
    name = "é" * 127  # 254 bytes of the 255 that a name may have
    save_json(tmp_path / name, [1])
    assert names(tmp_path) == [name]


# --------------------------------------------------------------------------- who is that process


def test_processes_are_told_apart_by_host_number_and_start():
    me = this_process()
    assert me.host == socket.gethostname() and me.pid == os.getpid()
    assert has_ended(me) is False
    assert has_ended(me._replace(start="earlier")) is True
    assert has_ended(me._replace(host="elsewhere")) is None
    assert has_ended(me._replace(space="another container")) is None
    assert has_ended(me._replace(pid=2**40)) is True


def test_where_the_system_does_not_say_a_number_given_again_is_another_process(monkeypatch):
    """As in a browser, where every kernel has the number 42."""
    monkeypatch.setattr("lora_np.files.owner.started", lambda pid: "")
    _owner.cache_clear()
    try:
        before = this_process()
        assert has_ended(before) is False and before == this_process()
        _owner.cache_clear()  # the kernel is started again
        assert this_process()[:3] == before[:3] and has_ended(before) is None
        assert has_ended(before._replace(start="")) is None
    finally:
        _owner.cache_clear()


def test_a_process_is_seen_while_it_runs_and_not_when_it_waits_to_be_collected():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    me = this_process()
    owner = Owner(me.host, me.space, child.pid, started(child.pid))
    assert has_ended(owner) is False and re.fullmatch("[A-Za-z0-9]+", owner.start)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    assert has_ended(owner) is True
    child.communicate()
    assert has_ended(owner) is True


@pytest.mark.skipif(sys.platform != "linux", reason="compares ps with /proc")
def test_ps_tells_processes_apart_where_there_is_no_proc(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    mine = started(os.getpid())
    assert mine == started(os.getpid()) and re.fullmatch(r"[A-Z][a-z]{2}[A-Z][a-z]{2}\d+", mine)
    assert started(2**22 + 1) is None  # above Linux's highest number


# ------------------------------------------------------------------------------- one way to write

WRITES = {
    "write_text",
    "write_bytes",
    "savefig",
    "imsave",
    "savez",
    "save_file",
    "tofile",
    "mkdir",
    "symlink",
}
WRITERS = ("files/atomic.py", "files/lock.py")  # the way itself
APART = (
    "course/sandbox/runner.py",  # a submission's own folder
    "course/sandbox/child.py",
    "cli/serve.py",  # an answer stands as soon as it is written
    "experiments/serving/shelf.py",  # a temporary folder, which ends with the run
)


def writing(tree):
    """Yield the functions that write files, and whether they do it through the one way."""
    for function in nodes(tree):
        if isinstance(function, ast.FunctionDef):
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
            called = {call.func.attr for call in calls if isinstance(call.func, ast.Attribute)}
            plain = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
            modes = [
                argument.value
                for call in calls
                if "open" in ast.unparse(call.func).split(".")[-1]
                for argument in (*call.args, *(k.value for k in call.keywords))
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            ]
            opens = any(re.fullmatch("[wxa]b?|r?b?[+]b?", mode) for mode in modes)
            if opens or (called | plain) & WRITES:
                yield function.name, "replacing" in plain


@every_file
def test_every_file_is_written_in_the_one_way(path):
    if path.relative_to(PACKAGE).as_posix() not in (*WRITERS, *APART):
        found = writing(tree_of(path))
        assert [name for name, through in found if not through] == []


def test_the_check_of_the_one_way_finds_writers():
    source = (
        "def a(p): p.write_text('')\ndef b(p): open(p, 'w')\ndef c(p): p.open(mode='xb')\n"
        "def d(p):\n    with replacing(p) as t: t.write_text('')\ndef e(p): p.open('rb').read()\n"
    )
    assert list(writing(ast.parse(source))) == [
        ("a", False),
        ("b", False),
        ("c", False),
        ("d", True),
    ]


@pytest.mark.parametrize("end", ["fails", "is interrupted"])
def test_a_picture_that_is_not_finished_leaves_the_old_one(tmp_path, monkeypatch, end):
    from matplotlib.figure import Figure

    from lora_np.plots import plot_spectrum

    content = {"spectrum": [{"name": "h.0.attn.q_proj.W", "singular_values": [3.0, 1.0]}]}
    plot_spectrum(content, tmp_path / "x.png")
    before = (tmp_path / "x.png").read_bytes()

    def half(figure, path, **options):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt if end == "is interrupted" else OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(KeyboardInterrupt if end == "is interrupted" else OSError):
        plot_spectrum(content, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes() == before and names(tmp_path) == ["x.png"]


def test_an_analysis_goes_on_where_the_first_one_was_killed(tmp_path, command):
    write_adapter(tmp_path / "adapter", MODULE)
    out = tmp_path / "out"
    out.mkdir()
    killed_while_writing(out / "analysis.json")
    assert command("analyse", tmp_path / "adapter", "--out", out)[0] == 0
    assert names(out) == ["analysis.json", "ranks.png"]
    assert json.loads((out / "analysis.json").read_text())["source"]
