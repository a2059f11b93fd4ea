"""A folder of results that survives anything: opened, checked, and never written over.

``results.json`` is written first and rewritten, in one step, after every run; whatever else the
folder holds can be made again from it. So the same command continues after a kill, Ctrl-C or a full
disk. One process at a time writes. A complete folder is only read, so it may lie on a read-only
disk.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.files import load_json, save_json
from lora_np.files.atomic import strangers
from lora_np.files.lock import ELSEWHERE, clear, held
from lora_np.reading import brief

Results = dict[str, Any]

PRETRAINING = "pretraining.npz"  # the state of a pretraining that was stopped


class SweepError(ValueError):
    """An experiment that cannot be run or resumed as asked; the message names the way out."""


@dataclass(frozen=True)
class Kind:
    """An experiment, as its folder knows it.

    Attributes
    ----------
    name : str
        Its name in messages, as in "a sweep".
    files : tuple of str
        Patterns of the names of its files beside ``results.json``. A folder that holds such files
        but no results is refused.
    check : callable
        Raises what a look-up, a calculation or a wrong type raises for results that are not of
        this kind: those of a finished experiment can be shown, others can be continued.
    """

    name: str
    files: tuple[str, ...]
    check: Callable[[Results], None]

    def read(self, path: Path) -> Results:
        """Return the content of a results file.

        Raises
        ------
        SweepError
            If there is no such file, or it is not of this kind.
        """
        shown = brief(str(path))
        if not os.path.exists(path):
            raise SweepError(f"{shown} does not exist: is this the folder of {self.name}?")
        try:
            results = load_json(path)
            if not isinstance(results["settings"], dict) or type(results["complete"]) is not bool:
                raise TypeError
            self.check(results)
        except (ValueError, LookupError, ArithmeticError, TypeError, AttributeError):
            said = f"{shown} is not the results file of {self.name}"
            raise SweepError(f"{said}: {ELSEWHERE}") from None
        return results


@contextmanager
def opened(
    kind: Kind,
    folder: Path,
    made_with: Mapping[str, Any],
    base_sha256: str | None = None,
    take_over: bool = False,
) -> Iterator[Results]:
    """Give the results in a folder, or new ones; hold the folder unless they are complete.

    Parameters
    ----------
    kind : Kind
    folder : Path
    made_with : mapping
        The task, its settings, and the hashes of its texts. Results of other settings are refused.
    base_sha256 : str, optional
        Hash of the base that the caller was given. Results of another base are refused.
    take_over : bool
        As for :func:`lora_np.files.lock.hold`.

    Raises
    ------
    SweepError
        If the folder cannot be written, is in use, or holds anything else.
    """
    settings = as_json(made_with)
    results = _results_of(kind, folder, settings)
    with ExitStack() as stack:
        if results is None or not results["complete"]:
            stack.enter_context(held(folder, SweepError, take_over))
            results = _results_of(kind, folder, settings)  # another process may have written since
            results = results or _new_results(kind, folder, settings)
        check_base(results, base_sha256, folder)
        yield results
    if results["complete"]:
        clear(folder)


def save_results(folder: Path, results: Results) -> None:
    """Write ``results.json`` anew, in one step."""
    save_json(folder / "results.json", results)


def begin(
    folder: Path,
    results: Results,
    facts: Mapping[str, Any],
    base_sha256: str | None,
    baseline: Callable[[], Mapping[str, Any]] = dict,
) -> None:
    """Record what is known before the first run, unless the results hold it.

    Parameters
    ----------
    folder : Path
    results : dict
    facts : mapping
        What is known: where the base came from, and its hash.
    base_sha256 : str or None
        Hash of the base that the caller was given.
    baseline : callable, optional
        Returns the losses before training.

    Raises
    ------
    SweepError
        If the base is not the given one, or not the one with which the results began.
    """
    check_base(facts, base_sha256, folder)
    if not any(name.startswith("base_") for name in results):
        results.update(baseline(), **facts)
        save_results(folder, results)
    check_base(results, facts.get("base_sha256"), folder)


def check_base(results: Mapping[str, Any], sha256: str | None, folder: Path) -> None:
    """Raise SweepError if the results are of another base than the one with this hash."""
    began = results.get("base_sha256")
    if sha256 is not None and began is not None and sha256 != began:
        raise SweepError(f"{folder} was started with another base: {ELSEWHERE}")


def as_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a JSON file returns them."""
    return json.loads(json.dumps(content))


def _results_of(kind: Kind, folder: Path, settings: dict[str, Any]) -> Results | None:
    """Return the results that the folder holds, None if it has none."""
    path = folder / "results.json"
    if not path.exists():
        return None
    results = kind.read(path)
    if results["settings"] != settings:
        difference = _difference(results["settings"], settings)
        raise SweepError(f"{path} is of other settings ({difference}): {ELSEWHERE}, or remove it")
    return results


def _new_results(kind: Kind, folder: Path, settings: dict[str, Any]) -> Results:
    """Begin results in a folder that has none, unless it holds something else."""
    for path in sorted(strangers(folder)):
        if any(path.match(pattern) for pattern in kind.files) and _is_something(path):
            raise SweepError(f"{folder} holds {path.name}, but no results.json: {ELSEWHERE}")
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    results = {"settings": settings, "versions": versions, "complete": False, "trials": []}
    save_results(folder, results)
    return results


def _is_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    changed = [k for k in {**before, **now} if before.get(k) != now.get(k)]
    name = changed[0]
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"{name} {before.get(name)}, now {now.get(name)}{more}"
