"""What the person in front of the terminal sees of an experiment, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_np.crew import progress_bar
from lora_np.experiments.folder import PRETRAINING
from lora_np.experiments.runner import Progress
from lora_np.files import load_json
from lora_np.tables import counted


class Terminal:
    """Shows how an experiment goes: how long it takes, each run on a bar, and what was kept.

    Parameters
    ----------
    out : Path
        The experiment's folder.
    folders : sequence of Path, optional
        Folders of its ``results.json`` files; by default `out` alone.
    """

    def __init__(self, out: Path = Path(), folders: Sequence[Path] = ()) -> None:
        self.out, self.folders = out, folders or (out,)
        self.is_screen = sys.stderr.isatty()
        self.bar: Any = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def start(self, seconds: float, jobs: int) -> None:
        """Say how long the whole experiment takes."""
        processes = counted(jobs, "process", "processes")
        less = f", less for what {self.out} already holds" if self._kept() else ""
        print(f"about {spell(seconds)} in {processes}{less}", file=sys.stderr)

    def __call__(self, progress: Progress) -> None:
        """Show a finished run."""
        loss = progress.result["validation_loss"]
        shown = "diverged" if loss is None else f"{loss:.4g}"
        self.show(f"{progress.trial}: {shown}", progress.done, progress.expected)

    def show(self, text: str, done: int | None = None, expected: int | None = None) -> None:
        """Move the bar by one run; `expected` is None where their number is not known."""
        if not self.is_screen:
            return
        if self.bar is None:
            self.bar = progress_bar(total=expected, unit=" runs", initial=(done or 1) - 1)
        self.bar.total = expected
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update()

    def close(self) -> None:
        """Leave the bar where it is."""
        if self.bar is not None:
            self.bar.close()

    def interrupted(self) -> None:
        """Say what is kept."""
        self.close()
        done = self._kept()
        runs = counted(done, "run is", "runs are")
        kept = f"{runs} kept in {self.out}" if done else "no run was finished"
        if any((folder / PRETRAINING).exists() for folder in self.folders):
            kept += ", and pretraining continues from its last saved state"
        print(f"\nstopped: {kept}; run the same command to continue", file=sys.stderr)

    def _kept(self) -> int:
        """Return the number of finished runs in the folders."""
        paths = [folder / "results.json" for folder in self.folders]
        return sum(len(load_json(path).get("trials", ())) for path in paths if path.exists())


def base_line(results: Mapping[str, Any]) -> str:
    """Say where the base came from; empty where there is none, or the results do not know."""
    made = results.get("base_made")
    if made is None:
        return ""
    return f"base: {'pretrained here' if made == 'here' else made}\n"


def spell(seconds: float) -> str:
    """Return a length of time as people say it."""
    if seconds < 90:
        return f"{max(5, 5 * round(seconds / 5))} seconds"
    return f"{seconds / 60:.1f} minutes"
