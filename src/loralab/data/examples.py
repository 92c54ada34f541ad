"""What a task makes of rows (`Examples`) and can do (`DataPreprocessor`).

Shape suffixes: B batch, T tokens of the longest in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from loralab import registry
from loralab.config import TaskConfig

IGNORE = -100
"""The label of a token that is not supervised (torch's ``ignore_index``)."""


@dataclass(frozen=True)
class Examples:
    """Model inputs, one entry an example.

    Attributes:
        input_ids: Token ids.
        labels: A class index an example, or a list of token ids aligned with
            `input_ids`, `IGNORE` where a token is not supervised.
        row: The row that an example came from (a long text gives several).
        capacity: Tokens that a pack of examples may hold; None: no packing.
        notes: What was done to rows on the way, as counts (``truncated``, …).
    """

    input_ids: list[list[int]]
    labels: list[Any]
    row: list[int]
    capacity: int | None = None
    notes: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [len(ids) for ids in self.input_ids]

    @property
    def token_level(self) -> bool:
        """Whether every token has a label, rather than every example."""
        return bool(self.labels) and isinstance(self.labels[0], list)

    @property
    def tokens(self) -> int:
        """All tokens."""
        return sum(self.lengths)

    @property
    def supervised(self) -> int:
        """Labels that enter the loss: tokens, or examples."""
        if not self.token_level:
            return len(self.labels)
        # the first token of an example is predicted by nothing
        return sum(sum(x != IGNORE for x in labels[1:]) for labels in self.labels)


class DataPreprocessor(Protocol):
    """A task: how its rows are checked, keyed, and turned into `Examples`."""

    head: str
    """Which model it needs: ``sequence-classification`` or ``causal-lm``."""

    metrics: Sequence[str]
    """The metrics that it is measured by, the first one the primary."""

    def parse(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row's content in the task's own columns.

        Raises:
            ValueError: the row cannot be used; the message says why.
        """

    def input_of(self, row: Mapping[str, Any]) -> str:
        """Return what the model is given; rows with an equal one share a split."""

    def fit(self, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        """Learn from all splits what encoding needs (class names), as JSON."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `fit` returned when the adapter was trained."""

    def prepare(self, processor: Any) -> None:
        """Check the tokenizer for what the task needs of it, and set it up."""

    def __call__(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> Examples:
        """Return the model inputs of checked rows."""


def get_preprocessor(task: TaskConfig) -> DataPreprocessor:
    """Return the task of a configuration, with its params."""
    entry = registry.get("task", task.name)
    preprocessor: DataPreprocessor = entry.target(entry.schema(**task.params))
    return preprocessor
