"""The templates: each draws a query on a schema, and the slots of a question that asks for it.

The gold queries keep one style, so that a small model learns one way to write each: capitals for
SQL's words, ``table.column`` where two tables are joined and plain columns elsewhere, single
quotes, no aliases, no last semicolon.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from lora_np.experiments.sql.schemas import DAYS, START, YEARS, Column, Kind, Schema, Table

T = TypeVar("T")

AGGREGATES = {"average": "AVG", "total": "SUM", "smallest": "MIN", "largest": "MAX"}
EXTREMES = {"highest": "DESC", "lowest": "ASC"}
RESERVED = 4  # one in so many values of a text column is never part of a training question


class Drawn(NamedTuple):
    """A query and what a question must say to ask for it.

    Attributes
    ----------
    slots : dict of str to object
    sql : str
    """

    slots: dict[str, Any]
    sql: str


class Draw:
    """Draws tables, columns and values of a schema.

    Parameters
    ----------
    schema : Schema
    rng : numpy.random.Generator
    new : bool
        Whether values of text columns are those that no training question has, or the others.
    """

    def __init__(self, schema: Schema, rng: np.random.Generator, new: bool = False) -> None:
        self.schema, self.rng, self.new = schema, rng, new

    def one(self, choices: Sequence[T]) -> T:
        """Return one of some choices."""
        return choices[int(self.rng.integers(len(choices)))]

    def table(self, *kinds: Kind) -> Table:
        """Return a table that has columns of all these kinds."""
        return self.one([t for t in self.schema.tables if all(t.of_kind(k) for k in kinds)])

    def shown(self, table: Table, *but: Column) -> Column:
        """Return a column to show that is none of those in the condition: often the label."""
        columns = [c for c in table.columns if c.kind != "key" and c not in but]
        labels = [c for c in columns if c.kind == "label"]
        return self.one(labels if labels and self.rng.random() < 0.5 else columns)

    def value(self, column: Column) -> str:
        """Return a value of a text column."""
        reserved = len(column.values) // RESERVED
        known, new = column.values[:-reserved], column.values[-reserved:]
        return self.one(new if self.new else known)

    def number(self, column: Column, low: float, high: float) -> int:
        """Return a number between two fractions of a column's range."""
        fraction = self.rng.uniform(low, high)
        return round(column.low + fraction * (column.high - column.low))

    def date(self, low: float, high: float) -> str:
        """Return a date between two fractions of the years of all dates."""
        return str(START + datetime.timedelta(days=int(DAYS * self.rng.uniform(low, high))))


def _named(table: Table, **columns: Column) -> dict[str, Any]:
    """Return the slots of a table's two names and of columns."""
    words = {slot: column.words for slot, column in columns.items()}
    return {"things": table.name, "thing": table.thing, **words}


def _filter(draw: Draw) -> Drawn:
    table = draw.table("text")
    where = draw.one(table.of_kind("text"))
    column, value = draw.shown(table, where), draw.value(where)
    sql = f"SELECT {column.name} FROM {table.name} WHERE {where.name} = '{value}'"
    return Drawn(_named(table, column=column, where=where) | {"value": value}, sql)


def _both(draw: Draw) -> Drawn:
    table = draw.table("text", "number")
    where, number = draw.one(table.of_kind("text")), draw.one(table.of_kind("number"))
    column, value = draw.shown(table, where, number), draw.value(where)
    low = draw.number(number, 0.2, 0.6)
    slots = _named(table, column=column, where=where, number=number) | {"value": value, "low": low}
    said = f"{where.name} = '{value}' AND {number.name} > {low}"
    return Drawn(slots, f"SELECT {column.name} FROM {table.name} WHERE {said}")


def _count(draw: Draw) -> Drawn:
    table = draw.table("text")
    where = draw.one(table.of_kind("text"))
    value = draw.value(where)
    sql = f"SELECT COUNT(*) FROM {table.name} WHERE {where.name} = '{value}'"
    return Drawn(_named(table, where=where) | {"value": value}, sql)


