"""The text task's intrinsic dimension: a GPT that was pretrained against one that was not.

The base, the texts, their slices and the batches are the rank sweep's. Both models learn the same
second text in the same number of steps; each is measured against its own full training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.data import split, windows
from lora_np.experiments.intrinsic.dimension import (
    Problem,
    Run,
    intrinsic_dimension,
)
from lora_np.experiments.rank_sweep.store import (
    ELSEWHERE,
    Results,
    SweepError,
    as_json,
    check_base,
    new_results,
    opened,
)
from lora_np.experiments.rank_sweep.text import (
    Arrays,
    TextSettings,
    TextTask,
    batches,
    rebuild_base,
)
from lora_np.files import load_json, save_json
from lora_np.files.atomic import strangers
from lora_np.models import GPT
from lora_np.train import evaluate

UNUSED = ("ranks", "target_modules", "lora_lr", "method")  # of the sweep's settings
STARTS = ("pretrained", "random")


@dataclass(frozen=True)
class IntrinsicSettings:
    """What decides the results.

    Parameters
    ----------
    ds : tuple of int
        The default ends with D, the number of parameters of the default sizes.
    text : TextSettings
        Texts, sizes, ``steps`` of every run, ``seeds``, and ``full_lr``, where searches start; the
        ranks and what else is LoRA's are not used.

    Examples
    --------
    >>> from lora_np.experiments.intrinsic import QUICK, IntrinsicSettings
    >>> IntrinsicSettings().text.seeds, QUICK.ds
    (2, (64, 1024, 16384))
    """

    ds: tuple[int, ...] = (64, 256, 512, 1024, 2048, 4096, 8192, 16384, 120576)
    text: TextSettings = field(default_factory=lambda: TextSettings(seeds=2))


QUICK = IntrinsicSettings(
    ds=(64, 1024, 16384),
    text=TextSettings(seeds=1, pretrain_steps=80, steps=10, windows=16),
)


@dataclass(frozen=True)
class TextProblem:
    """Adapt a GPT with these arrays to the second text; it travels to any process."""

    settings: TextSettings
    arrays: Arrays

    def __call__(self, seed: int) -> Problem:
        """Return the model, the seed's batches, and the validation loss."""
        s, slices = self.settings, split(self.arrays["adapt"])
        held_out = windows(slices.validation, s.block_size, s.windows)
        return Problem(
            rebuild_base(s, self.arrays),
            batches(s, slices.train, np.random.default_rng([seed, 0])),
            lambda model: evaluate(model, *held_out),
        )


def intrinsic_run(
    settings: IntrinsicSettings,
    out: str | Path,
    *,
    base: str | Path | None = None,
    executor: Executor | None = None,
    listen: Callable[[Run, float], None] | None = None,
    take_over: bool = False,
) -> dict[str, Any]:
    """Measure the intrinsic dimension of the text task, pretrained and not.

    Parameters
    ----------
    settings : IntrinsicSettings
    out : str or Path
        Folder of ``results.json`` and the base. If it holds finished results of equal settings,
        these return; what was not finished starts again.
    base, executor, take_over : optional
        As for :func:`lora_np.experiments.rank_sweep.rank_sweep`.
    listen : callable, optional
        Called with every finished run and its loss.

    Returns
    -------
    dict
        ``settings``, ``versions``, ``complete``, ``base_made``, ``base_sha256``, and, for
        "pretrained" and "random", what
        :func:`~lora_np.experiments.intrinsic.dimension.intrinsic_dimension` returns.

    Raises
    ------
    SweepError
        If the folder cannot be written, is in use, or holds anything else, or `base` does not fit.
    ValueError
        If the text settings have no ``full_lr``.
    """
    folder, task = Path(out), _task(settings, base)
    with _opened(settings, task, folder, take_over) as results:
        if not results["complete"]:
            arrays = task.prepare(folder, progress=False)
            results.update(task.facts(folder, arrays))
            check_base(results, task.given_sha256, folder)
            _measure(settings, arrays, results, executor, listen)
            results["complete"] = True
            save_json(folder / "results.json", results)
    return results


def check_intrinsic(
    settings: IntrinsicSettings,
    out: str | Path,
    base: str | Path | None = None,
    *,
    take_over: bool = False,
) -> bool:
    """Return whether `out` holds this run, complete; raise what intrinsic_run would raise."""
    with _opened(settings, _task(settings, base), Path(out), take_over) as results:
        return bool(results["complete"])


def _task(settings: IntrinsicSettings, base: str | Path | None) -> TextTask:
    if settings.text.full_lr is None:
        raise ValueError("full_lr is None, expected a learning rate: searches start there")
    return TextTask(replace(settings.text, ranks=(1,)), base)  # it checks ranks, not used here


def _measure(
    settings: IntrinsicSettings,
    base: Arrays,
    results: Results,
    executor: Executor | None,
    listen: Callable[[Run, float], None] | None,
) -> None:
    """Put into the results what both starts lead to."""
    s = settings.text
    assert s.full_lr is not None  # _task sees to it
    arrays = _arrays(s, base)
    options = {"steps": s.steps, "warmup": s.steps // 10, "options": {"weight_decay": 0.0}}
    for start in STARTS:
        results[start] = intrinsic_dimension(
            TextProblem(s, arrays[start]),
            settings.ds,
            lr=s.full_lr,
            fit_options=options,
            seeds=s.seeds,
            executor=executor,
            listen=listen,
        )


def _arrays(settings: TextSettings, pretrained: Arrays) -> dict[str, Arrays]:
    """Return what runs need, by where they start."""
    blank = GPT(settings.gpt(), np.random.default_rng([0, 3])).parameters()
    random = {name: p.value for name, p in blank.items()}
    return {"pretrained": pretrained, "random": {**random, "adapt": pretrained["adapt"]}}


@contextmanager
def _opened(
    settings: IntrinsicSettings, task: TextTask, folder: Path, take_over: bool
) -> Iterator[Results]:
    """Give the results that the folder holds, or new ones; nothing is overwritten."""
    text = {k: v for k, v in asdict(settings.text).items() if k not in UNUSED}
    made_with = as_json({"task": "intrinsic", "ds": settings.ds, **text, **task.identity()})
    read = partial(_read, folder, made_with, task.given_sha256)
    begin = partial(new_results, folder, made_with)
    with opened(folder, read, begin, take_over) as results:
        yield results


def _read(folder: Path, made_with: dict[str, Any], given_sha256: str | None) -> Results | None:
    path = folder / "results.json"
    if path.exists():
        held = load_json(path)
        if not isinstance(held, dict) or held.get("settings") != made_with:
            raise SweepError(f"{path} is of other settings: {ELSEWHERE}, or remove it")
        if not isinstance(held.get("complete"), bool):
            raise SweepError(f"{path} does not say whether it is complete: remove it")
        check_base(held, given_sha256, folder)
        return held
    if folder.is_dir() and strangers(folder):
        raise SweepError(f"{folder} holds files, but no results.json: {ELSEWHERE}")
    return None
