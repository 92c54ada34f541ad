"""Iso-C: the sum of the updates with its singular values made equal.

    Σ ΔW_t = U diag(σ) Vᵀ,   ΔW = scale · σ̄ U Vᵀ

Marczak et al. 2025, No Task Left Behind (arXiv 2502.04959), `iso_c` of
danielm1405/iso-merging; FusionBench's `scaling_factor` (1 by default; the authors tune
it on validation data) is `scale`.

The original flattens all min(out, in) singular values. Of a sum of adapters most are
zero, and their vectors arbitrary: each would be lifted to the mean, so that a merge of
rank 32 comes back of full rank and with another LAPACK driver as another matrix. Here
mean and product go over the numerical rank of the sum, which is the original wherever
that is well defined (and differs from it on adapters: σ̄ is the mean over fewer values).
A direction of the sum that is small but not rounding still counts as much as the first.
"""

from __future__ import annotations

from loralab.lowrank.update import Update, svd
from loralab.merging.layer import Layer
from loralab.merging.method import INVARIANT
from loralab.merging.methods._spectral import Scaled
from loralab.registry import register


@register("merge method", "iso-c", Scaled, laws=INVARIANT)
def iso_c(params: Scaled, layer: Layer) -> Update:
    """Return the sum of all tasks' updates with a flat spectrum."""
    U, s, V = svd(layer.space.total)
    mean = float(s.sum()) / max(1, s.numel())
    return layer.space.update(params.scale * mean * (U @ V.T))
