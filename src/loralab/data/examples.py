"""What a task is (`DataPreprocessor`), makes of rows (`Examples`), and answers.

Shape suffixes: B batch, T tokens of the longest in the batch, C classes, S labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeGuard

from loralab import registry
from loralab.config import TaskConfig

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from loralab.data.pixels import Pixels

IGNORE = -100
"""The label of a token that is not supervised (torch's ``ignore_index``)."""

IMAGE = "image"
"""The column that says where an image is; what it shows is another's to say."""

Supervision = Literal["example", "token", "next-token", "span", "sequence"]
"""What the labels of an example are:

``example``     one class index
``token``       class indices aligned with `input_ids`
``next-token``  token ids aligned with `input_ids`; each is predicted from those before
``span``        [first, last] position of the answer in `input_ids`
``sequence``    the token ids that a decoder is to write
"""


Classes = Sequence[str] | Mapping[str, Sequence[str]]
"""The names of classes in order; or name -> the sentences that a head is written by."""


@dataclass(frozen=True)
class Examples:
    """Model inputs, one entry an example.

    Attributes:
        input_ids: Token ids; none of images.
        labels: As `supervision` says; `IGNORE` where a token is not supervised.
        row: The row that an example came from (a long text gives several).
        supervision: What the labels are.
        capacity: Tokens that a pack of examples may hold; None: no packing.
        token_type_ids: Which text of a pair a token is of, where the model asks.
        pixels: The images, if the examples are images: each has as many tokens as the
            model makes of it, its patches and the class token.
        features: What a frozen base says of each, [E, D]; given to the head alone.
        extra: What the task's `read` needs to know of an example.
        notes: What was done to rows on the way, as counts (``truncated``, …).
    """

    input_ids: list[list[int]]
    labels: list[Any]
    row: list[int]
    supervision: Supervision = "example"
    capacity: int | None = None
    token_type_ids: list[list[int]] | None = None
    pixels: Pixels | None = None
    features: torch.Tensor | None = None
    extra: list[Any] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example, those that a decoder writes among them."""
        if self.pixels is not None:
            return [self.pixels.tokens] * len(self)
        if self.supervision != "sequence":
            return [len(ids) for ids in self.input_ids]
        pairs = zip(self.input_ids, self.labels, strict=True)
        return [len(ids) + len(labels) for ids, labels in pairs]

    @property
    def tokens(self) -> int:
        """All tokens."""
        return sum(self.lengths)

    @property
    def supervised(self) -> int:
        """Labels that enter the loss."""
        if self.supervision == "example":
            return len(self.labels)
        # the first token of an example is predicted by nothing
        skip = 1 if self.supervision == "next-token" else 0
        return sum(sum(x != IGNORE for x in labels[skip:]) for labels in self.labels)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered to a row.

    Attributes:
        value: A class index, a list of tags, or a text, by the task's `form`.
        probability: Of the value, or None where there is none.
        ranked: Class indices by probability, best first, at most ten.
    """

    value: Any
    probability: float | None = None
    ranked: tuple[int, ...] = ()


class DataPreprocessor(Protocol):
    """A task: how its rows become `Examples`, and a model's output an answer."""

    head: str
    """Which model it needs: a key of `loralab.models.forward.HEADS`."""

    form: str
    """What an answer is: ``class``, ``tags`` or ``text``."""

    metrics: Sequence[str]
    """The metrics that it is measured by, the first one the primary; none: by
    cross-entropy. A task that generates names none: writing answers takes long, so
    it is asked for (``evaluation.metrics``)."""

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
        """Check the tokenizer, or image processor, and set it up for the task."""

    def __call__(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> Examples:
        """Return the model inputs of rows; those without an answer get dummy labels."""

    def row_of(self, given: Any) -> dict[str, Any]:
        """Return the row of what a user asks (a text, an image, a mapping of columns).

        Raises:
            ValueError: it cannot be used; the message says why.
        """

    def reference(self, row: Mapping[str, Any]) -> Any:
        """Return what is right: class index, tags, or a list of acceptable texts."""


class ReadingTask(DataPreprocessor, Protocol):
    """A task whose answers are read off the logits of its examples."""

    def read(self, examples: Examples, i: int, logits: NDArray[np.float32]) -> Any:
        """Return what the task keeps of the logits of example `i`.

        Args:
            examples: The encoded rows.
            i: Which example.
            logits: [C] under ``example``, [S, C] under ``token`` (the supervised
                tokens), [2, T] under ``span``, fp32.
        """

    def answer(self, row: Mapping[str, Any], readings: Sequence[Any]) -> Answer:
        """Return the answer to a row from the readings of all of its examples."""

    def show(self, row: Mapping[str, Any], readings: Sequence[Any]) -> dict[str, Any]:
        """Return the answer as a user wants to see it, as JSON."""


class GeneratingTask(DataPreprocessor, Protocol):
    """A task whose answers are written token by token."""

    def prompt(self, row: Mapping[str, Any], processor: Any) -> str:
        """Return what the model is fed."""


def generates(task: DataPreprocessor) -> TypeGuard[GeneratingTask]:
    """Whether a task's answers are written token by token."""
    return hasattr(task, "prompt")


def classes_of(state: Mapping[str, Any]) -> Classes:
    """Return what a base must know of a task's classes, from what the task learnt."""
    labels = state.get("labels", ())
    if prompts := state.get("prompts"):
        return dict(zip(labels, prompts, strict=True))
    return tuple(labels)


def get_preprocessor(task: TaskConfig) -> DataPreprocessor:
    """Return the task of a configuration, with its params."""
    entry = registry.get("task", task.name)
    preprocessor: DataPreprocessor = entry.target(entry.schema(**task.params))
    return preprocessor
