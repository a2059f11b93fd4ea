"""What differs on Windows and macOS, as far as Linux can show it.

Nothing has been run there. What is looked for here is what would fail there: a file without an
encoding, a module or function that exists on Linux only, a folder renamed over another.
"""

import ast
import inspect
import io
import sys
from pathlib import Path

import pytest

from lora_np import cli, tables
from lora_np.cli import workers
from lora_np.files.atomic import replacing_folder

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    [*(ROOT / "lora_np").rglob("*.py"), *(ROOT / "notebooks").glob("*.py"), ROOT / "docs/conf.py"]
)
POSIX_ONLY = {
    *("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "readline", "syslog"),
}
OF_POSIX = {  # of os and signal
    *("fork", "killpg", "getuid", "geteuid", "getpgid", "setsid", "mkfifo", "sched_getaffinity"),
    *("wait3", "wait4", "nice", "getloadavg", "statvfs", "sysconf", "uname", "chown", "setrlimit"),
    *("SIGKILL", "SIGALRM", "SIGHUP", "SIGCHLD", "SIGXCPU", "SIGUSR1", "SIGCONT", "SIGSTOP"),
}
GUARDS = ("hasattr(", "sys.platform", "os.name")
NOT_TEXT = {"os", "GgufFile", "file", "archive", "wheel"}  # their open opens no text
IN_TEXT = {"read_text": 0, "write_text": 1, "open": 1, "fdopen": 2, "TextIOWrapper": 1}


def found_in(look):
    """Return what `look` finds in our sources, by the path of each in which it finds something."""
    found = {str(p.relative_to(ROOT)): look(p.read_text(encoding="utf-8")) for p in SOURCES}
    return {path: things for path, things in found.items() if things}


def called(node):
    """Return the name of what a call calls."""
    return getattr(node.func, "attr", getattr(node.func, "id", None))


def without_encoding(source):
    """Return the lines of a source on which text is read or written in the system's encoding."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and called(node) in IN_TEXT:
            named = {word.arg for word in node.keywords}
            texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
            texts += [k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)]
            binary = any(isinstance(text, str) and "b" in text for text in texts)
            owner = getattr(getattr(node.func, "value", None), "id", None)
            ours = getattr(node.func, "id", None) == "read_text"  # of lora_np.data: always UTF-8
            other = ours or (called(node) == "open" and owner in NOT_TEXT)
            if not other and not binary and "encoding" not in named and len(node.args) < 4:
                lines.append(node.lineno)
    return lines


def test_every_text_file_is_opened_with_its_encoding():
    assert found_in(without_encoding) == {}
    assert without_encoding("Path(p).read_text()\nopen(p)\nopen(p, 'rb')\nos.open(p)") == [1, 2]


def imports_of_posix(source):
    """Return the modules of POSIX that a source imports as it is imported itself."""
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return sorted(found & POSIX_ONLY)


def test_no_module_imports_what_only_posix_has():
    assert found_in(imports_of_posix) == {}
    assert imports_of_posix("import os, fcntl\ndef f():\n    import resource") == ["fcntl"]


def unguarded(source):
    """Return names of os and signal that only POSIX has, in functions that do not ask for them."""
    found = set()
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            text = ast.unparse(function)
            uses = {
                node.attr
                for node in ast.walk(function)
                if isinstance(node, ast.Attribute)
                and getattr(node.value, "id", None) in ("os", "signal")
            }
            if not any(guard in text for guard in GUARDS):
                found |= uses & OF_POSIX
    return sorted(found)


def test_what_only_posix_has_is_used_only_where_the_system_has_it():
    assert found_in(unguarded) == {}
    assert unguarded("def f():\n    os.killpg(1, signal.SIGKILL)") == ["SIGKILL", "killpg"]


def strict_folders(source):
    """Return the lines that make a temporary folder whose removal may not fail."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    made = [node for node in calls if called(node) == "TemporaryDirectory"]
    return [n.lineno for n in made if "ignore_cleanup_errors" not in {k.arg for k in n.keywords}]


def test_a_temporary_folder_may_hold_a_file_that_windows_does_not_let_go():
    assert [path for path in found_in(strict_folders) if path.startswith("lora_np")] == []
    assert strict_folders("with TemporaryDirectory() as folder: pass") == [1]


def test_a_folder_takes_the_place_of_an_empty_one_where_none_may_exist(tmp_path, monkeypatch):
    rename = Path.replace

    def as_on_windows(self, target):
        if Path(target).is_dir():
            raise PermissionError(13, "Access is denied", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", as_on_windows)
    (tmp_path / "empty").mkdir()
    with replacing_folder(tmp_path / "empty") as folder:
        (folder / "file").touch()
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["file"]
    with (
        pytest.raises(OSError, match="empty cannot be written"),
        replacing_folder(tmp_path / "empty"),
    ):
        pass
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["file"]


def test_a_pool_on_windows_is_no_larger_than_python_allows(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 128)
    host = type("Settings", (), {"device": "cpu"})
    default = type("Arguments", (), {"jobs": None})
    assert workers.jobs_of(default, host) == 128
    monkeypatch.setattr(sys, "platform", "win32")
    assert workers.jobs_of(default, host) == 61


def test_a_letter_that_the_output_cannot_encode_is_escaped(monkeypatch, tmp_path):
    student = tmp_path / "stable_rank" / "秩.py"
    student.parent.mkdir()
    student.write_text("def stable_rank(M): return 1.0\n", encoding="utf-8")
    output = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", output)
    assert cli.main(["grade", str(tmp_path)]) == 0
    output.flush()
    assert "stable_rank  \\u79e9" in output.buffer.getvalue().decode("cp1252")


def test_no_table_needs_more_than_ascii():
    assert inspect.getsource(tables).isascii()  # a console of Windows shows it
