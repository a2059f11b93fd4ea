"""The bar of an intrinsic run, and the table at the end."""

from __future__ import annotations

from typing import Any

from lora_np.experiments.intrinsic.dimension import VARIANTS, Run, losses_of
from lora_np.experiments.terminal import Terminal
from lora_np.report import Report
from lora_np.tables import Table, counted

STARTS = ("pretrained", "random")


class Listener(Terminal):
    """Shows each run that ends, on a bar; how many a search takes is not known beforehand."""

    def __call__(self, run: Run, loss: float) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Show a finished run."""
        at = "full" if run.d is None else f"{run.variant} d = {run.d}"
        self.show(f"{at}, lr {run.lr:.2g}: {loss:.4g}")


def report(results: dict[str, Any]) -> Report:
    """Return the tables of both starts as text."""
    return Report([table(results, start) for start in STARTS])


def table(results: dict[str, Any], start: str) -> Table:
    """Return for a start the loss at every d, as a share of the full gain too, and d90."""
    found = results[start]
    base, full = found["base"], found["full"]
    by_run = {(row["variant"], row["d"]): row for row in found["rows"]}
    rows = []
    for d in sorted({d for _, d in by_run if d is not None}):
        rows.append({"": f"d = {d}"})
        for variant in VARIANTS:
            rows[-1] |= _cells(variant, by_run.get((variant, d)), base, full)
    whole = _cells(VARIANTS[0], by_run["full", None], base, full)
    rows.append({"": "full", **dict.fromkeys(_headings(VARIANTS[1])), **whole})
    title = (
        f"{start}: D = {found['D']:,}, {counted(found['layers'], 'layer')}; "
        f"validation loss at the start {base:.4f}, 90 % of the way {found['target']:.4f}"
    )
    notes = [f"d90: {_d90(found, 'd90')}"]
    if found["d90_square"] is not None:
        at_D = f"d90 against plain at d = D ({found['square']:.4f})"
        notes.append(f"{at_D}: {_d90(found, 'd90_square')}")
    headings = [heading for variant in VARIANTS for heading in _headings(variant)]
    return Table.of_rows(rows, dict(zip(headings, (".2g", ".4f", ".0f %") * 2)), title, notes)


def _headings(variant: str) -> tuple[str, str, str]:
    return f"{variant}: lr", f"{variant}: loss", f"{variant}: gain"


def _cells(variant: str, row: dict[str, Any] | None, base: float, full: float) -> dict[str, Any]:
    """Return the three cells of a variant, or why they are empty."""
    if row is None:
        cells = ("needs d > m", None, None)
    elif row["loss"] is None:
        cells = ("diverged", None, None)
    else:
        cells = (row["lr"], row["loss"], (base - row["loss"]) / (base - full))
    return dict(zip(_headings(variant), cells))


def _d90(found: dict[str, Any], key: str) -> str:
    """Return between which two d of the grid each variant reaches its target."""
    said = []
    for variant, d in found[key].items():
        ds = sorted(losses_of(found["rows"], variant))
        below = [str(other) for other in ds if d is None or other < d]
        if d is None:
            said.append(f"{variant} above {below[-1]}" if below else f"{variant} unknown")
        else:
            why = f"{below[-1]} is not enough" if below else "the smallest tried"
            said.append(f"{variant} {d} ({why})")
    return "; ".join(said)
