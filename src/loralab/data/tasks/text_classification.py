"""Text classification: one text or a pair of texts, one of several classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from loralab.data.examples import Examples
from loralab.errors import DataError, ModelError, nearest
from loralab.registry import Params, register


class TextClassificationParams(Params):
    """What a text classifier is given."""

    max_length: int = Field(256, gt=0, description="tokens; longer texts are cut")


def _text(columns: Mapping[str, Any], name: str) -> str:
    value = columns[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} is {type(value).__name__}, not text")
    if not value.strip():
        raise ValueError(f"{name} is empty")
    return value


def _label(value: Any) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError("label is empty")
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"label {value!r} is no class (a fraction)")
    if isinstance(value, (list, dict)):
        raise ValueError(f"label is a {type(value).__name__}, not one class")
    return str(int(value)) if isinstance(value, float) else str(value).strip()


@register("task", "text-classification", TextClassificationParams)
class TextClassification:
    """Columns ``text``, ``label`` and optionally ``text_pair``; labels are names."""

    head = "sequence-classification"
    metrics = ("accuracy", "macro-f1", "mcc")

    def __init__(self, params: TextClassificationParams) -> None:
        self.params = params
        self.labels: list[str] = []

    def parse(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``text``, ``text_pair`` (or None) and ``label`` of a row."""
        for name in ("text", "label"):
            if name not in columns:
                hint = nearest(name, map(str, columns))
                raise ValueError(
                    f"no column {name!r} ({hint}); name yours with data.columns."
                    f"{name}=COLUMN"
                )
        pair = columns.get("text_pair")
        return {
            "text": _text(columns, "text"),
            "text_pair": _text(columns, "text_pair") if pair is not None else None,
            "label": _label(columns["label"]),
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
        if processor.pad_token is None:
            raise ModelError(
                "the tokenizer has no padding token, so texts cannot be batched",
                fix="choose a base model whose tokenizer has one",
            )

    def __call__(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> Examples:
        """Return token ids and class indices; texts are cut at ``max_length``.

        Rows without a label (at inference) get label 0.
        """
        limit = min(self.params.max_length, processor.model_max_length)
        texts = [row["text"] for row in rows]
        pairs = [row.get("text_pair") for row in rows]
        both = any(pair is not None for pair in pairs)
        second = [pair or "" for pair in pairs] if both else None
        ids = processor(texts, second, truncation=True, max_length=limit)["input_ids"]
        index = {label: i for i, label in enumerate(self.labels)}
        cut = sum(len(x) == limit for x in ids)
        return Examples(
            input_ids=ids,
            labels=[index[row["label"]] if "label" in row else 0 for row in rows],
            row=list(range(len(ids))),
            notes={"at_max_length": cut},
        )
