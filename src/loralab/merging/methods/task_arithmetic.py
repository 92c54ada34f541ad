"""Task arithmetic, ΔW = λ Σ ΔW_t, exactly, of rank ≤ Σ rank.

Ilharco et al. 2023 (arXiv 2212.04089). λ is `scale` here, `scaling_factor` in
FusionBench, whose default 0.3 (the paper's for eight tasks) is ours. A weight for each
task is given where the tasks are given: it is in ΔW_t already.
"""

from __future__ import annotations

from pydantic import Field

from loralab.lowrank.update import Update
from loralab.merging.layer import Layer
from loralab.merging.method import INVARIANT
from loralab.merging.methods._spectral import Scaled
from loralab.registry import register


class TaskArithmeticParams(Scaled):
    """Params of `task-arithmetic` and `c-task-arithmetic`.

    Attributes:
        scale: What every task's update is multiplied with; 1 / T makes it the average.
    """

    scale: float = Field(default=0.3, allow_inf_nan=False)


@register(
    "merge method",
    "task-arithmetic",
    TaskArithmeticParams,
    laws=INVARIANT | {"identity": {"scale": 1.0}},
)
def task_arithmetic(params: TaskArithmeticParams, layer: Layer) -> Update:
    """Return the scaled sum of all tasks' updates."""
    return layer.space.update(params.scale * layer.space.total)
