"""Room in a graph for LoRA adapters beside its matrices: the side path.

    y = W̃ x + s · B A x

Aᵀ and s·Bᵀ are inputs of the graph with a default, zeros of rank 1 (what a product over
rank 0 gives is memory that ONNX Runtime has not written): without an adapter nothing is
added. An adapter is a file of such matrices, of any rank, that the
runtime puts in their place while it is active. What one node holds of several modules
(q, k and v) is one adapter of their ranks together:

    A = [A_q; A_k; A_v],   B = diag(B_q, B_k, B_v)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from loralab.errors import ExportError, QuantizationError
from loralab.quantization.onnx_graph import Graph, save, sort_nodes

SUFFIX = ".onnx_adapter"
A, B = "/lora_A", "/lora_B"
NODES = 1_000
"""Bytes that a slot adds to a graph, about."""

Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Module -> A (r × I) and s · B (O × r)."""


def slot_bytes(shapes: Sequence[tuple[int, int]]) -> int:
    """Return about the bytes of slots beside matrices (O, I)."""
    return sum(NODES + 4 * (rows + width) for rows, width in shapes)


def put_slots(names: Sequence[str], folder: Path) -> None:
    """Give the nodes of modules a slot each.

    Args:
        names: Paths of modules.
        folder: Where the graph is.

    Raises:
        QuantizationError: a matrix is used more than once in the graph.
    """
    graph = Graph(folder)
    made = graph.model.graph
    nodes = {node for module in names for node, _, _ in graph.pieces[module]}
    for name in sorted(nodes):
        _put(graph, made, name)
    sort_nodes(made)
    save(graph.model, folder)


def _put(graph: Graph, made: Any, name: str) -> None:
    """Add a node's slot: two products, and the sum that takes over its output."""
    from onnx import TensorProto, helper, numpy_helper

    if graph.uses(name) > 1:
        raise QuantizationError(
            "no adapter goes beside a matrix that is used more than once",
            where=name,
            fix="set slots=false",
        )
    x, last, out = graph.ends(name)
    rows, width = graph.shape(name)
    float_ = TensorProto.FLOAT
    for key, dims, empty in (
        (name + A, (width, "rank"), (width, 1)),
        (name + B, ("rank", rows), (1, rows)),
    ):
        made.input.append(helper.make_tensor_value_info(key, float_, dims))
        zeros = np.zeros(empty, np.float32)
        made.initializer.append(numpy_helper.from_array(zeros, key))
    at = list(last.output).index(out)
    last.output[at] = f"{out}/base"
    made.node.extend([
        helper.make_node("MatMul", [x, name + A], [f"{name}/Ax"], f"{name}/Ax"),
        helper.make_node(
            "MatMul", [f"{name}/Ax", name + B], [f"{name}/BAx"], f"{name}/BAx"
        ),
        helper.make_node(
            "Add", [f"{out}/base", f"{name}/BAx"], [out], f"{name}/with_adapter"
        ),
    ])  # fmt: skip


def write_adapter(factors: Factors, name: str, folder: Path) -> Path:
    """Write an adapter beside a graph with slots.

    Args:
        factors: The adapter; modules that it leaves out get nothing added.
        name: What it is called.
        folder: Where the graph is.

    Raises:
        ExportError: a module of it has no slot.
    """
    import onnxruntime

    graph = Graph(folder)
    slots = {value.name for value in graph.model.graph.input}
    parts: dict[str, list[tuple[NDArray[np.float32], NDArray[np.float32]]]] = {}
    for module, (a_RI, b_OR) in factors.items():
        start = 0
        for node, first, last in graph.pieces.get(module, ()):
            if node + A not in slots:
                break
            wide_RN = np.zeros((len(a_RI), graph.shape(node)[0]), np.float32)
            rows = b_OR[start : start + last - first]
            wide_RN[:, first:last] = rows.detach().float().numpy().T
            own = a_RI.detach().float().numpy()
            parts.setdefault(node, []).append((own, wide_RN))
            start += last - first
        if start != len(b_OR):
            raise ExportError(
                "no room for an adapter beside this module",
                where=module,
                fix="store the model with slots=true",
            )
    matrices: dict[str, NDArray[np.float32]] = {}  # alive until they are written
    for node, pairs in parts.items():
        turned = np.concatenate([a for a, _ in pairs]).T
        matrices[node + A] = np.ascontiguousarray(turned)
        matrices[node + B] = np.concatenate([b for _, b in pairs])
    made = onnxruntime.AdapterFormat()
    made.set_adapter_version(1)
    made.set_model_version(1)
    value = onnxruntime.OrtValue.ortvalue_from_numpy
    made.set_parameters({key: value(matrix) for key, matrix in matrices.items()})
    file = folder / f"{name}{SUFFIX}"
    made.export_adapter(str(file))
    return file
