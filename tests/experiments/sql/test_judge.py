"""The judge: what it takes for right, what it refuses, and what it finds in an answer."""

import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np.experiments.sql import judge as judging
from lora_np.experiments.sql.judge import QueryError, guard, judge, rows_of, same_rows, sql_in

GOLD = "SELECT name FROM t WHERE age > 30"
ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT COUNT(*) FROM c"


def people():
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (id, name, age, note)")
    rows = [(i, f"n{i}", 3 * i, None if i % 2 else "x; y") for i in range(60)]
    connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", rows)
    connection.commit()
    guard(connection)
    return connection


@pytest.fixture
def database():
    with closing(people()) as connection:
        yield connection


def verdict(answer, database, gold=GOLD):
    return judge(answer, gold, [database])


# --- attacks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql, reason",
    [
        ("DROP TABLE t", "refused"),
        ("INSERT INTO t VALUES (1, 2, 3, 4)", "refused"),
        ("UPDATE t SET id = 1", "refused"),
        ("DELETE FROM t", "refused"),
        ("CREATE TEMP TABLE x (a)", "refused"),
        ("ATTACH 'stolen.db' AS x", "refused"),
        ("VACUUM INTO 'stolen.db'", "refused"),
        ("PRAGMA writable_schema = 1", "refused"),
        ("PRAGMA query_only = OFF", "refused"),
        ("SELECT * FROM pragma_table_info('t')", "refused"),
        ("BEGIN", "refused"),
        ("SAVEPOINT x", "refused"),
        ("SELECT load_extension('x')", "refused"),
        ("SELECT randomblob(1000000000)", "refused"),
        ("SELECT zeroblob(1000000000)", "refused"),
        ("SELECT printf('%.*c', 1000000000, 'x')", "refused"),
        ("SELECT hex(zeroblob(3000))", "refused"),
        ("SELECT group_concat(a.name) FROM t a, t b, t c", "too long"),
        (f"SELECT replace('{'a' * 900}', 'a', 'aaaaaaaaa')", "too long"),
        (f"SELECT '{'a' * 9000}'", "too long"),
        ("SELECT 1; DROP TABLE t", "several statements"),
        ("SELECT 1; SELECT 2", "several statements"),
        ("DROP TABLE t; SELECT 1", "refused"),
        (ENDLESS, "stopped"),
        ("SELECT COUNT(*) FROM t a, t b, t c, t d, t e", "stopped"),
        ("SELECT a.id FROM t a, t b, t c, t d ORDER BY 1", "stopped"),
        ("SELECT a.id FROM t a, t b, t c, t d, t e", "wrong rows"),
        (ENDLESS.replace("COUNT(*)", "x"), "wrong rows"),
        ("", "empty"),
        (" ; ", "empty"),
        ("-- nothing", "empty"),
        ("/* nothing */", "empty"),
        ("\x00", "syntax"),
        ("SELECT '\ud800'", "syntax"),
        ("SELECT CAST(x'ff' AS TEXT)", "syntax"),
        ("SELECT ?", "syntax"),
        ("SELEC name FROM t", "syntax"),
        ("SELECT YEAR(name) FROM t", "syntax"),
        (f"SELECT {'(' * 400}1{')' * 400}", "syntax"),
        ("SELECT name FROM people", "no such table"),
        ("SELECT surname FROM t", "no such column"),
        ("SELECT a.id, name FROM t a, t b", "no such column"),
        ("SELECT name FROM t", "wrong rows"),
        ("EXPLAIN SELECT name FROM t", "wrong rows"),
    ],
)
def test_a_wrong_answer_has_its_reason_and_leaves_the_database_alone(sql, reason, database):
    assert verdict(sql, database) == (False, False, reason)
    found = database.execute("SELECT COUNT(*), SUM(age), COUNT(note) FROM t").fetchone()
    assert found == (60, 5310, 30)


def test_a_database_refuses_to_write_even_without_the_authorizer(database):
    database.set_authorizer(None)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        database.execute("DELETE FROM t")


def test_a_query_is_stopped_after_the_same_work_wherever_it_runs(database, monkeypatch):
    counting = ENDLESS.replace("FROM c)", "FROM c LIMIT 20000)")
    assert rows_of(counting, database) == [(20000,)]
    monkeypatch.setattr(judging, "INSTRUCTIONS", 100_000)
    with pytest.raises(QueryError, match="stopped"):
        rows_of(counting, database)
    assert rows_of(GOLD, database)[0] == ("n11",)  # the next query starts anew


@given(st.text() | st.text(alphabet="SELECTFROMnameget()'\";,-*/ 01"))
def test_any_text_gets_a_verdict(text):
    with closing(people()) as database:
        found = verdict(text, database)
        assert found.right or found.reason in judging.REASONS


