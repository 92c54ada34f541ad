"""Shift the zeros of the base that a QA-LoRA adapter was trained on, and nothing else.

    zero' = zero − s·B·A / scale             codes and scales bit for bit as they were

Mathematics: `loralab.adapters.qalora` (Xu et al. 2023, arXiv:2309.14717). All survives,
up to the rounding of one real zero for each group.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from loralab.adapters.abilities import require
from loralab.errors import ExportError
from loralab.export.routed import Routed
from loralab.registry import Params, register

if TYPE_CHECKING:
    from loralab.inference.load import LoadedAdapter

FORMATS = {4: ("affine-int4", "onnx-int4"), 8: ("affine-int8",)}
"""Bits of a code -> the formats that keep codes, scales and real zeros as they are."""
BETTER = "store its zeros in fp32, or take --route side-path"


class QALoraRouteParams(Params):
    """It has none: bits and group are those of the training."""


@register("route", "qa-lora", QALoraRouteParams)
def qa_lora(params: QALoraRouteParams, adapter: LoadedAdapter) -> Routed:
    """Return the quantized model (`AffineLinear` modules) with the zeros shifted.

    Raises:
        ExportError: it was not trained so, or no format has codes of its bits.
        AdapterError: a new zero is not finite.
    """
    import copy

    from loralab.adapters.qalora import QALoraLinear
    from loralab.export.weights import adapted, factors_of, layer_of, weight_of
    from loralab.models.quiet import quiet_libraries

    names = adapted(adapter)
    layers = [layer_of(adapter, name) for name in names]
    where = "--route qa-lora"
    if not layers or not all(isinstance(layer, QALoraLinear) for layer in layers):
        raise ExportError(
            f"{adapter.peft.name} was not trained for it",
            where=where,
            why="only an update that is constant inside a group fits into its zero",
            fix="train it with peft=qa-lora, or take --route side-path",
        )
    require(adapter.peft, "merge", where)
    bits = layers[0].get_base_layer().bits
    if bits not in FORMATS:
        raise ExportError(
            f"no storage format has codes of {bits} bits",
            where=where,
            fix=f"train with bits={' or '.join(map(str, FORMATS))}",
        )
    with quiet_libraries():
        model = copy.deepcopy(adapter.model).merge_and_unload()
    return Routed(
        route="qa-lora",
        model=model.eval(),
        names=names,
        weight=partial(weight_of, adapter),
        update=partial(factors_of, adapter),  # type: ignore[arg-type]  # all are s·B·A
        better=BETTER,
        formats=FORMATS[bits],
        as_stored=True,
    )
