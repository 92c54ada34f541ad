"""``onnx-int8``: encoders and vision models in int8, for ONNX Runtime.

    W[i, o] ≈ s[o] · c[i, o],   c in −127 … 127,   s[o] = max_i |W[i, o]| / 127

Inputs are quantized as they come, to 0 … 255 with a scale and a zero for the whole
tensor (``DynamicQuantizeLinear``); the product is one of integers (``MatMulInteger``).
So a result also depends, a little, on what else is in its batch.

A scale for every output (``per_channel``) costs 5 bytes an output and is as fast.
Embeddings may be int8 too, a table with one scale: for a small encoder they are half of
all bytes. On a CPU without VNNI, sums of two products of 8 bits can overflow 16 bits
and are cut; ``reduce_range`` takes codes of −64 … 64 there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loralab.quantization import onnx_encoder
from loralab.quantization.onnx_decoder import linears, shapes, stored_matrix
from loralab.quantization.onnx_graph import (
    MODEL,
    Graph,
    silent,
    weight_files,
)
from loralab.quantization.onnx_graph import values as values_of
from loralab.quantization.onnx_slots import put_slots, slot_bytes
from loralab.quantization.storage import Source, Stored, Tell
from loralab.registry import Params, register

TABLE = 2_000
"""Bytes of the nodes that one quantized matrix adds to a graph, about."""


class OnnxInt8Params(Params):
    """Params of ``onnx-int8``."""

    per_channel: bool = True
    """A scale for every output, not one for the matrix."""

    embeddings: bool = True
    """Tables of embeddings in int8 too."""

    reduce_range: bool = False
    """Codes of −64 … 64, for a CPU without VNNI."""

    slots: bool = False
    """Room for LoRA adapters beside the named modules."""


def predict(
    params: OnnxInt8Params, model: Any, names: Sequence[str], processor: Any = None
) -> int:
    """Return the bytes of the weights' files.

    Exact in the tensors; the graph itself, some 3 kB a module, is estimated.
    """
    chosen = {name: linears(model)[name] for name in names}
    matrices = {
        id(stored_matrix(m)): (m.out_features, m.in_features) for m in chosen.values()
    }
    tables = _tables(model) if params.embeddings else {}
    out: int = sum(
        rows * width + 5 * (rows if params.per_channel else 1)
        for rows, width in matrices.values()
    )
    out += sum(m.weight.numel() + 5 for m in tables.values())
    nodes = TABLE * (len(chosen) + len(tables))
    return (
        out
        + onnx_encoder.float_bytes(model, {**chosen, **tables})
        + onnx_encoder.graph_bytes(model)
        + nodes
        + (slot_bytes(shapes(model, names)) if params.slots else 0)
    )


def _tables(model: Any) -> dict[str, Any]:
    """Return the embeddings that are looked up, by path."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Embedding)}


def rounded(params: OnnxInt8Params, matrix: torch.Tensor) -> torch.Tensor:
    """Return the values of a linear module's matrix once stored (O × I), fp32."""
    top = 64 if params.reduce_range else 127
    w_OI = matrix.detach().float()
    most = w_OI.abs().amax(1, keepdim=True) if params.per_channel else w_OI.abs().max()
    scale = (2 * most.double() / (2 * top)).float()
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
    return (w_OI / scale).round().clamp(-top, top) * scale


def values(params: OnnxInt8Params, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each quantized module and its values (O × I), fp32."""
    return values_of(folder)


@register(
    "storage format",
    "onnx-int8",
    OnnxInt8Params,
    engine="onnx",
    heads=tuple(onnx_encoder.OUTPUTS),
    predict=predict,
    rounded=rounded,
    values=values,
)
def write(params: OnnxInt8Params, source: Source, folder: Path, tell: Tell) -> Stored:
    """Write a model's graph with int8 matrices.

    Raises:
        QuantizationError: the model has no graph, or a module stayed in float.
    """
    onnx_encoder.export(source, folder, tell)
    _quantize(params, source.names, folder)
    if params.slots:
        put_slots(source.names, folder)
    return Stored(weight_files(folder), Graph(folder).require(source.names))


def _quantize(params: OnnxInt8Params, names: Sequence[str], folder: Path) -> None:
    """Replace the float graph of a folder by its quantized one."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = Graph(folder)
    modules = {node for name in names for node, _, _ in graph.pieces.get(name, ())}
    nodes = graph.model.graph.node
    matrices = {node.input[1] for node in nodes if node.name in modules}
    constants = {tensor.name for tensor in graph.model.graph.initializer}
    chosen = [
        node.name
        for node in nodes
        if (node.op_type == "MatMul" and node.input[1] in matrices)
        or (params.embeddings and _looks_up(node, constants))
    ]
    with silent():
        quantize_dynamic(
            graph.model,
            folder / MODEL,
            op_types_to_quantize=["MatMul", "Gather"],
            per_channel=params.per_channel,
            reduce_range=params.reduce_range,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=chosen,
            extra_options={"WeightSymmetric": True, "MatMulConstBOnly": True},
        )


def _looks_up(node: Any, constants: set[str]) -> bool:
    return (
        node.op_type == "Gather"
        and node.input[0] in constants
        and node.input[0].endswith("embeddings.weight")
    )
