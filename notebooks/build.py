"""Run the chapters and write them with their outputs: ``python notebooks/build.py [NUMBER ...]``.

A chapter's source is ``NN_name.py`` (Jupytext's percent format, clean in a diff). Its twin
``NN_name.ipynb`` is made here: every cell is run in order in a fresh kernel, which imports the
lora_np of this tree. A claim that does not hold stops the build, because claims are assertions.

``zh/NN_name.py`` is the same chapter in Chinese. Its code is the same, so it is not run: its outputs
are those of the English notebook. ``build.py zh [NUMBER ...]`` writes the Chinese notebooks alone.

Needs ``pip install '.[notebooks]'``.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def chapters(folder: Path, numbers: list[str]) -> list[Path]:
    """Return the sources of these chapters in a folder (all, if none is named), in order."""
    sources = sorted(folder.glob("[0-9][0-9]_*.py"))
    return [p for p in sources if not numbers or int(p.name[:2]) in map(int, numbers)]


def executed(source: Path) -> nbformat.NotebookNode:
    """Return the notebook of `source` with its outputs; raise where a cell fails."""
    notebook = jupytext.read(source, fmt="py:percent")
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(HERE)}})
    inline = "module://matplotlib_inline.backend_inline"  # whatever the shell has set
    client.execute(env={**os.environ, "PYTHONPATH": str(HERE.parent), "MPLBACKEND": inline})
    return tidy(notebook)


def translated(source: Path) -> nbformat.NotebookNode:
    """Return the notebook of a translation, with the outputs of the chapter that it translates."""
    notebook = jupytext.read(source, fmt="py:percent")
    original = nbformat.read(HERE / source.with_suffix(".ipynb").name, as_version=4)
    for cell, ran in zip(notebook.cells, original.cells, strict=True):
        if cell.cell_type == "code":
            if ast.dump(ast.parse(cell.source)) != ast.dump(ast.parse(ran.source)):
                raise SystemExit(f"{source.name}: this code is not the chapter's:\n{cell.source}")
            cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
    return tidy(notebook)


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop what differs from run to run, and sliders, which nothing shows without a kernel.

    What a picture shows, for readers who cannot see it, stands at the head of its cell in the
    source, ``# %% alt="..."``. It stays, where MyST-NB looks for it when it makes the docs.
    """
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    for number, cell in enumerate(notebook.cells):
        alt = cell.metadata.get("alt")
        cell.id, cell.metadata = f"cell-{number}", {}
        if alt:
            cell.metadata = {"mystnb": {"image": {"alt": alt}}}
        if cell.cell_type == "code":
            shown = [out for out in cell.outputs if WIDGET not in out.get("data", {})]
            cell.outputs = joined(shown)
    return notebook


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Join neighbouring parts of a stream: where a kernel cuts its text differs from run to run."""
    found: list[nbformat.NotebookNode] = []
    for out in outputs:
        before = found[-1] if found else {}
        if out.output_type == "stream" and before.get("name") == out.name:
            found[-1].text += out.text
        else:
            found.append(out)
    return found


def write(make: Callable[[Path], nbformat.NotebookNode], source: Path) -> None:
    """Make the notebook of a source and write it beside; print the seconds and the size."""
    start, path = perf_counter(), source.with_suffix(".ipynb")
    nbformat.write(make(source), path)
    size, name = path.stat().st_size / 1000, str(path.relative_to(HERE))
    print(f"{name:<48}{perf_counter() - start:6.1f} s{size:8.0f} kB", flush=True)


def main() -> None:
    """Write the notebooks of the chapters that the command line names."""
    numbers = [word for word in sys.argv[1:] if word != "zh"]
    for source in chapters(HERE, numbers) if "zh" not in sys.argv[1:] else []:
        write(executed, source)
    for source in chapters(HERE / "zh", numbers):
        write(translated, source)


if __name__ == "__main__":
    main()
