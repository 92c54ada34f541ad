"""Stochastic weight averaging over tasks: the running mean, exactly, of rank ≤ Σ rank.

    S_t = ((t − 1)·S_{t−1} + ΔW_t) / t

The rule of FusionBench's continual weight average (fusion_bench/method/opcm/
weight_average.py; SWA is Izmailov et al. 2018, arXiv 1803.05407). It ends where
`average` does, and needs only the mean and how many tasks it holds.
"""

from __future__ import annotations

from loralab.lowrank.factors import Factors
from loralab.lowrank.update import Update, total
from loralab.merging.method import INVARIANT, Normed, Step
from loralab.registry import register


@register(
    "merge method",
    "swa",
    Normed,
    continual=True,
    laws=INVARIANT | {"identity": {}},
)
def swa(params: Normed, merged: Update | None, new: Factors, step: Step) -> Update:
    """Return the mean of one layer's updates; a task that leaves it counts as 0."""
    task = new.update(step.dtype)
    if merged is None:
        return task
    held = step.count
    return total([merged * (held / (held + 1)), task * (1 / (held + 1))])
