"""By class: support, precision, recall, F1, and what is taken for what."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np


def majority(references: Sequence[int]) -> float:
    """Return the accuracy of always saying the most frequent class."""
    return float(np.bincount(np.asarray(references)).max() / len(references))


def per_class(
    labels: Sequence[str], references: Sequence[int], predictions: Sequence[int]
) -> list[dict[str, Any]]:
    """Return support, precision, recall and F1 of each class; None: undefined."""
    count = len(labels)
    confusion = np.zeros((count, count))
    np.add.at(confusion, (np.asarray(references), np.asarray(predictions)), 1)
    right, true, said = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore"):
        precision, recall, f1 = right / said, right / true, 2 * right / (true + said)
    return [
        {
            "label": label,
            "support": int(true[i]),
            "precision": _number(precision[i]),
            "recall": _number(recall[i]),
            "f1": _number(f1[i]),
        }
        for i, label in enumerate(labels)
    ]


def confusion(
    labels: Sequence[str], references: Sequence[int], predictions: Sequence[int]
) -> list[tuple[str, str, int]]:
    """Return the cells of the confusion matrix that are not 0: (true, said, rows).

    By class as `labels` has them. With a thousand classes nearly all cells are empty.
    """
    cells = Counter(zip(references, predictions, strict=True))
    return [
        (labels[true], labels[said], cells[true, said]) for true, said in sorted(cells)
    ]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
