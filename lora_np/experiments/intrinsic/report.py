"""What a run says: how far it is, and the table at the end."""

from __future__ import annotations

import sys
from typing import Any

from lora_np.experiments.intrinsic.dimension import VARIANTS, Run, losses_of
from lora_np.experiments.intrinsic.text import STARTS
from lora_np.tables import counted


class Listener:
    """Shows on standard error, where that is a screen, the runs that are done."""

    def __init__(self) -> None:
        self.bar: Any = None

    def __enter__(self) -> Listener:
        return self

    def __call__(self, run: Run, loss: float) -> None:
        """Hear of a finished run."""
        if not sys.stderr.isatty():
            return
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(unit=" runs")  # how many a search takes is not known beforehand
        at = "full" if run.d is None else f"{run.variant} d = {run.d}"
        self.bar.set_postfix_str(f"{at}, lr {run.lr:.2g}: {loss:.4g}", refresh=False)
        self.bar.update()

    def __exit__(self, *args: object) -> None:
        if self.bar is not None:
            self.bar.close()


def table(results: dict[str, Any]) -> str:
    """Return for each start the loss at every d, its share of full training's gain, and d90."""
    return "\n\n".join(_table_of(start, results[start]) for start in STARTS)


def _table_of(start: str, found: dict[str, Any]) -> str:
    base, full = found["base"], found["full"]
    rows = {(row["variant"], row["d"]): row for row in found["rows"]}
    rate = rows["full", None]["lr"]
    lines = [
        f"{start}: D = {found['D']:,}, {counted(found['layers'], 'layer')}; "
        f"validation loss at the start {base:.4f}, 90 % of the way {found['target']:.4f}",
        f"{'':<12}" + "".join(f"{f'{v}, lr':>17}{'loss':>9}{'of gain':>9}" for v in VARIANTS),
    ]
    for d in sorted({d for _, d in rows if d is not None}):
        cells = [_cells(rows.get((variant, d)), base, full) for variant in VARIANTS]
        lines.append(f"{f'd = {d}':<12}" + "".join(cells))
    lines.append(f"{'full':<12}{rate:>17.2g}{full:>9.4f}{'100 %':>9}")
    lines.append(f"d90: {_d90(found, 'd90')}")
    if found["d90_square"] is not None:
        lines.append(
            f"d90 against plain at d = D ({found['square']:.4f}): {_d90(found, 'd90_square')}"
        )
    return "\n".join(lines)


def _cells(row: dict[str, Any] | None, base: float, full: float) -> str:
    if row is None:
        return f"{'needs d > m':>35}"
    if row["loss"] is None:
        return f"{'diverged':>35}"
    gain = (base - row["loss"]) / (base - full)
    return f"{row['lr']:>17.2g}{row['loss']:>9.4f}{100 * gain:>7.0f} %"


def _d90(found: dict[str, Any], key: str) -> str:
    """Say between which two d of the grid each variant's target is reached."""
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
