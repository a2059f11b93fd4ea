"""The schemas, and databases that are drawn anew for every question.

A schema is two or three small tables. Its tables and columns are words that a question can use:
``orders(id, customer_id, status, total, day)``. The schemas of TRAINED share no table and no column
with those of VALIDATION and UNSEEN, except for ``id``.

In a database, names and ids are drawn at random, the sizes of all groups differ, some rows are
referred to by no other, and one is referred to most. The numbers of a column are all different. A
wrong query then returns other rows than the right one.
"""

from __future__ import annotations

import datetime
import itertools
import sqlite3
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np


def _words(text: str) -> list[str]:
    return text.split()


FIRST = _words("Ada Ben Cleo Dan Eva Finn Gita Hugo Ines Jack Kira Liam")
FIRST += _words("Mona Nils Olga Paul Rosa Sven Tara Umar Vera Will Yara Zoe")
LAST = _words("Adler Brook Costa Dunn Evans Frost Grant Hall Jones Klein Lopez Moss")
ADJECTIVES = _words("Amber Bright Calm Dark Early Final Golden Hidden Iron Lost")
ADJECTIVES += _words("Mellow Northern Open Quiet Red Silent Tall Vivid Wild Young")
NOUNS = _words("Anchor Bridge Cloud Door Engine Forest Garden House Island Lantern River Tower")

PEOPLE = tuple(" ".join(pair) for pair in itertools.product(FIRST, LAST))
TITLES = tuple(" ".join(pair) for pair in itertools.product(ADJECTIVES, NOUNS))
YEARS = range(2018, 2025)  # of all dates
START, DAYS = datetime.date(YEARS[0], 1, 1), 365 * len(YEARS)

OWNERS, THINGS = 30, 72  # rows of a table that refers to no other, and of one that does

Kind = Literal["label", "text", "number", "day", "key"]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    name : str
    kind : "label", "text", "number", "day" or "key"
        A label names a row: no two rows share it. A text is one of a few values. A key is the id
        of a row of another table.
    values : tuple of str
        Of a label or a text; the name of the other table for a key.
    low, high : int
        Of a number.
    said : str
        What a question calls it, if not by its name.
    """

    name: str
    kind: Kind
    values: tuple[str, ...] = ()
    low: int = 0
    high: int = 0
    said: str = ""

    @property
    def words(self) -> str:
        """The column as a question names it."""
        return self.said or self.name.replace("_", " ")


@dataclass(frozen=True)
class Table:
    """A table: its name is the plural of `thing`."""

    name: str
    thing: str
    columns: tuple[Column, ...]

    def of_kind(self, *kinds: Kind) -> list[Column]:
        """Return the columns of some kinds, in the table's order."""
        return [column for column in self.columns if column.kind in kinds]

    @property
    def rows(self) -> int:
        """How many rows a database has."""
        return THINGS if self.of_kind("key") else OWNERS


@dataclass(frozen=True)
class Schema:
    """Tables, each after those that it refers to."""

    name: str
    tables: tuple[Table, ...]

    def line(self) -> str:
        """Return the schema as a prompt shows it.

        Examples
        --------
        >>> from lora_np.experiments.sql.schemas import TRAINED
        >>> print(TRAINED[0].line())
        shop: customers(id, name, city, age, joined), orders(id, customer_id, status, total, day)
        """
        tables = (f"{t.name}(id, {', '.join(c.name for c in t.columns)})" for t in self.tables)
        return f"{self.name}: {', '.join(tables)}"

    def table(self, name: str) -> Table:
        """Return the table of a name."""
        return next(table for table in self.tables if table.name == name)

    def links(self) -> list[tuple[Table, Column, Table]]:
        """Return every table that refers to another: the table, its key, the other."""
        return [(t, k, self.table(k.values[0])) for t in self.tables for k in t.of_kind("key")]


def _column(text: str) -> Column:
    """Return the column that is written as in `_schema`."""
    name, _, kind = text.partition(" ")
    if kind in ("day", "date"):  # customers joined on a day: their "joined date"
        return Column(name, "day", said=f"{name} date" if kind == "day" else "")
    if kind in ("people", "titles"):
        return Column(name, "label", PEOPLE if kind == "people" else TITLES)
    if kind.startswith("-> "):
        return Column(name, "key", (kind[3:],))
    if ".." in kind:
        low, high = map(int, kind.split(".."))
        return Column(name, "number", low=low, high=high)
    return Column(name, "text", tuple(kind.split("/")))


