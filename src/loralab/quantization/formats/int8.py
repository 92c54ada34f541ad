"""``int8``: bitsandbytes' LLM.int8, 8 bits a weight and a scale a row."""

from __future__ import annotations

from pathlib import Path

from loralab.quantization.formats import _bitsandbytes as own
from loralab.quantization.formats._files import write
from loralab.quantization.storage import Source, Stored, Tell
from loralab.registry import register

CODEC = own.INT8


@register(
    "storage format",
    "int8",
    own.Int8Params,
    **own.bitsandbytes_facts(CODEC, "int8"),
)
def int8(params: own.Int8Params, source: Source, folder: Path, tell: Tell) -> Stored:
    """Write a model in LLM.int8."""
    return write(CODEC, params, source, folder, tell)
