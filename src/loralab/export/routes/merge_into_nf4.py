"""Merge the adapter into a 4-bit base as PEFT does: dequantize, add, quantize again.

    W' = NF4(W̃ + ΔW),   W̃ the values of the 4-bit base

W̃ stands on the grid of NF4 (Dettmers et al. 2023, arXiv:2305.14314), so a ΔW that moves
a weight by less than half a step is rounded back; PEFT says that generations "may"
differ. Here it is PEFT's own merge, and what it kept is measured. An adapter of a float
base is put on that base quantized to NF4 first, as is often done.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pydantic import Field

from loralab.adapters.abilities import require
from loralab.errors import ExportError, QuantizationError
from loralab.export.routed import Routed
from loralab.registry import Params, register

if TYPE_CHECKING:
    from torch import nn

    from loralab.inference.load import LoadedAdapter

BLOCK = 64
WHERE = "--route merge-into-nf4"
BETTER = "take --route merge-then-quantize from a float base, or --route side-path"


class MergeIntoNF4Params(Params):
    """How a float base is quantized; a base of 4 bits stays as it is."""

    double_quant: bool = Field(
        False, description="quantize the scales too; the format is nf4-dq then"
    )


def four_bit(linear: nn.Module, double_quant: bool) -> Any:
    """Return bitsandbytes' NF4 module of a linear module; blocks of 64 values.

    Raises:
        QuantizationError: rows that blocks do not fill.
    """
    import bitsandbytes
    import torch

    from loralab.export.weights import values_of

    values = values_of(linear)
    if values.shape[1] % BLOCK:
        raise QuantizationError(
            f"in_features {values.shape[1]} is no multiple of {BLOCK}",
            where=WHERE,
            why="bitsandbytes 0.50 dequantizes many such rows wrongly on a CPU",
            fix="take --route merge-then-quantize, or leave the module out",
        )
    bnb: Any = bitsandbytes.nn
    made = bnb.Linear4bit(
        values.shape[1], values.shape[0], bias=False, compute_dtype=torch.float32
    )
    made.weight = bnb.Params4bit(
        values.contiguous(),
        requires_grad=False,
        quant_type="nf4",
        blocksize=BLOCK,
        compress_statistics=double_quant,
    )
    made.bias = linear.bias
    return made.to(values.device)


def _on_four_bits(adapter: LoadedAdapter, double_quant: bool) -> Any:
    """Return a copy of the adapter on a 4-bit copy of its base."""
    from loralab.export.weights import adapted, bare, readapted

    base = bare(adapter).float()
    for name in adapted(adapter):
        parent, _, leaf = name.rpartition(".")
        quantized = four_bit(base.get_submodule(name), double_quant)
        setattr(base.get_submodule(parent), leaf, quantized)
    base.is_loaded_in_4bit = True  # PEFT looks here before it takes its 4-bit layer
    return readapted(adapter, base)


def _check(adapter: LoadedAdapter) -> None:
    from loralab.export.weights import adapted, factors_of

    require(adapter.peft, "merge", WHERE)
    require(adapter.peft, "nf4", WHERE)
    if find_spec("bitsandbytes") is None:
        raise ExportError(
            "NF4 needs the package bitsandbytes, which is not here",
            where=WHERE,
            fix="pip install 'loralab[bitsandbytes]'",
        )
    if any(factors_of(adapter, name) is None for name in adapted(adapter)):
        raise ExportError(
            f"{adapter.peft.name} is no plain LoRA",
            where=WHERE,
            why="PEFT merges that alone into 4 bits",
            fix="take --route merge-then-quantize",
        )


@register("route", "merge-into-nf4", MergeIntoNF4Params)
def merge_into_nf4(params: MergeIntoNF4Params, adapter: LoadedAdapter) -> Routed:
    """Return the model after PEFT's merge, its NF4 values in fp32.

    They stand on the grid, so the format nf4 finds the same codes again.

    Raises:
        AdapterError: the method cannot be merged, or not stand on 4 bits.
        ExportError: no plain LoRA, or bitsandbytes is missing.
    """
    import copy

    from loralab.export.weights import (
        adapted,
        factors_of,
        put_in_order,
        to_float,
        weight_of,
    )
    from loralab.inference.load import LoadedAdapter
    from loralab.models.architecture import quantized_as
    from loralab.models.quiet import quiet_libraries

    _check(adapter)
    if quantized_as(adapter.model) == "nf4":
        on_grid, double = adapter, _compresses(adapter.model)
    else:
        model = _on_four_bits(adapter, params.double_quant)
        on_grid = LoadedAdapter(
            model, adapter.base, adapter.task, adapter.peft, adapter.folder
        )
        double = params.double_quant
    merged = copy.deepcopy(on_grid.model)
    put_in_order(merged)
    with quiet_libraries():
        merged = merged.merge_and_unload(safe_merge=True)
    return Routed(
        route="merge-into-nf4",
        model=to_float(merged).eval(),
        names=adapted(adapter),
        weight=partial(weight_of, on_grid),
        update=partial(factors_of, adapter),  # type: ignore[arg-type]  # checked above
        better=BETTER,
        formats=("nf4-dq",) if double else ("nf4",),
        as_stored=True,
    )


def _compresses(model: nn.Module) -> bool:
    """Tell whether a 4-bit model has its scales quantized too."""
    return any(getattr(p, "compress_statistics", False) for p in model.parameters())
