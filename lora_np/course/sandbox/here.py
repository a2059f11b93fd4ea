"""Run a student's code in this process, where Python cannot start another: in a browser.

This is for practice, not for grades. What a process of its own would guard is guarded here as far
as Python can do it from inside:

- Code that runs for too long is stopped at its next instruction. A call that never returns (a
  sleep, a loop in C) cannot be stopped: only a restart of the kernel ends it.
- Packages that contain the solution cannot be imported, and ``os._exit`` ends only the answer.
- Afterwards the modules that all code shares have their old names and values, and the streams, the
  working folder and the environment are as before: the next check is not poisoned.

Files, memory and crashes of Python are not guarded.
"""

from __future__ import annotations

import builtins
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import copy_context
from pathlib import Path
from time import perf_counter
from types import FrameType, ModuleType
from typing import Any, NoReturn

from lora_np.course.sandbox import child

SHARED = ("builtins", "math", "cmath", "os", "random", "sys", "time", "numpy", "scipy", "lora_np")
TOO_LONG = "Your code ran for more than {} s: look for a loop that never ends"
TOO_MUCH = "Your code prints or returns too much"
ENDED = "Your code ended the process, with status {}: return a result instead"


class Stopped(BaseException):
    """A student's code was stopped, or was to be called after it had been stopped.

    Python ends a trace whose function raises. If the code then catches this exception, as a bare
    ``except`` in a loop does, `again` takes up the trace where the handler lets go of it.
    """

    def __init__(self, trouble: str, again: Callable[[FrameType], None] | None = None) -> None:
        super().__init__(trouble)
        self._again = again

    def __del__(self) -> None:
        if self._again is not None:
            self._again(sys._getframe(1))


class Guard:
    """Calls functions of a student, until one of them does what no answer may do.

    Parameters
    ----------
    seconds : float
        What all calls may take together.

    Attributes
    ----------
    trouble : str
        What the code has done, as its author reads it; empty if it is well so far.

    Examples
    --------
    >>> from lora_np.course.sandbox.here import Guard, Stopped
    >>> guard = Guard(seconds=0.1)
    >>> guard.call(max, 2, 3)
    3
    >>> try:
    ...     guard.call(exec, "while True: pass", {})
    ... except Stopped as error:
    ...     print(error)
    Your code ran for more than 0.1 s: look for a loop that never ends
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.left, self.trouble = seconds, seconds, ""
        self._again: Callable[[FrameType], None] | None = None

    def stop(self, trouble: str) -> NoReturn:
        """Stop the code, and remember why: it may catch the exception."""
        self.trouble = self.trouble or trouble
        raise Stopped(self.trouble, self._again)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function; raise Stopped if it runs for too long, or was stopped before."""
        if self.trouble:
            raise Stopped(self.trouble)
        deadline = perf_counter() + self.left

        def look_at_the_clock(frame: FrameType, event: str, argument: Any) -> Any:
            if perf_counter() > deadline:
                self.stop(TOO_LONG.format(self.seconds))
            if frame.f_globals.get("__spec__") is not None:
                return None  # code of a module, not of a cell: only its calls are events
            frame.f_trace_opcodes = True  # Python 3.11 has no event for each round of "pass"
            return look_at_the_clock

        running = True

        def look_again(frame: FrameType | None) -> None:
            if running:
                sys.settrace(look_at_the_clock)
            while running and frame is not None:
                if frame.f_globals.get("__spec__") is None:
                    frame.f_trace, frame.f_trace_opcodes = look_at_the_clock, True
                frame = frame.f_back

        before, end, self._again = sys.gettrace(), os._exit, look_again
        os._exit = lambda status: self.stop(ENDED.format(status))
        sys.settrace(look_at_the_clock)
        try:
            return function(*arguments)
        finally:
            running = False
            sys.settrace(before)
            os._exit = end
            self.left = deadline - perf_counter()


def run_here(folder: Path, limits: Any) -> str:
    """Do what the child process does (child.py), in this process.

    Parameters
    ----------
    folder : Path
        Contains the job. The answer is written there.
    limits : Limits
        The memory is not limited.

    Returns
    -------
    str
        What went wrong, or an empty text.
    """
    job, draws = child.read_job(str(folder))
    guard, most = Guard(limits.seconds), limits.output_mib * 2**20
    own = {**vars(builtins), "__import__": _importing(frozenset(job["refused"]))}

    def run(code: Any, space: dict[str, Any]) -> None:
        guard.call(exec, code, space)

    def answers() -> list[dict[str, Any]]:
        function, problem = child.define(job["chunks"], job["name"], run, __builtins__=own)
        if problem:
            return [{"raised": problem}]
        return [child.attempt(lambda *a: guard.call(function, *a), draw) for draw in draws]

    with restored(folder), redirect_stdout(_Sink(guard, most)) as out, redirect_stderr(out):
        found = copy_context().run(answers)  # np.errstate and the like belong to the context
    size = sum(array.nbytes for answer in found for array in answer.get("outputs", ()))
    if guard.trouble or size > most:
        return guard.trouble or TOO_MUCH
    child.leave(str(folder), found)
    return ""


def _importing(refused: frozenset[str]) -> Callable[..., Any]:
    """Return an ``__import__`` that refuses some packages, as the hook of child.py does."""
    own = builtins.__import__

    def importing(name: str, *arguments: Any, **named: Any) -> Any:
        root = name.partition(".")[0]
        if root in refused:
            raise ImportError(child.REFUSAL.format(root))
        return own(name, *arguments, **named)

    return importing


class _Sink(io.TextIOBase):
    """What a student's code prints: counted, and not shown."""

    def __init__(self, guard: Guard, most: int) -> None:
        self._guard, self._left = guard, most

    def write(self, text: str) -> int:
        self._left -= len(text.encode("utf-8", "replace"))
        if self._left < 0:
            self._guard.stop(TOO_MUCH)
        return len(text)


@contextmanager
def restored(folder: Path) -> Iterator[None]:
    """Work in a folder; at the end, undo what code may change that all code shares."""
    loaded = dict(sys.modules)
    kept = [(m, dict(vars(m))) for n, m in loaded.items() if n.partition(".")[0] in SHARED]
    place, path, environment = os.getcwd(), list(sys.path), dict(os.environ)
    depth = sys.getrecursionlimit()
    os.chdir(folder)
    try:
        sys.stdin = io.StringIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.setrecursionlimit(depth)
        for module, names in kept:
            _restore(module, names)
        sys.modules.update(loaded)
        sys.path[:] = path
        os.chdir(place)
        os.environ.clear()
        os.environ.update(environment)


def _restore(module: ModuleType, names: dict[str, Any]) -> None:
    """Give a module its old names; submodules that were imported since stay."""
    now = vars(module)
    for name in now.keys() - names.keys():
        if not isinstance(now[name], ModuleType):
            del now[name]
    now.update(names)
