"""The weights under an adapter: which it changes, by how much, and in which dtype.

An adapter is a difference to the very values it was trained against. On a quantized
base these are the dequantized ones, so whatever is merged is merged into them: added in
fp32, whatever dtype the base computes in.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from loralab import registry
from loralab.adapters.attach import own_path
from loralab.adapters.files import state_of
from loralab.adapters.qalora import QALoraLinear
from loralab.adapters.selection import Selection
from loralab.errors import ExportError
from loralab.export.survival import Update
from loralab.lowrank.factors import Factors
from loralab.models.quiet import quiet_libraries
from loralab.quantization.linear import AffineLinear, float_weight

if TYPE_CHECKING:
    from loralab.inference.load import LoadedAdapter

QUANTIZED = ("Linear4bit", "Linear8bitLt")
"""Of bitsandbytes, whose classes are known without importing it."""


def values_of(module: nn.Module, where: str = "") -> Tensor:
    """Return the values (O × I) of a linear module, fp32, dequantized where need be.

    Args:
        module: ``nn.Linear``, transformers' ``Conv1D``, `AffineLinear`, or one of
            bitsandbytes.
        where: Its path, for the error.

    Raises:
        QuantizationError: another kind of module.
    """
    if isinstance(module, AffineLinear):
        return module.weight.float()
    if type(module).__name__ == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        values: Tensor = dequantize_4bit(*_in_order(module))
        return values.detach().float()
    if type(module).__name__ in QUANTIZED:
        from peft.utils.integrations import dequantize_module_weight

        return dequantize_module_weight(module).detach().float()
    return float_weight(module, where).detach().float()


def _in_order(module: Any) -> tuple[Tensor, Any]:
    """Return a 4-bit module's codes and state, in the order that can be dequantized.

    Where a CPU multiplies in bf16, bitsandbytes 0.50 puts the codes into another order
    at the first forward pass, and rounds the scales to bf16. Its `dequantize_4bit`, and
    so PEFT's merge, takes them for ordered ones, without a word.
    """
    weight = module.weight
    if not getattr(weight.quant_state, "packing_format_for_cpu", False):
        return weight.data, weight.quant_state
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    state = copy.copy(weight.quant_state)
    state.original_nested = False  # the scales were dequantized when it was packed
    codes, state = _convert_weight_packed_for_cpu_inverse(weight.data, state)
    state.absmax = state.absmax.T.float().reshape(-1)  # it leaves them transposed
    return codes, state


def put_in_order(model: nn.Module) -> None:
    """Let the 4-bit modules of a model hold their codes in order, in place."""
    for module in model.modules():
        if type(module).__name__ == "Linear4bit" and hasattr(module, "quant_state"):
            weight: Any = module.weight
            weight.data, weight.quant_state = _in_order(module)
            module.quant_state = weight.quant_state


def to_float(model: nn.Module) -> nn.Module:
    """Let a model be fp32 in place, its quantized modules dequantized; returns it."""
    for name, module in list(model.named_modules()):
        if isinstance(module, AffineLinear) or type(module).__name__ in QUANTIZED:
            parent, _, leaf = name.rpartition(".")
            values = values_of(module, name)
            with torch.device("meta"):
                made = nn.Linear(values.shape[1], values.shape[0], bias=False)
            made.weight = nn.Parameter(values, requires_grad=False)
            made.register_parameter("bias", module.bias)
            setattr(model.get_submodule(parent), leaf, made.train(module.training))
    for flag in ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if getattr(model, flag, False):  # else transformers refuses `float`
            setattr(model, flag, False)
    config: Any = getattr(model, "config", None)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    return model.float()


def is_quantized(model: nn.Module) -> bool:
    """Tell whether a model has quantized linear modules."""
    return any(
        isinstance(module, AffineLinear) or type(module).__name__ in QUANTIZED
        for module in model.modules()
    )


def adapted(adapter: LoadedAdapter) -> tuple[str, ...]:
    """Return the linear modules outside the head that an adapter changes."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = adapter.model
    if isinstance(model, Selection):
        found = {name.removesuffix(".weight") for name in model.names}
    else:
        found = {
            own_path(name)
            for name, module in model.named_modules()
            if isinstance(module, BaseTunerLayer)
        }
    return tuple(name for name in adapter.base.facts.linear if name in found)


