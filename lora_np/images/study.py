"""The report's work: train, keep, draw, judge; stopped at any moment, it continues.

Everything that is trained leaves a folder, an ordinary one: bases and adapters that ``lora-np
images sample`` draws with. Everything that is drawn leaves rows of figures. Work runs in processes
that hold BLAS at one thread, so the results do not depend on their number, and the CPU seconds of a
training are those of one core.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.crew import one_blas_thread
from lora_np.experiments.folder import Kind, as_json, begin, opened, save_results
from lora_np.experiments.runner import Progress, run_all
from lora_np.experiments.unchanged import check_unchanged, parameter_hashes
from lora_np.files import load_json
from lora_np.images.adapters import adapted, method_of, save_trained
from lora_np.images.denoiser import Denoiser
from lora_np.images.folder import load_base, make_base
from lora_np.images.glyphs import LETTERS, NO_FAMILY, NO_LETTER, letters
from lora_np.images.judge import load_judge, save_judge, train_judge
from lora_np.images.plan import (
    BASE,
    CHOOSING,
    CHOSEN,
    JUDGE,
    LCM,
    LCM_FULL,
    LCM_SMALL,
    OUTLINE,
    SPEED,
    STYLE,
    STYLE_FULL,
    ImagesSettings,
    Work,
    all_work,
    next_work,
)
from lora_np.images.samplers import SAMPLERS
from lora_np.images.scores import floor, nearness, reference, scored, sure
from lora_np.images.training import Base, distil, train_style

Results = dict[str, Any]
Row = dict[str, Any]
JUDGE_SEED, REFERENCE_SEED = 9, 900
FEW = (1, 2, 4, 8)  # steps of the consistency sampler
SUM_BARS = {"seen": (2, 0.80), "unseen": (50, 0.75)}  # of the style's FD with so many DDIM steps


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
        Hears of every piece of work that ends.
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
        chosen = partial(carry_out_work, settings, out)
        run_all(waiting, chosen, keep, executor)
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


class Desk:
    """A piece of work with what it needs: settings, folders, models, generators."""

    def __init__(self, settings: ImagesSettings, out: Path, work: Work) -> None:
        self.settings, self.out, self.work = settings, out, work

    def rng(self, *of: int) -> np.random.Generator:
        """Return a generator of this work's own."""
        place = [str(work) for work in all_work(self.settings)].index(str(self.work))
        return np.random.default_rng([self.work.seed, place, *of])

    def folder(self, what: str) -> Path:
        """Return the folder of a model with this work's seed."""
        return self.out / "models" / f"{what}-{self.work.seed}"

    def weights(self) -> tuple[float, float]:
        """Return the weights of the sum that were chosen, as the results hold them."""
        l1, l2 = load_json(self.out / "results.json")["done"][CHOSEN]["weights"]
        return l1, l2

    @property
    def base(self) -> Base:
        """The base of this seed."""
        return _base(self.folder(BASE))

    @property
    def judge(self) -> Any:
        """The judge of all seeds."""
        return _judge(self.out / "judge.npz")

    def model(self, **weights: float) -> Denoiser:
        """Return the base with adapters, each named with its weight."""
        folders = [self.folder(what.replace("_", "-")) for what in weights]
        return adapted(self.base, folders, list(weights.values()))

    def draw(
        self, model: Denoiser, words: np.ndarray, sampler: str, steps: int, guidance: float = 1.0
    ) -> np.ndarray:
        """Draw images; every model and sampler starts from the same noise."""
        z = SAMPLERS[sampler](
            model, words, steps=steps, rng=np.random.default_rng(self.work.seed), guidance=guidance
        )
        return self.base.codec.decode(z)


@lru_cache(maxsize=2)
def _base(folder: Path) -> Base:
    return load_base(folder)


