"""``onnx-fp32``: a graph for ONNX Runtime with float weights.

The same engine as its quantized siblings, without their bits: what a comparison needs
to tell the engine's effect from quantization's. Decoders are written by GenAI's
builder, all else by torch's exporter. An embedding that is tied is stored once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from loralab.quantization import onnx_decoder, onnx_encoder
from loralab.quantization.onnx_graph import weight_files
from loralab.quantization.onnx_slots import put_slots, slot_bytes
from loralab.quantization.storage import Source, Stored, Tell
from loralab.registry import Params, register


class OnnxFloatParams(Params):
    """Params of ``onnx-fp32``."""

    slots: bool = False
    """Room for LoRA adapters beside the named modules."""


def predict(
    params: OnnxFloatParams, model: Any, names: Sequence[str], processor: Any = None
) -> int:
    """Return the bytes of the weights' files.

    Exact in the tensors; the graph itself, 15 kB a layer or less, is estimated.
    """
    slots = slot_bytes(onnx_decoder.shapes(model, names)) if params.slots else 0
    if _decodes(model):
        return slots + onnx_decoder.float_bytes(model) + onnx_decoder.graph_bytes(model)
    return slots + onnx_encoder.float_bytes(model, {}) + onnx_encoder.graph_bytes(model)


def _decodes(model: Any) -> bool:
    return type(model).__name__.endswith("ForCausalLM")


def rounded(params: OnnxFloatParams, matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix as it is stored, fp32."""
    return matrix.float()


def values(params: OnnxFloatParams, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield nothing: no module is quantized."""
    return iter(())


@register(
    "storage format",
    "onnx-fp32",
    OnnxFloatParams,
    engine="onnx",
    heads=("causal-lm", *onnx_encoder.OUTPUTS),
    predict=predict,
    rounded=rounded,
    values=values,
)
def write(params: OnnxFloatParams, source: Source, folder: Path, tell: Tell) -> Stored:
    """Write a model's graph in fp32.

    Raises:
        QuantizationError: the model has no graph.
    """
    if source.head == "causal-lm":
        tie = str(onnx_decoder.tied(source.model)).lower()
        onnx_decoder.build(source, folder, tell, options=[f"shared_embeddings={tie}"])
    else:
        onnx_encoder.export(source, folder, tell)
    if params.slots:
        put_slots(source.names, folder)
    return Stored(weight_files(folder), ())
