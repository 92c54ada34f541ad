"""One of several classes: what every task of classification shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loralab.data.examples import Answer, Examples
from loralab.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def label_of(value: Any) -> str:
    """Return a class's name.

    Raises:
        ValueError: it is empty, a fraction, or several values.
    """
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


class Classification:
    """Class names from the training rows, and answers read off the logits."""

    form = "class"

    def __init__(self) -> None:
        self.labels: list[str] = []

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
