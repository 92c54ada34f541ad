r"""DELLA: drop by rank of magnitude, elect, fuse (Deep et al. 2024, arXiv 2406.11617).

MagPrune keeps entry j of a row with a probability that grows with the rank of its
magnitude within that row, r_j = 0 for the smallest … n − 1 for the largest,

    q_j = density − ε/2 + ε·r_j / (n − 1),   τ̂_j = τ_j·[u_j < q_j] / q_j

so that larger entries are dropped less often and the expectation stays τ_j. Then TIES'
election over the tasks, the mean of those that agree, and λ. All on the entries of
ΔW_t, a row being an output, then factorised (`_elements.py`).

The paper has the drop rate p = 1 − density and p ± ε/2, as here. Its r_j / n never
reaches one of the two ends; the authors' code divides by n − 1, as here, and so the
mean of q is the density. That code and mergekit's ε is the half of this one, and
mergekit's `della` rescales a layer to its old norm (l1) instead of each entry by 1/q.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from loralab.lowrank.update import Update
from loralab.merging.layer import Layer
from loralab.merging.method import INVARIANT
from loralab.merging.methods._elements import Sign, dropped, elected, entries
from loralab.merging.methods.dare import DareParams
from loralab.registry import register


class DellaParams(DareParams):
    """Of DELLA.

    Attributes:
        epsilon: From the lowest probability of being kept to the highest.
        sign: ``total`` elects by the sum of values, ``frequency`` by their number.
    """

    epsilon: float = Field(0.2, ge=0, lt=1)
    sign: Sign = "total"

    @model_validator(mode="after")
    def _are_probabilities(self) -> DellaParams:
        half = self.epsilon / 2
        if self.density < 1 and not half < self.density <= 1 - half:
            raise PydanticCustomError(
                "loralab",
                "density {d} ± {h} (half of epsilon) is not within (0, 1]",
                {"d": self.density, "h": half},
            )
        return self


@register(
    "merge method",
    "della",
    DellaParams,
    laws=INVARIANT | {"identity": {"density": 1.0}, "permutation": {"density": 1.0}},
)
def della(params: DellaParams, layer: Layer) -> Update:
    """Return the mean of the tasks' pruned updates where they agree."""
    found = entries(layer, params)

    def rule(start: int) -> Tensor:
        ΔW = found.all(start)
        if params.density < 1:
            keep = keep_probability(ΔW, params.density, params.epsilon)
            ΔW = dropped(ΔW, found.uniforms(params.seed, start), keep)
        return elected(ΔW, params.sign, "mean")

    return found.factorised(rule, params)


def keep_probability(ΔW: Tensor, density: float, epsilon: float) -> Tensor:
    """Return q of each entry by its rank within its row, float64 of ΔW's shape.

    Args:
        ΔW: [..., n]; the last dimension is the row.
        density: Mean of q.
        epsilon: Largest minus smallest q; a row of one entry has the mean.
    """
    n = ΔW.shape[-1]
    order = ΔW.abs().argsort(dim=-1, stable=True)
    along = torch.linspace(-0.5, 0.5, n, dtype=torch.float64, device=ΔW.device)
    if n == 1:
        along = along.zero_()
    by_rank = (density + epsilon * along).expand(ΔW.shape)
    return torch.empty_like(ΔW, dtype=torch.float64).scatter_(-1, order, by_rank)
