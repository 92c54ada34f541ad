"""Every task has an equal say: updates are brought to their mean norm, then averaged.

    M = (n̄ / T) Σ_t ΔW_t / ‖ΔW_t‖,   n̄ = (1/T) Σ_t ‖ΔW_t‖     (‖·‖ of Frobenius)

A method sees one layer, in factored form: ΔW_t = L·C_t·Rᵀ with orthonormal columns in L
and R, so ‖ΔW_t‖ = ‖C_t‖ and what is computed is a small core, never an out × in matrix.
"""

from __future__ import annotations

from loralab import register
from loralab.lowrank.update import Update
from loralab.merging.layer import Layer
from loralab.merging.method import Normed


@register("merge method", "equal-norm", Normed)
def equal_norm(params: Normed, layer: Layer) -> Update:
    """Return the mean of the tasks' updates, each scaled to their mean norm."""
    cores = layer.space.cores
    norms = [float(core.norm()) for core in cores]
    mean = sum(norms) / len(norms)
    scaled = [
        core * (mean / norm if norm else 0.0)  # a task may leave a layer alone
        for core, norm in zip(cores, norms, strict=True)
    ]
    return layer.space.update(sum(scaled[1:], scaled[0]) / len(scaled))
