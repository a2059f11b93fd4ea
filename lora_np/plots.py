"""What all pictures share: the figure, the file and the colours.

Each picture is drawn by a file beside its experiment. The colours are Okabe and Ito's, which
colour-blind readers can distinguish; every series also has its own marker or dash, so that a print
in grey can be read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lora_np

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"
GREEN, PURPLE, SKY, AMBER = "#009E73", "#CC79A7", "#56B4E9", "#E69F00"


def figure(width: float, height: float) -> Any:
    """Return a figure made without pyplot: it needs no screen and keeps a notebook's settings.

    Parameters
    ----------
    width, height : float
        In inches.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: str | Path) -> None:
    """Write a figure as a PNG.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    path : str or Path
    """
    from lora_np.files import replacing

    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def __getattr__(name: str) -> Any:
    return lora_np.moved("plots", name)  # a picture that an earlier release kept here
