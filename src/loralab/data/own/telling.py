"""From facts to sentences, with the offsets of everything that is named."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from loralab.data.own.compounds import FILLERS, JOINTS, PAIRS
from loralab.data.own.invention import LABELS, Entity
from loralab.data.own.world import Fact, Key, World

SLOT = re.compile(r"\{([^}]+)\}")
FEWEST, MOST = 3, 6
"""Sentences of a passage."""

CONFUSABLE = {"person": {"person"}, "place": {"place", "org", "school"}}
"""Kinds that a pronoun for an entity could be misread as."""


@dataclass(frozen=True)
class Sentence:
    """A template and the one or two facts that it tells; none in a filler."""

    template: str
    facts: tuple[Fact, ...] = ()


def with_article(text: str) -> str:
    """Return the text after *a* or *an*."""
    return f"{'an' if text[0].lower() in 'aeiou' else 'a'} {text}"


def _joined(random: Random, facts: list[Fact]) -> list[Sentence]:
    """Return sentences that tell one subject's facts, two at once where possible."""
    left = {fact.relation.name: fact for fact in facts}
    found = []
    for joint in random.sample(JOINTS, len(JOINTS)):
        if all(name in left for name in joint.relations) and random.random() < 0.7:
            both = tuple(left.pop(name) for name in joint.relations)
            found.append(Sentence(random.choice(joint.says), both))
    alone = [Sentence(random.choice(f.relation.says), (f,)) for f in left.values()]
    found += alone
    random.shuffle(found)
    return found


def plan(random: Random, world: World) -> list[Sentence]:
    """Return the sentences of a passage, in order."""
    facts = list(world.facts)
    sentences: list[Sentence] = []
    first, second = facts[:2]
    pairs = [one for one in PAIRS if one.relations[0] == first.relation.name]
    if first.relation == second.relation and pairs and random.random() < 0.6:
        facts = facts[2:]
        pair = Sentence(random.choice(pairs[0].says), (first, second))
        sentences.append(pair)
    for subject in world.subjects:
        own = [fact for fact in facts if fact.subject == subject]
        sentences += _joined(random, own)
    if random.random() < 0.3:
        random.shuffle(sentences)
    elif random.random() < 0.5:
        sentences.append(sentences.pop(0))
    fillers = random.sample(FILLERS, FEWEST)
    while len(sentences) < FEWEST or (len(sentences) < MOST and random.random() < 0.2):
        if not fillers:
            break
        sentences.insert(random.randint(1, len(sentences)), Sentence(fillers.pop()))
    return sentences


class Telling:
    """The text of a passage, written sentence by sentence.

    Attributes:
        text: What is written so far.
        spans: Start, end and label of every named entity.
        values: Where the value of a fact stands, by the fact's key.
        first: Where the full name of an entity stands first.
    """

    def __init__(self, random: Random) -> None:
        self.random = random
        self.text = ""
        self.spans: list[tuple[int, int, str]] = []
        self.values: dict[Key, tuple[int, int]] = {}
        self.first: dict[str, tuple[int, int]] = {}
        self._start = 0
        self._before: set[Entity] = set()
        self._lead: Entity | None = None

    def write(self, sentence: Sentence) -> None:
        """Append a sentence."""
        self.text += " " if self.text else ""
        self._start = len(self.text)
        parts = SLOT.split(sentence.template)
        for i, part in enumerate(parts):
            if i % 2:
                self._fill(part, sentence.facts)
            else:
                self._add(part)
        facts = sentence.facts
        self._before = {
            one for f in facts for one in (f.subject, f.value, f.thing) if one
        }
        self._lead = facts[0].subject if facts else None

    def _add(self, text: str) -> None:
        if len(self.text) == self._start:
            text = text[:1].upper() + text[1:]
        self.text += text

    def _fill(self, slot: str, facts: tuple[Fact, ...]) -> None:
        name, _, possessive = slot.partition("'")
        if name in ("s", "o", "n", "m"):
            subject = facts[-1 if name == "m" else 0].subject
            self._refer(subject, name, bool(possessive))
            return
        fact = facts[-1 if name.endswith("w") else 0]
        if name == "t":
            if fact.thing:
                self._name(fact.thing)
            return
        if name.startswith("a"):
            self._add(with_article(fact.value.text)[: -len(fact.value.text)])
        self.values[fact.key] = self._name(fact.value)

    def _refer(self, entity: Entity, slot: str, possessive: bool) -> None:
        roll = self.random.random()
        known = entity.text in self.first
        if known and slot in ("s", "o") and roll < 0.45 and self._pronoun_fits(entity):
            forms = entity.pronoun or ("", "", "")
            self._add(forms[1 if possessive else 2 if slot == "o" else 0])
            return
        if known and roll < 0.9 and entity.kind == "person":
            self._mark(entity.short, "PER")
        elif known and roll < 0.75 and entity.kind == "org":
            self._add(entity.short)
        else:
            self._name(entity)
        self._add("'s" if possessive else "")

    def _pronoun_fits(self, entity: Entity) -> bool:
        if entity.pronoun is None or self._lead != entity:
            return False
        kinds = CONFUSABLE[entity.kind]
        return not any(one.kind in kinds for one in self._before - {entity})

    def _name(self, entity: Entity) -> tuple[int, int]:
        """Write the full name and return its span."""
        self._add(entity.article)
        span = self._mark(entity.text, LABELS.get(entity.kind, ""))
        self.first.setdefault(entity.text, span)
        return span

    def _mark(self, text: str, label: str) -> tuple[int, int]:
        start = len(self.text)
        self._add(text)
        span = (start, len(self.text))
        if label:
            self.spans.append((*span, label))
        return span
