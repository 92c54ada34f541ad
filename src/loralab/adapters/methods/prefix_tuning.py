"""Prefix tuning (Li & Liang 2021, arXiv:2101.00190): learnt keys and values.

attention(Q, [P_K; K], [P_V; V])   with P_K, P_V: tokens × hidden in every layer
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from loralab.adapters.abilities import Abilities
from loralab.adapters.methods._common import NO_PACKING, NOT_LINEAR
from loralab.adapters.site import Site, wrap
from loralab.registry import Params, register

ABLE = Abilities(
    affine="",
    merge=NOT_LINEAR,
    encoder="transformers' encoders read no past keys and values",
    vision="transformers' vision models read no past keys and values",
    checkpointing="keys and values are cached, which activation checkpointing forbids",
    packing=NO_PACKING,
)


class PrefixTuningParams(Params):
    """The params of prefix tuning."""

    tokens: int = Field(20, gt=0, description="virtual tokens")
    projection: bool = Field(
        False, description="learn the prefix through a small network, as in the paper"
    )
    projection_size: int = Field(512, gt=0, description="width of that network")


@register("PEFT method", "prefix-tuning", PrefixTuningParams, able=ABLE, over="nothing")
def prefix_tuning(params: PrefixTuningParams, site: Site) -> Any:
    """Return the base with a prefix in every layer."""
    from peft import PrefixTuningConfig

    config = PrefixTuningConfig(
        num_virtual_tokens=params.tokens,
        prefix_projection=params.projection,
        encoder_hidden_size=params.projection_size,
    )
    return wrap(site, config)
