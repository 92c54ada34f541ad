"""Encoders and vision models as graphs, by torch's tracing exporter.

torch has two exporters. The one that traces (``dynamo=False``) needs nothing besides
torch and onnx, takes a tenth of a second for a small model, and names each node by the
path of its module, which is what we read matrices back by. The newer one needs
onnxscript, takes seconds, and its names are numbers. Both give the same values.

Batch and length are free, and so is the size of pictures where the model (DINOv2) lets
it. The probe of an encoder for features is stored beside the graph, which ends at the
hidden states.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file
from torch import nn

from loralab.errors import QuantizationError
from loralab.quantization.linear import AffineLinear
from loralab.quantization.onnx_decoder import linears, stored_matrix
from loralab.quantization.onnx_graph import MODEL, Piece, annotate, load, silent
from loralab.quantization.onnx_graph import save as save_graph
from loralab.quantization.storage import Source, Tell

OPSET = 17
OUTPUTS = {
    "sequence-classification": ("logits",),
    "token-classification": ("logits",),
    "image-classification": ("logits",),
    "question-answering": ("start_logits", "end_logits"),
    "feature-extraction": ("last_hidden_state",),
}
PROBE = "probe.safetensors"
TABLES, NODE = 10_000, 2_000
"""Bytes of a graph without tensors: in all, and of a linear module with its like."""


STRETCH = "interpolate_pos_encoding"
"""transformers' option for images of another size than those of training."""


