"""What a finished run has written: its pictures and texts, and the line that says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path


def write_files(
    out: Path, held: list[str], files: Mapping[str, Callable[[Path], None]], complete: bool
) -> str:
    """Write files of a finished run; return the line that says so.

    Parameters
    ----------
    out : Path
    held : list of str
        Names of the files that have been written.
    files : mapping
        By name, what writes a file.
    complete : bool
        Whether the run was complete before: then only what is missing is written, and an error is
        told, for the folder may lie on a read-only disk.
    """
    said, lost = "held in", []
    for name, write in files.items():
        if complete and (out / name).exists():
            continue
        try:
            write(out / name)
            said = "written to"
        except OSError as error:
            if not complete:
                raise
            lost.append(f"\nnot written: {error}")
    names = [*held, *(name for name in files if (out / name).exists())]
    return f"{said if complete else 'written to'} {out}/: {', '.join(names)}{''.join(lost)}"
