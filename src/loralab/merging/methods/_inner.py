"""Merging in other coordinates by any other method.

    ΔW_t = U M_t Vᵀ,   M = inner(M_1 … M_T),   ΔW = U M Vᵀ

with orthonormal U and V. A rule that depends on norms, angles and singular values alone
gives with M_t what it gives with ΔW_t; one that looks at single entries (TIES, DARE,
magnitude pruning) does not: that is what the change of coordinates is for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from loralab.config import MergeConfig
from loralab.lowrank.factors import Factors
from loralab.lowrank.update import Update
from loralab.merging.layer import Layer
from loralab.merging.method import Normed, resolve

WHOLE: dict[str, Any] = {"inner": {"name": "ties", "params": {"density": 1.0}}}
"""Params with which one task is merged to itself: nothing of it is trimmed."""


def _ties() -> MergeConfig:
    return MergeConfig(name="ties")


class Inner(Normed):
    """Base of the schemas of methods that merge by another method.

    Attributes:
        inner: That method and its params; a bare name will do. By default TIES, with
            its own defaults.
    """

    inner: MergeConfig = Field(default_factory=_ties)

    @field_validator("inner")
    @classmethod
    def _has_no_norm_rule(cls, inner: MergeConfig) -> MergeConfig:
        if resolve(inner).normed:
            raise PydanticCustomError(
                "loralab", "the norm rule is over the whole model: set norm, not its"
            )
        return inner


def merged_within(
    layer: Layer, inner: MergeConfig, U: Tensor, V: Tensor | None = None
) -> Update:
    """Return U·inner(Uᵀ ΔW_t V)·Vᵀ.

    Args:
        layer: The tasks.
        inner: The method.
        U: [out, k], orthonormal columns that span every ΔW_t's columns.
        V: [in, l], that span every ΔW_t's rows; None leaves the inputs as they are.
    """
    if 0 in (U.shape[1], -1 if V is None else V.shape[1]):
        return layer.space.update(layer.space.total)  # all updates are zero
    tasks = tuple(_seen_from(task, U, V) for task in layer.tasks)
    inputs = tuple(
        found if found is None or V is None else found.within(V)
        for found in layer.inputs
    )
    found = resolve(inner).merged(replace(layer, tasks=tasks, inputs=inputs))
    return replace(found, L=U @ found.L, R=found.R if V is None else V @ found.R)


def _seen_from(task: Factors, U: Tensor, V: Tensor | None) -> Factors:
    """Return UᵀΔW·V as factors of the same rank."""
    A, B = task.A.to(U.dtype), task.B.to(U.dtype)
    return replace(task, A=A if V is None else A @ V, B=U.T @ B)
