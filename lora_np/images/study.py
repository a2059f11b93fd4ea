"""The report's work: train, keep, draw and judge. A run that was stopped continues.

Every training leaves an ordinary folder: a base or an adapter, which ``lora-np images sample`` can
draw with. Everything that is drawn leaves rows of scores. Work runs in processes that hold BLAS at
one thread, so the results do not depend on the number of processes, and the CPU seconds of a
training are those of one core.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.crew import one_blas_thread
from lora_np.experiments.folder import Kind, as_json, begin, opened, save_results
from lora_np.experiments.runner import Progress, run_all
from lora_np.experiments.unchanged import check_unchanged, parameter_hashes
from lora_np.images.adapters import method_of, save_trained
from lora_np.images.denoiser import Denoiser
from lora_np.images.desk import AROUND_BASE, Desk
from lora_np.images.drawn import chosen, outlined, regular, speed, styled, weighed
from lora_np.images.folder import make_base
from lora_np.images.judge import save_judge, train_judge
from lora_np.images.plan import (
    BASE,
    CHANGES,
    CHOOSING,
    CHOSEN,
    JUDGE,
    LCM,
    LCM_FULL,
    LCM_SMALL,
    OUTLINE,
    REFINED,
    SPEED,
    STYLE,
    STYLE_FULL,
    ImagesSettings,
    Work,
    all_work,
    next_work,
)
from lora_np.images.training import distil, train_style

Results = dict[str, Any]
JUDGE_SEED = 9


def _expect_rows(results: Results) -> None:
    dict(results["settings"]["distil"])
    dict(results.get("done", {}))  # before the first work ends, there is none


KIND = Kind("a report on images", ("*.png", "images.txt", "judge.npz"), _expect_rows)


def run_images(
    settings: ImagesSettings,
    out: str | Path,
    *,
    executor: Executor | None = None,
    listen: Callable[[Progress], None] | None = None,
    take_over: bool = False,
) -> Results:
    """Run or continue the report's work in a folder.

    Parameters
    ----------
    settings : ImagesSettings
    out : str or Path
        Gets ``results.json``, ``judge.npz`` and a folder ``models/WHAT-SEED`` for every training.
    executor : concurrent.futures.Executor, optional
        By default this process.
    listen : callable, optional
        Called with the progress after every piece of work.
    take_over : bool
        As for :func:`lora_np.files.lock.hold`.

    Returns
    -------
    dict
        The content of ``results.json``: under ``done``, by the name of a piece of work, what it
        found.
    """
    out = Path(out)
    with opened(KIND, out, asdict(settings), take_over=take_over) as results:
        if results["complete"]:
            return results
        begin(out, results, {"base_sha256": None}, None)
        done = results.setdefault("done", {})

        def keep(work: Work, found: dict[str, Any], running: int) -> None:
            done[str(work)] = as_json(found)
            save_results(out, results)
            if listen is not None:
                listen(Progress(len(done), len(all_work(settings)), work, found))

        waiting = partial(next_work, settings, done)
        run_all(waiting, partial(carry_out_work, settings, out), keep, executor)
        results["complete"] = True
        save_results(out, results)
    return results


def check_images_run(settings: ImagesSettings, out: str | Path, *, take_over: bool = False) -> bool:
    """Return whether the folder holds complete results; raise what :func:`run_images` raises."""
    with opened(KIND, Path(out), asdict(settings), take_over=take_over) as results:
        return results["complete"]


def carry_out_work(settings: ImagesSettings, out: Path, work: Work) -> dict[str, Any]:
    """Do one piece of work; return what the results hold of it."""
    with one_blas_thread():
        return DO[work.what](Desk(settings, out, work))


# ----------------------------------------------------------------------------------- trained


def _timed(train: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    wall, cpu = time.perf_counter(), time.process_time()
    trained = train()
    return trained, {
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - wall,
    }


def _train_judge(desk: Desk) -> dict[str, Any]:
    judge, took = _timed(lambda: train_judge(np.random.default_rng(JUDGE_SEED)))
    save_judge(desk.out / "judge.npz", judge)
    return took


def _train_base(desk: Desk) -> dict[str, Any]:
    settings = replace(desk.settings.base, processes=1)
    _, took = _timed(lambda: make_base(desk.folder(BASE), settings, desk.work.seed))
    return {**took, "parameters": _size(desk.base.denoiser)}


def _train_change(desk: Desk) -> dict[str, Any]:
    """Train a style or a student, and write its folder."""
    s, what = desk.settings, desk.work.what
    train, settings, r = {
        STYLE: (train_style, s.style, s.r),
        STYLE_FULL: (train_style, s.style_full, None),
        CHOOSING: (train_style, replace(s.style, of=s.unseen), s.r),
        LCM: (distil, s.distil, s.r_lcm),
        LCM_SMALL: (distil, s.distil, s.r_small),
        LCM_FULL: (distil, s.distil_full, None),
        OUTLINE: (train_style, replace(s.style, style="outline"), s.r),
        REFINED: (train_style, s.refined, s.r_refined),
    }[what]
    name, base = f"{BASE}-{desk.work.seed}", desk.base
    if what == REFINED:
        name, base = f"{AROUND_BASE}-{desk.work.seed}", desk.refined
    if train is distil:
        settings = replace(settings, processes=1)
    rng, before = desk.rng(), parameter_hashes(base.denoiser)
    model, took = _timed(lambda: train(base, method_of(r, base.denoiser), rng, settings))
    folder = desk.folder(what)
    shutil.rmtree(folder, ignore_errors=True)  # one that a stopped run wrote and did not record
    about = {"sampler": "consistency"} if train is distil else {}
    save_trained(folder, model, base, name, {"kind": what, **about})
    check_unchanged(before, parameter_hashes(base.denoiser), str(desk.work))
    return {**took, "parameters": _size(model, trainable=True)}


def _size(model: Denoiser, trainable: bool = False) -> int:
    return sum(p.size for p in model.parameters().values() if p.trainable or not trainable)


DO: Mapping[str, Callable[[Desk], dict[str, Any]]] = {
    JUDGE: _train_judge,
    BASE: _train_base,
    **dict.fromkeys((*CHANGES, CHOOSING), _train_change),
    "regular": regular,
    CHOSEN: chosen,
    "styled": styled,
    "weighed": weighed,
    "outlined": outlined,
    SPEED: speed,
}
