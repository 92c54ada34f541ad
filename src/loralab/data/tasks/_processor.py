"""What tasks ask of a tokenizer, with errors that say which model to take instead."""

from __future__ import annotations

from typing import Any

from loralab.errors import ModelError


def require_padding(processor: Any) -> None:
    """Refuse a tokenizer that cannot pad.

    Raises:
        ModelError: it has no padding token.
    """
    if processor.pad_token is None:
        raise ModelError(
            "the tokenizer has no padding token, so texts cannot be batched",
            fix="choose a base model whose tokenizer has one",
        )
