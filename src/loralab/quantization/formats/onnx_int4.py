"""``onnx-int4``: decoders in 4 bits, for ONNX Runtime GenAI.

    W[o, i] ≈ s[o, l] · (c[o, i] − z[o, l]),   l = i // block,   c, z in 0 … 15

s is fp32, z an integer (8 where it is symmetric), so a matrix takes 4 + 32 / block bits
a weight, and 4 / block more with zeros. How s and z are found is the ``algorithm``:

``default``   ONNX Runtime's: the entry of greatest size gets code 0 (15 with zeros)
``rtn``       round to nearest: s is 2 max|W| / 15 or, with zeros, (max − min) / 15
``k_quant``   llama.cpp's search for s and z of least weighted squared error; has zeros
``affine``    (max − min) / 15 and a real z, by one product more with sums of inputs
              over blocks (`loralab.quantization.onnx_affine`): slower, and nearer

``accuracy_level`` says in what the products are computed: 4 quantizes inputs to int8 in
blocks (fast; about 0.5 % error of its own), 1 and 0 stay in fp32.

A module that is on affine codes already (`AffineLinear`: a QA-LoRA that was merged into
real zeros) keeps its very codes, scales and zeros, whatever the algorithm; see
`loralab.quantization.onnx_affine`. `rounded` is not of its matrix.

The output layer, 28 of SmolLM2's 134 million weights, is quantized too, and with it the
embedding that is tied to it (``head``). In float both are one matrix.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from loralab.errors import QuantizationError
from loralab.quantization import onnx_decoder
from loralab.quantization.affine import dequantize, quantize
from loralab.quantization.linear import AffineLinear, quantize_modules
from loralab.quantization.onnx_affine import put_affine, shift_bytes
from loralab.quantization.onnx_decoder import linears, output_layer, shapes, tied
from loralab.quantization.onnx_graph import (
    Graph,
    dequantize_blocks,
    silent,
    weight_files,
)
from loralab.quantization.onnx_graph import values as values_of
from loralab.quantization.onnx_slots import put_slots, slot_bytes
from loralab.quantization.storage import Source, Stored, Tell
from loralab.registry import Params, register


class OnnxInt4Params(Params):
    """Params of ``onnx-int4``."""

    block_size: Literal[16, 32, 64, 128] = 32
    """Inputs that share a scale."""

    algorithm: Literal["default", "rtn", "k_quant", "affine"] = "default"
    """How scales and zeros are found."""

    accuracy_level: Literal[0, 1, 4] = 4
    """4: products of int8; 0 and 1: of fp32."""

    symmetric: bool = True
    """No zeros: 8 stands for the value 0."""

    head: bool = True
    """The output layer, and the embedding tied to it, in 4 bits too."""

    slots: bool = False
    """Room for LoRA adapters beside the named modules."""

    @property
    def zeros(self) -> bool:
        """Whether integer zeros are stored."""
        if self.algorithm == "affine":
            return False
        return not self.symmetric or self.algorithm == "k_quant"


def matrix_bytes(rows: int, width: int, block: int, zeros: bool) -> int:
    """Return the bytes of a matrix in blocks."""
    blocks = -(-width // block)
    each = blocks * block // 2 + 4 * blocks + (-(-blocks // 2) if zeros else 0)
    return rows * each


def _chosen(params: OnnxInt4Params, model: Any, names: Sequence[str]) -> list[str]:
    """Return the modules that are quantized: those named, and the output layer."""
    head = output_layer(model)
    return [*(n for n in names if n != head), *([head] if params.head else [])]


def predict(
    params: OnnxInt4Params, model: Any, names: Sequence[str], processor: Any = None
) -> int:
    """Return the bytes of the weights' files.

    Exact in the tensors; the graph itself, some 8 kB a layer, is estimated, and the
    gaps before tensors above 1 MiB (32 kB on average) are not counted.
    """
    chosen = _chosen(params, model, names)
    codes = sum(
        matrix_bytes(m.out_features, m.in_features, params.block_size, params.zeros)
        for m in (linears(model)[name] for name in chosen)
    )
    head = output_layer(model)
    alone = [name for name in chosen if name != head or tied(model)]
    floats = onnx_decoder.float_bytes(model, alone)
    if params.head and not tied(model):
        floats -= 4 * linears(model)[head].weight.numel()
    shifted = {n: m.group for n, m in _affine(model, chosen).items()}
    if params.algorithm == "affine":
        shifted |= dict.fromkeys(names, params.block_size)
    every = linears(model)
    shifts = sum(shift_bytes(every[name], group) for name, group in shifted.items())
    slots = slot_bytes(shapes(model, names)) if params.slots else 0
    return codes + floats + shifts + slots + onnx_decoder.graph_bytes(model, chosen)


def _affine(model: Any, chosen: Sequence[str]) -> dict[str, AffineLinear]:
    """Return the chosen modules that bring codes of their own."""
    found = {name: linears(model)[name] for name in chosen}
    return {n: m for n, m in found.items() if isinstance(m, AffineLinear)}


def rounded(params: OnnxInt4Params, matrix: torch.Tensor) -> torch.Tensor:
    """Return the values of a matrix once stored (O × I), fp32."""
    if params.algorithm == "affine":
        return dequantize(quantize(matrix.float(), 4, params.block_size))
    w_OI = matrix.detach().float().numpy()
    block, width = params.block_size, w_OI.shape[1]
    with silent():
        codes, scales, zeros = (
            _default(params, w_OI)
            if params.algorithm == "default"
            else _searched(params, np.pad(w_OI, ((0, 0), (0, -width % block))))
        )
    return torch.from_numpy(dequantize_blocks(codes, scales, zeros, width))


Codes = tuple[NDArray[np.uint8], NDArray[np.float32], "NDArray[np.uint8] | None"]


def _default(params: OnnxInt4Params, w_OI: NDArray[np.float32]) -> Codes:
    from onnxruntime.quantization import matmul_nbits_quantizer as ort

    config = ort.DefaultWeightOnlyQuantConfig(
        block_size=params.block_size, is_symmetric=params.symmetric
    )
    quantizer = ort.DefaultWeightOnlyQuantizer(config)
    turned = np.ascontiguousarray(w_OI.T)
    codes, scales, zeros = quantizer.qbits_block_quant(turned)
    return codes, scales, zeros if params.zeros else None


def _searched(params: OnnxInt4Params, w_OK: NDArray[np.float32]) -> Codes:
    from onnxruntime.quantization.neural_compressor import weight_only as ort

    rows, block = len(w_OK), params.block_size
    if params.algorithm == "k_quant":
        found = ort.quant_tensor_k_quant_cuda(w_OK, 4, block)
    else:
        scheme = "sym" if params.symmetric else "asym"
        found = ort.quant_tensor(w_OK, 4, block, scheme, "uint", 1)
    codes, scales, zeros = (np.asarray(part) for part in found)
    pairs = codes.astype(np.uint8).reshape(rows, -1, block)
    packed = _two(pairs)
    if not params.zeros:
        return packed, scales.astype(np.float32), None
    flat = zeros.astype(np.uint8).reshape(rows, -1)
    flat = np.pad(flat, ((0, 0), (0, flat.shape[1] % 2)))
    return packed, scales.astype(np.float32), _two(flat)


def _two(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put two codes into a byte, the first in its low bits."""
    return (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8)