def _aggregate(draw: Draw) -> Drawn:
    table = draw.table("text", "number")
    where, number = draw.one(table.of_kind("text")), draw.one(table.of_kind("number"))
    aggregate, value = draw.one(list(AGGREGATES)), draw.value(where)
    slots = _named(table, where=where, number=number) | {"aggregate": aggregate, "value": value}
    result = f"{AGGREGATES[aggregate]}({number.name})"
    return Drawn(slots, f"SELECT {result} FROM {table.name} WHERE {where.name} = '{value}'")


def _group(draw: Draw) -> Drawn:
    table = draw.table("text", "number")
    by, number = draw.one(table.of_kind("text")), draw.one(table.of_kind("number"))
    aggregate = draw.one(list(AGGREGATES))
    result = f"{AGGREGATES[aggregate]}({number.name})"
    sql = f"SELECT {by.name}, {result} FROM {table.name} GROUP BY {by.name}"
    return Drawn(_named(table, by=by, number=number) | {"aggregate": aggregate}, sql)


def _having(draw: Draw) -> Drawn:
    table = draw.table("text")
    by = draw.one(table.of_kind("text"))
    mean = table.rows // len(by.values)
    count = int(draw.rng.integers(mean - 1, mean + 3))
    sql = f"SELECT {by.name} FROM {table.name} GROUP BY {by.name} HAVING COUNT(*) > {count}"
    return Drawn(_named(table, by=by) | {"count": count}, sql)


def _between(draw: Draw) -> Drawn:
    table = draw.table("number")
    number = draw.one(table.of_kind("number"))
    column = draw.shown(table, number)
    low, high = draw.number(number, 0.05, 0.45), draw.number(number, 0.55, 0.95)
    said = f"{number.name} BETWEEN {low} AND {high}"
    slots = _named(table, column=column, number=number) | {"low": low, "high": high}
    return Drawn(slots, f"SELECT {column.name} FROM {table.name} WHERE {said}")


def _like(draw: Draw) -> Drawn:
    table = draw.table("label")
    label = table.of_kind("label")[0]
    letters = draw.one(label.values)[: int(draw.rng.integers(1, 3))]
    column = draw.shown(table)
    sql = f"SELECT {column.name} FROM {table.name} WHERE {label.name} LIKE '{letters}%'"
    return Drawn(_named(table, column=column, label=label) | {"letters": letters}, sql)


def _distinct(draw: Draw) -> Drawn:
    table = draw.table("text", "number")
    column, number = draw.one(table.of_kind("text")), draw.one(table.of_kind("number"))
    low = draw.number(number, 0.8, 0.92)  # few rows are left, so that some values are not
    sql = f"SELECT DISTINCT {column.name} FROM {table.name} WHERE {number.name} > {low}"
    return Drawn(_named(table, column=column, number=number) | {"low": low}, sql)


def _top(draw: Draw) -> Drawn:
    table = draw.table("number")
    number = draw.one(table.of_kind("number"))
    column, extreme = draw.shown(table, number), draw.one(list(EXTREMES))
    count = int(draw.rng.integers(2, 10))
    said = f"ORDER BY {number.name} {EXTREMES[extreme]} LIMIT {count}"
    slots = _named(table, column=column, number=number) | {"extreme": extreme, "count": count}
    return Drawn(slots, f"SELECT {column.name} FROM {table.name} {said}")


def _before(draw: Draw) -> Drawn:
    table = draw.table("day")
    day = draw.one(table.of_kind("day"))
    column, date = draw.shown(table, day), draw.date(0.2, 0.9)
    sql = f"SELECT {column.name} FROM {table.name} WHERE {day.name} < '{date}'"
    return Drawn(_named(table, column=column, day=day) | {"date": date}, sql)


def _period(draw: Draw) -> Drawn:
    table = draw.table("day")
    day = draw.one(table.of_kind("day"))
    first, last = draw.date(0.05, 0.45), draw.date(0.55, 0.95)
    said = f"{day.name} BETWEEN '{first}' AND '{last}'"
    slots = _named(table, day=day) | {"first": first, "last": last}
    return Drawn(slots, f"SELECT COUNT(*) FROM {table.name} WHERE {said}")


