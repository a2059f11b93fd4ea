"""What a page shows, held to what its blocks and commands print."""

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DESK = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}  # CSS pixels
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]\d+)?")
SESSION = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
LAST_DIGITS = 0.01  # relative: another BLAS may round the last digit shown otherwise


def blocks(text):
    """Return (language, body) of the fenced blocks, in order; language "" where none is named."""
    return re.findall(r"^```([\w{}-]*)\n(.*?)^```", text, re.M | re.S)


def bodies(text, *languages):
    """Return the bodies of the fenced blocks in these languages, in order."""
    return [body for language, body in blocks(text) if language in languages]


def failures(text, name):
    """Return how many examples of a Python session print something else than it shows."""
    examples = doctest.DocTestParser().get_doctest(text, {"__name__": name}, name, name, 0)
    return doctest.DocTestRunner(optionflags=SESSION).run(examples).failed


def session(body):
    """Return a console block's command, in one line, and what it shows to be printed."""
    command, shown = re.fullmatch(r"\$ ((?:.*\\\n)*.*\n)((?:.*\n)*)", body).groups()
    return command.replace("\\\n", " ").strip(), shown


def assert_prints(said, shown, rel=LAST_DIGITS):
    """Assert that the two are one text, but for the last digits of numbers."""
    assert NUMBER.sub("#", said) == NUMBER.sub("#", shown)
    found, expected = ([float(x) for x in NUMBER.findall(text)] for text in (said, shown))
    assert found == pytest.approx(expected, rel=rel, abs=1e-9)


def output_of_block(code, name, names):
    """Run a Python block; return what it prints. `names` keeps what it defines."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(code, name, "exec"), names)
    return said.getvalue()


def output_of_command(command, folder):
    """Run a line of a shell, with this tree's lora-np and this Python; return what it prints."""
    python = Path(sys.executable)
    path = os.pathsep.join([str(python.parent), os.environ["PATH"]])
    done = subprocess.run(
        re.sub(r"^lora-np\b", f'"{python}" -m lora_np', command),
        shell=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout
