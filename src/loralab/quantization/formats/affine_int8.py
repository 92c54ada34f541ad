"""``affine-int8``: our affine codes of 8 bits, with a scale and a real zero a group."""

from __future__ import annotations

from pathlib import Path

from loralab.quantization.formats import _affine as own
from loralab.quantization.formats._files import write
from loralab.quantization.storage import Source, Stored, Tell
from loralab.registry import register

CODEC = own.affine_codec(8)


@register("storage format", "affine-int8", own.AffineParams, **own.affine_facts(8))
def affine_int8(
    params: own.AffineParams, source: Source, folder: Path, tell: Tell
) -> Stored:
    """Write a model in affine codes of 8 bits."""
    return write(CODEC, params, source, folder, tell)
