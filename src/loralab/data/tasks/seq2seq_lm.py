"""Sequence to sequence (T5, BART): from a source text to a target text.

The encoder reads ``prefix + source``; the decoder is supervised on every token of the
target and on the end token after it, so it learns to stop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from loralab.data.examples import Examples
from loralab.data.tasks._columns import text_of
from loralab.errors import DataError, ModelError
from loralab.registry import Params, register


class Seq2SeqParams(Params):
    """How pairs of texts become tokens."""

    max_source_length: int = Field(
        512, gt=1, description="tokens; longer sources are cut, and counted"
    )
    max_target_length: int = Field(
        128, gt=1, description="tokens; rows with longer targets are left out"
    )
    prefix: str = Field("", description="such as `summarize: ` for T5")


@register("task", "seq2seq-lm", Seq2SeqParams)
class Seq2Seq:
    """Columns ``source`` and ``target``."""

    head = "seq2seq-lm"
    form = "text"
    metrics = ()

    def __init__(self, params: Seq2SeqParams) -> None:
        self.params = params

    def parse(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``source`` and ``target`` of a row."""
        return {name: text_of(columns, name) for name in ("source", "target")}

    def input_of(self, row: Mapping[str, Any]) -> str:
        """Return the source."""
        return str(row["source"])

    def fit(self, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        """Nothing is learnt from rows."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to take over."""

    def prepare(self, processor: Any) -> None:
        """Check that texts can be padded, and that targets end."""
        if processor.pad_token_id is None or processor.eos_token_id is None:
            raise ModelError("the tokenizer lacks a padding or an end token")
        if processor("a")["input_ids"][-1] != processor.eos_token_id:
            raise ModelError(
                f"the tokenizer does not end a text with {processor.eos_token!r}",
                why="a model trained without it would not stop",
                fix="choose an encoder-decoder model (T5, BART)",
            )

    def __call__(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> Examples:
        """Return source ids, and target ids with their end token as labels.

        Raises:
            DataError: every target is longer than ``max_target_length``.
        """
        limit = self.params.max_source_length
        found = Examples([], [], [], "sequence")
        cut = too_long = 0
        for i, row in enumerate(rows):
            target = processor(text_target=row["target"])["input_ids"]
            if len(target) > self.params.max_target_length:
                too_long += 1
                continue
            source = processor(self.prompt(row, processor))["input_ids"]
            if len(source) > limit:  # the end token stays
                source = [*source[: limit - 1], source[-1]]
                cut += 1
            found.input_ids.append(source)
            found.labels.append(target)
            found.row.append(i)
        if rows and not found.row:
            raise DataError(
                f"every one of {len(rows)} targets is longer than "
                f"{self.params.max_target_length} tokens",
                where="task.params.max_target_length",
                fix="raise it",
            )
        found.notes["sources_cut"] = cut
        found.notes["longer_than_max_target_length_left_out"] = too_long
        return found

    def row_of(self, given: Any) -> dict[str, Any]:
        """Return the row of a source text, or of a mapping with ``source``."""
        columns = {"source": given} if isinstance(given, str) else given
        if not isinstance(columns, Mapping):
            raise ValueError("give a text, or {source}")
        return {"source": text_of(columns, "source")}

    def reference(self, row: Mapping[str, Any]) -> list[str]:
        """Return the target, as the one acceptable text."""
        return [row["target"]]

    def prompt(self, row: Mapping[str, Any], processor: Any) -> str:
        """Return what the encoder reads."""
        return f"{self.params.prefix}{row['source']}"
