"""Execution accuracy: is what a query returns what the gold query returns?

A query comes from a model, so it may be anything. It runs on a guarded connection: SQLite's
``query_only``, an authorizer that lets a query read and nothing else, limits on the sizes of
strings, rows and the query itself, and a handler that stops it after a number of SQLite's
instructions. These count alike on every machine; seconds would not.

Rows are compared on several databases, so that a wrong query is not right by luck. They are
compared as multisets, or as sequences where the gold query orders. The order of columns counts,
their names do not; numbers are equal within 1e-6 of their size.
"""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple

INSTRUCTIONS, STRIDE = 1_000_000, 1_000  # before a query is stopped; between two looks
MOST_ROWS = 1_000
TOLERANCE = 1e-6  # of numbers, relative
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000,  # bytes of a string, a blob or a row
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 1_000,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 50,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 20,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 25_000,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
READING = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
FUNCTIONS = frozenset(  # none makes a long text from a short one: printf could take seconds
    name
    for line in (
        "count sum total avg min max group_concat row_number rank dense_rank lag lead first_value",
        "last_value date time datetime julianday unixepoch strftime abs round sign ceil floor",
        "length lower upper substr substring trim ltrim rtrim replace instr like glob",
        "coalesce ifnull nullif iif typeof",
    )
    for name in line.split()
)

EMPTY, REFUSED, STOPPED, TOO_LONG = "empty", "refused", "stopped", "too long"
SEVERAL = "several statements"
NO_TABLE, NO_COLUMN, SYNTAX, ROWS = "no such table", "no such column", "syntax", "wrong rows"
REASONS = (EMPTY, SYNTAX, NO_TABLE, NO_COLUMN, ROWS, STOPPED, TOO_LONG, REFUSED, SEVERAL)

