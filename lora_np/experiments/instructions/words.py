"""The words of the synthetic records: each list is cut in three, so that tests meet new values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NAMES = (
    "Anna Boris Clara David Elena Felix Greta Hugo Irene Jonas Karin Lukas Mara Nils Olga Peter "
    "Rosa Simon Tanja Urban Vera Walter Xenia Yusuf Zora Amir Bianca Cyrus Dalia Edgar Fiona "
    "Gustav Hanna Igor Julia Kamil Lena Marco Nadia Oskar Paula Quirin Ruben Sofia Tomas Ulla "
    "Viktor Wanda Yara Zeno"
)
CITIES = (
    "Oslo Porto Lyon Graz Turin Bergen Malmo Ghent Basel Krakow Split Tartu Riga Bilbao Nantes "
    "Verona Leeds Cork Aarhus Tampere Brno Gdansk Varna Patras Izmir Haifa Tunis Rabat Dakar "
    "Accra Quito Lima Cusco Rosario Bogota Leon Tampa Boise Omaha Salem Kobe Nagoya Busan Hanoi "
    "Cebu Perth Hobart Dunedin"
)
GOODS = (
    "apples pears plums lemons figs grapes olives onions carrots beans lamps chairs tables "
    "shelves mirrors carpets pillows blankets curtains candles knives spoons plates bowls cups "
    "kettles pans trays jars bottles pens pencils books maps stamps rulers brushes ropes nails "
    "hammers saws drills boots gloves scarves coats hats belts"
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
MONTHS = "January February March April May June July August September October November December"
PARTS = {"train": 0, "validation": 1, "test": 2}
SHARES = (0.6, 0.8)  # a list is cut at these shares of its length


@dataclass(frozen=True)
class Words:
    """One part of every list, and a generator that draws from it.

    Parameters
    ----------
    part : str
        "train", "validation" or "test": no name, city or good stands in two parts. Numbers, days
        and dates are drawn from one range in all parts.
    rng : numpy.random.Generator

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.experiments.instructions.words import Words
    >>> words = Words("test", np.random.default_rng(0))
    >>> words.name(), words.city(), words.number(2, 9)
    ('Yara', 'Cebu', 6)
    """

    part: str
    rng: np.random.Generator

    def name(self) -> str:
        """Return a first name."""
        return self.one(self.some_of(NAMES))

    def city(self) -> str:
        """Return a city."""
        return self.one(self.some_of(CITIES))

    def goods(self, n: int) -> list[str]:
        """Return n different goods, in any order."""
        chosen = self.rng.permutation(len(found := self.some_of(GOODS)))[:n]
        return [found[i] for i in chosen]

    def day(self) -> str:
        """Return a day of the week."""
        return self.one(DAYS.split())

    def date(self) -> str:
        """Return a date such as 4 May 2021."""
        return f"{self.number(1, 28)} {self.one(MONTHS.split())} {self.number(1990, 2029)}"

    def number(self, low: int, high: int) -> int:
        """Return a whole number from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def one(self, of: Sequence[str]) -> str:
        """Return one of some strings."""
        return of[int(self.rng.integers(len(of)))]

    def some_of(self, text: str) -> list[str]:
        """Return the words of a list that stand in this part."""
        words, n = text.split(), len(text.split())
        cuts = (0, *(round(share * n) for share in SHARES), n)
        part = PARTS[self.part]
        return words[cuts[part] : cuts[part + 1]]