def _year(draw: Draw) -> Drawn:
    table = draw.table("day")
    day = draw.one(table.of_kind("day"))
    column, year = draw.shown(table, day), draw.one(YEARS)
    sql = f"SELECT {column.name} FROM {table.name} WHERE strftime('%Y', {day.name}) = '{year}'"
    return Drawn(_named(table, column=column, day=day) | {"year": year}, sql)


def _link(draw: Draw) -> tuple[Table, Table, dict[str, Any], str]:
    """Return a table, the one it refers to, the slots of both, and the join of both."""
    table, key, owner = draw.one(draw.schema.links())
    slots = _named(table) | {"owners": owner.name, "owner": owner.thing}
    on = f"{table.name}.{key.name} = {owner.name}.id"
    return table, owner, slots, f"FROM {table.name} JOIN {owner.name} ON {on}"


def _join(draw: Draw) -> Drawn:
    table, owner, slots, joined = _link(draw)
    column, label = draw.shown(table), owner.of_kind("label")[0]
    slots |= {"column": column.words, "label": label.words}
    return Drawn(slots, f"SELECT {owner.name}.{label.name}, {table.name}.{column.name} {joined}")


def _join_filter(draw: Draw) -> Drawn:
    table, owner, slots, joined = _link(draw)
    column, where = draw.shown(table), draw.one(owner.of_kind("text"))
    slots |= {"column": column.words, "where": where.words, "value": draw.value(where)}
    said = f"WHERE {owner.name}.{where.name} = '{slots['value']}'"
    return Drawn(slots, f"SELECT {table.name}.{column.name} {joined} {said}")


def _most(draw: Draw) -> Drawn:
    _, owner, slots, joined = _link(draw)
    label = owner.of_kind("label")[0]
    said = f"GROUP BY {owner.name}.id ORDER BY COUNT(*) DESC LIMIT 1"
    return Drawn(
        slots | {"label": label.words}, f"SELECT {owner.name}.{label.name} {joined} {said}"
    )


def _above(draw: Draw) -> Drawn:
    table = draw.table("number")
    number = draw.one(table.of_kind("number"))
    column = draw.shown(table, number)
    average = f"(SELECT AVG({number.name}) FROM {table.name})"
    sql = f"SELECT {column.name} FROM {table.name} WHERE {number.name} > {average}"
    return Drawn(_named(table, column=column, number=number), sql)


def _without(draw: Draw) -> Drawn:
    table, key, owner = draw.one(draw.schema.links())
    label = owner.of_kind("label")[0]
    slots = _named(table, label=label) | {"owners": owner.name, "owner": owner.thing}
    said = f"id NOT IN (SELECT {key.name} FROM {table.name})"
    return Drawn(slots, f"SELECT {label.name} FROM {owner.name} WHERE {said}")


TEMPLATES: dict[str, Callable[[Draw], Drawn]] = {
    "filter": _filter,
    "both": _both,
    "count": _count,
    "aggregate": _aggregate,
    "group": _group,
    "having": _having,
    "between": _between,
    "like": _like,
    "distinct": _distinct,
    "top": _top,
    "before": _before,
    "period": _period,
    "year": _year,
    "join": _join,
    "join_filter": _join_filter,
    "most": _most,
    "above": _above,
    "without": _without,
}


def phrased(phrasing: str, slots: dict[str, Any], rng: np.random.Generator) -> str:
    """Return a question: alternatives drawn, slots filled, a capital first.

    Parameters
    ----------
    phrasing : str
        With ``[a|b]`` for alternatives and ``{slot}`` for slots.
    slots : dict of str to object
    rng : numpy.random.Generator

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.experiments.sql.templates import phrased
    >>> phrased("{things} [in|in] {value}?", {"things": "ships", "value": "Oslo"},
    ...         np.random.default_rng(0))
    'Ships in Oslo?'
    """

    def chosen(match: re.Match[str]) -> str:
        options = match[1].split("|")
        return options[int(rng.integers(len(options)))]

    text = re.sub(r"\[([^]]*)\]", chosen, phrasing).format(**slots)
    return text[0].upper() + text[1:]
