"""The child process: it calls the student's function and writes down what the function returns.

runner.py starts this file as a script. It imports nothing from lora_np and knows no correct answer.
It reads inputs from a folder, calls the student's function on copies of them, and writes the
outputs into the folder as plain bytes. If the student's code patches anything here, it changes only
its own answer.

The limits are set before the student's code runs, and cannot be raised again. An audit hook
(PEP 578), which nothing can remove, refuses to import packages that contain the solution, to read
files other than those of Python and the system, to start or signal processes, to open sockets, and
to change files outside the folder. The hook stops honest mistakes and easy tricks, not an attacker:
grade strangers' code in a container.
"""

from __future__ import annotations

import contextlib
import ctypes  # noqa: F401  scipy needs it, and the audit hook refuses to load it later
import errno
import importlib.util
import io
import json
import math
import os
import sys
import tokenize
from pathlib import Path
from typing import Any

import numpy as np

REFUSED_EVENTS = """
os.exec os.fork os.forkpty os.kill os.killpg os.posix_spawn os.spawn os.system pty.spawn
subprocess.Popen socket.connect socket.bind socket.getaddrinfo ctypes.dlopen sqlite3.connect
os.remove os.rename os.rmdir os.link os.symlink os.chmod os.truncate shutil.rmtree shutil.move
gc.get_objects gc.get_referrers gc.get_referents
"""
READABLE = (sys.prefix, sys.base_prefix, sys.exec_prefix, "/dev", "/etc", "/usr", "/lib", "/sys")
PACKAGES = ("site-packages", "dist-packages")  # on sys.path, in any folder
MOST_JSON = 2**20  # bytes, as untrusted.py reads
RESERVE = 2**24  # bytes kept free to write the answer when memory runs out
NAME = "<your code>"
REFUSAL = "{} cannot be imported here: write the formula yourself"


def cubic(C: np.ndarray) -> Any:
    """Return f(x) = sum C x^3 + (sum x)^2.

    Its central difference is not its derivative, but larger by C h^2. The square couples the
    entries, so that an entry that is not restored changes the result for all later entries.
    """

    def f(x: np.ndarray) -> float:
        return float((C * x**3).sum() + x.sum() ** 2)

    return f


def prepared(draw: dict[str, Any]) -> dict[str, Any]:
    """Return copies of the arrays of a draw. An argument called f becomes a cubic function."""
    copies = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in draw.items()}
    return {k: cubic(v) if k == "f" else v for k, v in copies.items()}


def attempt(function: Any, draw: dict[str, Any]) -> dict[str, Any]:
    """Call a function on copies of a draw.

    Returns
    -------
    dict
        Either "raised": (type, message), or "outputs": a list of arrays, and "changed": the largest
        change of every input that the function wrote to.
    """
    try:
        given = prepared(draw)
        outputs = arrays_of(function(*given.values()))
        changed = {
            name: moved(value, draw[name])
            for name, value in given.items()
            if isinstance(value, np.ndarray) and value.tobytes() != draw[name].tobytes()
        }
    except BaseException as error:  # exit() too: it ends only this call
        return {"raised": spell(error)}
    return {"outputs": outputs, "changed": changed}


def moved(now: np.ndarray, before: np.ndarray) -> float:
    """Return the largest change of an entry. Unlike functions, methods cannot be patched."""
    if now.size != before.size or now.dtype != before.dtype:
        return math.inf
    return float((now.ravel().astype(float) - before.ravel()).__abs__().max())


def arrays_of(found: Any) -> list[np.ndarray]:
    """Return the outputs of a function as a list of arrays of numbers."""
    if found is None:
        raise TypeError("the function returned None: is its return statement missing?")
    if isinstance(found, dict | set) or hasattr(found, "__next__"):  # the last is a generator
        kind = type(found).__name__
        raise TypeError(f"the function returned a {kind}: return the arrays, with commas between")
    several = isinstance(found, tuple | list)
    arrays = [np.array(a) for a in (found if several else [found])]
    for array in arrays:
        if array.dtype.kind not in "biufc":
            raise TypeError(f"an output has dtype {array.dtype}: arrays of numbers are expected")
    return arrays


def spell(error: BaseException) -> tuple[str, str]:
    """Return the type and the message of an exception, even if its class misbehaves."""
    try:
        if isinstance(error, MemoryError):
            return "MemoryError", ""  # there may be no memory for more
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            return "OutputLimit", "it prints or writes too much"
        return type(error).__name__[:100], message_of(error)
    except BaseException:
        return "an exception", "its message cannot be printed"


def message_of(error: BaseException) -> str:
    """Return the message of an exception on one line, with its line in the student's code."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == NAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        line = error.lineno
        text = str(error.msg)
    else:
        text = str(error)
    message = " ".join(text[:3000].split())[:300]
    where = "" if line is None else f"(line {line})"
    return f"{message} {where}".strip()


def main(folder: str) -> None:
    """Read the job in `folder`, run it under its limits, and write the answer there."""
    job, draws = read_job(folder)
    limit(job["limits"])
    reserve, depth = bytearray(RESERVE), sys.getrecursionlimit()
    sys.dont_write_bytecode = True
    closed = (*job["closed"], *folders_of(job["refused"]))
    sys.addaudithook(guard(folder, closed, frozenset(job["refused"])))
    function, problem = define(job["chunks"], job["name"])
    answers = [{"raised": problem}] if problem else [attempt(function, draw) for draw in draws]
    del reserve
    sys.setrecursionlimit(depth)
    leave(folder, answers)
    os._exit(0)  # skips whatever the code has registered to run at exit


def read_job(folder: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the job that runner.py has written into `folder`, and its draws with their arrays."""
    job = json.loads(Path(folder, "job.json").read_text(encoding="utf-8"))
    with open(Path(folder, "inputs.npys"), "rb") as file:
        draws = [
            {k: np.load(file) if v is None else v for k, v in draw.items()} for draw in job["draws"]
        ]
    return job, draws


