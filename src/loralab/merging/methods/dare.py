r"""DARE: drop at random and rescale, then sum (Yu et al. 2024, arXiv 2311.03099).

    M = λ·Σ_t ΔW_t ⊙ m_t / (1 − p),   m_t ~ Bernoulli(1 − p) entry by entry

with density = 1 − p. The expectation is task arithmetic, λ·Σ ΔW_t; on the entries of
ΔW_t, then factorised (`_elements.py`). What is dropped at random has no low rank: the
factorisation of a sparse density loses much of it, and `Update.lost` says how much.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from loralab.lowrank.update import Update
from loralab.merging.layer import Layer
from loralab.merging.method import INVARIANT
from loralab.merging.methods._elements import ElementParams, dropped, entries
from loralab.registry import register


class DareParams(ElementParams):
    """Of DARE.

    Attributes:
        density: Probability that an entry is kept, 1 − p.
    """

    density: float = Field(0.5, gt=0, le=1)


@register(
    "merge method",
    "dare",
    DareParams,
    laws=INVARIANT | {"identity": {"density": 1.0}, "permutation": {"density": 1.0}},
)
def dare(params: DareParams, layer: Layer) -> Update:
    """Return the sum of the rescaled rest of the tasks' updates."""
    found = entries(layer, params)

    def rule(start: int) -> Tensor:
        uniform = found.uniforms(params.seed, start)
        return dropped(found.all(start), uniform, params.density).sum(0)

    return found.factorised(rule, params)
