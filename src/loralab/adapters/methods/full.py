"""Full fine-tuning: every tensor of the model is trained.

The baseline that every paper needs; it takes 16 bytes a parameter with AdamW.
"""

from __future__ import annotations

from typing import Any

from loralab.adapters.abilities import Abilities
from loralab.adapters.methods._common import NO_ADAPTER, OWN_WEIGHTS
from loralab.adapters.site import Site
from loralab.registry import Params, register

ABLE = Abilities(nf4=OWN_WEIGHTS, int8=OWN_WEIGHTS, affine=OWN_WEIGHTS, vllm=NO_ADAPTER)


@register("PEFT method", "full", Params, able=ABLE, over="nothing", native=True)
def full(params: Params, site: Site) -> Any:
    """Return the base with all of its tensors trained."""
    from loralab.adapters.selection import Selection

    return Selection(site.model, [name for name, _ in site.model.named_parameters()])
