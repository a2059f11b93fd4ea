"""What a task asks of a note, and how a user wants the answer.

All generated tasks read the same notes, such as "Anna from Oslo ordered 3 kg of figs for Friday.",
and no prompt says which task is meant, or for whom. So the adapter alone decides what is answered:
a base, or the adapter of another pair, cannot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from lora_np.experiments.instructions.words import Words


class Sample(NamedTuple):
    """A prompt, and the answer that is wanted."""

    prompt: str
    answer: str


class Note(NamedTuple):
    """A note on an order, and the facts that it states."""

    text: str
    name: str
    city: str
    weight: str
    good: str
    day: str


class Style(NamedTuple):
    """How a user wants every answer.

    Attributes
    ----------
    apply : callable
        ``apply(answer, text)`` returns the answer in this style.
    has_text : bool
        Whether the style uses the user's ``text``.
    """

    apply: Callable[[str, str], str]
    has_text: bool = False


def note(words: Words) -> Note:
    """Draw a note."""
    name, city, day = words.name(), words.city(), words.day()
    weight, good = f"{words.number(2, 60)} kg", words.goods(1)[0]
    text = words.one(
        (
            f"{name} from {city} ordered {weight} of {good} for {day}.",
            f"For {day}: {weight} of {good} to {name} in {city}.",
            f"{name} wants {weight} of {good} on {day}. The address is in {city}.",
            f"Please send {weight} of {good} to {city} by {day}, says {name}.",
        )
    )
    return Note(text, name, city, weight, good, day)


def in_grams(answer: str) -> str:
    """Return an answer with kilograms as grams.

    Examples
    --------
    >>> from lora_np.experiments.personal.tasks import in_grams
    >>> in_grams("12 kg of figs"), in_grams("Oslo")
    ('12000 g of figs', 'Oslo')
    """
    return re.sub(r"(\d+) kg\b", r"\g<1>000 g", answer)


GENERATORS: Mapping[str, Callable[[Note], str]] = {
    "who": lambda note: note.name,
    "what": lambda note: f"{note.weight} of {note.good}",
    "where": lambda note: note.city,
    "when": lambda note: note.day,
    "label": lambda note: f"{note.name}, {note.city}: {note.weight}",
}

STYLES: Mapping[str, Style] = {
    "plain": Style(lambda answer, text: answer),
    "signed": Style(lambda answer, text: f"{answer}\n-- {text}", has_text=True),
    "greeting": Style(lambda answer, text: f"{text} {answer}", has_text=True),
    "lower": Style(lambda answer, text: answer.lower()),
    "upper": Style(lambda answer, text: answer.upper()),
    "json": Style(lambda answer, text: json.dumps({"answer": answer}, ensure_ascii=False)),
    "bullet": Style(lambda answer, text: f"- {answer}"),
    "sentence": Style(lambda answer, text: f"The answer is {answer}."),
    "grams": Style(lambda answer, text: in_grams(answer)),
}
