r"""TIES: trim, elect a sign, average what agrees (Yadav et al. 2023, arXiv 2306.01708).

    τ̂_t = τ_t where |τ_t| ≥ θ_t, else 0      θ_t keeps the k % largest of the layer
    γ = sgn(Σ_t τ̂_t)                          entry by entry
    M = λ·mean{τ̂_t : sgn τ̂_t = γ}            over those only: the disjoint mean

on the entries of ΔW_t, then factorised (`_elements.py`). The quantile is that of a
layer, as in mergekit and PEFT; the authors' code takes it over the whole model. It
keeps int(k·n) entries and all that tie with the last; the authors' code keeps one more.
PEFT's `ties` does this to A and to B apart, which is another method.
"""

from __future__ import annotations

from torch import Tensor

from loralab.lowrank.update import Update
from loralab.merging.layer import Layer
from loralab.merging.method import INVARIANT
from loralab.merging.methods._elements import Sign, Trimmed, elected, entries, trimmed
from loralab.registry import register


class TiesParams(Trimmed):
    """Of TIES.

    Attributes:
        sign: ``total`` elects by the sum of values, ``frequency`` by their number.
    """

    sign: Sign = "total"


@register(
    "merge method",
    "ties",
    TiesParams,
    laws=INVARIANT | {"identity": {"density": 1.0}},
)
def ties(params: TiesParams, layer: Layer) -> Update:
    """Return the disjoint mean of what is left of the tasks' updates."""
    found = entries(layer, params)
    floors = found.floors(params.density)

    def rule(start: int) -> Tensor:
        return elected(trimmed(found.all(start), floors), params.sign, "mean")

    return found.factorised(rule, params)
