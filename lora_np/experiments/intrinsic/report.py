"""The bar of an intrinsic run, and the table at the end."""

from __future__ import annotations

from typing import Any

from lora_np.experiments.intrinsic.dimension import VARIANTS, Run, losses_of
from lora_np.experiments.terminal import Terminal
from lora_np.tables import counted, text_row

STARTS = ("pretrained", "random")
WIDTHS = (12, 35, 35)  # of the table: d, and three columns for each variant


class Listener(Terminal):
    """Shows each run that ends, on a bar; how many a search takes is not known beforehand."""

    def __call__(self, run: Run, loss: float) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Show a finished run."""
        at = "full" if run.d is None else f"{run.variant} d = {run.d}"
        self.show(f"{at}, lr {run.lr:.2g}: {loss:.4g}")


def table(results: dict[str, Any]) -> str:
    """Return for each start the loss at every d, as a share of the full gain too, and d90."""
    return "\n\n".join(_table_of(start, results[start]) for start in STARTS)


def _table_of(start: str, found: dict[str, Any]) -> str:
    base, full = found["base"], found["full"]
    rows = {(row["variant"], row["d"]): row for row in found["rows"]}
    rate = rows["full", None]["lr"]
    lines = [
        f"{start}: D = {found['D']:,}, {counted(found['layers'], 'layer')}; "
        f"validation loss at the start {base:.4f}, 90 % of the way {found['target']:.4f}",
        text_row(("", *(_three(f"{v}, lr", "loss", "of gain") for v in VARIANTS)), WIDTHS),
    ]
    for d in sorted({d for _, d in rows if d is not None}):
        cells = [_cells(rows.get((variant, d)), base, full) for variant in VARIANTS]
        lines.append(text_row((f"d = {d}", *cells), WIDTHS))
    whole = _three(f"{rate:.2g}", f"{full:.4f}", "100 %")
    lines.append(text_row(("full", whole), WIDTHS))
    lines.append(f"d90: {_d90(found, 'd90')}")
    if found["d90_square"] is not None:
        lines.append(
            f"d90 against plain at d = D ({found['square']:.4f}): {_d90(found, 'd90_square')}"
        )
    return "\n".join(lines)


def _cells(row: dict[str, Any] | None, base: float, full: float) -> str:
    """Return the three columns of a variant, or why they are empty."""
    if row is None:
        return "needs d > m"
    if row["loss"] is None:
        return "diverged"
    gain = (base - row["loss"]) / (base - full)
    return _three(f"{row['lr']:.2g}", f"{row['loss']:.4f}", f"{100 * gain:.0f} %")


def _three(lr: str, loss: str, gain: str) -> str:
    return text_row(("", lr, loss, gain), (0, 17, 9, 9))


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
