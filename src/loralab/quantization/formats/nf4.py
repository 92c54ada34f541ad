"""``nf4``: bitsandbytes' NF4, 4.5 bits a weight."""

from __future__ import annotations

from pathlib import Path

from loralab.quantization.formats import _bitsandbytes as own
from loralab.quantization.formats._files import write
from loralab.quantization.storage import Source, Stored, Tell
from loralab.registry import register

CODEC = own.nf4_codec(double=False)


@register(
    "storage format",
    "nf4",
    own.NF4Params,
    **own.bitsandbytes_facts(CODEC, "nf4"),
)
def nf4(params: own.NF4Params, source: Source, folder: Path, tell: Tell) -> Stored:
    """Write a model in NF4."""
    return write(CODEC, params, source, folder, tell)