@lru_cache(maxsize=1)
def _judge(path: Path) -> Any:
    return load_judge(path)


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
    rng, before = desk.rng(), parameter_hashes(desk.base.denoiser)
    train, settings, r = {
        STYLE: (train_style, s.style, s.r),
        STYLE_FULL: (train_style, s.style_full, None),
        CHOOSING: (train_style, replace(s.style, of=s.unseen), s.r),
        LCM: (distil, s.distil, s.r_lcm),
        LCM_SMALL: (distil, s.distil, s.r_small),
        LCM_FULL: (distil, s.distil_full, None),
        OUTLINE: (train_style, replace(s.style, style="outline"), s.r),
    }[what]
    if train is distil:
        settings = replace(settings, processes=1)
    model, took = _timed(lambda: train(desk.base, method_of(r), rng, settings))
    folder = desk.folder(what)
    shutil.rmtree(folder, ignore_errors=True)  # one that a stopped run wrote and did not record
    about = {"sampler": "consistency"} if train is distil else {}
    save_trained(folder, model, desk.base, f"{BASE}-{desk.work.seed}", {"kind": what, **about})
    check_unchanged(before, parameter_hashes(desk.base.denoiser), str(desk.work))
    return {**took, "parameters": _size(model, trainable=True)}


def _size(model: Denoiser, trainable: bool = False) -> int:
    return sum(p.size for p in model.parameters().values() if p.trainable or not trainable)


# ------------------------------------------------------------------------------ drawn and judged


class Rows:
    """Rows of scores for images of one style and some letters, beside real ones."""

    def __init__(self, desk: Desk, part: str, style: str, of: str = LETTERS) -> None:
        self.desk, self.part, self.found = desk, part, []
        self.real = reference(desk.judge, REFERENCE_SEED, desk.settings.n, style, of)
        scores = floor(desk.judge, self.real, REFERENCE_SEED, of)
        self.found.append({"set": part, "model": "real", **scores})

    def add(
        self,
        name: str,
        model: Denoiser,
        sampler: str,
        steps: int,
        guidance: float = 1.0,
        **more: Any,
    ) -> Row:
        """Draw from a model, judge, and keep a row."""
        images = self.desk.draw(model, self.real.words, sampler, steps, guidance)
        how = {"sampler": sampler, "steps": steps, "guidance": guidance, **more}
        scores = scored(self.desk.judge, images, self.real.words, self.real)
        self.found.append({"set": self.part, "model": name, **how, **scores})
        return self.found[-1]


