"""``affine-int4``: our affine codes of 4 bits, with a scale and a real zero a group."""

from __future__ import annotations

from pathlib import Path

from loralab.quantization.formats import _affine as own
from loralab.quantization.formats._files import write
from loralab.quantization.storage import Source, Stored, Tell
from loralab.registry import register

CODEC = own.affine_codec(4)


@register("storage format", "affine-int4", own.AffineParams, **own.affine_facts(4))
def affine_int4(
    params: own.AffineParams, source: Source, folder: Path, tell: Tell
) -> Stored:
    """Write a model in affine codes of 4 bits."""
    return write(CODEC, params, source, folder, tell)