def _schema(name: str, **tables: str) -> Schema:
    """Return a schema from lines "thing: column kind; column kind" by the tables' names."""
    made = []
    for plural, text in tables.items():
        thing, _, columns = text.partition(": ")
        made.append(Table(plural, thing, tuple(_column(c.strip()) for c in columns.split("; "))))
    return Schema(name, tuple(made))


_CITIES = "Lyon/Oslo/Porto/Gdansk/Turin/Malmo/Bergen/Ghent"
_COUNTRIES = "France/Norway/Chile/Japan/Kenya/Poland/India/Peru"

TRAINED = (
    _schema(
        "shop",
        customers=f"customer: name people; city {_CITIES}; age 18..90; joined day",
        orders="order: customer_id -> customers; status open/paid/sent/late/lost/returned; "
        "total 20..900; day date",
    ),
    _schema(
        "school",
        teachers="teacher: name people; subject maths/art/music/physics/latin/history; "
        "salary 1800..5200; hired day",
        courses="course: teacher_id -> teachers; title titles; level basic/middle/high/expert/free/"
        "trial; workload 10..200",
    ),
    _schema(
        "library",
        authors=f"author: name people; country {_COUNTRIES}",
        books="book: author_id -> authors; title titles; genre crime/poetry/fantasy/science/travel/"
        "drama; thickness 80..950; printed day",
    ),
    _schema(
        "clinic",
        doctors="doctor: name people; field heart/skin/eyes/bones/lungs/teeth; salary 3000..9000",
        patients="patient: doctor_id -> doctors; name people; ward north/south/east/west/upper/"
        "lower; weight 40..140; admitted day",
    ),
    _schema(
        "airline",
        planes="plane: model titles; maker Airbus/Boeing/Embraer/Cessna/Fokker/Saab; "
        "capacity 20..400; built day",
        flights=f"flight: plane_id -> planes; destination {_CITIES}; distance 200..9000; date date",
    ),
    _schema(
        "cinema",
        directors=f"director: name people; country {_COUNTRIES}; age 25..90",
        films="film: director_id -> directors; title titles; genre comedy/horror/romance/western/"
        "action/war; runtime 70..210; released day",
    ),
    _schema(
        "hotel",
        guests=f"guest: name people; country {_COUNTRIES}; birthday date",
        bookings="booking: guest_id -> guests; room single/double/twin/suite/family/attic; "
        "price 40..700; arrival date",
    ),
    _schema(
        "bank",
        clients="client: name people; region north/south/east/west/coast/hills; income 900..9900",
        accounts="account: client_id -> clients; type savings/current/joint/student/gold/basic; "
        "balance 10..9000; opened day",
    ),
    _schema(
        "company",
        departments="department: name titles; building A1/B2/C3/D4/E5/F6; budget 100..900",
        employees="employee: department_id -> departments; name people; job clerk/driver/cook/"
        "guard/nurse/painter; salary 1500..6500; hired day",
    ),
    _schema(
        "farm",
        farmers=f"farmer: name people; village {_CITIES}; area 5..300",
        animals="animal: farmer_id -> farmers; species cow/goat/horse/sheep/duck/pig; "
        "weight 3..900; birthday date",
    ),
    _schema(
        "music",
        singers="singer: name people; style jazz/rock/soul/folk/blues/metal; fame 50..9000",
        albums="album: singer_id -> singers; title titles; format vinyl/tape/disc/stream/box/card; "
        "price 5..90; released day",
    ),
    _schema(
        "league",
        teams=f"team: name titles; city {_CITIES}; score 1..99; founded day",
        players="player: team_id -> teams; name people; position keeper/defender/winger/striker/"
        "libero/centre; value 1..120",
    ),
    _schema(
        "garage",
        owners=f"owner: name people; town {_CITIES}; phone 1000..9999",
        cars="car: owner_id -> owners; colour red/blue/green/white/black/silver; "
        "mileage 900..9900; bought day",
    ),
    _schema(
        "museum",
        artists=f"artist: name people; country {_COUNTRIES}; birthday date",
        paintings="painting: artist_id -> artists; title titles; room red/blue/round/long/small/"
        "great; width 20..400; finished day",
    ),
    _schema(
        "office",
        clerks="clerk: name people; floor first/second/third/fourth/fifth/ground; wage 1500..5000",
        letters="letter: clerk_id -> clerks; topic tax/rent/sale/claim/order/visit; weight 1..90; "
        "written day",
        calls="call: clerk_id -> clerks; caller people; result sold/busy/none/again/wrong/"
        "angry; cost 1..99",
    ),
)

