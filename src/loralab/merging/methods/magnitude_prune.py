r"""Magnitude pruning: the largest entries of each update, summed.

    M = λ·Σ_t ΔW_t ⊙ [|ΔW_t| ≥ θ_t]      θ_t keeps a share of the entries of the layer

The rule is PEFT's `magnitude_prune` (utils/merge_utils.py) on the entries of ΔW instead
of on those of A and B, then factorised (`_elements.py`). Entries that tie with the last
are all kept.
"""

from __future__ import annotations

from torch import Tensor

from loralab.lowrank.update import Update
from loralab.merging.layer import Layer
from loralab.merging.method import INVARIANT
from loralab.merging.methods._elements import Trimmed, entries, trimmed
from loralab.registry import register


@register(
    "merge method",
    "magnitude-prune",
    Trimmed,
    laws=INVARIANT | {"identity": {"density": 1.0}},
)
def magnitude_prune(params: Trimmed, layer: Layer) -> Update:
    """Return the sum of what is left of the tasks' updates."""
    found = entries(layer, params)
    floors = found.floors(params.density)

    def rule(start: int) -> Tensor:
        return trimmed(found.all(start), floors).sum(0)

    return found.factorised(rule, params)
