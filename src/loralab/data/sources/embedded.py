"""Real data sets that ship inside packages; no hub, no account."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field, field_validator

from loralab.data.embedded import EMBEDDED_SETS, RawRow, read_embedded
from loralab.errors import nearest
from loralab.registry import Params, register


class EmbeddedParams(Params):
    """Which embedded set."""

    set: str = Field(description="see `loralab data list`")

    @field_validator("set")
    @classmethod
    def _exists(cls, name: str) -> str:
        if name not in EMBEDDED_SETS:
            raise ValueError(f"no embedded set; {nearest(name, EMBEDDED_SETS)}")
        return name


@register("data source", "embedded", EmbeddedParams)
def read(params: EmbeddedParams) -> Iterator[RawRow]:
    """Yield the rows of the chosen set."""
    return read_embedded(params.set)