def _regular(desk: Desk) -> dict[str, Any]:
    """Draw regular letters: the base with every sampler, and the students."""
    base, rows = desk.base.denoiser, Rows(desk, "all", "regular")
    for steps in desk.settings.steps:
        rows.add(BASE, base, "ddim", steps)
    for sampler, numbers in (("dpm_solver", (4, 8, 20)), ("ddpm", (50,)), ("consistency", FEW)):
        for steps in numbers:
            rows.add(BASE, base, sampler, steps)
    for guidance in (1.5, 2.0, 3.0):
        rows.add(BASE, base, "ddim", 20, guidance)
    for what in (LCM, LCM_FULL, LCM_SMALL):
        model = adapted(desk.base, [desk.folder(what)], [1.0])
        for steps in FEW:
            rows.add(what, model, "consistency", steps)
    none = np.full((desk.settings.n // 2, 2), (NO_LETTER, NO_FAMILY))
    images = desk.draw(base, none, "ddim", 20)
    drawn = desk.draw(base, rows.real.words[:1000], "ddim", 20)
    fresh = letters(np.random.default_rng(REFERENCE_SEED), 1000).images
    trained_on = letters(np.random.default_rng(desk.work.seed), desk.settings.base.images).images
    near = nearness(drawn, fresh, trained_on)
    return {"rows": rows.found, "sure": sure(desk.judge, images), "nearness": near}


def _styled(desk: Desk) -> dict[str, Any]:
    """Draw the style: on letters it was shown, and on the others."""
    s = desk.settings
    l1, l2 = desk.weights()
    found: list[Row] = []
    for part, of in (("seen", s.style.of), ("unseen", s.unseen)):
        rows = Rows(desk, part, s.style.style, of)
        rows.add(BASE, desk.base.denoiser, "ddim", 20)
        style, full = desk.model(style=1.0), desk.model(style_full=1.0)
        for steps in s.steps:
            rows.add(STYLE, style, "ddim", steps)
        rows.add(STYLE_FULL, full, "ddim", 20)
        for pair in dict.fromkeys(((l1, l2), (1.0, 1.0))):
            both = desk.model(style=pair[0], lcm=pair[1])
            for steps in FEW:
                rows.add("sum", both, "consistency", steps, weights=list(pair))
        for steps in FEW:
            rows.add(STYLE, style, "consistency", steps)
        found += rows.found
    return {"rows": found}


def _weighed(desk: Desk) -> dict[str, Any]:
    """Draw with the style at weights from 0 to beyond 1."""
    s, found = desk.settings, []
    for part, of in (("seen", s.style.of), ("unseen", s.unseen)):
        rows = Rows(desk, part, s.style.style, of)
        for weight in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5):
            rows.add(STYLE, desk.model(style=weight), "ddim", 20, weight=weight)
        found += rows.found
    return {"rows": found}


def _chosen(desk: Desk) -> dict[str, Any]:
    """Choose the weights of a sum, on a style of the other letters."""
    s, found = desk.settings, []
    for part, of in (("seen", s.unseen), ("unseen", s.style.of)):  # the letters change places
        rows = Rows(desk, part, s.style.style, of)
        style = desk.model(style_choosing=1.0)
        for steps in (2, 50):
            rows.add(STYLE, style, "ddim", steps)
        for l1 in s.weights[1:]:
            for l2 in s.weights:
                model = desk.model(style_choosing=l1, lcm=l2)
                rows.add("sum", model, "consistency", 2, weights=[l1, l2])
        found += rows.found
    return {"rows": found, "weights": best_weights(found)}


def best_weights(rows: list[Row]) -> list[float]:
    """Return the pair of weights whose larger ratio to its own bar is smallest.

    On seen letters the bar is the style's two DDIM steps, on unseen ones its fifty.
    """
    bars = {(row["set"], row.get("steps")): row["fd"] for row in rows if row["model"] == STYLE}
    ratios: dict[tuple[float, ...], float] = {}
    for row in rows:
        if row["model"] == "sum":
            pair, (steps, share) = tuple(row["weights"]), SUM_BARS[row["set"]]
            over = row["fd"] / (share * bars[row["set"], steps])
            ratios[pair] = max(ratios.get(pair, 0.0), over)
    return list(min(ratios, key=lambda pair: (round(ratios[pair], 3), pair)))


def _speed(desk: Desk) -> dict[str, Any]:
    """Time a step of the student and fifty of the base, in turns, at one batch."""
    words = np.tile([[17, 1]], (256, 1))
    sides = {
        "one": (desk.model(lcm=1.0), "consistency", 1),
        "fifty": (desk.base.denoiser, "ddim", 50),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(7):
        for name, (model, sampler, steps) in sides.items():
            begun = time.process_time()
            desk.draw(model, words, sampler, steps)
            seconds[name].append(time.process_time() - begun)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    return {"seconds": seconds, "ratio": middle["fifty"] / middle["one"]}


DO: Mapping[str, Callable[[Desk], dict[str, Any]]] = {
    JUDGE: _train_judge,
    BASE: _train_base,
    **dict.fromkeys(
        (STYLE, STYLE_FULL, CHOOSING, LCM, LCM_SMALL, LCM_FULL, OUTLINE), _train_change
    ),
    "regular": _regular,
    CHOSEN: _chosen,
    "styled": _styled,
    "weighed": _weighed,
    SPEED: _speed,
}
