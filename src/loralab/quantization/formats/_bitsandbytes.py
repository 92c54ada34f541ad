"""bitsandbytes' formats: NF4 in blocks of 64 weights, and LLM.int8 by rows.

NF4 (Dettmers et al. 2023, arXiv:2305.14314): a block's weights over its largest
magnitude, each the nearest of 16 quantiles of N(0, 1). Double quantization holds those
magnitudes, less their mean, in 8 bits in blocks of 256: 0.127 bits a weight, not 0.5.
LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339): a row over its largest magnitude, in
steps of 1/127; the weight is rounded to fp16 first. Inputs above a threshold are
multiplied in 16 bits.

The files are transformers' own: `from_pretrained` of the folder needs no loralab.
"""

from __future__ import annotations

import json
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
    kept,
    matrices_of,
    opened,
)

if TYPE_CHECKING:
    import torch

BLOCK = 64
"""Weights that share a magnitude."""

NESTED = 256
"""Magnitudes that share one, in double quantization."""

DIGITS = 24
"""Characters that the mean of magnitudes is given; no float32 is longer."""

MODULES = ("Linear4bit", "Linear8bitLt")

STATE = "weight.quant_state.bitsandbytes__nf4"


class NF4Params(TorchParams):
    """The params of NF4."""

    compute: Literal["bf16", "fp16", "fp32"] = Field(
        "bf16", description="dtype that weights are dequantized to and multiplied in"
    )


class Int8Params(TorchParams):
    """The params of LLM.int8."""

    threshold: float = Field(
        6.0, ge=0, description="inputs above it are multiplied in 16 bits; 0: none"
    )


def library() -> Any:
    """Return bitsandbytes.

    Raises:
        QuantizationError: it is not installed.
    """
    try:
        with routed():  # it talks of kernels that it could fetch
            import bitsandbytes
    except ImportError:
        raise QuantizationError(
            "this format needs the package bitsandbytes, which is not here",
            fix="pip install 'loralab[bitsandbytes]'",
        ) from None
    return bitsandbytes