def leave(folder: str, answers: list[dict[str, Any]]) -> None:
    """Write the answers into `folder`: the bytes of the arrays, and JSON that describes them."""
    try:
        text = json.dumps(
            [
                {**a, "outputs": [(x.dtype.str, x.shape) for x in a["outputs"]]}
                if "outputs" in a
                else a
                for a in answers
            ]
        )
        if len(text) > MOST_JSON:
            raise MemoryError
        with open(Path(folder, "answer.bin"), "wb") as file:
            for answer in answers:
                for array in answer.get("outputs", ()):
                    file.write(array.tobytes())
    except (OSError, MemoryError):
        text = json.dumps([{"raised": ("OutputLimit", "it returns too much")}])
        Path(folder, "answer.bin").write_bytes(b"")
    Path(folder, "answer.json").write_text(text, encoding="utf-8")


def decoded(data: bytes) -> str:
    """Decode a file as Python does: UTF-8, unless the file declares another encoding (PEP 263)."""
    encoding = "UTF-8"
    try:
        encoding = tokenize.detect_encoding(io.BytesIO(data).readline)[0]
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SyntaxError(
            f"byte {data[error.start]:#x} of line {line} is not valid {encoding}: "
            "save the file as UTF-8"
        ) from None
    except (SyntaxError, LookupError, ValueError) as error:
        raise SyntaxError(f"{error}: save the file as UTF-8") from None


def define(
    chunks: list[Any], name: str, run: Any = exec, **more: Any
) -> tuple[Any, tuple[str, str] | None]:
    """Run the student's cells one after another; return the function, or why there is none.

    A cell is a text. A file is ``{"bytes": text}``, with one character for each byte. Each is
    executed by ``run(code, names)``; `more` are names that it finds.
    """
    space: dict[str, Any] = {"np": np, "math": math, "display": print, "__name__": "submission"}
    space |= more
    problem = None
    for chunk in chunks:
        try:
            text = chunk if isinstance(chunk, str) else decoded(chunk["bytes"].encode("latin-1"))
            run(compile(text, NAME, "exec"), space)
        except BaseException as error:
            problem = problem or spell(error)
    if callable(space.get(name)):
        return space[name], None
    return None, problem or ("NameError", f"no function called {name} is defined")


def limit(limits: dict[str, int]) -> None:
    """Set the limits of the process that the system supports."""
    try:
        import resource
    except ImportError:  # on Windows, the clock of the parent is the only limit
        return
    wanted = {
        resource.RLIMIT_CPU: limits["seconds"],
        resource.RLIMIT_AS: limits["memory_mib"] * 2**20,
        resource.RLIMIT_FSIZE: limits["output_mib"] * 2**20,
        resource.RLIMIT_CORE: 0,
    }
    for what, most in wanted.items():
        with contextlib.suppress(ValueError, OSError):  # lower already, or not supported
            # The soft limit on time ends the process by SIGXCPU, so that the parent knows why.
            resource.setrlimit(what, (most, most + (what == resource.RLIMIT_CPU)))


def folders_of(packages: list[str]) -> list[str]:
    """Return the folders of packages, because code can be loaded without an import statement."""
    specs = [importlib.util.find_spec(name) for name in packages]
    places = [p for spec in specs if spec for p in spec.submodule_search_locations or ()]
    return [os.path.join(os.path.realpath(place), "") for place in places]


def guard(folder: str, closed: tuple[str, ...], refused: frozenset[str]) -> Any:
    """Return an audit hook. It uses only local names, which the student's code cannot patch."""
    inside = os.path.join(os.path.realpath(folder), "")
    events = frozenset(REFUSED_EVENTS.split())
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    places = [*READABLE, *(p for p in sys.path if os.path.basename(p) in PACKAGES)]
    readable = (inside, *(os.path.join(os.path.realpath(place), "") for place in places))
    decode, real, number, text = os.fsdecode, os.path.realpath, int, str
    refusal = REFUSAL

    def hook(event: str, arguments: tuple) -> None:
        if event == "import" and arguments[0].partition(".")[0] in refused:
            root = arguments[0].partition(".")[0]
            raise ImportError(refusal.format(root))
        if event in events:
            raise PermissionError(f"{event} is not allowed here")
        if event == "ctypes.dlsym" and not text(arguments[1]).startswith(("Py", "_Py")):
            raise PermissionError(f"C functions are not allowed here: {arguments[1]}")
        if event == "os.mkdir" and not real(decode(arguments[0])).startswith(inside):
            raise PermissionError("folders outside the working folder cannot be made")
        if event == "open" and not isinstance(arguments[0], number):  # not a file descriptor
            path = real(decode(arguments[0]))
            if path.startswith(closed):
                raise PermissionError(f"{path} cannot be read here")
            if arguments[2] & writes and not path.startswith((inside, "/dev/null")):
                raise PermissionError("files outside the working folder cannot be written")
            if not path.startswith(readable):  # the course's files: solutions, hidden tests
                raise PermissionError(f"{path} cannot be read here")

    return hook


if __name__ == "__main__":
    main(sys.argv[1])
