"""Rows of our own sets: columns, origin, and the split of the whole passage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loralab.data.own.facts import Passage, facts

Row = tuple[dict[str, Any], str, str]
"""Columns, origin, split."""

COUNTS = {"train": 4000, "validation": 500, "test": 500}
"""Generated passages of each split."""

SEED = 0


def passages(root: Path) -> Iterator[Row]:
    """Yield the questions of the written passages.

    Every fifth passage is for test and every tenth for validation, so the questions of
    a passage stand in one split.

    Args:
        root: The folder of ``passages.json``, in SQuAD v2 format.
    """
    file = root / "passages.json"
    for place, article in enumerate(json.loads(file.read_text("utf-8"))["data"]):
        test, validation = place % 5 == 4, place % 10 == 2
        split = "test" if test else "validation" if validation else "train"
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = question["answers"]
                columns = {
                    "id": question["id"],
                    "title": article["title"],
                    "context": paragraph["context"],
                    "question": question["question"],
                    "answers": {
                        "text": [one["text"] for one in answers],
                        "answer_start": [one["answer_start"] for one in answers],
                    },
                }
                yield columns, f"{file.name}:{question['id']}", split


def _generated() -> Iterator[tuple[Passage, str, str]]:
    for split, count in COUNTS.items():
        for number, passage in enumerate(facts(count, SEED, split)):
            yield passage, f"facts:{split}:{number}", split


def facts_qa(root: Path) -> Iterator[Row]:
    """Yield the questions of the generated passages; nothing is read."""
    for passage, origin, split in _generated():
        for columns in passage.qa_rows():
            yield columns, origin, split


def facts_ner(root: Path) -> Iterator[Row]:
    """Yield the tagged tokens of the generated passages; nothing is read."""
    for passage, origin, split in _generated():
        yield passage.ner_row(), origin, split
