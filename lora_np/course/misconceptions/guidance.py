"""Classifier-free guidance: v = v_none + w (v_words - v_none)."""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_np.course.misconceptions.v_prediction import SHAPES
from lora_np.course.task import Draw, Task

WEIGHTS = (1.5, 0.0, 1.0, 4.0, 2.25)  # w, one entry for each draw


def _guided(v_none: Any, v_words: Any, w: Any) -> Any:
    """Return v."""
    return v_none + w * (v_words - v_none)


def _guidances(rng: np.random.Generator) -> list[Draw]:
    n = rng.standard_normal
    return [{"v_none": n(s), "v_words": n(s), "w": w} for s, w in zip(SHAPES, WEIGHTS)]


GUIDED = Task("guided", ("v",), _guided, _guidances)
GUIDED.usual_mistakes(but=("transposed",))


@GUIDED.mistake("v")
def _w_off_by_one(v_none: Any, v_words: Any, w: Any) -> Any:
    """Your weight is w + 1: w = 1 must return v_words, and w = 0 must return v_none."""
    return v_words + w * (v_words - v_none)


@GUIDED.mistake("v")
def _w_minus_one(v_none: Any, v_words: Any, w: Any) -> Any:
    """Your weight is w - 1: it should be w, in v_none + w (v_words - v_none)."""
    return v_none + (w - 1) * (v_words - v_none)


@GUIDED.mistake("v")
def _away_from_the_words(v_none: Any, v_words: Any, w: Any) -> Any:
    """Your v goes from the words to none: start at v_none and go toward v_words."""
    return v_words + w * (v_none - v_words)


@GUIDED.mistake("v")
def _difference_subtracted(v_none: Any, v_words: Any, w: Any) -> Any:
    """Your v goes away from the words: add w (v_words - v_none), do not subtract it."""
    return v_none - w * (v_words - v_none)


@GUIDED.mistake("v")
def _difference_alone(v_none: Any, v_words: Any, w: Any) -> Any:
    """Your v is only w (v_words - v_none): add v_none."""
    return w * (v_words - v_none)


@GUIDED.mistake("v")
def _weights_do_not_sum_to_one(v_none: Any, v_words: Any, w: Any) -> Any:
    """Your v is v_none + w v_words: subtract v_none from v_words first."""
    return v_none + w * v_words


@GUIDED.mistake("v")
def _words_times_w(v_words: Any, w: Any) -> Any:
    """Your v is w v_words: w multiplies the difference of v_words and v_none."""
    return w * v_words


@GUIDED.mistake("v")
def _not_guided(v_words: Any) -> Any:
    """Your v is v_words, without guidance: v_none + w (v_words - v_none)."""
    return v_words