def values(params: OnnxInt4Params, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each quantized module and its values (O × I), fp32."""
    return values_of(folder)


@register(
    "storage format",
    "onnx-int4",
    OnnxInt4Params,
    engine="onnx",
    heads=("causal-lm",),
    predict=predict,
    rounded=rounded,
    values=values,
)
def write(params: OnnxInt4Params, source: Source, folder: Path, tell: Tell) -> Stored:
    """Write a decoder's graph with 4-bit matrices.

    Raises:
        QuantizationError: the builder cannot write it so, or a module stayed in float.
    """
    chosen = _chosen(params, source.model, source.names)
    _check(params, source.model, chosen)
    if params.algorithm == "affine":
        source = _on_affine_codes(params, source)
    affine = _affine(source.model, chosen)
    options = [
        f"block_size={params.block_size}",
        f"algo_config={'default' if affine else params.algorithm}",
        f"accuracy_level={params.accuracy_level}",
        f"is_symmetric={str(params.symmetric).lower()}",
        f"shared_embeddings={str(tied(source.model)).lower()}",
    ]
    onnx_decoder.build(
        source, folder, tell, precision="int4", quantized=chosen, options=options
    )
    if affine:
        put_affine(affine, folder)
    if params.slots:
        put_slots(source.names, folder)
    return Stored(weight_files(folder), Graph(folder).require(chosen))


def _on_affine_codes(params: OnnxInt4Params, source: Source) -> Source:
    """Return the source with its named modules on affine codes; a copy."""
    model = copy.deepcopy(source.model)
    every = linears(model)
    left = [name for name in source.names if not isinstance(every[name], AffineLinear)]
    quantize_modules(model, left, 4, params.block_size)
    return replace(source, model=model)


def _check(params: OnnxInt4Params, model: Any, chosen: Sequence[str]) -> None:
    for name, module in _affine(model, chosen).items():
        if (module.bits, module.group) != (4, params.block_size) or params.zeros:
            raise QuantizationError(
                f"codes of {module.bits} bits in groups of {module.group} do not fit",
                where=name,
                why=f"the graph is to have blocks of {params.block_size}"
                + (" with integer zeros" if params.zeros else ""),
                fix=f"set block_size={module.group} symmetric=true algorithm=default",
            )
        if name == output_layer(model) and tied(model):
            raise QuantizationError(
                "an embedding cannot share real zeros",
                where=name,
                fix="leave the output layer in float before it is stored",
            )
    if params.algorithm == "default":
        if params.zeros and params.head and tied(model):
            raise QuantizationError(
                "an embedding that is tied cannot share zeros of the default algorithm",
                where="symmetric",
                fix="set symmetric=true, head=false, or algorithm=rtn",
            )
        return
    if not params.zeros:
        return
    for name in chosen:
        width = linears(model)[name].in_features
        if -(-width // params.block_size) % 2:
            raise QuantizationError(
                f"{width} inputs are an odd number of blocks of {params.block_size}",
                where=name,
                why=f"{params.algorithm} packs the zeros of two blocks into a byte "
                "without regard to rows",
                fix="choose another block_size, or algorithm=default",
            )