_TOKEN = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|`[^`]*`|\w+(?:\.\d+)?|<=|>=|<>|!=|\|\||\S")
_FENCE = re.compile(r"```[ \t]*\w*[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_PREFIX = re.compile(r"^\s*(?:the\s+)?(?:sql(?:ite)?|query|answer|a)(?:\s+query)?\s*:\s*", re.I)
_STARTS = (
    re.compile(r"(?:^|:)[ \t`]*(?=(?:SELECT|WITH|VALUES)\b)", re.MULTILINE),
    re.compile(r"(?=\bSELECT\b)"),
    re.compile(r"^[ \t`]*(?=select\b|with\s+\w+\s+as\b)", re.MULTILINE | re.IGNORECASE),
    re.compile(r"(?=\bselect\b.+?\bfrom\b)", re.IGNORECASE | re.DOTALL),
)
_PROSE = re.compile(
    r"\n\s*\n|\n(?=(?:this|the|here|it|note|explanation|output|result|in|where the|you|we|and "
    r"this)\b[^(\n]*[.:]?\s*$)|\n(?=\s*(?:sql|question|answer|explanation|output|result)s?\s*:)",
    re.IGNORECASE | re.MULTILINE,
)
_STATEMENT = re.compile(
    r"\s*(?:SELECT|WITH|VALUES|INSERT|UPDATE|DELETE|REPLACE|DROP|CREATE|ALTER|ATTACH|DETACH|PRAGMA"
    r"|VACUUM|REINDEX|ANALYZE|BEGIN|COMMIT|ROLLBACK|SAVEPOINT|EXPLAIN)\b(?!\s+(?:statement|query))",
    re.IGNORECASE,
)


class QueryError(ValueError):
    """A query that returns no rows to compare; its one argument is a reason of ``REASONS``."""


class Verdict(NamedTuple):
    """What the judge says of an answer.

    Attributes
    ----------
    right : bool
        Whether the rows equal the gold query's on every database.
    exact : bool
        Whether the query is the gold query, up to white space, case and a last semicolon.
    reason : str or None
        Why it is wrong, one of ``REASONS``; None if it is right.
    """

    right: bool
    exact: bool
    reason: str | None


def guard(connection: sqlite3.Connection) -> None:
    """Let a connection read and nothing else from now on.

    Parameters
    ----------
    connection : sqlite3.Connection
        To a database that is complete.
    """
    connection.isolation_level = None  # Python would begin a transaction before an INSERT
    connection.execute("PRAGMA query_only = ON")
    for limit, value in LIMITS.items():
        connection.setlimit(limit, value)
    connection.set_authorizer(_allow)


def _allow(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    """Return SQLite's answer to what a statement asks to do; `second` names a function."""
    known = action != sqlite3.SQLITE_FUNCTION or (second or "").lower() in FUNCTIONS
    reads = action in READING and known
    return sqlite3.SQLITE_OK if reads else sqlite3.SQLITE_DENY


def rows_of(sql: str, connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """Return the rows of a query, at most one more than ``MOST_ROWS``.

    Parameters
    ----------
    sql : str
    connection : sqlite3.Connection
        Guarded by :func:`lora_np.experiments.sql.judge.guard`.

    Raises
    ------
    QueryError
        If it is not one statement that reads, fails, or takes too long.
    """
    if not _words(sql):
        raise QueryError(EMPTY)
    looks = iter(range(INSTRUCTIONS // STRIDE))
    connection.set_progress_handler(lambda: next(looks, None) is None, STRIDE)
    try:
        cursor = connection.execute(sql)
        rows = cursor.fetchmany(MOST_ROWS + 1)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        raise QueryError(_reason(error)) from None
    if cursor.description is None:  # a comment
        raise QueryError(EMPTY)
    return rows


def _reason(error: Exception) -> str:
    """Return the reason of ``REASONS`` that an error of SQLite stands for."""
    name, text = getattr(error, "sqlite_errorname", ""), str(error)
    if name == "SQLITE_INTERRUPT":
        return STOPPED
    if name == "SQLITE_TOOBIG" or "too large" in text:
        return TOO_LONG
    denied = "prohibited" in text or "not authorized" in text
    if denied or name in ("SQLITE_AUTH", "SQLITE_READONLY"):
        return REFUSED
    if "one statement" in text:
        return SEVERAL
    known = (reason for reason in (NO_TABLE, NO_COLUMN) if reason in text)
    return next(known, NO_COLUMN if "ambiguous column" in text else SYNTAX)


def same_rows(
    one: Sequence[tuple[Any, ...]], other: Sequence[tuple[Any, ...]], ordered: bool
) -> bool:
    """Return whether two queries returned the same rows.

    Parameters
    ----------
    one, other : sequence of tuple
    ordered : bool
        Whether the rows must come in the same order.

    Examples
    --------
    >>> from lora_np.experiments.sql.judge import same_rows
    >>> one, other = [("Ada", 2), ("Bo", None)], [("Bo", None), ("Ada", 2.0)]
    >>> same_rows(one, other, ordered=False), same_rows(one, other, ordered=True)
    (True, False)
    """
    if len(one) != len(other):
        return False
    if ordered:
        return all(map(_same_row, one, other))
    left = list(other)
    for row in one:
        found = next((i for i, candidate in enumerate(left) if _same_row(row, candidate)), None)
        if found is None:
            return False
        del left[found]
    return True


def _same_row(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return len(one) == len(other) and all(map(_same, one, other))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=TOLERANCE)
    return one == other


def judge(answer: str, gold: str, databases: Sequence[sqlite3.Connection]) -> Verdict:
    """Return the verdict on a model's answer.

    Parameters
    ----------
    answer : str
        What the model wrote; the query is found in it by
        :func:`lora_np.experiments.sql.judge.sql_in`.
    gold : str
    databases : sequence of sqlite3.Connection
        Guarded.

    Examples
    --------
    >>> import sqlite3
    >>> from lora_np.experiments.sql.judge import guard, judge
    >>> database = sqlite3.connect(":memory:")
    >>> _ = database.execute("CREATE TABLE t (name, age)")
    >>> _ = database.execute("INSERT INTO t VALUES ('Ada', 36), ('Bo', 20)")
    >>> guard(database)
    >>> gold = "SELECT name FROM t WHERE age > 20"
    >>> judge("SELECT name FROM t WHERE age >= 36;", gold, [database])
    Verdict(right=True, exact=False, reason=None)
    >>> judge("DROP TABLE t", gold, [database]).reason
    'refused'
    >>> database.close()
    """
    sql = sql_in(answer)
    exact, ordered = _words(sql) == _words(gold), bool(_ORDERED.search(gold))
    reason = None
    for database in databases:
        wanted = rows_of(gold, database)
        try:
            found = rows_of(sql, database)
        except QueryError as error:
            reason = str(error)
            break
        if not same_rows(found, wanted, ordered):
            reason = ROWS
            break
    return Verdict(reason is None, exact, reason)


_ORDERED = re.compile(r"\bORDER BY\b(?![^(]*\))", re.IGNORECASE)  # not within a subquery


def _words(sql: str) -> list[str]:
    """Return a query's words and signs: lower case outside quotes, without a last semicolon."""
    words = [word if word[0] in "'\"`" else word.lower() for word in _TOKEN.findall(sql)]
    return words[:-1] if words[-1:] == [";"] else words


def sql_in(answer: str) -> str:
    r"""Return the query in an answer that may hold a code block, a heading, or prose around it.

    Parameters
    ----------
    answer : str

    Returns
    -------
    str
        The whole answer if it holds no query. Statements that follow the query are kept, so that
        the judge sees them; prose is cut.

    Examples
    --------
    >>> from lora_np.experiments.sql.judge import sql_in
    >>> sql_in("Sure! Use this:\n```sql\nSELECT name\nFROM t;\n```\nIt selects the names.")
    'SELECT name\nFROM t;'
    >>> sql_in("SQL: SELECT 1 FROM t\n\nThis query returns ones.")
    'SELECT 1 FROM t'
    """
    fences = [text for text in _FENCE.findall(answer) if text.strip()]
    text = next((t for t in fences if _STATEMENT.match(_PREFIX.sub("", t))), answer)
    text = _PREFIX.sub("", text).strip()
    if not _STATEMENT.match(text):
        found = next(filter(None, (start.search(text) for start in _STARTS)), None)
        if found is None:
            return text
        ticked = found[0].rstrip(" \t").endswith("`") or text[: found.end()].endswith("`")
        text = text[found.end() :]
        text = text.split("`")[0] if ticked else text
    return _without_prose(text).strip()


def _without_prose(text: str) -> str:
    """Return the statements at the start of a text."""
    prose = _PROSE.search(text)
    text = text[: prose.start()] if prose else text
    for match in _TOKEN.finditer(text):
        if match[0] == ";":
            rest = text[match.end() :]
            return text if _STATEMENT.match(rest) else text[: match.end()]
    return text