# --- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql, gold, right",
    [
        ("select NAME from T where AGE > 30;", GOLD, True),
        ("SELECT name FROM t WHERE age > 30 ORDER BY age DESC", GOLD, True),
        ("SELECT t.name AS who FROM t WHERE NOT age <= 30 -- so", GOLD, True),
        ("SELECT name, age FROM t WHERE age > 30", GOLD, False),
        ("SELECT name FROM t WHERE age > 30 LIMIT 40", GOLD, False),
        ("SELECT name FROM t WHERE age > 30 UNION ALL SELECT 'n59'", GOLD, False),
        ("SELECT name FROM t UNION ALL SELECT 'Ada'", "SELECT name FROM t", False),
        ("SELECT age, name FROM t", "SELECT name, age FROM t", False),
        ("SELECT name FROM t ORDER BY id", "SELECT name FROM t ORDER BY age", True),
        ("SELECT name FROM t ORDER BY id DESC", "SELECT name FROM t ORDER BY age", False),
        ("SELECT SUM(age) / 60.0 FROM t", "SELECT AVG(age) FROM t", True),
        ("SELECT AVG(age) + 0.001 FROM t", "SELECT AVG(age) FROM t", False),
        ("SELECT '5310'", "SELECT SUM(age) FROM t", False),
        ("SELECT NULL FROM t WHERE id < 30", "SELECT note FROM t WHERE note IS NULL", True),
        ("SELECT '' FROM t WHERE id < 30", "SELECT note FROM t WHERE note IS NULL", False),
        ("SELECT 0 FROM t WHERE id < 30", "SELECT note FROM t WHERE note IS NULL", False),
    ],
)
def test_rows_decide(sql, gold, right, database):
    assert verdict(sql, database, gold).right == right


def test_order_within_a_subquery_is_not_an_order_of_the_gold(database):
    gold = "SELECT name FROM t WHERE id IN (SELECT id FROM t ORDER BY age LIMIT 3)"
    assert verdict("SELECT name FROM t WHERE id < 3 ORDER BY id DESC", database, gold).right


@given(st.lists(st.tuples(st.sampled_from([None, 1, 1.0, "1", b"1"])), max_size=5), st.data())
def test_rows_are_a_multiset_unless_ordered(rows, data):
    shuffled = data.draw(st.permutations(rows))
    assert same_rows(rows, shuffled, ordered=False) and same_rows(rows, rows, ordered=True)
    assert not same_rows([*rows, (2,)], [*rows, (3,)], ordered=False)
    assert not same_rows(rows, [*rows, (None,)], ordered=False)


def test_one_database_of_several_is_enough_to_be_wrong(database):
    with closing(sqlite3.connect(":memory:")) as other:
        other.execute("CREATE TABLE t (id, name, age, note)")
        other.execute("INSERT INTO t VALUES (1, 'Ada', 31, NULL)")
        guard(other)
        wrong = "SELECT name FROM t WHERE age > 32"
        assert judge(wrong, GOLD, [database]).right
        assert judge(wrong, GOLD, [database, other]) == (False, False, "wrong rows")


@pytest.mark.parametrize(
    "sql, exact",
    [
        ("select name\nfrom t   where AGE>30 ;", True),
        ("SELECT name FROM t WHERE age > 30", True),
        ("SELECT name FROM t WHERE 30 < age", False),
        ("SELECT name FROM t WHERE age > 3 0", False),
    ],
)
def test_exact_match_sees_through_spaces_and_case(sql, exact, database):
    assert verdict(sql, database).exact == exact


def test_exact_match_does_not_change_quoted_text(database):
    gold = "SELECT id FROM t WHERE note = 'x; y'"
    assert verdict("select id from t where note='x; y';", database, gold) == (True, True, None)
    assert not verdict("select id from t where note = 'X; Y'", database, gold).exact


# --- the query in an answer ----------------------------------------------------------------------

QUERY = "SELECT name FROM t WHERE age > 30"


@pytest.mark.parametrize(
    "answer",
    [
        QUERY,
        f"  {QUERY}\n",
        f"```sql\n{QUERY}\n```",
        f"```\n{QUERY}\n```\nThis selects the names.",
        f"```sqlite\n{QUERY}",
        f"Sure, here it is:\n\n```sql\n{QUERY}\n```\n\nIt works because...",
        f"SQL: {QUERY}",
        f"Answer: {QUERY}\n\nExplanation: the rows above 30.",
        f"The query is: {QUERY}",
        f"You can select the names with `{QUERY}` in SQLite.",
        f"Here's the SQLite query you asked for.\n{QUERY}\nThis query returns all names.",
        f"Use {QUERY}",
        f"I would select rows and write:\n{QUERY}",
        f"Question: Show all.\nSQL: {QUERY}\nQuestion: Show more.\nSQL: SELECT 2",
        f"{QUERY}\n\nSELECT more",
    ],
)
def test_a_query_is_found_in_a_chatty_answer(answer):
    assert sql_in(answer) == QUERY


@pytest.mark.parametrize(
    "answer, found",
    [
        (f"{QUERY}; This lists the names.", f"{QUERY};"),
        (f"{QUERY}; DROP TABLE t", f"{QUERY}; DROP TABLE t"),
        ("SELECT id FROM t WHERE note = 'x; y'", "SELECT id FROM t WHERE note = 'x; y'"),
        ("DROP TABLE t", "DROP TABLE t"),
        ("SQL: DELETE FROM t", "DELETE FROM t"),
        ("I do not know.", "I do not know."),
        ("SELECT name\nFROM t\nWHERE age > 30", "SELECT name\nFROM t\nWHERE age > 30"),
        ("WITH a AS (SELECT 1) SELECT * FROM a", "WITH a AS (SELECT 1) SELECT * FROM a"),
        ("select name from t", "select name from t"),
        ("", ""),
    ],
)
def test_only_prose_is_cut(answer, found):
    assert sql_in(answer) == found
