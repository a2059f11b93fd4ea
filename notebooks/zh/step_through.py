"""The picture of chapter 4, for the notebook in this folder: that of ``../step_through.py``."""

from pathlib import Path
from runpy import run_path

globals().update(run_path(str(Path(__file__).resolve().parents[1] / "step_through.py")))
