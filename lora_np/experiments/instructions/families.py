"""The families of instructions: each draws an instruction, an input, and the one right output.

Every instruction describes its form in full, so that a model that was never trained on it can
follow it. Each family has wordings for training and others for the test of unseen phrasing. A
wording is a format string: ``{keys}``, ``{kind}`` or ``{form}`` stand for what the family draws.

Where a text does not hold the answer, the right output is ``REFUSAL``, and nothing else. The same
instructions are also given with texts that do hold it, so that the instruction does not betray
which of the two is right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import NamedTuple

from lora_np.experiments.instructions.words import Words

REFUSAL = "Not stated."
OR_REFUSE = f"If the text does not say, answer: {REFUSAL}"


class Drawn(NamedTuple):
    """What a family draws: the input, the right output, and what the wording's fields stand for."""

    input: str
    output: str
    fields: Mapping[str, str] = {}


class Family(NamedTuple):
    """A kind of instruction.

    Attributes
    ----------
    name : str
    draw : callable
        ``draw(words)`` returns a Drawn.
    wordings, unseen : tuple of str
        Wordings to train on, and wordings for the test of unseen phrasing. A family that is held
        out from training has no unseen ones: all of its wordings are.
    is_json : bool
        Whether outputs are JSON, so that equal values count beside equal text.
    """

    name: str
    draw: Callable[[Words], Drawn]
    wordings: tuple[str, ...]
    unseen: tuple[str, ...] = ()
    is_json: bool = False


def person(words: Words) -> tuple[str, dict[str, str | int]]:
    """Return a sentence about somebody, and the two or three facts that are asked for, by key."""
    name, city, age = words.name(), words.city(), words.number(18, 90)
    sentence = words.one(
        (
            f"{name} lives in {city} and is {age} years old.",
            f"{name} is {age} and lives in {city}.",
            f"In {city} lives {name}, aged {age}.",
        )
    )
    facts = {"name": name, "city": city, "age": age}
    keys = [list(facts)[i] for i in words.rng.permutation(3)[: words.number(2, 3)]]
    return sentence, {key: facts[key] for key in keys}


def shape(form: Callable[[dict[str, str | int]], str]) -> Callable[[Words], Drawn]:
    """Return the drawing of a family that writes facts about a person in a form."""

    def draw(words: Words) -> Drawn:
        sentence, facts = person(words)
        return Drawn(sentence, form(facts), {"keys": ", ".join(facts)})

    return draw


def items(form: Callable[[list[str]], str]) -> Callable[[Words], Drawn]:
    """Return the drawing of a family that writes a list of goods in a form."""

    def draw(words: Words) -> Drawn:
        goods = words.goods(words.number(3, 5))
        return Drawn(", ".join(goods), form(goods))

    return draw


def capitals(words: Words) -> Drawn:
    """Draw a sentence to be written in capital letters."""
    sentence = f"{words.name()} sells {words.goods(1)[0]} in {words.city()} every {words.day()}."
    return Drawn(sentence, sentence.upper())


KINDS = ("order number", "date", "email address")


