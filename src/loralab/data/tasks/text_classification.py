"""Text classification: one text or a pair of texts, one of several classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from loralab.data.examples import Answer, Examples
from loralab.data.tasks._columns import column_of, text_of
from loralab.data.tasks._processor import require_padding
from loralab.errors import DataError
from loralab.registry import Params, register

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TextClassificationParams(Params):
    """What a text classifier is given."""

    max_length: int = Field(256, gt=0, description="tokens; longer texts are cut")


def _label(value: Any) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError("label is empty")
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"label {value!r} is no class (a fraction)")
    if isinstance(value, (list, dict)):
        raise ValueError(f"label is a {type(value).__name__}, not one class")
    return str(int(value)) if isinstance(value, float) else str(value).strip()


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the softmax over the last dimension, float64."""
    import numpy as np

    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    weights = np.exp(shifted)
    return np.asarray(weights / weights.sum(-1, keepdims=True))


@register("task", "text-classification", TextClassificationParams)
class TextClassification:
    """Columns ``text``, ``label`` and optionally ``text_pair``; labels are names."""

    head = "sequence-classification"
    form = "class"
    metrics = ("accuracy", "macro-f1", "mcc")

    def __init__(self, params: TextClassificationParams) -> None:
        self.params = params
        self.labels: list[str] = []

    def parse(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``text``, ``text_pair`` (or None) and ``label`` of a row."""
        text, label = text_of(columns, "text"), _label(column_of(columns, "label"))
        pair = columns.get("text_pair")
        return {
            "text": text,
            "text_pair": text_of(columns, "text_pair") if pair is not None else None,
            "label": label,
        }

    def input_of(self, row: Mapping[str, Any]) -> str:
        """Return the text, or both of a pair."""
        return f"{row['text']}\x1f{row['text_pair'] or ''}"

    def fit(self, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        """Take the class names from the training rows, sorted."""
        labels = sorted({row["label"] for row in splits["train"]})
        if len(labels) < 2:
            raise DataError(f"the training rows have one class only: {labels}")
        if len(labels) > len(splits["train"]) / 2:
            raise DataError(
                f"{len(labels)} classes in {len(splits['train'])} rows: "
                "the label column seems to hold free text",
                fix="name the right one with data.columns.label=COLUMN",
            )
        for split, rows in splits.items():
            new = sorted({row["label"] for row in rows} - set(labels))
            if new:
                raise DataError(
                    f"classes that no training row has: {new[:5]}",
                    where=f"split {split}",
                    fix="lower data.validation_fraction or test_fraction, or merge "
                    "rare classes",
                )
        self.labels = labels
        return {"labels": labels}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the class names of the trained adapter."""
        self.labels = list(state["labels"])

    def prepare(self, processor: Any) -> None:
        """Check that texts can be padded."""
        require_padding(processor)

    def __call__(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> Examples:
        """Return token ids and class indices; texts are cut at ``max_length``."""
        limit = min(self.params.max_length, processor.model_max_length)
        texts = [row["text"] for row in rows]
        pairs = [row.get("text_pair") for row in rows]
        both = any(pair is not None for pair in pairs)
        second = [pair or "" for pair in pairs] if both else None
        made = processor(texts, second, truncation=True, max_length=limit)
        ids = made["input_ids"]
        index = {label: i for i, label in enumerate(self.labels)}
        return Examples(
            input_ids=ids,
            labels=[index[row["label"]] if "label" in row else 0 for row in rows],
            row=list(range(len(ids))),
            token_type_ids=made.get("token_type_ids") if both else None,
            notes={"at_max_length": sum(len(x) == limit for x in ids)},
        )

    def row_of(self, given: Any) -> dict[str, Any]:
        """Return the row of a text, a pair of texts, or a mapping of columns."""
        if isinstance(given, str):
            given = {"text": given}
        elif isinstance(given, (tuple, list)) and len(given) == 2:
            given = {"text": given[0], "text_pair": given[1]}
        if not isinstance(given, Mapping) or "text" not in given:
            raise ValueError("give a text, a pair of texts, or {text, text_pair}")
        pair = given.get("text_pair")
        return {
            "text": text_of(given, "text"),
            "text_pair": text_of(given, "text_pair") if pair is not None else None,
        }

    def reference(self, row: Mapping[str, Any]) -> int:
        """Return the index of a row's class."""
        return self.labels.index(row["label"])

    def read(
        self, examples: Examples, i: int, logits: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Return the probabilities of the classes, [C]."""
        return softmax(logits)

    def answer(self, row: Mapping[str, Any], readings: Sequence[Any]) -> Answer:
        """Return the most probable class."""
        (p_C,) = readings
        ranked = (-p_C).argsort(kind="stable")[:10].tolist()
        return Answer(ranked[0], float(p_C[ranked[0]]), tuple(ranked))

    def show(self, row: Mapping[str, Any], readings: Sequence[Any]) -> dict[str, Any]:
        """Return ``label``, ``probability`` and all ``probabilities``."""
        (p_C,) = readings
        best = int(p_C.argmax())
        return {
            "label": self.labels[best],
            "probability": float(p_C[best]),
            "probabilities": dict(zip(self.labels, p_C.tolist(), strict=True)),
        }
