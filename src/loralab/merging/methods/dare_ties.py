r"""DARE, then TIES' election and disjoint mean (Yu et al. 2024, arXiv 2311.03099).

    τ̂_t = ΔW_t ⊙ m_t / (1 − p),   γ = sgn(Σ_t τ̂_t),   M = λ·mean{τ̂_t : sgn τ̂_t = γ}

on the entries of ΔW_t, then factorised (`_elements.py`). Random dropping stands where
TIES trims by magnitude, as in mergekit's and PEFT's `dare_ties`. The expectation is not
task arithmetic: an election is not linear.
"""

from __future__ import annotations

from torch import Tensor

from loralab.lowrank.update import Update
from loralab.merging.layer import Layer
from loralab.merging.method import INVARIANT
from loralab.merging.methods._elements import Sign, dropped, elected, entries
from loralab.merging.methods.dare import DareParams
from loralab.registry import register


class DareTiesParams(DareParams):
    """Of DARE with TIES.

    Attributes:
        sign: ``total`` elects by the sum of values, ``frequency`` by their number.
    """

    sign: Sign = "total"


@register(
    "merge method",
    "dare-ties",
    DareTiesParams,
    laws=INVARIANT | {"identity": {"density": 1.0}, "permutation": {"density": 1.0}},
)
def dare_ties(params: DareTiesParams, layer: Layer) -> Update:
    """Return the disjoint mean of the rescaled rest of the tasks' updates."""
    found = entries(layer, params)

    def rule(start: int) -> Tensor:
        uniform = found.uniforms(params.seed, start)
        left = dropped(found.all(start), uniform, params.density)
        return elected(left, params.sign, "mean")

    return found.factorised(rule, params)
