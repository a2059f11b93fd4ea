"""The tables of the study of serving, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lora_np.experiments.serving.measure import Spread, ratio
from lora_np.experiments.serving.plan import ALONE_GOAL, GOALS, SMALL, BenchSettings
from lora_np.experiments.serving.run import ALONE, BASE, OURS, PEFT
from lora_np.report import Report
from lora_np.tables import Table, counted, rounded

Results = Mapping[str, Any]
Row = Mapping[str, Any]
SIZES = ("batch", "prompt", "new", "r", "target_modules", "pools", "on_disk", "cached")
SIZES += ("wide_rows", "wide_adapters", "wide_prompt", "wide_new", "real_adapters")
TITLES = {
    "pool": "Adapters in a warm pool",
    "distinct": "Distinct adapters in the batch",
    "disk": "Adapters on disk",
    "wide": "A wide batch",
    "real": "Whole answers",
    "long": "Writing after long contexts",
}
SIDES = {OURS: "ours", BASE: "base alone", ALONE: "one at a time", PEFT: "PEFT"}


def report(results: Results) -> Report:
    """Return all tables as text.

    Parameters
    ----------
    results : mapping
        What :func:`lora_np.experiments.serving.serving_study` returns.
    """
    tables = [table for name in results["measured"] for table in tables_of(results, name)]
    alone = [alone_text(results)] if "distinct" in results["measured"] else []
    return Report([head(results), *tables, *alone, note(results)])


def head(results: Results) -> str:
    """Say what was served."""
    s = results["settings"]
    kind = "a random Llama" if s["model"] == SMALL else s["model"]
    modules = s["target_modules"]
    on = modules if isinstance(modules, str) else ", ".join(modules)
    return (
        f"{kind}, {rounded(results['parameters'])} parameters; adapters of r = {s['r']} on {on}, "
        f"{rounded(results['adapter_numbers'])} numbers each"
    )


def title(results: Results, name: str) -> str:
    """Say what a measurement serves."""
    s = results["settings"]
    batch = f"batch {s['batch']}, prompts of {counted(s['prompt'], 'token')}, {s['new']} new"
    wide = f"prompts of {counted(s['wide_prompt'], 'token')}, {s['wide_new']} new"
    said = {"wide": wide, "real": f"{s['new']} new tokens", "long": "steps of one token a request"}
    return f"{TITLES[name]}: {said.get(name, batch)}"


def note(results: Results) -> str:
    """Say how the ratios were taken."""
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    rounds = counted(results["settings"]["rounds"], "round")
    return (
        f"Ratios of CPU seconds on one BLAS thread: the median of {rounds} and the quartiles; 'by "
        "the clock' the\nsame in seconds that passed. 'In the batch': distinct adapters whose rows "
        f"got a token in one step, in the\nmiddle step and at most. {versions}."
    )


def tables_of(results: Results, name: str) -> list[Table]:
    """Return the tables of a measurement: two for "distinct", else one."""
    rows = results["measured"][name]
    if name == "distinct":
        rates, times = rates_table(rows), times_table(rows)
        return [replace(rates, title=f"{title(results, name)}\n{rates.title}"), times]
    goal = GOALS[name] if has_goals(results, name) else None
    table = replace(ratio_table(rows, goal), title=title(results, name))
    if name == "disk":
        (row,) = rows
        share = f"{100 * row['reads']:.0f} % of {row['requests']:,} requests a round"
        note = f"{share} read their adapter from disk; the pool was full before."
        return [replace(table, notes=[note])]
    return [table]


def has_goals(results: Results, name: str) -> bool:
    """Whether a measurement has the sizes for which its goal was set."""
    s, standard = results["settings"], BenchSettings()
    sizes = all(_plain(s[size]) == _plain(getattr(standard, size)) for size in SIZES)
    return sizes and (s["model"] == SMALL) != (name in ("real", "long"))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def spread_text(spread: Spread) -> str:
    """Return a ratio with its quartiles."""
    return f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})"


def in_batch(row: Row) -> str:
    """Return how many distinct adapters were in the batch."""
    most = f", at most {row['most']:,}" if row["most"] != row["distinct"] else ""
    return f"{row['distinct']:,} of {row['rows']:,}{most}"


def ratio_table(rows: Sequence[Row], goal: float | None) -> Table:
    """Return the table of the engine's time over that of the base alone."""
    spreads = [ratio(row["seconds"][OURS], row["seconds"][BASE]) for row in rows]
    walls = [ratio(row["seconds"][OURS], row["seconds"][BASE], "wall") for row in rows]
    columns = {
        "": [row["case"] for row in rows],
        "to choose from": [row["pool"] for row in rows],
        "in the batch, of rows": [in_batch(row) for row in rows],
        "time / base alone": list(map(spread_text, spreads)),
        "by the clock": [wall.median for wall in walls],
    }
    if goal is not None:
        columns["goal"] = [verdict(spread, goal) for spread in spreads]
    return Table(columns, {"to choose from": ",", "by the clock": ".2f"})


