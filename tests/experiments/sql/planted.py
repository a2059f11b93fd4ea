"""Queries that are wrong in one way, made from gold queries."""

import re


def _without_where(sql):
    return re.sub(r" WHERE (?:(?! GROUP BY| ORDER BY).)*$", "", sql)


def _other_aggregate(sql):
    other = {"AVG": "MAX", "SUM": "AVG", "MIN": "AVG", "MAX": "MIN"}
    return re.sub(
        r"SELECT (.*?)\b(AVG|SUM|MIN|MAX)\(", lambda m: f"SELECT {m[1]}{other[m[2]]}(", sql
    )


def _other_key(sql):
    return re.sub(r"ON (\w+)\.\w+ = ", r"ON \1.id = ", sql)


def _other_order(sql):
    turned = {"DESC": "ASC", "ASC": "DESC"}
    return re.sub(r"\b(DESC|ASC)\b", lambda m: turned[m[1]], sql)


def _fewer(sql):
    return re.sub(r"LIMIT (\d+)", lambda m: f"LIMIT {int(m[1]) + 1}", sql)


PLANTS = {
    "no WHERE": _without_where,
    "another aggregate": _other_aggregate,
    "a count of another thing": lambda sql: (
        sql.replace("COUNT(*)", "COUNT(DISTINCT id)", 1)
        if "JOIN" in sql
        else sql.replace("SELECT COUNT(*)", "SELECT SUM(id)")
    ),
    "another join key": _other_key,
    "no DISTINCT": lambda sql: sql.replace("DISTINCT ", ""),
    "the other direction": _other_order,
    "no ORDER": lambda sql: re.sub(r" ORDER BY .* (?=LIMIT)", " ", sql),
    "another LIMIT": _fewer,
    "no HAVING": lambda sql: re.sub(r" HAVING .*", "", sql),
    "no GROUP BY": lambda sql: re.sub(r" GROUP BY [\w.]+", "", sql),
    "the second condition dropped": lambda sql: re.sub(r" AND [a-z_]+ > \d+", "", sql),
    "the first condition dropped": lambda sql: re.sub(r"\w+ = '[^']*' AND ", "", sql),
    "OR for AND": lambda sql: re.sub(r"(' )AND", r"\1OR", sql),
    "less for greater": lambda sql: sql.replace(" > ", " < "),
    "after for before": lambda sql: re.sub(r"< '", "> '", sql),
    "IN for NOT IN": lambda sql: sql.replace("NOT IN", "IN"),
    "no average": lambda sql: re.sub(r"\(SELECT AVG\((\w+)\) FROM \w+\)", r"\1 / 2", sql),
    "another year": lambda sql: re.sub(r"= '20\d(\d)'$", lambda m: f"= '202{9 - int(m[1])}'", sql),
    "no LIKE": lambda sql: re.sub(r" LIKE '(\w)\w?%'", r" LIKE '%\1'", sql),
    "another column": lambda sql: re.sub(r"SELECT [a-z_]+ FROM", "SELECT id FROM", sql),
    "columns the other way round": lambda sql: re.sub(
        r"SELECT ([^,(]+), (\S+) FROM", r"SELECT \2, \1 FROM", sql
    ),
}


def planted(sql):
    """Return by name the wrong queries that a gold query can be turned into."""
    made = {name: plant(sql) for name, plant in PLANTS.items()}
    return {name: wrong for name, wrong in made.items() if wrong != sql}
