r"""LoRA-OPCM: tasks one after another, each projected away from what is merged.

    S_1 = ΔW_1,   S_t = S_{t−1} + P_{S_{t−1}}(ΔW_t),   merged = S_t / λ_t

Orthogonal projection-based continual merging (Tang et al. 2025, arXiv 2501.09522), in
factored form and exact: the projection P works in the core between bases that grow by
the new task's directions, so rank(S_t) ≤ Σ rank(ΔW_i), no out × in matrix is made, and
no base weight is read. P and what each ``mode`` and ``alpha_threshold`` protects stand
in `merging/projection.py`; λ_t, one number for the whole model, is the norm rule
(`merging/method.py`).

The authors' code (fusion_bench/method/opcm) carries W_0 + S_t/λ_t and multiplies by
λ_{t−1} before the next step. S_t alone is the same: P does not see the size of S, and
⟨S_{t−1}, P(ΔW_t)⟩ = 0, so ‖S_t‖² adds up.

What differs from that code: it is rank-aware (the diagonal of the null space, an
arbitrary choice of LAPACK's, stays as it is: with it a merge of adapters becomes a
matrix of full rank), α = 1 protects the whole span, and S_t does not come from
W_merged − W_0, whose rounding fills the nuclear norm; and embeddings and convolutions
are projected too, where that code adds them up. Where S has full rank and σ are
distinct both agree. The published numbers come from the mode ``code``.

For adapters in subspaces of their own P removes next to nothing; what is left is a sum
with the norm rule.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import Field, model_validator

from loralab.lowrank.factors import Factors
from loralab.lowrank.update import Update, joined
from loralab.merging.method import Normed, Step
from loralab.merging.projection import Mode, OrthogonalProjector, Sketch
from loralab.registry import register


class OPCMParams(Normed):
    """Params of `opcm`.

    Attributes:
        norm: The norm rule; ``none`` leaves the sum S_t.
        mode: ``code`` is the authors' released rule, ``paper`` their equation,
            ``stable`` the one that does not depend on single singular vectors.
        alpha_threshold: Share of the merged update's nuclear norm whose directions are
            protected: 0 only the diagonal, 1 the whole span.
        projection_method: ``svd`` of the core, or ``sketch`` of its leading directions
            (mode ``stable`` only), for large sums of ranks.
        sketch_size: Directions that a sketch holds.
        sketch_tolerance: The largest error of a sketch with which a merge goes on.
        sketch_seed: Of a sketch's random start.
    """

    norm: Literal["mean", "none"] = "mean"
    mode: Mode = "code"
    alpha_threshold: float = Field(0.5, ge=0, le=1)
    projection_method: Literal["svd", "sketch"] = "svd"
    sketch_size: int = Field(128, ge=1)
    sketch_tolerance: float = Field(0.05, gt=0, lt=1)
    sketch_seed: int = 0

    @model_validator(mode="after")
    def _sketch_can_do_it(self) -> OPCMParams:
        if self.projection_method == "svd":
            for key, field in type(self).model_fields.items():
                if key.startswith("sketch_") and getattr(self, key) != field.default:
                    raise ValueError(f"{key} needs projection_method=sketch")
            return self
        if self.mode != "stable":
            raise ValueError(
                f"mode={self.mode} removes a diagonal, which needs every direction; a "
                "sketch finds the leading ones: use mode=stable or "
                "projection_method=svd"
            )
        if self.alpha_threshold == 1:
            raise ValueError(
                "alpha_threshold=1 protects every direction, and a sketch finds the "
                "leading ones: use projection_method=svd"
            )
        return self

    def projector(self, step: Step) -> OrthogonalProjector:
        """Return P for one layer."""
        sketch = None
        if self.projection_method == "sketch":
            text = f"{self.sketch_seed}:{step.layer}:{step.count}"
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
            size, tolerance = self.sketch_size, self.sketch_tolerance
            sketch = Sketch(size, tolerance, seed, step.layer)
        return OrthogonalProjector(self.alpha_threshold, self.mode, sketch)


@register(
    "merge method",
    "opcm",
    OPCMParams,
    continual=True,
    laws={"identity": {}, "gauge": {}, "scale": {}, "rank": {}, "driver": {}},
)
def opcm(params: OPCMParams, merged: Update | None, new: Factors, step: Step) -> Update:
    """Return S_t, without the norm rule; the bases of S_{t−1} are kept and extended."""
    task = new.update(step.dtype)
    if merged is None:
        return task
    before, added = joined(merged, task)
    projected = params.projector(step)(merged.C, added.C)
    return before.with_core(before.C + projected)