class _Traced(nn.Module):
    """A model as a function of tensors in an order, to tensors in an order."""

    def __init__(
        self, model: Any, inputs: Sequence[str], outputs: Sequence[str]
    ) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs
        # else ViT, DeiT and CLIP take images of their own size only
        asks = any(STRETCH in signature(m.forward).parameters for m in model.modules())
        self.options = {STRETCH: True} if asks else {}

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the named outputs."""
        out = self.model(**dict(zip(self.inputs, given, strict=True)), **self.options)
        return tuple(out[name] for name in self.outputs)


def _example(source: Source) -> dict[str, torch.Tensor]:
    """Return inputs to trace with: two rows, of which one is padded."""
    if source.head == "image-classification":
        config = getattr(source.model.config, "vision_config", source.model.config)
        side = config.image_size
        sides = (side, side) if isinstance(side, int) else tuple(side)
        channels = getattr(config, "num_channels", 3)
        return {"pixel_values": torch.zeros(2, channels, *sides)}
    ids_BT = torch.arange(14).reshape(2, 7) + 1
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, 5:] = 0
    found = {"input_ids": ids_BT, "attention_mask": mask_BT}
    if "token_type_ids" in source.processor.model_input_names:
        found["token_type_ids"] = torch.zeros_like(ids_BT)
    return found


def export(source: Source, folder: Path, tell: Tell) -> None:
    """Write a model's graph in fp32, with its configuration and probe.

    Args:
        source: The model; it is in fp32 in the file, whatever it was.
        folder: Where to.
        tell: Told of the steps.

    Raises:
        QuantizationError: no such head, or the model cannot be traced.
    """
    if source.head not in OUTPUTS:
        raise QuantizationError(
            f"no graph is made of a model for {source.head}",
            fix=f"use one for {', '.join(OUTPUTS)}",
        )
    tell("tracing the model", 0, 1)
    _trace(source, folder / MODEL)
    made = load(folder)
    tidy(made)
    annotate(made, pieces(source.model, made))
    save_graph(made, folder)
    source.model.config.save_pretrained(folder)
    if source.head == "feature-extraction":
        save_file(_probe(source.model), folder / PROBE)
    tell("written", 1, 1)


def _trace(source: Source, file: Path) -> None:
    """Write the graph as the exporter makes it."""
    inputs, outputs = _example(source), OUTPUTS[source.head]
    sides = {2: "height", 3: "width"} if "pixel_values" in inputs else {1: "length"}
    traced = _Traced(_plain(source.model), tuple(inputs), outputs).eval()
    try:
        with silent(), warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # the tracer's, of what is constant
            torch.onnx.export(
                traced,
                tuple(inputs.values()),
                str(file),
                dynamo=False,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes={name: {0: "batch", **sides} for name in inputs},
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        raise QuantizationError(
            "the model cannot be traced", why=str(error).split("\n")[0]
        ) from None


def _plain(model: Any) -> Any:
    """Return a copy of a model in fp32, with the values of affine codes for them."""
    made = copy.deepcopy(model)
    for name, module in linears(model).items():
        if isinstance(module, AffineLinear):
            made.set_submodule(name, module.to_linear())
    return made.float()


def _probe(model: Any) -> dict[str, torch.Tensor]:
    return {k: v.float().contiguous() for k, v in model.probe.state_dict().items()}


def tidy(made: Any) -> None:
    """Make every linear module's product a ``MatMul`` with a constant of its own.

    The exporter writes a product of rows (pooler, classifier) as ``Gemm``, which has no
    dynamic integer form, and a matrix that is used twice behind an ``Identity``.
    """
    import onnx

    tensors = {tensor.name: tensor for tensor in made.graph.initializer}
    same = {
        node.output[0]: node.input[0]
        for node in made.graph.node
        if node.op_type == "Identity" and node.input[0] in tensors
    }
    nodes = []
    for node in made.graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        if node.op_type == "Gemm" and node.input[1] in tensors:
            nodes += _product(node, tensors)
        elif not (node.op_type == "Identity" and node.output[0] in same):
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [t for name, t in tensors.items() if name in used]
    graph = onnx.helper.make_graph(
        nodes, made.graph.name, made.graph.input, made.graph.output, kept
    )
    made.graph.CopyFrom(graph)


def _product(node: Any, tensors: dict[str, Any]) -> list[Any]:
    """Return a ``Gemm`` of rows, x Wᵀ + b, as a product with Wᵀ and a sum."""
    from onnx import helper, numpy_helper

    matrix = numpy_helper.to_array(tensors[node.input[1]])
    turned, name = f"{node.input[1]}_T", node.name.removesuffix("/Gemm")
    tensors[turned] = numpy_helper.from_array(matrix.T.copy(), turned)
    out = f"{name}/MatMul_output_0"
    return [
        helper.make_node("MatMul", [node.input[0], turned], [out], f"{name}/MatMul"),
        helper.make_node("Add", [out, node.input[2]], node.output, f"{name}/Add"),
    ]


def pieces(model: Any, made: Any) -> dict[str, list[Piece]]:
    """Return the node of every linear module whose product is a ``MatMul``."""
    constants = {tensor.name for tensor in made.graph.initializer}
    there = {
        node.name.removesuffix("/MatMul").replace("/", "."): node.name
        for node in made.graph.node
        if node.op_type == "MatMul" and node.input[1] in constants
    }
    return {
        name: [(there[f".model.{name}"], 0, module.out_features)]
        for name, module in linears(model).items()
        if f".model.{name}" in there
    }


def float_bytes(model: Any, left_out: Mapping[str, Any]) -> int:
    """Return the bytes of float tensors that are no constant of `left_out`'s."""
    out = {id(stored_matrix(module)) for module in left_out.values()}
    probe = getattr(model, "probe", None)
    beside = {id(p) for p in probe.parameters()} if probe is not None else set()
    kept = {id(p): p for p in model.parameters() if id(p) not in out | beside}
    state = {} if probe is None else probe.state_dict()
    empty = {key: torch.zeros(tensor.shape) for key, tensor in state.items()}
    count: int = sum(p.numel() for p in kept.values())
    count += sum(
        module.out_features * module.in_features
        for name, module in linears(model).items()
        if isinstance(module, AffineLinear) and name not in left_out
    )
    return 4 * count + (len(save(empty)) if empty else 0)


def graph_bytes(model: Any) -> int:
    """Return about the bytes of an encoder's graph without its tensors."""
    return TABLES + NODE * len(linears(model))
