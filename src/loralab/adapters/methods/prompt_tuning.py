"""Prompt tuning (Lester et al. 2021, arXiv:2104.08691): learnt tokens before the input.

model([P; embed(x)])   with P: tokens × hidden
"""

from __future__ import annotations

from typing import Any

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


class PromptTuningParams(Params):
    """The params of prompt tuning."""

    tokens: int = Field(20, gt=0, description="virtual tokens")
    text: str | None = Field(
        None, description="begin from these words' embeddings; null: random vectors"
    )


@register("PEFT method", "prompt-tuning", PromptTuningParams, able=ABLE, over="nothing")
def prompt_tuning(params: PromptTuningParams, site: Site) -> Any:
    """Return the base with learnt tokens before its input."""
    from peft import PromptTuningConfig, PromptTuningInit

    check_prompt(site)
    config = PromptTuningConfig(num_virtual_tokens=params.tokens)
    model = wrap(site, config)
    if params.text is not None:
        _begin_from(model, site, params.text)
    config.prompt_tuning_init = PromptTuningInit.RANDOM  # the weights are stored
    return model


def _begin_from(model: Any, site: Site, text: str) -> None:
    """Set the virtual tokens to the embeddings of a text, repeated to fill them."""
    import torch

    weight = model.prompt_encoder["default"].embedding.weight
    ids = site.loaded.processor(text, add_special_tokens=False)["input_ids"]
    places = [ids[i % len(ids)] for i in range(len(weight))]
    words = site.model.get_input_embeddings().weight
    with torch.no_grad():
        weight.copy_(words[torch.tensor(places, device=words.device)])