def message(words: Words, kinds: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Return a message that holds one thing of each of these kinds, and these by kind."""
    name = words.name()
    held = {
        "order number": str(words.number(100, 9999)),
        "date": words.date(),
        "email address": f"{name.lower()}@{words.city().lower()}.example",
    }
    said = {
        "order number": f"Your order number is {held['order number']}.",
        "date": f"The {words.goods(1)[0]} arrive on {held['date']}.",
        "email address": f"Write to {held['email address']} with questions.",
    }
    parts = [f"{name} sends greetings.", *(said[kind] for kind in kinds)]
    return " ".join(parts), {kind: held[kind] for kind in kinds}


def extract(words: Words) -> Drawn:
    """Draw a message that holds what is asked for, beside another thing."""
    first, second, _ = (KINDS[i] for i in words.rng.permutation(3))
    both = (first, second) if words.number(0, 1) else (second, first)
    text, held = message(words, both)
    return Drawn(text, held[first], {"kind": first})


def extract_nothing(words: Words) -> Drawn:
    """Draw a message that does not hold what is asked for."""
    first, second, third = (KINDS[i] for i in words.rng.permutation(3))
    text, _ = message(words, (second, third)[: words.number(1, 2)])
    return Drawn(text, REFUSAL, {"kind": first})


def question(words: Words, answered: bool) -> Drawn:
    """Draw two sentences about two people, and a question about one of them."""
    who, other = words.name(), words.name()
    while other == who:
        other = words.name()
    facts = {
        "city": (f"{who} lives in {words.city()}.", f"Where does {who} live?"),
        "good": (f"{who} sells {words.goods(1)[0]}.", f"What does {who} sell?"),
        "day": (f"{who} comes on {words.day()}.", f"When does {who} come?"),
    }
    asked, said = (list(facts)[i] for i in words.rng.permutation(3)[:2])
    sentence, asks = facts[asked]
    near = words.one((f"{other} lives in {words.city()}.", f"{other} comes on {words.day()}."))
    lines = [near, sentence if answered else facts[said][0]]
    text = " ".join(lines if words.number(0, 1) else lines[::-1])
    output = sentence.rstrip(".").split()[-1] if answered else REFUSAL
    return Drawn(f"{text}\n{asks}", output)


def yes_no(words: Words) -> Drawn:
    """Draw a text, and a question that one of its sentences answers."""
    first, second = words.goods(2)
    name, city = words.name(), words.city()
    yes = f"{name} sells {first}."
    no = f"{name} does not sell {second}."
    is_yes = words.number(0, 1)
    lines = [yes, no] if words.number(0, 1) else [no, yes]
    text = " ".join((f"The shop is in {city}.", *lines))
    asks = f"Does {name} sell {first if is_yes else second}?"
    return Drawn(f"{text}\n{asks}", f"Yes: {yes}" if is_yes else f"No: {no}")


def template(words: Words) -> Drawn:
    """Draw facts, and a template to fill with them."""
    facts = {"name": words.name(), "item": words.goods(1)[0], "day": words.day()}
    form = words.one(
        (
            "Dear {name}, your {item} arrive on {day}.",
            "On {day} we send the {item} to {name}.",
            "{name} ordered {item} on {day}.",
            "We thank {name} for the {item}; see you on {day}.",
        )
    )
    given = ", ".join(f"{key}: {facts[key]}" for key in ("day", "name", "item"))
    return Drawn(given, form.format(**facts), {"form": form})


FAMILIES = (
    Family(
        "json",
        shape(json.dumps),
        (
            "Write this as one JSON object with the keys {keys}, in this order.",
            "Turn the sentence into a JSON object on one line. Keys, in order: {keys}.",
            "Give {keys} from the text as JSON, one object, keys in this order.",
        ),
        (
            "Which JSON object has the keys {keys}, in that order, and the sentence's values?",
            "My program reads JSON: one object on one line, fields {keys} in that order.",
        ),
        is_json=True,
    ),
    Family(
        "csv",
        shape(lambda facts: ",".join(map(str, facts.values()))),
        (
            "Write {keys} as one line of CSV, without spaces and without a header.",
            "Make a CSV line of the values of {keys}: commas, no spaces, no header.",
            "As CSV (no header, no spaces), give: {keys}.",
        ),
        (
            "A spreadsheet has the columns {keys}. Type its row for this text as bare CSV.",
            "Only the values of {keys}, please, with a comma and nothing else between them.",
        ),
    ),
    Family(
        "bullets",
        items(lambda goods: "\n".join(f"- {good}" for good in goods)),
        (
            'Write the items as a bullet list. Begin each line with "- ".',
            'Make a list with one item a line, each after "- ".',
            'Put every item on its own line, with "- " before it.',
        ),
        (
            'Could you break this up into bullets? I use "- " as the bullet.',
            'This would read better downwards: start each item with "- " on a new line.',
        ),
    ),
    Family(
        "capitals",
        capitals,
        (
            "Write the text in capital letters.",
            "Convert this sentence to upper case.",
            "Repeat the text, but make every letter a capital.",
        ),
        (
            "Please shout this sentence: no small letters at all.",
            "A sign has room for block letters only. How does this sentence look on it?",
        ),
    ),
    Family(
        "reversed",
        items(lambda goods: ", ".join(reversed(goods))),
        (
            "Write the list in reverse order, separated by commas.",
            "Reverse the order of these items. Keep the commas.",
            "Give the items from the last to the first, with commas between them.",
        ),
        (
            "Read this list backwards, item by item, and keep it comma-separated.",
            "Turn the list around: what is last comes first. Commas stay between items.",
        ),
    ),
    Family(
        "sorted",
        items(lambda goods: ", ".join(sorted(goods))),
        (
            "Sort the words alphabetically, separated by commas.",
            "Put these items in alphabetical order. Keep the commas.",
            "Give the list from A to Z, with commas between the items.",
        ),
        (
            "How would a dictionary order these words? Answer as a comma-separated list.",
            "Line these words up by their first letters, a before b, with commas between.",
        ),
    ),
    Family(
        "count",
        items(lambda goods: str(len(goods))),
        (
            "How many items does the list have? Answer with a number.",
            "Count the items. Write only the number.",
            "Give the length of this list as a number.",
        ),
        (
            "I need the total of things listed here, in digits and nothing else.",
            "If I ticked off each item, how many ticks would I make? Only the figure.",
        ),
    ),
    Family(
        "extract",
        extract,
        (
            f"Copy the {{kind}} from the text. {OR_REFUSE}",
            f"Which {{kind}} does the text contain? Write only that. {OR_REFUSE}",
            f"Extract the {{kind}}. {OR_REFUSE}",
        ),
        (
            f"Somewhere here may be one {{kind}}; give me just that. {OR_REFUSE}",
            f"I am looking for one {{kind}} and do not want anything else. {OR_REFUSE}",
        ),
    ),
    Family(
        "lookup",
        lambda words: question(words, answered=True),
        (
            f"Answer the question from the text in one word. {OR_REFUSE}",
            f"Read the text and answer in one word. {OR_REFUSE}",
            f"Use only the text. Answer in one word. {OR_REFUSE}",
        ),
        (
            f"Trust these sentences and nothing else; one word, please. {OR_REFUSE}",
            f"What can be known from these lines alone? Reply with one word. {OR_REFUSE}",
        ),
    ),
    Family(
        "yes or no",
        yes_no,
        (
            'Answer "Yes" or "No", then ": " and the sentence that says so.',
            'Write "Yes: " or "No: " and copy the sentence that proves it.',
            'Decide "Yes" or "No". After it, put ": " and the sentence with the reason.',
        ),
        (
            'Is it so? Begin with "Yes: " or "No: " and quote the sentence you rely on.',
            'True or not? Start with "Yes: " or "No: "; then repeat the sentence that settles it.',
        ),
    ),
    Family(
        "template",
        template,
        (
            "Fill this template with the values: {form}",
            "Replace what is in braces by the given values: {form}",
            "Complete the form: {form}",
        ),
        (
            "Here is a pattern: {form} Write it out with the facts below in place of the braces.",
            "Every word in braces stands for a fact below. Say this with the facts: {form}",
        ),
    ),
)

# Refusals have the instructions of the two families whose texts hold the answer.
WORDED = {family.name: (family.wordings, family.unseen) for family in FAMILIES}
REFUSALS = (
    Family("extract, not stated", extract_nothing, *WORDED["extract"]),
    Family("lookup, not stated", lambda words: question(words, answered=False), *WORDED["lookup"]),
)
TRAINED = FAMILIES + REFUSALS

HELD_OUT = (
    Family(
        "tags",
        shape(lambda facts: "".join(f"<{key}>{facts[key]}</{key}>" for key in facts)),
        (
            "Write {keys} as tags on one line, in this order: <key>value</key>, without spaces.",
            "Put each of {keys} between tags, <key>value</key>, all on one line without spaces.",
        ),
    ),
    Family(
        "key=value",
        shape(lambda facts: "\n".join(f"{key}={facts[key]}" for key in facts)),
        (
            "Write {keys}, in this order, as lines of the form key=value.",
            "For each of {keys} write one line key=value, without spaces.",
        ),
    ),
    Family(
        "numbered",
        items(lambda goods: "\n".join(f"{i}. {good}" for i, good in enumerate(goods, 1))),
        (
            'Write the items as a numbered list. The first line begins with "1. ".',
            'Number the items, one a line: "1. ", "2. " and so on.',
        ),
    ),
    Family(
        "table row",
        shape(lambda facts: f"| {' | '.join(map(str, facts.values()))} |"),
        (
            "Write {keys}, in this order, as one row of a Markdown table: | a | b |",
            "Give one Markdown table row with the values of {keys}, such as | a | b |",
        ),
    ),
)
ALL = {family.name: family for family in (*TRAINED, *HELD_OUT)}
