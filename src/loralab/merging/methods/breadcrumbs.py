r"""Breadcrumbs: neither the smallest nor the largest entries (arXiv 2312.06795).

    M = λ·Σ_t ΔW_t ⊙ m_t,   m_t = 0 for the β share of smallest and the γ share of
                                  largest magnitudes of the layer, else 1

(Davari & Belilovsky 2024, section 3) on the entries of ΔW_t, then factorised
(`_elements.py`). The paper writes γ as the quantile 1 − γ here (its 99.3 % is 0.007).
mergekit's `breadcrumbs` has density = 1 − β − γ instead of β. Entries that tie with the
last that is kept, on either side, are kept too.
"""

from __future__ import annotations

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from loralab.lowrank.update import Update
from loralab.merging.layer import Layer
from loralab.merging.method import INVARIANT
from loralab.merging.methods._elements import ElementParams, Entries, entries
from loralab.registry import register


class BreadcrumbsParams(ElementParams):
    """Of Breadcrumbs.

    Attributes:
        beta: Share of the smallest entries that is masked.
        gamma: Share of the largest entries that is masked.
    """

    beta: float = Field(0.85, ge=0, lt=1)
    gamma: float = Field(0.007, ge=0, lt=1)

    @model_validator(mode="after")
    def _leaves_something(self) -> BreadcrumbsParams:
        if self.beta + self.gamma >= 1:
            raise PydanticCustomError(
                "loralab",
                "beta {b} and gamma {g} mask everything; their sum must be below 1",
                {"b": self.beta, "g": self.gamma},
            )
        return self


@register(
    "merge method",
    "breadcrumbs",
    BreadcrumbsParams,
    laws=INVARIANT | {"identity": {"beta": 0.0, "gamma": 0.0}},
)
def breadcrumbs(params: BreadcrumbsParams, layer: Layer) -> Update:
    """Return the sum of the tasks' entries of middle size."""
    found = entries(layer, params)
    bounds = [_bounds(found, task, params) for task in range(found.count)]
    low, high = (found.per_task(list(side)) for side in zip(*bounds, strict=True))

    def rule(start: int) -> Tensor:
        ΔW = found.all(start)
        size = ΔW.abs()
        return (ΔW * ((size >= low) & (size <= high))).sum(0)

    return found.factorised(rule, params)


def _bounds(
    found: Entries, task: int, params: BreadcrumbsParams
) -> tuple[float, float]:
    """Return the smallest and the largest magnitude that a task keeps."""

    def rule(start: int) -> Tensor:
        return found.of(task, start)

    bottom, top = (int(share * found.size) for share in (params.beta, params.gamma))
    return (
        found.smallest(rule, bottom + 1) if bottom else 0.0,
        found.smallest(rule, found.size - top) if top else float("inf"),
    )
