"""``nf4-dq``: bitsandbytes' NF4 with double quantization, 4.127 bits a weight."""

from __future__ import annotations

from pathlib import Path

from loralab.quantization.formats import _bitsandbytes as own
from loralab.quantization.formats._files import write
from loralab.quantization.storage import Source, Stored, Tell
from loralab.registry import register

CODEC = own.nf4_codec(double=True)


@register(
    "storage format",
    "nf4-dq",
    own.NF4Params,
    **own.bitsandbytes_facts(CODEC, "nf4"),
)
def nf4_dq(params: own.NF4Params, source: Source, folder: Path, tell: Tell) -> Stored:
    """Write a model in NF4 with double quantization."""
    return write(CODEC, params, source, folder, tell)
