"""The sweeps of section 7, and the measurements on their models.

Each set of matrices is a rank sweep in a folder of its own, below the folder of the run. Its trials
are saved as they end, and the same call continues. Unless a base is given, the first sweep
pretrains one and the others copy it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.experiments.folder import Results, SweepError, as_json
from lora_np.experiments.paper.claims import all_claims
from lora_np.experiments.paper.directions import Adapter, figure, table7
from lora_np.experiments.paper.numbers import QV, TABLE5, TABLE6, TABLE7, short
from lora_np.experiments.paper.settings import (
    PaperSettings,
    Targets,
    budget,
    sweeps,
    table5_ranks,
    trainable_parameters,
)
from lora_np.experiments.rank_sweep.plan import expected_number
from lora_np.experiments.rank_sweep.report import flat, losses_by_seed
from lora_np.experiments.rank_sweep.run import check_sweep, rank_sweep
from lora_np.experiments.rank_sweep.store import as_trial, model_file
from lora_np.experiments.runner import Progress
from lora_np.files import CheckpointError, load_arrays, load_json, save_json
from lora_np.files.lock import held


def folders(settings: PaperSettings, out: str | Path) -> dict[Targets, Path]:
    """Return the folder of each sweep."""
    return {t: Path(out) / short(t).replace(",", "_") for t in sweeps(settings)}


def check_paper(
    settings: PaperSettings,
    out: str | Path,
    base: str | Path | None = None,
    *,
    take_over: bool = False,
) -> bool:
    """Return whether `out` holds this run, complete; raise what run_paper would raise."""
    where, plan = folders(settings, out), sweeps(settings).items()
    complete = [check_sweep(s, where[t], base, take_over=take_over) for t, s in plan]
    if not all(complete):  # every sweep was checked
        with held(Path(out), SweepError, take_over):
            return False
    return True


def run_paper(
    settings: PaperSettings,
    out: str | Path,
    *,
    base: str | Path | None = None,
    executor: Executor | None = None,
    listen: Callable[[Progress], None] | None = None,
    progress: bool = False,
    take_over: bool = False,
) -> dict[str, Any]:
    """Repeat the measurements of section 7 of the paper on the text task.

    Parameters
    ----------
    settings : PaperSettings
    out : str or Path
        Folder of the sweeps and of ``paper.json``. Sweeps of equal settings in it continue.
    base, executor, progress, take_over : optional
        As for :func:`lora_np.experiments.rank_sweep.rank_sweep`.
    listen : callable, optional
        Called with a Progress, over all sweeps, after every trial.

    Returns
    -------
    dict
        The content of ``paper.json``: the settings, the tables, the figures and the claims.

    Raises
    ------
    SweepError
        As :func:`lora_np.experiments.rank_sweep.rank_sweep` raises it.
    ValueError
        If runs that a figure needs diverged.

    References
    ----------
    Hu et al.: LoRA. arXiv:2106.09685, section 7.

    Examples
    --------
    >>> from lora_np.experiments.paper.settings import QUICK, all_trials
    >>> len(all_trials(QUICK).ranks)  # searches for a learning rate in run_paper(QUICK, "folder")
    16
    """
    complete = check_paper(settings, out, base, take_over=take_over)
    how = {"executor": executor, "progress": progress, "take_over": take_over}
    with nullcontext() if complete else held(Path(out), SweepError, take_over):
        found = _run_sweeps(settings, folders(settings, out), base, listen, how)
        content = measure(settings, found, folders(settings, out)[QV])
        _save_if_new(Path(out) / "paper.json", content, complete)
    return content


def _run_sweeps(
    settings: PaperSettings,
    where: dict[Targets, Path],
    base: str | Path | None,
    listen: Callable[[Progress], None] | None,
    how: dict[str, Any],
) -> dict[Targets, Results]:
    """Run each sweep in its folder, all from the base of the first; return their results."""
    plan = sweeps(settings)
    expected, found = sum(map(expected_number, plan.values())), {}
    for targets, sweep in plan.items():
        before = sum(len(results["trials"]) for results in found.values())
        heard = _counted(listen, before, expected)
        found[targets] = rank_sweep(sweep, where[targets], base=base, listen=heard, **how)
        base = where[targets] if base is None else base
    return found


def _save_if_new(path: Path, content: dict[str, Any], complete: bool) -> None:
    """Write the content unless the file holds it: a complete run may lie on a read-only disk."""
    try:
        if load_json(path) == as_json(content):
            return
    except CheckpointError:
        pass
    try:
        save_json(path, content)
    except OSError:
        if not complete:
            raise


def _counted(
    listen: Callable[[Progress], None] | None, before: int, expected: int
) -> Callable[[Progress], None] | None:
    """Return a listener to one sweep that counts the trials of all sweeps."""
    if listen is None:
        return None

    def hear(progress: Progress) -> None:
        done = before + progress.done
        listen(replace(progress, done=done, expected=max(expected, done)))

    return hear


def measure(settings: PaperSettings, found: dict[Targets, Results], folder: Path) -> dict[str, Any]:
    """Return the tables, the figures and the claims of finished sweeps.

    Parameters
    ----------
    settings : PaperSettings
    found : dict
        The results of each sweep.
    folder : Path
        Folder of the sweep of q and v, whose models the figures and table 7 describe.
    """
    adapters = read_adapters(found[QV], folder, {*settings.similar, *settings.amplified})
    low, high = settings.similar
    rng = np.random.default_rng(0)
    content = {
        "settings": asdict(settings),
        "versions": found[QV]["versions"],
        "base_made": next(iter(found.values())).get("base_made"),
        "base_test_loss": found[QV]["base_test_loss"],
        "figure3": figure(adapters, (low, high), rng),
        "figure4": figure(adapters, (high, high), rng),
        "table5": {"budget": budget(settings), "rows": table5_rows(settings, found)},
        "table6": {"rows": table6_rows(settings, found), "flat": table6_flat(settings, found)},
        "table7": {
            "rows": table7(adapters, load_arrays(folder / "base.npz"), settings.amplified),
            "paper": TABLE7,
        },
    }
    content["claims"] = [asdict(claim) for claim in all_claims(content)]
    return content


def read_adapters(
    results: Results, folder: Path, ranks: set[int]
) -> dict[int, dict[int, dict[str, Adapter]]]:
    """Return the trained (B, A) on the curve of a sweep, by rank, seed and path."""
    adapters: dict[int, dict[int, dict[str, Adapter]]] = {r: {} for r in sorted(ranks)}
    for run in results["runs"]:
        if run["rank"] in ranks and run["test_loss"] is not None:
            arrays = load_arrays(model_file(folder, as_trial(run)))
            paths = [name.removesuffix(".A") for name in arrays if name.endswith(".A")]
            adapters[run["rank"]][run["seed"]] = {
                path: (arrays[f"{path}.B"], arrays[f"{path}.A"]) for path in paths
            }
    lost = [r for r, seeds in adapters.items() if not seeds]
    if lost:
        raise ValueError(f"rank {lost[0]} on {short(QV)} diverged at every learning rate")
    return adapters


def table5_rows(settings: PaperSettings, found: dict[Targets, Results]) -> list[dict[str, Any]]:
    """Return table 5: for each set of matrices its rank, its parameters and its test losses."""
    return [
        {
            "targets": short(targets),
            "rank": r,
            "trainable_parameters": trainable_parameters(settings.text, targets, r),
            **_runs(found[targets], r),
            "paper": TABLE5.get(targets),
        }
        for targets, r in table5_ranks(settings).items()
    ]


def table6_rows(settings: PaperSettings, found: dict[Targets, Results]) -> list[dict[str, Any]]:
    """Return table 6: test losses by set of matrices and rank.

    If the paper does not have the highest rank, its own highest, 64, stands beside it.
    """
    rows, ranks = [], settings.text.ranks
    for targets, paper in TABLE6.items():
        for r in ranks:
            beside = 64 if r not in paper and r == max(ranks) else r
            numbers = [beside, *paper[beside]] if beside in paper else None
            row = {"targets": short(targets), "rank": r, **_runs(found[targets], r)}
            rows.append({**row, "paper": numbers})
    return rows


def table6_flat(settings: PaperSettings, found: dict[Targets, Results]) -> dict[str, list[str]]:
    """Return for each set of matrices from which rank of table 6 on its curve is flat."""
    said = {}
    for targets in TABLE6:
        runs = [run for run in found[targets]["runs"] if run["rank"] in settings.text.ranks]
        said[short(targets)] = flat({**found[targets], "runs": runs})
    return said


def _runs(results: Results, r: int) -> dict[str, Any]:
    """Return the learning rate and the test losses of a rank; None and {} if it diverged."""
    rates = [run["lr"] for run in results["runs"] if run["rank"] == r]
    losses = losses_by_seed(results).get(r, {})
    return {
        "lr": rates[0] if rates else None,
        "losses": {str(seed): loss for seed, loss in sorted(losses.items())},
    }
