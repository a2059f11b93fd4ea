"""Write the pictures and texts of a finished run, and the line that lists its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path


def write_files(
    out: Path, held: list[str], files: Mapping[str, Callable[[Path], None]], complete: bool
) -> str:
    """Write the files of a finished run; return a line that lists them.

    Parameters
    ----------
    out : Path
    held : list of str
        Names of the files that the run has already written.
    files : mapping
        The functions that write the other files, by file name.
    complete : bool
        Whether the run was complete before. Then only missing files are written, and an error is
        reported, not raised, because the folder may be on a read-only disk.
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