VALIDATION = (
    _schema(
        "post",
        depots="depot: place titles; zone inner/outer/harbour/airport/valley/border; fleet 3..80",
        parcels="parcel: depot_id -> depots; priority urgent/normal/slow/fragile/bulky/secret; "
        "postage 3..300; shipped day",
    ),
    _schema(
        "tourism",
        guides="guide: alias people; language Danish/Greek/Czech/Hindi/Thai/Welsh; fee 20..400; "
        "certified day",
        tours="tour: guide_id -> guides; route titles; season spring/summer/autumn/winter/easter/"
        "lent; group_size 2..95",
    ),
)

UNSEEN = (
    _schema(
        "port",
        captains="captain: surname people; nation Malta/Ghana/Cuba/Fiji/Qatar/Nepal; "
        "bonus 50..990; enlisted day",
        ships="ship: captain_id -> captains; cargo grain/coal/timber/oil/cars/fruit; "
        "tonnage 100..9900; docked day",
    ),
    _schema(
        "observatory",
        telescopes="telescope: brand titles; site desert/summit/island/forest/coastal/polar; "
        "aperture 10..900; installed day",
        sightings="sighting: telescope_id -> telescopes; object comet/planet/star/galaxy/moon/"
        "nebula; duration 5..600; observed day",
    ),
    _schema(
        "auction",
        sellers="seller: nickname people; district harbour/market/castle/station/park/mill; "
        "rating 1..99; registered day",
        lots="lot: seller_id -> sellers; category stamps/coins/clocks/rugs/maps/dolls; "
        "bid 10..990; deadline date",
    ),
    _schema(
        "nursery",
        growers="grower: firm titles; province Alba/Bihar/Cork/Drenthe/Essex/Fars; acreage 2..400",
        plants="plant: grower_id -> growers; variety rose/fern/lily/ivy/mint/sage; height 5..300; "
        "planted day",
    ),
)

SCHEMAS = {schema.name: schema for schema in (*TRAINED, *VALIDATION, *UNSEEN)}


def database(schema: Schema, rng: np.random.Generator) -> sqlite3.Connection:
    """Return a database in memory, drawn at random.

    Parameters
    ----------
    schema : Schema
    rng : numpy.random.Generator

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.experiments.sql.schemas import SCHEMAS, database
    >>> shop = database(SCHEMAS["shop"], np.random.default_rng(0))
    >>> shop.execute("SELECT COUNT(*) FROM orders").fetchone()
    (72,)
    >>> shop.close()
    """
    connection = sqlite3.connect(":memory:")
    ids: dict[str, np.ndarray] = {}
    for table in schema.tables:
        ids[table.name] = rng.choice(np.arange(1, 2 * table.rows), table.rows, replace=False)
        columns = [
            ids[table.name].tolist(),
            *(_values(c, table.rows, ids, rng) for c in table.columns),
        ]
        names = ", ".join(("id", *(column.name for column in table.columns)))
        connection.execute(f"CREATE TABLE {table.name} ({names})")
        marks = ", ".join("?" * len(columns))
        connection.executemany(f"INSERT INTO {table.name} VALUES ({marks})", zip(*columns))
    connection.commit()
    return connection


def _values(
    column: Column, rows: int, ids: dict[str, np.ndarray], rng: np.random.Generator
) -> list[Any]:
    """Return a column's values, one a row."""
    if column.kind == "label":
        return [str(v) for v in rng.choice(column.values, rows, replace=False)]
    if column.kind == "number":
        return rng.choice(np.arange(column.low, column.high + 1), rows, replace=False).tolist()
    if column.kind == "day":
        days = rng.choice(DAYS, rows, replace=False)
        return [str(START + datetime.timedelta(days=int(day))) for day in days]
    if column.kind == "text":
        return [column.values[i] for i in _groups(len(column.values), rows, rng)]
    owners = rng.permutation(ids[column.values[0]])
    owners = owners[: len(owners) * 3 // 4]  # the others have nothing
    return [int(owners[i]) for i in _groups(len(owners), rows, rng)]


def _groups(groups: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Return each row's group: every group occurs, one most often, their order at random."""
    weight = np.sqrt(np.arange(1.0, groups + 1.0))  # the larger, the later
    drawn = rng.choice(groups, rows - groups, p=weight / weight.sum())
    count = 1 + np.bincount(drawn, minlength=groups)
    giver, largest = np.argsort(count)[-2:]
    if count[giver] == count[largest]:  # a tie: nobody could say which is the largest
        count[giver] -= 1
        count[largest] += 1
    return rng.permutation(np.repeat(rng.permutation(groups), count))
