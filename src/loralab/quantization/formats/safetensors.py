"""``safetensors``: the weights in float, as transformers writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from loralab.registry import Params

if TYPE_CHECKING:
    pass


class SafetensorsParams(Params):
    """The params of a float model."""

    dtype: Literal["bf16", "fp16", "fp32"] = Field(
        "bf16", description="of every floating tensor"
    )