def _note(
    params: NF4Params, shape: tuple[int, int], mean: float | None
) -> torch.Tensor:
    """Return bitsandbytes' own note of a matrix: JSON as uint8, of a known length."""
    import torch

    said: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": BLOCK,
        "dtype": str(float_dtype(params.compute)).removeprefix("torch."),
        "shape": shape,
    }
    if mean is not None:
        said |= {"nested_blocksize": NESTED, "nested_dtype": "float32"}
        said["nested_offset"] = mean
        spare = DIGITS - len(json.dumps(mean))
    text = json.dumps(said) + " " * (spare if mean is not None else 0)
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _layout4(double: bool, params: NF4Params, shape: tuple[int, int]) -> Layout:
    import torch

    count = shape[0] * shape[1]
    blocks = -(-count // BLOCK)
    note = _note(params, shape, 0.0 if double else None)
    found: Layout = {
        "weight": (torch.uint8, (-(-count // 2), 1)),
        "weight.absmax": (torch.uint8 if double else torch.float32, (blocks,)),
        "weight.quant_map": (torch.float32, (16,)),
        STATE: (torch.uint8, (len(note),)),
    }
    if double:
        found["weight.nested_absmax"] = (torch.float32, (-(-blocks // NESTED),))
        found["weight.nested_quant_map"] = (torch.float32, (256,))
    return found


def _encode4(double: bool, params: NF4Params, weight: torch.Tensor) -> Tensors:
    codes, state = library().functional.quantize_4bit(
        weight.float().contiguous(),
        blocksize=BLOCK,
        compress_statistics=double,
        quant_type="nf4",
    )
    mean = state.offset.item() if double else None
    rows, columns = weight.shape
    found = {
        "weight": codes,
        "weight.absmax": state.absmax,
        "weight.quant_map": state.code,
        STATE: _note(params, (rows, columns), mean),
    }
    if double:
        found["weight.nested_absmax"] = state.state2.absmax
        found["weight.nested_quant_map"] = state.state2.code.clone()
    return found


def _decode4(params: NF4Params, tensors: Tensors) -> torch.Tensor:
    import torch

    functional = library().functional
    held = {name: t for name, t in tensors.items() if name != "weight"}
    state = functional.QuantState.from_dict(held, torch.device("cpu"))
    rows, columns = state.shape
    # as one row: on a CPU bitsandbytes 0.50.2 takes a row's first weight for the first
    # of a block, though blocks run on from row to row
    state.dtype, state.shape = torch.float32, torch.Size((1, rows * columns))
    found: torch.Tensor = functional.dequantize_4bit(tensors["weight"], state)
    return found.view(rows, columns)


def _settings4(double: bool, params: NF4Params, keep: list[str]) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    said: dict[str, Any] = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=float_dtype(params.compute),
        llm_int8_skip_modules=keep,
    ).to_dict()
    return said


def _layout8(params: Int8Params, shape: tuple[int, int]) -> Layout:
    import torch

    return {
        "weight": (torch.int8, shape),
        "weight_format": (torch.uint8, ()),
        "SCB": (torch.float32, (shape[0],)),
    }


def _encode8(params: Int8Params, weight: torch.Tensor) -> Tensors:
    import torch

    half = weight.half().contiguous()
    if not half.isfinite().all():
        raise QuantizationError("a weight is too large for fp16, which int8 begins at")
    codes, rows, _ = library().functional.int8_vectorwise_quant(half)
    return {
        "weight": codes,
        "weight_format": torch.tensor(0, dtype=torch.uint8),  # row by row
        "SCB": rows,
    }


def _decode8(params: Int8Params, tensors: Tensors) -> torch.Tensor:
    return tensors["weight"].float() * (tensors["SCB"] / 127).unsqueeze(1)


def _settings8(params: Int8Params, keep: list[str]) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    said: dict[str, Any] = BitsAndBytesConfig(
        load_in_8bit=True,
        llm_int8_threshold=params.threshold,
        llm_int8_skip_modules=keep,
    ).to_dict()
    return said


def nf4_codec(double: bool) -> Codec:
    """Return how NF4 holds a matrix, with double quantization or without."""
    return Codec(
        partial(_layout4, double),
        partial(_encode4, double),
        _decode4,
        partial(_settings4, double),
    )


INT8 = Codec(_layout8, _encode8, _decode8, _settings8)


def open_folder(
    params: Any, folder: Path, auto_class: str, device: str, dtype: torch.dtype
) -> Any:
    """Return the stored model, ready for use, by transformers alone.

    On a CPU with AVX512-BF16, bitsandbytes packs NF4 weights for a kernel of its own at
    the first use: faster, in bf16, with magnitudes rounded to bf16. It is left to where
    bf16 was asked for and the kernel takes the shape.

    Args:
        params: The format's.
        folder: What the format wrote.
        auto_class: transformers' class that loads it.
        device: ``cpu`` or ``cuda``.
        dtype: Of all that is not quantized.

    Raises:
        QuantizationError: bitsandbytes is missing, or the files are broken.
    """
    import transformers

    library()
    ends = (f".{STATE}", ".SCB")
    with opened(folder / INT8.file) as file:  # a broken one is told here
        keys = [key for key in file.keys() if key.endswith(ends)]  # noqa: SIM118
    with routed():
        model = getattr(transformers, auto_class).from_pretrained(
            str(folder),
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,
            trust_remote_code=False,
        )
    found = sum(type(m).__name__ in MODULES for m in model.modules())
    if found != len(keys):
        raise QuantizationError(
            f"{len(keys)} modules are stored quantized, and {found} were opened so",
            where=str(folder),
        )
    settle(model, device, fast=getattr(params, "compute", None) == "bf16")
    return model.eval()


def settle(model: Any, device: str, fast: bool = False) -> None:
    """Guard against two silent mistakes of bitsandbytes 0.50.2 with NF4 on a CPU.

    Where a row is no multiple of 64, its blocks run on into the next row, and weights
    are dequantized with the magnitudes of other blocks. And on a CPU with AVX512-BF16 a
    layer that was used in evaluation stays packed for a kernel without a gradient: a
    training would stop at the last layer after its first evaluation.

    Args:
        model: With bitsandbytes' modules.
        device: Where it is to run.
        fast: Leave that kernel to the modules whose shape it takes; for inference.

    Raises:
        QuantizationError: it would be dequantized wrongly.
    """
    for name, module in model.named_modules():
        if type(module).__name__ != "Linear4bit":
            continue
        if device == "cpu" and module.in_features % BLOCK:
            raise QuantizationError(
                f"in_features {module.in_features} is no multiple of {BLOCK}",
                where=name,
                why="bitsandbytes dequantizes such a weight wrongly on a CPU",
                fix="use affine-int4, or a GPU",
            )
        fits = module.out_features % 32 == 0
        module.support_avx512bf16_for_cpu &= fast and fits


def read_quantized(
    codec: Codec, params: Any, model: Any, names: Sequence[str]
) -> dict[str, Any]:
    """Return what lets `from_pretrained` quantize a float base while it is read.

    Args:
        codec: The format's.
        params: The format's.
        model: The base; the meta device will do.
        names: The modules to be quantized.

    Raises:
        QuantizationError: bitsandbytes is missing.
    """
    from transformers import BitsAndBytesConfig

    library()
    said = BitsAndBytesConfig.from_dict(codec.settings(params, kept(model, names)))
    return {"quantization_config": said}


def replace_shapes(
    codec: Codec, params: TorchParams, model: Any, names: Sequence[str]
) -> None:
    """Replace linear modules on the meta device by such of as many bytes.

    Raises:
        QuantizationError: bitsandbytes is missing.
    """
    library()
    from loralab.quantization.formats import _planned

    for name, weight in matrices_of(model, names).items():
        rows, columns = weight.shape
        layout = codec.layout(params, (rows, columns))
        bias = model.get_submodule(name).bias
        compute = getattr(params, "compute", None)
        if compute is None:
            made = _planned.Linear8bitLt((rows, columns), layout, bias)
            model.is_loaded_in_8bit = True
        else:
            dtype = float_dtype(compute)
            made = _planned.Linear4bit((rows, columns), layout, bias, dtype)
            model.is_loaded_in_4bit = True
        model.set_submodule(name, made)


def bitsandbytes_facts(codec: Codec, ability: str) -> dict[str, Any]:
    """Return the facts of a format of bitsandbytes.

    Args:
        codec: How it holds a matrix.
        ability: What an adapter's method must be able to stand on.
    """
    return {
        **facts(codec),
        "open": open_folder,
        "trains": True,
        "ability": ability,
        "reading": partial(read_quantized, codec),
        "replace": partial(replace_shapes, codec),
        "settle": settle,
    }
