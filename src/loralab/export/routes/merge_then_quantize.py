"""Merge the adapter into float weights, then store the sum in any format.

    W' = W + ΔW,   stored = Q(W')

W are the values it was trained against: of a quantized base the dequantized ones, not
those before quantization, for ΔW is no difference to them. The sum is in fp32. On a
float base the rounding of W' is no worse than that of W, and an adapter survives; on a
base that stands on the format's own grid a small ΔW is rounded back.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from loralab.adapters.abilities import require
from loralab.export.routed import Routed
from loralab.registry import Params, register

if TYPE_CHECKING:
    from loralab.inference.load import LoadedAdapter

BETTER = (
    "take --route side-path, which keeps all of it; or train it with peft=qa-lora and "
    "take --route qa-lora"
)


class MergeThenQuantizeParams(Params):
    """It has none."""


@register("route", "merge-then-quantize", MergeThenQuantizeParams)
def merge_then_quantize(
    params: MergeThenQuantizeParams, adapter: LoadedAdapter
) -> Routed:
    """Return the merged model in fp32; the adapter is left as it was.

    Raises:
        AdapterError: the method cannot be merged.
        ExportError: a merged weight is not finite.
    """
    from loralab.export.weights import adapted, merged_in_float, update_of, weight_of

    require(adapter.peft, "merge", "--route merge-then-quantize")
    model = merged_in_float(adapter)
    return Routed(
        route="merge-then-quantize",
        model=model,
        names=adapted(adapter),
        weight=partial(weight_of, adapter),
        update=partial(update_of, adapter, merged=model),
        better=BETTER,
    )