def verdict(spread: Spread, goal: float, at_least: bool = False) -> str:
    """Say whether a goal is reached, after rounding as it is printed.

    Examples
    --------
    >>> from lora_np.experiments.serving.measure import Spread
    >>> from lora_np.experiments.serving.report import verdict
    >>> verdict(Spread(1.1, 1.0, 1.3), 1.2), verdict(Spread(4.0, 3.8, 4.4), 5.0, at_least=True)
    ('at most 1.20: reached', 'at least 5.00: missed')
    """
    sign = -1 if at_least else 1
    reached = sign * round(spread.median - goal, 2) <= 0
    nearest = spread.high if at_least else spread.low
    near = "within the spread" if sign * (nearest - goal) <= 0 else "missed"
    side = "at least" if at_least else "at most"
    return f"{side} {goal:.2f}: {'reached' if reached else near}"


def rate(row: Row, side: str) -> float | None:
    """Return the tokens of a second of CPU time, None where a side was not measured."""
    if side not in row["seconds"]:
        return None
    cpu = sorted(row["seconds"][side]["cpu"])
    return row["tokens"] / cpu[len(cpu) // 2]


def rates_table(rows: Sequence[Row]) -> Table:
    """Return the tokens a second of all sides, by the number of distinct adapters."""
    columns: dict[str, list[Any]] = {"in the batch, of rows": list(map(in_batch, rows))}
    for side, said in SIDES.items():
        if side in rows[0]["seconds"]:
            columns[said] = [rate(row, side) for row in rows]
    title = f"tokens a CPU second; {rows[0]['pool']:,} adapters in the pool"
    return Table(columns, dict.fromkeys(SIDES.values(), ",.0f"), title)


def times_table(rows: Sequence[Row]) -> Table:
    """Return the ratios of time of the sides, by the number of distinct adapters."""
    columns = {"in the batch, of rows": list(map(in_batch, rows))}
    for of, to in ((OURS, BASE), (ALONE, OURS), (PEFT, OURS)):
        if of in rows[0]["seconds"]:
            spreads = [ratio(row["seconds"][of], row["seconds"][to]) for row in rows]
            columns[f"{SIDES[of]} / {SIDES[to]}"] = list(map(spread_text, spreads))
    for side in rows[0]["equal"]:
        columns[f"as {SIDES[side]}"] = [f"{row['equal'][side]} of {row['asked']}" for row in rows]
    title = "ratios of time; 'as ...': rows of ours whose tokens are all those of that side"
    return Table(columns, title=title)


def alone_text(results: Results) -> str:
    """Say what serving one adapter at a time costs, where each row has an adapter of its own."""
    row = results["measured"]["distinct"][-1]
    spread = ratio(row["seconds"][ALONE], row["seconds"][OURS])
    standard = has_goals(results, "distinct")
    goal = f"; {verdict(spread, ALONE_GOAL, at_least=True)}" if standard else ""
    said = f"{counted(row['distinct'], 'distinct adapter')}, one at a time"
    return f"{said}: time / ours {spread_text(spread)}{goal}"
