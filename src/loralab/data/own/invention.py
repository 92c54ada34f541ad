"""Entities made up for one passage: no two of them have a name or surname alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from loralab.data.own import names

LABELS = {
    "person": "PER",
    "place": "LOC",
    "org": "ORG",
    "school": "ORG",
    "date": "DATE",
    "year": "DATE",
    "weekday": "DATE",
    "count": "NUM",
    "inhabitants": "NUM",
    "metres": "NUM",
    "kilometres": "NUM",
    "occupation": "OCC",
}
"""The entity type of a kind, for token classification; other kinds have none."""

BARE = {"College", "Polytechnic"}
"""Kinds of school that are named without an article."""


@dataclass(frozen=True)
class Entity:
    """Somebody or something that a passage tells of.

    Attributes:
        kind: A key of `LABELS`, or ``product``, ``collected``, ``skill``.
        text: The full name, without an article.
        short: What later mentions may say: a surname, or ``the foundry``.
        pronoun: Subject, possessive and object form; None where none is apt.
        article: ``the`` where the full name takes one.
    """

    kind: str
    text: str
    short: str = ""
    pronoun: tuple[str, str, str] | None = None
    article: str = ""


SHE, HE, IT = ("she", "her", "her"), ("he", "his", "him"), ("it", "its", "it")


class Inventor:
    """Makes entities that are new to its passage.

    Args:
        random: Where the choices come from.
        split: Whose pool of words is used.
    """

    def __init__(self, random: Random, split: str) -> None:
        self.random = random
        self.pool = names.pool(split)
        self.used: set[str] = set()

    def new(self, kind: str) -> Entity:
        """Return an entity of a kind, unlike all before it."""
        makers: dict[str, Callable[[], Entity]] = {
            "person": self.person,
            "place": self._place,
            "org": self._org,
            "school": self._school,
            "date": self._date,
        }
        return makers[kind]() if kind in makers else self._plain(kind)

    def person(self, like: Entity | None = None) -> Entity:
        """Return a person; with the surname of another one, if `like` is given."""
        lists = ((self.pool.female, SHE), (self.pool.male, HE))
        words, pronoun = self.random.choice(lists)
        surname = like.short if like else self._word(self.pool.surnames)
        return Entity("person", f"{self._word(words)} {surname}", surname, pronoun)

    def _word(self, words: Sequence[str]) -> str:
        while (word := self.random.choice(words)) in self.used:
            pass
        self.used.add(word)
        return word

    def _number(self, low: int, high: int) -> str:
        while (text := f"{self.random.randint(low, high):,}") in self.used:
            pass
        self.used.add(text)
        return text

    def _year(self, low: int, high: int) -> str:
        return self._word([str(year) for year in range(low, high)])

    def _place(self) -> Entity:
        name = ""
        while not name or name in self.used:
            name = self.random.choice(self.pool.place_stems)
            name += self.random.choice(names.PLACE_ENDINGS)
        self.used.add(name)
        return Entity("place", name, name, IT)

    def _org(self) -> Entity:
        kind = self._word(names.ORG_KINDS)
        of_place = self.random.random() < 0.3
        first = self._place().text if of_place else self._word(self.pool.org_stems)
        return Entity("org", f"{first} {kind}", f"the {kind.lower()}", article="the ")

    def _school(self) -> Entity:
        kind = self.random.choice(names.SCHOOL_KINDS)
        article = "" if kind in BARE else "the "
        return Entity("school", f"{self._place().text} {kind}", article=article)

    def _date(self) -> Entity:
        day, month = self.random.randint(1, 28), self.random.choice(names.MONTHS)
        return Entity("date", f"{day} {month} {self._year(1930, 1959)}")

    def _plain(self, kind: str) -> Entity:
        makers: dict[str, Callable[[], str]] = {
            "year": lambda: self._year(1979, 2021),
            "count": lambda: self._number(12, 980),
            "inhabitants": lambda: self._number(1_100, 98_000),
            "metres": lambda: f"{self._number(14, 1_900)} metres",
            "kilometres": lambda: f"{self._number(3, 240)} kilometres",
            "weekday": lambda: self._word(names.WEEKDAYS),
            "occupation": lambda: self._word(names.OCCUPATIONS),
            "product": lambda: self._word(names.PRODUCTS),
            "collected": lambda: self._word(names.COLLECTED),
            "skill": lambda: self._word(names.SKILLS),
        }
        return Entity(kind, makers[kind]())
