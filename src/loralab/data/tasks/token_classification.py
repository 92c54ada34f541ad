r"""Token classification: one tag a word, such as B-PER, I-PER, O.

A word is labelled at its first token; its other tokens are not supervised. Rows longer
than ``max_length`` become windows that overlap by ``stride`` tokens; a word that stands
in several is read in the one where it has the most context on its poorer side::

    window 1  ────────────█████
    window 2          █████────────────
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from loralab.data.entities import are_entity_tags, entities
from loralab.data.examples import IGNORE, Answer, Examples
from loralab.data.tasks._classes import softmax
from loralab.data.tasks._columns import words_of
from loralab.data.tasks._processor import require_padding
from loralab.errors import DataError
from loralab.registry import Params, register

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WORD = re.compile(r"\w+|[^\w\s]")
"""How a plain text is cut into words at inference."""


class TokenClassificationParams(Params):
    """How words become tokens."""

    max_length: int = Field(256, gt=8, description="tokens of a window")
    stride: int = Field(64, ge=0, description="tokens that two windows share")

    @model_validator(mode="after")
    def _windows_advance(self) -> TokenClassificationParams:
        if self.stride >= self.max_length // 2:
            raise ValueError("stride must be less than half of max_length")
        return self


@register("task", "token-classification", TokenClassificationParams)
class TokenClassification:
    """Columns ``tokens`` and ``tags``, two lists of equal length."""

    head = "token-classification"
    form = "tags"

    def __init__(self, params: TokenClassificationParams) -> None:
        self.params = params
        self.labels: list[str] = []

    @property
    def metrics(self) -> tuple[str, ...]:
        """Entity F1, or tag accuracy where the tags mark no entities."""
        return ("entity-f1" if are_entity_tags(self.labels) else "tag-accuracy",)

    def parse(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``tokens`` and ``tags`` of a row."""
        tokens, tags = words_of(columns, "tokens"), words_of(columns, "tags")
        if len(tokens) != len(tags):
            raise ValueError(f"{len(tokens)} tokens and {len(tags)} tags")
        return {"tokens": tokens, "tags": tags}

    def input_of(self, row: Mapping[str, Any]) -> str:
        """Return the words."""
        return "\x1f".join(row["tokens"])

    def fit(self, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        """Take the tags from the training rows, sorted, `O` first."""
        known = {tag for row in splits["train"] for tag in row["tags"]}
        if len(known) < 2:
            raise DataError(f"the training rows have one tag only: {sorted(known)}")
        for split, rows in splits.items():
            new = sorted({tag for row in rows for tag in row["tags"]} - known)
            if new:
                raise DataError(
                    f"tags that no training row has: {new[:5]}",
                    where=f"split {split}",
                    fix="lower data.validation_fraction or test_fraction",
                )
        self.labels = sorted(known, key=lambda tag: (tag != "O", tag))
        return {"labels": self.labels}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the tags of the trained adapter."""
        self.labels = list(state["labels"])

    def prepare(self, processor: Any) -> None:
        """Check that texts can be padded; let a byte-level tokenizer mark words."""
        require_padding(processor)
        before = processor.backend_tokenizer.pre_tokenizer
        if getattr(before, "add_prefix_space", True) is False:  # RoBERTa, GPT-2
            before.add_prefix_space = True
        if getattr(processor, "add_prefix_space", True) is False:
            processor.add_prefix_space = True

    def __call__(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> Examples:
        """Return windows of tokens; `extra` holds (word, tokens to the nearer edge)."""
        made = processor(
            [row["tokens"] for row in rows],
            is_split_into_words=True,
            truncation=True,
            max_length=min(self.params.max_length, processor.model_max_length),
            stride=self.params.stride,
            return_overflowing_tokens=True,
        )
        index = {label: i for i, label in enumerate(self.labels)}
        found = Examples([], [], [], "token")
        for k, ids in enumerate(made["input_ids"]):
            row = rows[made["overflow_to_sample_mapping"][k]]
            labels, places = [IGNORE] * len(ids), []
            for at, word in _starts(made, k, self.params.stride):
                labels[at] = index[row["tags"][word]] if "tags" in row else 0
                places.append((word, min(at, len(ids) - 1 - at)))
            if places:
                found.input_ids.append(ids)
                found.labels.append(labels)
                found.row.append(made["overflow_to_sample_mapping"][k])
                found.extra.append(places)
        found.notes["windows_beyond_the_first"] = len(found) - len(set(found.row))
        return found

    def row_of(self, given: Any) -> dict[str, Any]:
        """Return the row of a text, a list of words, or a mapping with ``tokens``."""
        if isinstance(given, str):
            given = WORD.findall(given)
        columns = given if isinstance(given, Mapping) else {"tokens": given}
        return {"tokens": words_of(columns, "tokens")}

    def reference(self, row: Mapping[str, Any]) -> list[str]:
        """Return the tags."""
        return list(row["tags"])

    def read(
        self, examples: Examples, i: int, logits: NDArray[np.float32]
    ) -> list[tuple[int, int, int, float]]:
        """Return (word, distance to the edge, best tag, its probability) by word."""
        p_SC = softmax(logits)
        best = p_SC.argmax(-1).tolist()
        return [
            (word, edge, tag, float(p[tag]))
            for (word, edge), tag, p in zip(examples.extra[i], best, p_SC, strict=True)
        ]

    def answer(self, row: Mapping[str, Any], readings: Sequence[Any]) -> Answer:
        """Return a tag for every word; `O` for a word that has no token."""
        tags, _ = self._merge(row, readings)
        return Answer(tags)

    def show(self, row: Mapping[str, Any], readings: Sequence[Any]) -> dict[str, Any]:
        """Return ``entities``, or the tagged words, and what they were read from."""
        tags, probabilities = self._merge(row, readings)
        if are_entity_tags(self.labels):
            found = sorted(entities(tags), key=lambda entity: entity[1])
        else:
            found = [(tag, i, i) for i, tag in enumerate(tags)]
        spans = [
            {
                "type": kind,
                "text": " ".join(row["tokens"][first : last + 1]),
                "words": [first, last],
            }
            for kind, first, last in found
        ]
        return {
            "entities": spans,
            "tokens": row["tokens"],
            "tags": tags,
            "probabilities": probabilities,
        }

    def _merge(
        self, row: Mapping[str, Any], readings: Sequence[Any]
    ) -> tuple[list[str], list[float]]:
        tags, chances = ["O"] * len(row["tokens"]), [0.0] * len(row["tokens"])
        edges = [-1] * len(row["tokens"])
        for word, edge, tag, chance in (x for reading in readings for x in reading):
            if edge > edges[word]:
                tags[word], chances[word] = self.labels[tag], chance
                edges[word] = edge
        return tags, chances


def _starts(made: Any, k: int, stride: int) -> list[tuple[int, int]]:
    """Return (position, word) of each first token of a word in window `k`.

    A window's first tokens are the last `stride` of the one before; a word whose first
    token was before that is no longer whole here.
    """
    row = made["overflow_to_sample_mapping"]
    previous = None
    if k and row[k - 1] == row[k]:
        before = [word for word in made.word_ids(k - 1) if word is not None]
        previous = before[-stride - 1]
    found = []
    for at, word in enumerate(made.word_ids(k)):
        if word is None:
            continue
        if word != previous:
            found.append((at, word))
        previous = word
    return found