def layer_of(adapter: LoadedAdapter, name: str) -> Any:
    """Return the adapter's layer on a module."""
    return adapter.model.get_base_model().get_submodule(name)


def weight_of(adapter: LoadedAdapter, name: str) -> Tensor:
    """Return W (O × I, fp32): what the adapter is a difference to."""
    layer = layer_of(adapter, name)
    if isinstance(adapter.model, Selection):
        with adapter.model.disable_adapter():
            return values_of(layer, name).clone()
    return values_of(layer.get_base_layer(), name)


def factors_of(adapter: LoadedAdapter, name: str) -> Factors | None:
    """Return ΔW as factors, or None where it is not s·B·A."""
    from peft.tuners.lora import LoraLayer

    layer = layer_of(adapter, name)
    if not isinstance(layer, LoraLayer) or layer.lora_variant:
        return None
    pooled = isinstance(layer, QALoraLinear)
    layer = cast(Any, layer)
    (active,) = layer.active_adapters
    A = layer.lora_A[active].weight.detach().float()
    B = layer.lora_B[active].weight.detach().float()
    if pooled:
        A = A.repeat_interleave(layer.lora_A[active].group, dim=1)
    return Factors(A, B, float(layer.scaling[active]))


def update_of(adapter: LoadedAdapter, name: str, merged: nn.Module) -> Update:
    """Return ΔW: as factors, else what merging changed.

    Args:
        adapter: The adapter.
        name: A module.
        merged: The model it was merged into, in fp32.
    """
    if (found := factors_of(adapter, name)) is not None:
        return found
    after = values_of(merged.get_submodule(name), name)
    return after.double() - weight_of(adapter, name).double()


def bare(adapter: LoadedAdapter) -> Any:
    """Return a copy of the base without the adapter, its trained head in place."""
    with quiet_libraries():
        return copy.deepcopy(adapter.model).unload()


def readapted(adapter: LoadedAdapter, base: Any) -> Any:
    """Put the adapter, as the plain one it is, on another form of its base.

    Args:
        adapter: The adapter.
        base: `bare`, its linear modules of another kind.

    Raises:
        ExportError: PEFT cannot put it there.
    """
    from peft import get_peft_model, set_peft_model_state_dict

    plain = registry.get("PEFT method", adapter.peft.name).facts.get("plain")
    native = any(isinstance(m, QALoraLinear) for m in adapter.model.modules())
    if plain and native:
        config, state = plain(adapter.model)
    else:
        config, state = adapter.model.peft_config["default"], state_of(adapter.model)
    try:
        with quiet_libraries():
            model = get_peft_model(base, copy.deepcopy(config))
            set_peft_model_state_dict(model, state)
    except (ValueError, NotImplementedError) as error:
        raise ExportError(
            f"PEFT cannot put {adapter.peft.name} on this form of its base",
            why=str(error).split("\n")[0],
            fix="take the route merge-then-quantize",
        ) from None
    return model.eval()


def merged_in_float(adapter: LoadedAdapter) -> Any:
    """Return a copy of the base in fp32 with the adapter merged into it.

    Raises:
        ExportError: a merged weight is not finite.
    """
    if isinstance(adapter.model, Selection):
        return to_float(copy.deepcopy(adapter.model).merge_and_unload())
    if is_quantized(adapter.model):
        model = readapted(adapter, to_float(bare(adapter)))
    else:
        model = copy.deepcopy(adapter.model).float()
    try:
        with quiet_libraries():
            return model.merge_and_unload(safe_merge=True).eval()
    except ValueError as error:  # PEFT found NaN
        raise ExportError(
            "the merged weights are not finite", why=str(error).split("\n")[0]
        ) from None
