"""The text task's intrinsic dimension: a GPT that was pretrained against one that was not.

The base, the texts, their slices and the batches are the rank sweep's. Both models learn the same
second text in the same number of steps; each is measured against its own full training.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.checkpoint import load_json, save_json
from lora_np.data import split, windows
from lora_np.gpt import GPT
from lora_np.intrinsic.dimension import (
    Problem,
    Run,
    intrinsic_dimension,
)
from lora_np.sweep.store import ELSEWHERE, SweepError, check_base
from lora_np.sweep.text import Arrays, TextSettings, TextTask, batches, rebuild_base
from lora_np.train import evaluate

UNUSED = ("ranks", "target_modules", "lora_lr")  # of the sweep's settings
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
    >>> from lora_np.intrinsic import QUICK, IntrinsicSettings
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
) -> dict[str, Any]:
    """Measure the intrinsic dimension of the text task, pretrained and not.

    Parameters
    ----------
    settings : IntrinsicSettings
    out : str or Path
        Folder of ``results.json`` and the base. If it holds finished results of equal settings,
        these return; what was not finished starts again.
    base, executor : optional
        As for :func:`lora_np.sweep.rank_sweep`.
    listen : callable, optional
        Called with every finished run and its loss.

    Returns
    -------
    dict
        ``settings``, ``versions``, ``complete``, ``base_made``, ``base_sha256``, and, for
        "pretrained" and "random", what
        :func:`~lora_np.intrinsic.dimension.intrinsic_dimension` returns.

    Raises
    ------
    SweepError
        If the folder cannot be written or holds anything else, or `base` does not fit.
    ValueError
        If the text settings have no ``full_lr``.
    """
    s, folder = settings.text, Path(out)
    if s.full_lr is None:
        raise ValueError("full_lr is None, expected a learning rate: searches start there")
    task = TextTask(replace(s, ranks=(1,)), base)  # it checks ranks, which are not used here
    results = _open(settings, task, folder)
    if results["complete"]:
        return results
    arrays = _arrays(s, task.prepare(folder, progress=False))
    results.update(task.facts(folder, arrays["pretrained"]))
    check_base(results, task.given_sha256, folder)
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
    results["complete"] = True
    save_json(folder / "results.json", results)
    return results


def _arrays(settings: TextSettings, pretrained: Arrays) -> dict[str, Arrays]:
    """Return what runs need, by where they start."""
    blank = GPT(settings.gpt(), np.random.default_rng([0, 3])).parameters()
    random = {name: p.value for name, p in blank.items()}
    return {"pretrained": pretrained, "random": {**random, "adapt": pretrained["adapt"]}}


def _open(settings: IntrinsicSettings, task: TextTask, folder: Path) -> dict[str, Any]:
    """Return the results that the folder holds, or begin new ones; nothing is overwritten."""
    text = {k: v for k, v in asdict(settings.text).items() if k not in UNUSED}
    made_with = {"task": "intrinsic", "ds": settings.ds, **text, **task.identity()}
    made_with = json.loads(json.dumps(made_with))  # as it comes back from a file
    path = folder / "results.json"
    if path.exists():
        held = load_json(path)
        if not isinstance(held, dict) or held.get("settings") != made_with:
            raise SweepError(f"{path} is of other settings: {ELSEWHERE}, or remove it")
        if not isinstance(held.get("complete"), bool):
            raise SweepError(f"{path} does not say whether it is complete: remove it")
        check_base(held, task.given_sha256, folder)
        return held
    if folder.exists() and any(folder.iterdir()):
        raise SweepError(f"{folder} holds files, but no results.json: {ELSEWHERE}")
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    results = {"settings": made_with, "versions": versions, "complete": False}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_json(path, results)
    except OSError:
        raise SweepError(f"{folder} cannot be written: {ELSEWHERE}") from None
    return results
