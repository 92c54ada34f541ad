"""KnOTS: the updates in the common output directions, merged entry by entry.

    [ΔW_1 … ΔW_T] = U S [V_1 … V_T]          out × (T·in), one SVD, k its rank
    ΔW = U · inner(S V_1, …, S V_T)

Stoica et al., Model Merging with SVD to Tie the Knots, ICLR 2025 (arXiv 2410.19735),
the rule of gstoica27/KnOTS. Each block V_t is k × in, not out × in: in the output
dimension the tasks share the basis U, in the input dimension they stay in the model's
own coordinates. So the inner rule sees k × in numbers for a task, and the dense stack
is never made: U is that of the stacked cores [C_1 … C_T].

What a basis decides: for distinct singular values U is unique up to the sign of a
column, which flips a row of every S V_t at once. TIES elects a sign for each entry, so
that the flips cancel; a rule of inner products and norms does not see U at all, and a
linear one gives task arithmetic. Equal singular values (exactly: duplicates of one task
do not make them) would leave U open to a rotation, which element-wise rules do see.

What differs from the repository: singular values are dropped below rounding relative to
the first, not below 1e-5; TIES's threshold is each layer's, not one of all layers of a
task together. The scaling of the result is the inner method's.
"""

from __future__ import annotations

import torch

from loralab.lowrank.update import Update, svd
from loralab.merging.layer import Layer
from loralab.merging.method import INVARIANT
from loralab.merging.methods._inner import WHOLE, Inner, merged_within
from loralab.registry import register


@register("merge method", "knots", Inner, laws=INVARIANT | {"identity": WHOLE})
def knots(params: Inner, layer: Layer) -> Update:
    """Return the inner method's merge of the blocks S·V_t, back in the weight."""
    space = layer.space
    U, _, _ = svd(torch.cat(space.cores, dim=1))
    return merged_within(layer, params.inner, space.L @ U)
