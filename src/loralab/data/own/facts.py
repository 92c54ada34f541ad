"""Passages about invented people, places and organizations, made from a seed.

For question answering and for token classification: the answers' spans and the entity
tags are exact by construction. Every passage tells several facts of the same kind, so
an answer is not found by its type alone; a quarter of the questions are not answered.
The splits share no first name, surname, place stem or organization stem.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from loralab.data.own.asking import Asker, Question
from loralab.data.own.invention import Inventor
from loralab.data.own.telling import Telling, plan
from loralab.data.own.world import Key, World

TOKEN = re.compile(r"'s\b|\d+(?:,\d+)*|\w+(?:-\w+)*|[^\w\s]")


@dataclass(frozen=True)
class Passage:
    """A text with its questions and its entities.

    Attributes:
        name: ``split-number``.
        title: The name of its first subject.
        context: The text.
        questions: Three to five.
        spans: Start, end and type of each entity: ``PER``, ``LOC``, ``ORG``, ``DATE``,
            ``NUM`` (numbers and quantities) or ``OCC`` (occupations).
        told: The keys of all that the text tells.
    """

    name: str
    title: str
    context: str
    questions: tuple[Question, ...]
    spans: tuple[tuple[int, int, str], ...]
    told: frozenset[Key]

    def qa_rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row a question, shaped like the hub's flattened SQuAD v2."""
        for number, question in enumerate(self.questions):
            spans = [question.span] if question.span else []
            yield {
                "id": f"facts-{self.name}-{number}",
                "title": self.title,
                "context": self.context,
                "question": question.text,
                "answers": {
                    "text": [self.context[start:end] for start, end in spans],
                    "answer_start": [start for start, _ in spans],
                },
            }

    def ner_row(self) -> dict[str, list[str]]:
        """Return words and punctuation marks, and their BIO tags."""
        found = list(TOKEN.finditer(self.context))
        tags = ["O"] * len(found)
        spans = iter(sorted(self.spans))
        span = next(spans, None)
        for i, token in enumerate(found):
            while span and token.start() >= span[1]:
                span = next(spans, None)
            if span and token.start() >= span[0]:
                tags[i] = f"{'B' if token.start() == span[0] else 'I'}-{span[2]}"
        return {"tokens": [token[0] for token in found], "tags": tags}


def facts(count: int, seed: int, split: str = "train") -> Iterator[Passage]:
    """Yield passages; the same for the same arguments, however many are asked for.

    Args:
        count: How many.
        seed: Decides all of them; passage i does not depend on `count`.
        split: ``train``, ``validation`` or ``test``: whose names are used.

    Raises:
        ValueError: there is no such split.
    """
    for number in range(count):
        random = Random(f"{split} {seed} {number}")
        world = World(random, Inventor(random, split))
        telling = Telling(random)
        for sentence in plan(random, world):
            telling.write(sentence)
        asked = Asker(world, telling).questions(random.randint(3, 5))
        yield Passage(
            f"{split}-{number}",
            world.subjects[0].text,
            telling.text,
            tuple(asked),
            tuple(telling.spans),
            frozenset(world.told),
        )
