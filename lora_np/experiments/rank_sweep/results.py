"""What a sweep measured, as an object: a table, a picture, and the content of its file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_np.experiments.folder import SweepError
from lora_np.experiments.rank_sweep.report import table
from lora_np.experiments.rank_sweep.store import read_results
from lora_np.tables import Table, Tabular

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class SweepResults(Tabular, dict[str, Any]):
    """The results of a finished sweep: the content of ``results.json``, by name.

    They print as a table, in a notebook too, and draw their curve; docs/results.md describes them.

    Examples
    --------
    >>> import tempfile
    >>> from lora_np import rank_sweep
    >>> from lora_np.experiments.rank_sweep import LinearSettings, SweepResults
    >>> settings = LinearSettings(ranks=(1,), seeds=1, d_in=4, d_out=3, decay=0.5, steps=100)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     same = rank_sweep(settings, folder) == SweepResults.read(folder)
    >>> same
    True
    """

    @classmethod
    def read(cls, folder: str | Path) -> SweepResults:
        """Return the results in the folder of a finished sweep.

        Raises
        ------
        SweepError
            If the folder does not hold the results of a sweep, or the sweep is not finished.
        """
        content = read_results(Path(folder) / "results.json")
        if not content["complete"]:
            raise SweepError(f"the sweep in {folder} is not finished: run it again to continue")
        return cls(content)

    def table(self) -> Table:
        """Return the loss at every rank: means over seeds, with their deviations."""
        return table(self)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss at every rank, by default in a new figure."""
        from lora_np.experiments.rank_sweep.picture import plot_rank_vs_loss

        return plot_rank_vs_loss(self, ax=ax)

    def __repr__(self) -> str:
        return f"<SweepResults: {self['settings']['task']}, {len(self['runs'])} runs>"
