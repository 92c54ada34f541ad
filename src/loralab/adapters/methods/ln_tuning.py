"""LN tuning (Zhao et al. 2023, arXiv:2312.11420): normalisation layers are trained.

h = γ ⊙ normalise(x) + β,   with γ and β trained
"""

from __future__ import annotations

from typing import Any

from loralab.adapters.abilities import Abilities
from loralab.adapters.site import Site, wrap
from loralab.registry import Params, register


@register("PEFT method", "ln-tuning", Params, able=Abilities(affine=""), over="norms")
def ln_tuning(params: Params, site: Site) -> Any:
    """Return the base with a trained copy of every normalisation layer."""
    from peft import LNTuningConfig

    return wrap(site, LNTuningConfig(target_modules=site.names))
