"""Questions about a passage: some answered by it, some not."""

from __future__ import annotations

import re
from dataclasses import dataclass

from loralab.data.own.invention import Entity
from loralab.data.own.relations import Relation
from loralab.data.own.telling import Telling, with_article
from loralab.data.own.world import BY_KIND, SUGGESTED, Fact, Key, World

UNANSWERABLE = 0.3
"""How often an unanswered question is tried; some tries find none: a quarter stays."""

FEW = {"weekday", "occupation", "product"}
"""Kinds that are not drawn anew for a question: few words, or too generic."""


@dataclass(frozen=True)
class Question:
    """A question, and where its answer stands.

    Attributes:
        text: The question.
        span: Start and end of the answer in the passage; None: it is not told.
        key: What is asked; no other fact of the passage has the same key.
    """

    text: str
    span: tuple[int, int] | None
    key: Key


class Asker:
    """Draws the questions of one passage.

    Args:
        world: The facts.
        telling: The passage as it is written.
    """

    def __init__(self, world: World, telling: Telling) -> None:
        self.world, self.telling = world, telling
        self.random = world.random

    def questions(self, count: int) -> list[Question]:
        """Return `count` questions, or fewer where the facts give no more."""
        facts = self.random.sample(self.world.facts, len(self.world.facts))
        asked: dict[Key, Question] = {}
        for _ in range(4 * count):
            if len(asked) == count:
                break
            if self.random.random() < UNANSWERABLE:
                ways = (self._not_told, self._stranger, self._wrong_value)
                question = self.random.choice(ways)()
            else:
                question = self._told(facts.pop()) if facts else None
            if question:
                asked.setdefault(question.key, question)
        return list(asked.values())

    def _told(self, fact: Fact) -> Question:
        relation = fact.relation
        start, end = self.telling.values[fact.key]
        roll = self.random.random()
        if relation.inverse and roll < 0.35:
            text = self._inverse(relation, fact.value, fact.thing)
            span = self.telling.first[fact.subject.text]
            return Question(text, span, fact.inverse_key)
        if relation.asks_year and roll > 0.8:
            text = self._ask(relation.asks_year, fact.subject, fact.thing)
            return Question(text, (end - len("1931"), end), fact.key)
        text = self._ask(relation.asks, fact.subject, fact.thing)
        return Question(text, (start, end), fact.key)

    def _not_told(self) -> Question | None:
        """Ask something that is not told of somebody who is in the passage."""
        told_of = {fact.relation.name for fact in self.world.facts}
        open_ = [
            (subject, relation)
            for subject in self._present()
            for relation in BY_KIND[subject.kind]
            if self.world.is_open(relation.name, subject)
        ]
        told = [one for one in open_ if one[1].name in told_of]
        pick = told if told and self.random.random() < 0.75 else open_
        return self._unanswered(*self.random.choice(pick)) if pick else None

    def _stranger(self) -> Question | None:
        """Ask what is told of somebody in the passage, of somebody who is not."""
        fact = self.random.choice(self.world.facts)
        inventor = self.world.inventor
        if fact.subject.kind == "person":
            like = fact.subject if self.random.random() < 0.5 else None
            stranger = inventor.person(like)
        else:
            stranger = inventor.new(fact.subject.kind)
        return self._unanswered(stranger, fact.relation)

    def _wrong_value(self) -> Question | None:
        """Ask for a subject by a value that is told of another relation, or of none."""
        relations = [
            one
            for subject in self.world.subjects
            for one in BY_KIND[subject.kind]
            if one.inverse and not one.thing
        ]
        relation = self.random.choice(relations)
        values = [f.value for f in self.world.facts if f.value.kind == relation.value]
        if relation.value not in FEW and (not values or self.random.random() < 0.3):
            values = [self.world.inventor.new(relation.value)]
        if not values:
            return None
        value = self.random.choice(values)
        key = (f"inverse {relation.name}", value.text, "")
        if key in self.world.told or not self._is_open_inversely(relation, value):
            return None
        return Question(self._inverse(relation, value, None), None, key)

    def _is_open_inversely(self, relation: Relation, value: Entity) -> bool:
        names = SUGGESTED.get(relation.name, ())
        if relation.name == "married":
            return self.world.is_open("married", value)
        return all(self.world.is_open(name, value) for name in names)

    def _present(self) -> list[Entity]:
        values = [fact.value for fact in self.world.facts]
        others = [one for one in values if one.kind in BY_KIND]
        return list(dict.fromkeys([*self.world.subjects, *others]))

    def _unanswered(self, subject: Entity, relation: Relation) -> Question | None:
        thing = self._thing(subject, relation) if relation.thing else None
        if relation.thing and thing is None:
            return None
        key = (relation.name, subject.text, thing.text if thing else "")
        if key in self.world.told:
            return None
        asks = relation.asks + relation.asks_year
        return Question(self._ask(asks, subject, thing), None, key)

    def _thing(self, subject: Entity, relation: Relation) -> Entity | None:
        if relation.thing == "place":
            known = [one for one in self._present() if one.kind == "place"]
        else:
            known = [
                fact.thing
                for fact in self.world.facts
                if fact.relation == relation and fact.thing
            ] or [self.world.inventor.new(relation.thing)]
        known = [one for one in known if one != subject]
        return self.random.choice(known) if known else None

    def _ask(self, asks: tuple[str, ...], subject: Entity, thing: Entity | None) -> str:
        name = subject.article + subject.text
        return _fill(
            self.random.choice(asks),
            {"n": name, "n's": f"{name}'s", "t": _named(thing)},
        )

    def _inverse(self, relation: Relation, value: Entity, thing: Entity | None) -> str:
        name = value.article + value.text
        return _fill(
            self.random.choice(relation.inverse),
            {"v": name, "av": with_article(value.text), "t": _named(thing)},
        )


def _named(thing: Entity | None) -> str:
    return thing.text if thing else ""


def _fill(template: str, slots: dict[str, str]) -> str:
    return re.sub(r"\{([^}]+)\}", lambda slot: slots[slot[1]], template)
