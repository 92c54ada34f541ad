"""P-tuning (Liu et al. 2021, arXiv:2103.10385): learnt tokens, made by a network.

model([P; embed(x)])   with P = MLP(E) or LSTM(E),  E: tokens × hidden
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from loralab.adapters.abilities import Abilities
from loralab.adapters.methods._common import (
    NO_PACKING,
    NO_PATCHES,
    NOT_LINEAR,
    check_prompt,
)
from loralab.adapters.site import Site, wrap
from loralab.registry import Params, register

ABLE = Abilities(affine="", merge=NOT_LINEAR, vision=NO_PATCHES, packing=NO_PACKING)


class PTuningParams(Params):
    """The params of P-tuning."""

    tokens: int = Field(20, gt=0, description="virtual tokens")
    network: Literal["mlp", "lstm"] = "mlp"
    hidden_size: int = Field(128, gt=0, description="width of that network")
    layers: int = Field(2, gt=0, description="of the LSTM")
    dropout: float = Field(0.0, ge=0, lt=1, description="in the LSTM")


@register("PEFT method", "p-tuning", PTuningParams, able=ABLE, over="nothing")
def p_tuning(params: PTuningParams, site: Site) -> Any:
    """Return the base with tokens before its input that a network makes."""
    from peft import PromptEncoderConfig

    check_prompt(site)
    config = PromptEncoderConfig(
        num_virtual_tokens=params.tokens,
        encoder_reparameterization_type=params.network.upper(),
        encoder_hidden_size=params.hidden_size,
        encoder_num_layers=params.layers,
        encoder_dropout=params.dropout,
    )
    return wrap(site, config)
