"""Which facts a passage tells: drawn so that every question has one answer.

A relation is told of a subject at most once, and a value is used at most once, so the
answer to a question for either is unique. What a fact merely suggests (who leads an
organization surely works for it) is never told and never asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from loralab.data.own.invention import Entity, Inventor
from loralab.data.own.relations import RELATIONS, Relation

Key = tuple[str, str, str]
"""What a question asks: relation (``inverse …`` for its subject), of whom, thing."""

SCENES = (
    ("person", "person"),
    ("person", "person", "org"),
    ("person", "person", "place"),
    ("org", "org"),
    ("org", "org", "person"),
    ("org", "person"),
    ("place", "place"),
    ("place", "place", "person"),
    ("place", "org"),
)

SUGGESTED = {
    "married": ("married",),
    "taught_by": ("works_as",),
    "founded_by": ("works_as", "works_for"),
    "led_by": ("works_as", "works_for"),
    "works_for": ("founded_by", "led_by"),
}
"""Relations that are closed for the value of a fact, as it suggests an answer."""

LINKED = {"born_in", "lives_in", "based_in", "branch_in"}
LINKED |= {"works_for", "founded_by", "led_by", "married"}
"""Relations whose value may be another subject of the passage."""

BY_KIND = {
    kind: [one for one in RELATIONS.values() if one.subject == kind]
    for kind in ("person", "org", "place")
}


@dataclass(frozen=True)
class Fact:
    """A relation between a subject and a value, and perhaps a thing."""

    relation: Relation
    subject: Entity
    value: Entity
    thing: Entity | None = None

    @property
    def key(self) -> Key:
        """What a question for the value asks."""
        thing = self.thing.text if self.thing else ""
        return self.relation.name, self.subject.text, thing

    @property
    def inverse_key(self) -> Key:
        """What a question for the subject asks."""
        thing = self.thing.text if self.thing else ""
        return f"inverse {self.relation.name}", self.value.text, thing


class World:
    """The subjects and facts of one passage.

    Args:
        random: Where the choices come from.
        inventor: Makes the entities.
    """

    def __init__(self, random: Random, inventor: Inventor) -> None:
        self.random = random
        self.inventor = inventor
        self.subjects = [inventor.new(kind) for kind in random.choice(SCENES)]
        self.facts: list[Fact] = []
        self.closed: set[tuple[str, str]] = set()
        self.told: set[Key] = set()
        wanted = random.choice((4, 5, 5, 6, 6))
        self._tell_of_both()
        self._link()
        self._tell_of_each()
        while len(self.facts) < wanted:
            subject = random.choice(self.subjects)
            self.tell(subject, random.choice(BY_KIND[subject.kind]))

    def is_open(self, relation: str, subject: Entity) -> bool:
        """Return whether nothing tells or suggests a relation of a subject."""
        return (relation, subject.text) not in self.closed

    def tell(
        self,
        subject: Entity,
        relation: Relation,
        thing: Entity | None = None,
        value: Entity | None = None,
    ) -> Fact | None:
        """Add a fact, unless the relation is closed for the subject.

        The thing and the value are drawn where they are not given.
        """
        if not self.is_open(relation.name, subject):
            return None
        if relation.thing and thing is None:
            thing = self._thing(subject, relation)
        value = value or self._value(subject, relation)
        fact = Fact(relation, subject, value, thing)
        self.facts.append(fact)
        self.told |= {fact.key, fact.inverse_key}
        self.closed.add((relation.name, subject.text))
        for name in SUGGESTED.get(relation.name, ()):
            self.closed.add((name, fact.value.text))
        if relation.name == "distance" and thing:  # the same from either end
            self.closed.add((relation.name, thing.text))
        return fact

    def _tell_of_both(self) -> None:
        first, second = self.subjects[:2]
        if first.kind != second.kind:
            return
        choices = [one for one in BY_KIND[first.kind] if one.thing != "place"]
        relation = self.random.choice(choices)
        fact = self.tell(first, relation)
        self.tell(second, relation, fact.thing if fact else None)

    def _link(self) -> None:
        """Tell something that joins two of the subjects, if there is such a thing."""
        options = [
            (subject, relation, value)
            for subject in self.subjects
            for relation in BY_KIND[subject.kind]
            for value in self._linkable(subject, relation)
            if self.is_open(relation.name, subject)
        ]
        if options:
            subject, relation, value = self.random.choice(options)
            self.tell(subject, relation, value=value)

    def _tell_of_each(self) -> None:
        for subject in self.subjects:
            if all(fact.subject != subject for fact in self.facts):
                while not self.tell(subject, self.random.choice(BY_KIND[subject.kind])):
                    pass

    def _thing(self, subject: Entity, relation: Relation) -> Entity:
        if relation.thing == "place":
            others = [
                one
                for one in self.subjects
                if one.kind == "place"
                and one != subject
                and self.is_open("distance", one)
            ]
            if others and self.random.random() < 0.7:
                return others[0]
        return self.inventor.new(relation.thing)

    def _value(self, subject: Entity, relation: Relation) -> Entity:
        known = self._linkable(subject, relation)
        if known and self.random.random() < 0.5:
            return known[0]
        return self.inventor.new(relation.value)

    def _linkable(self, subject: Entity, relation: Relation) -> list[Entity]:
        """Return the other subjects that can be the value: nothing told clashes."""
        if relation.name not in LINKED:
            return []
        taken = {fact.value for fact in self.facts}
        closing = SUGGESTED.get(relation.name, ())
        return [
            other
            for other in self.subjects
            if other.kind == relation.value
            and other != subject
            and other not in taken
            and all(self.is_open(name, other) for name in closing)
        ]
