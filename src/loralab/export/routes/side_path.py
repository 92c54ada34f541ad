"""Leave the adapter beside the quantized base: nothing is merged, all of it survives.

    y = Q(W) x + s·B (A x)

It costs two small products for each adapted module, r·(I + O) multiplications a token
beside the I·O of the module, and the bytes of A and B.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from loralab.errors import ExportError
from loralab.export.routed import Routed
from loralab.registry import Params, register

if TYPE_CHECKING:
    from loralab.inference.load import LoadedAdapter


class SidePathParams(Params):
    """It has none."""


@register("route", "side-path", SidePathParams)
def side_path(params: SidePathParams, adapter: LoadedAdapter) -> Routed:
    """Return the base in float, with the trained head, and the folder beside it.

    Raises:
        ExportError: it is no plain LoRA.
    """
    from loralab.adapters.files import WEIGHTS
    from loralab.export.weights import adapted, bare, factors_of, to_float, weight_of

    names = adapted(adapter)
    factors = [factors_of(adapter, name) for name in names]
    plain = [one for one in factors if one is not None]
    if not names or len(plain) < len(factors):
        raise ExportError(
            f"{adapter.peft.name} is no plain LoRA",
            where="--route side-path",
            why="only A and B can stand beside a weight that they do not read",
            fix="take --route merge-then-quantize",
        )
    return Routed(
        route="side-path",
        model=to_float(bare(adapter)).eval(),
        names=names,
        weight=partial(weight_of, adapter),
        update=partial(factors_of, adapter),  # type: ignore[arg-type]  # checked above
        better="",
        beside=adapter.folder,
        extra_bytes=(adapter.folder / WEIGHTS).stat().st_size,
        extra_products=2 * len(plain),
        extra_multiplications=sum(one.parameters for one in plain),
    )
