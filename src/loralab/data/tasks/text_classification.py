"""Text classification: one text or a pair of texts, one of several classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from loralab.data.examples import Examples
from loralab.data.tasks._classes import Classification, label_of
from loralab.data.tasks._columns import column_of, text_of
from loralab.data.tasks._processor import require_padding
from loralab.registry import Params, register


class TextClassificationParams(Params):
    """What a text classifier is given."""

    max_length: int = Field(256, gt=0, description="tokens; longer texts are cut")


@register("task", "text-classification", TextClassificationParams)
class TextClassification(Classification):
    """Columns ``text``, ``label`` and optionally ``text_pair``; labels are names."""

    head = "sequence-classification"
    metrics = ("accuracy", "macro-f1", "mcc")

    def __init__(self, params: TextClassificationParams) -> None:
        super().__init__()
        self.params = params

    def parse(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``text``, ``text_pair`` (or None) and ``label`` of a row."""
        text, label = text_of(columns, "text"), label_of(column_of(columns, "label"))
        pair = columns.get("text_pair")
        return {
            "text": text,
            "text_pair": text_of(columns, "text_pair") if pair is not None else None,
            "label": label,
        }

    def input_of(self, row: Mapping[str, Any]) -> str:
        """Return the text, or both of a pair."""
        return f"{row['text']}\x1f{row['text_pair'] or ''}"

    def prepare(self, processor: Any) -> None:
        """Check that texts can be padded."""
        require_padding(processor)

    def __call__(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> Examples:
        """Return token ids and class indices; texts are cut at ``max_length``."""
        limit = min(self.params.max_length, processor.model_max_length)
        paired = [row.get("text_pair") is not None for row in rows]
        ids: list[list[int]] = [[] for _ in rows]
        types: list[list[int]] = [[] for _ in rows]
        typed = any(paired) and "token_type_ids" in processor.model_input_names
        for both in sorted(set(paired)):  # apart: an empty second text has its tokens
            places = [i for i, pair in enumerate(paired) if pair == both]
            texts = [rows[i]["text"] for i in places]
            second = [rows[i]["text_pair"] for i in places] if both else None
            made = processor(texts, second, truncation=True, max_length=limit)
            for k, i in enumerate(places):
                ids[i] = made["input_ids"][k]
                types[i] = made["token_type_ids"][k] if typed else []
        index = {label: i for i, label in enumerate(self.labels)}
        return Examples(
            input_ids=ids,
            labels=[index[row["label"]] if "label" in row else 0 for row in rows],
            row=list(range(len(ids))),
            token_type_ids=types if typed else None,
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
