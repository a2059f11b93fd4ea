"""What the report draws and judges: rows of scores, each beside real images of its prompts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_np.images.adapters import adapted
from lora_np.images.denoiser import Denoiser
from lora_np.images.desk import Desk, plain
from lora_np.images.glyphs import LETTERS, NO_FAMILY, NO_LETTER, letters
from lora_np.images.plan import (
    BASE,
    LCM,
    LCM_FULL,
    LCM_SMALL,
    OUTLINE,
    REFINED,
    STYLE,
    STYLE_FULL,
    SUM,
    SUM_BARS,
)
from lora_np.images.scores import floor, nearness, reference, scored, sure

Results = dict[str, Any]
Row = dict[str, Any]
Pair = tuple[float, ...]  # the weights of a style and of LCM-LoRA
REFERENCE_SEED = 900
FEW = (1, 2, 4, 8)  # steps of the consistency sampler


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


def regular(desk: Desk) -> dict[str, Any]:
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
        model = desk.model(**{what: 1.0})
        for steps in FEW:
            rows.add(what, model, "consistency", steps)
    none = np.full((desk.settings.n // 2, 2), (NO_LETTER, NO_FAMILY))
    images = desk.draw(base, none, "ddim", 20)
    drawn = desk.draw(base, rows.real.words[:1000], "ddim", 20)
    fresh = letters(np.random.default_rng(REFERENCE_SEED), 1000).images
    trained_on = letters(np.random.default_rng(desk.work.seed), desk.settings.base.images).images
    near = nearness(drawn, fresh, trained_on)
    return {"rows": rows.found, "sure": sure(desk.judge, images), "nearness": near}


def styled(desk: Desk) -> dict[str, Any]:
    """Draw the style, and its sums with LCM-LoRA: on letters it was shown, and on the others."""
    s = desk.settings
    pairs = dict.fromkeys([*desk.weights(), (1.0, 1.0)])
    found: list[Row] = []
    for part, of in (("seen", s.style.of), ("unseen", s.unseen)):
        rows = Rows(desk, part, s.style.style, of)
        rows.add(BASE, desk.base.denoiser, "ddim", 20)
        style, full = desk.model(style=1.0), desk.model(style_full=1.0)
        for steps in s.steps:
            rows.add(STYLE, style, "ddim", steps)
        rows.add(STYLE_FULL, full, "ddim", 20)
        for pair in pairs:
            both = desk.model(style=pair[0], lcm=pair[1])
            for steps in FEW:
                rows.add(SUM, both, "consistency", steps, weights=list(pair))
        for steps in FEW:
            rows.add(STYLE, style, "consistency", steps)
        found += rows.found
    return {"rows": found}


def weighed(desk: Desk) -> dict[str, Any]:
    """Draw with the style at weights from 0 to beyond 1."""
    s, found = desk.settings, []
    for part, of in (("seen", s.style.of), ("unseen", s.unseen)):
        rows = Rows(desk, part, s.style.style, of)
        for weight in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5):
            rows.add(STYLE, desk.model(style=weight), "ddim", 20, weight=weight)
        found += rows.found
    return {"rows": found}


def outlined(desk: Desk) -> dict[str, Any]:
    """Draw outlines, with the MLP alone and with convolutions around it."""
    s, found = desk.settings, []
    models = {
        OUTLINE: desk.model(outline=1.0),
        REFINED: plain(adapted(desk.refined, [desk.folder(REFINED)], [1.0])),
    }
    for part, of in (("outline-seen", s.style.of), ("outline-unseen", s.unseen)):
        rows = Rows(desk, part, "outline", of)
        for what, model in models.items():
            rows.add(what, model, "ddim", 20)
        found += rows.found
    return {"rows": found}


def chosen(desk: Desk) -> dict[str, Any]:
    """Choose the weights of a sum, on a style of the other letters."""
    s, found = desk.settings, []
    for part, of in (("seen", s.unseen), ("unseen", s.style.of)):  # the letters change places
        rows = Rows(desk, part, s.style.style, of)
        style = desk.model(style_choosing=1.0)
        for steps, _ in SUM_BARS.values():
            rows.add(STYLE, style, "ddim", steps)
        for l1 in s.style_weights:
            for l2 in s.lcm_weights:
                model = desk.model(style_choosing=l1, lcm=l2)
                rows.add(SUM, model, "consistency", 2, weights=[l1, l2])
        found += rows.found
    over = over_bars(found)
    alone = {part: least({pair: {part: over[pair][part]} for pair in over}) for part in SUM_BARS}
    return {"rows": found, "weights": least(over), "alone": alone}


def over_bars(rows: list[Row]) -> dict[Pair, dict[str, float]]:
    """Return the FD of every pair of weights, over its bar, on letters seen and unseen.

    On seen letters the bar is a share of the style's two DDIM steps, on unseen ones of its fifty.
    """
    bars = {(row["set"], row.get("steps")): row["fd"] for row in rows if row["model"] == STYLE}
    over: dict[Pair, dict[str, float]] = {}
    for row in rows:
        if row["model"] == SUM:
            steps, share = SUM_BARS[row["set"]]
            of_pair = over.setdefault(tuple(row["weights"]), {})
            of_pair[row["set"]] = row["fd"] / (share * bars[row["set"], steps])
    return over


def least(over: Mapping[Pair, Mapping[str, float]]) -> list[float]:
    """Return the pair of weights whose larger ratio to a bar is smallest."""
    return list(min(over, key=lambda pair: (round(max(over[pair].values()), 3), pair)))


def speed(desk: Desk) -> dict[str, Any]:
    """Time one step of the student and fifty of the base, in turns, on batches of one size."""
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
