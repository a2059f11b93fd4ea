"""The picture of chapter 4: a LoRA layer's products one after the other, as coloured matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

STEPS = ("x goes in", "u = A x", "B u", "W0 x", "h = W0 x + s B u")


def draw_step(axis: Any, step: int, x: Any, W0: Any, A: Any, B: Any, scale: float) -> None:
    """Draw on `axis` what step `step` (0 to 4) of h = W0 x + s B A x reads and makes.

    Shapes: x (in,), W0 (out, in), A (r, in), B (out, r). What the step makes has a thick frame.
    """
    u = A @ x  # (r,)
    h = W0 @ x + scale * (B @ u)  # (out,)
    row = [
        [("x", x)],
        [("A", A), ("x", x), ("u", u)],
        [("B", B), ("u", u), ("B u", B @ u)],
        [("W0", W0), ("x", x), ("W0 x", W0 @ x)],
        [("W0 x", W0 @ x), ("s B u", scale * (B @ u)), ("h", h)],
    ][step]
    left = 0.0
    for place, (name, values) in enumerate(row):
        matrix = values if values.ndim == 2 else values[:, None]  # a vector is a column
        _draw_matrix(axis, left, name, matrix, made=place == len(row) - 1)
        left += matrix.shape[1] + 1.5
        if place < len(row) - 1:
            sign = "=" if place == len(row) - 2 else "+" if step == 4 else r"$\cdot$"
            axis.text(left - 0.75, 1.0, sign, ha="center", va="center", fontsize=14)
    axis.set_title(f"{step}. {STEPS[step]}", fontsize=11)
    axis.set_xlim(-0.3, 9.5)
    axis.set_ylim(5.2, -1.2)
    axis.set_aspect("equal")
    axis.axis("off")


def _draw_matrix(axis: Any, left: float, name: str, matrix: Any, made: bool) -> None:
    """Draw one matrix with its values, name and shape; orange is positive, purple negative."""
    rows, columns = matrix.shape
    extent = (left, left + columns, rows, 0)
    axis.imshow(matrix, cmap="PuOr_r", vmin=-12, vmax=12, extent=extent)
    for (i, j), value in np.ndenumerate(matrix):
        ink = "white" if abs(value) > 7 else "black"  # the colours are dark there
        place = (left + j + 0.5, i + 0.5)
        axis.text(*place, f"{value:.3g}", color=ink, ha="center", va="center", fontsize=9)
    width = 3 if made else 1
    box = ([left, left + columns, left + columns, left, left], [0, 0, rows, rows, 0])
    axis.plot(*box, color="black", linewidth=width)
    axis.text(left + columns / 2, -0.25, name, ha="center", fontsize=11)
    axis.text(left + columns / 2, rows + 0.6, f"{rows} x {columns}", ha="center", fontsize=9)


def draw_all_steps(x: Any, W0: Any, A: Any, B: Any, scale: float) -> None:
    """Draw all five steps side by side: for paper and for the web."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12, 6.4))
    for step, axis in enumerate(axes.flat):
        if step < len(STEPS):
            draw_step(axis, step, x, W0, A, B, scale)
        else:
            axis.axis("off")
    figure.tight_layout()
    plt.show()


def sliders(x: Any, W0: Any, A: Any, B: Any, scale: float) -> None:
    """Show one step at a time, with sliders for the step, s and the first entry of x."""
    try:
        from ipywidgets import FloatSlider, IntSlider, interact
    except ImportError:
        print("pip install ipywidgets for the sliders; the picture above has all the steps")
        return
    import matplotlib.pyplot as plt

    def show(step: int, s: float, x0: float) -> None:
        _, axis = plt.subplots(figsize=(6, 4.4))
        draw_step(axis, step, np.array([x0, *x[1:]]), W0, A, B, s)
        plt.show()

    interact(
        show,
        step=IntSlider(0, 0, len(STEPS) - 1),
        s=FloatSlider(scale, min=0.0, max=2.0, step=0.25),
        x0=FloatSlider(float(x[0]), min=-3.0, max=3.0, step=0.5),
    )
