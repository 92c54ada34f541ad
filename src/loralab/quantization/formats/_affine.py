"""Our affine codes as a storage format: a module's codes, scales and zeros by name.

The mathematics is that of `loralab.quantization.affine`. transformers cannot open such
a folder by itself: it would pass over codes that it does not know and make the weights
up. So the file has a name of its own, and transformers says that it finds none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from loralab.errors import QuantizationError
from loralab.logs import routed
from loralab.quantization.formats._files import (
    Codec,
    Layout,
    Tensors,
    TorchParams,
    facts,
    float_dtype,
    matrices,
    matrices_of,
    opened,
)

if TYPE_CHECKING:
    import torch

METHOD = "loralab-affine"
WEIGHTS = "affine.safetensors"


class AffineParams(TorchParams):
    """The params of affine codes."""

    group: int = Field(32, gt=0, description="inputs that share a scale and a zero")
    clipping: Literal["minmax", "mse"] = Field(
        "minmax", description="a group's extremes, or the least squared error"
    )
    scales: Literal["fp32", "fp16", "bf16"] = Field(
        "fp32", description="dtype of scales and zeros"
    )


def _layout(bits: int, params: AffineParams, shape: tuple[int, int]) -> Layout:
    import torch

    from loralab.quantization.affine import check_format, packed_width

    rows, columns = shape
    check_format(columns, bits, params.group)
    grid = (float_dtype(params.scales), (rows, columns // params.group))
    codes = (rows, packed_width(columns, bits))
    return {"scales": grid, "zeros": grid, "codes": (torch.uint8, codes)}


def _encode(bits: int, params: AffineParams, weight: torch.Tensor) -> Tensors:
    from loralab.quantization.affine import quantize

    dtype = float_dtype(params.scales)
    made = quantize(weight, bits, params.group, params.clipping, dtype)
    return {"codes": made.codes, "scales": made.scales, "zeros": made.zeros}


def _decode(bits: int, params: AffineParams, tensors: Tensors) -> torch.Tensor:
    from loralab.quantization.affine import AffineWeight, dequantize

    return dequantize(AffineWeight(**tensors, bits=bits, group=params.group))


def _settings(bits: int, params: AffineParams, keep: list[str]) -> dict[str, Any]:
    said = params.model_dump(mode="json", exclude={"rest"})
    return {"quant_method": METHOD, "bits": bits, **said}


def _held(bits: int, params: AffineParams, module: Any) -> Tensors | None:
    """Return the tensors of a module of affine codes, such as QA-LoRA's.

    Raises:
        QuantizationError: it has other bits, groups or scales than the format.
    """
    from loralab.quantization.linear import AffineLinear

    if not isinstance(module, AffineLinear):
        return None
    wanted = (bits, params.group, float_dtype(params.scales))
    if wanted != (module.bits, module.group, module.scales.dtype):
        raise QuantizationError(
            f"codes of {module.bits} bits in groups of {module.group} with "
            f"{module.scales.dtype} are not those of this format",
            why="other codes would have to be made, and an adapter would be lost",
            fix=f"store with group={module.group} and scales=fp32",
        )
    return {"scales": module.scales, "zeros": module.zeros, "codes": module.codes}


def affine_codec(bits: int) -> Codec:
    """Return how affine codes of 4 or 8 bits hold a matrix."""
    return Codec(
        partial(_layout, bits),
        partial(_encode, bits),
        partial(_decode, bits),
        partial(_settings, bits),
        WEIGHTS,
        partial(_held, bits),
    )


def open_folder(
    bits: int,
    params: AffineParams,
    folder: Path,
    auto_class: str,
    device: str,
    dtype: torch.dtype,
) -> Any:
    """Return the stored model, with an `AffineLinear` for each quantized module.

    transformers builds it in float first, so it takes the memory of that for a moment.

    Args:
        bits: Of a code.
        params: The format's.
        folder: What the format wrote.
        auto_class: Not asked; the configuration names the class.
        device: ``cpu`` or ``cuda``.
        dtype: Of all that is not quantized.

    Raises:
        QuantizationError: the files are broken, or miss a weight.
    """
    import transformers

    from loralab.quantization.affine import AffineWeight
    from loralab.quantization.linear import AffineLinear

    held = dict(matrices(affine_codec(bits), params, folder))
    own = {f"{name}.{end}" for name, of in held.items() for end in of}
    with opened(folder / WEIGHTS) as file:
        rest = {n: file.get_tensor(n) for n in file.keys() if n not in own}  # noqa: SIM118
    with routed():
        config = transformers.AutoConfig.from_pretrained(str(folder))
        del config.quantization_config
        (own_class,) = config.architectures  # an auto class asks for a folder
        model, info = getattr(transformers, own_class).from_pretrained(
            None, config=config, state_dict=rest, dtype=dtype, output_loading_info=True
        )
    missing = set(info["missing_keys"]) - {f"{name}.weight" for name in held}
    missing = {name for name in missing if not name.startswith("pooler.")}
    if missing:
        raise QuantizationError(
            f"{len(missing)} weights are missing, such as {min(missing)}",
            where=str(folder),
        )
    for name, tensors in held.items():
        packed = AffineWeight(**tensors, bits=bits, group=params.group)
        made = AffineLinear(packed, model.get_submodule(name).bias)
        model.set_submodule(name, made)
    return model.to(device).eval()


def replace(bits: int, params: AffineParams, model: Any, names: Sequence[str]) -> None:
    """Replace linear modules by affine ones; on the meta device, by their shapes.

    Raises:
        QuantizationError: a module that the format cannot hold.
    """
    import torch

    from loralab.quantization.affine import AffineWeight, check_format
    from loralab.quantization.linear import AffineLinear, quantize_modules

    dtype = float_dtype(params.scales)
    if not next(model.parameters()).is_meta:
        quantize_modules(model, names, bits, params.group, params.clipping, dtype)
        return
    for name, weight in matrices_of(model, names).items():
        rows, columns = weight.shape
        check_format(columns, bits, params.group, name)
        tensors = {
            end: torch.empty(shape, dtype=kind, device="meta")
            for end, (kind, shape) in _layout(bits, params, (rows, columns)).items()
        }
        packed = AffineWeight(**tensors, bits=bits, group=params.group)
        model.set_submodule(name, AffineLinear(packed, model.get_submodule(name).bias))


def affine_facts(bits: int) -> dict[str, Any]:
    """Return the facts of a format of affine codes."""
    return {
        **facts(affine_codec(bits)),
        "open": partial(open_folder, bits),
        "trains": True,
        "ability": "affine",
        "replace": partial(replace, bits),
    }
