"""Task arithmetic, task by task: S_t = S_{t−1} + scale·ΔW_t, exactly, of rank ≤ Σ rank.

The rule of FusionBench's continual task arithmetic (fusion_bench/method/opcm/
task_arithmetic.py; task arithmetic itself is Ilharco et al. 2023, arXiv 2212.04089).
Their scripts use a scale of 0.3 for 8 tasks and of 0.1 for 14 and 20. No step needs the
tasks before it, and their order does not matter.
"""

from __future__ import annotations

from loralab.lowrank.factors import Factors
from loralab.lowrank.update import Update, total
from loralab.merging.method import INVARIANT, Step
from loralab.merging.methods.task_arithmetic import TaskArithmeticParams
from loralab.registry import register


@register(
    "merge method",
    "c-task-arithmetic",
    TaskArithmeticParams,
    continual=True,
    laws=INVARIANT | {"identity": {"scale": 1.0}},
)
def c_task_arithmetic(
    params: TaskArithmeticParams,
    merged: Update | None,
    new: Factors,
    step: Step,
) -> Update:
    """Return S_t of one layer."""
    task = new.update(step.dtype) * params.scale
    return task if merged is None else total([merged, task])
