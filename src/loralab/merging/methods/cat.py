"""The sum of all updates without loss, ΔW = Σ ΔW_t = [s₁B₁ … s_TB_T][A₁; …; A_T].

PEFT's ``combination_type="cat"`` stacks the factors, so that the adapter it writes has
the rank Σ r_t even where the directions repeat. Here the same sum stands between two
orthonormal bases of min(out, Σ r_t) and min(in, Σ r_t) columns: its rank is that or
less, and an export without a rank option stores only the directions that are there.

PEFT folds each adapter's weight and scaling into A, sets lora_alpha to the new rank and
keeps `use_rslora`: with it, the stacked adapter is √(Σ r_t) too large
(github.com/huggingface/peft/pull/3449). All scaling is in ΔW_t here.
"""

from __future__ import annotations

from loralab.lowrank.update import Update
from loralab.merging.layer import Layer
from loralab.merging.method import INVARIANT, Normed
from loralab.registry import register


@register("merge method", "cat", Normed, laws=INVARIANT | {"identity": {}})
def cat(params: Normed, layer: Layer) -> Update:
    """Return the exact sum of all tasks' updates."""
    return layer.space.update(layer.space.total)
