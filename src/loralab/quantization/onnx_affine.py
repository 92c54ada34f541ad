"""Affine codes with real zeros in a graph, exactly, at the speed of symmetric codes.

``MatMulNBits`` takes real zeros, by a path that is ten times slower. But

    s · (c − z) = s · (c − 8) + s · (8 − z)

and the second term is constant inside a group, so its product with x needs only the
sums of x over groups:

    y = MatMulNBits(x; c, s) + D Σ_g(x),   D[o, l] = s[o, l] · (8 − z[o, l])

Codes and scales are those of the module, bit for bit (both put the first code into the
low bits), so what QA-LoRA merged into zeros is all there. D takes 32 / group bits a
weight more.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loralab.quantization.linear import AffineLinear
from loralab.quantization.onnx_graph import MODEL, SHIFT, Graph, save, sort_nodes

NODES = 800
"""Bytes that the nodes of D add to a graph, about."""


def shift_bytes(module: Any, group: int) -> int:
    """Return the bytes of D of a linear module, and about those of its nodes."""
    rows, blocks = int(module.out_features), int(module.in_features) // group
    return NODES + 4 * rows * blocks


def put_affine(modules: Mapping[str, AffineLinear], folder: Path) -> None:
    """Put modules' own codes, scales and zeros into a stored graph.

    Args:
        modules: By path; 4 bits, of the graph's block size.
        folder: Where the graph is; its nodes are symmetric.
    """
    graph = Graph(folder)
    taken = dict.fromkeys(modules, 0)
    changed: dict[str, tuple[NDArray[np.float32], int]] = {}
    for name, module in modules.items():
        for node, first, last in graph.pieces[name]:
            start = taken[name]
            taken[name] = start + last - first
            rows = slice(start, taken[name])
            shift = _fill(graph, folder, node, slice(first, last), module, rows)
            whole, group = changed.setdefault(
                node, (np.zeros((graph.shape(node)[0], shift.shape[1]), np.float32), 0)
            )
            whole[first:last] = shift
            changed[node] = whole, module.group
    for node, (whole, group) in changed.items():
        _add(graph, folder, node, whole, group)
    sort_nodes(graph.model.graph)
    save(graph.model, folder)


def _fill(
    graph: Graph,
    folder: Path,
    node: str,
    at: slice,
    module: AffineLinear,
    rows: slice,
) -> NDArray[np.float32]:
    """Write rows of a module's codes and scales over a node's; return those of D."""
    _, codes, scales = graph.node(node).input[:3]
    own = module.scales[rows].float()
    _overwrite(graph, folder, codes, at.start, module.codes[rows].numpy())
    _overwrite(graph, folder, scales, at.start, own.numpy())
    shift = own.double() * (8 - module.zeros[rows].double())
    made: NDArray[np.float32] = shift.float().numpy()
    return made


def _overwrite(
    graph: Graph, folder: Path, name: str, row: int, new: NDArray[Any]
) -> None:
    """Write rows into a tensor that lies beside the graph."""
    tensor = graph.tensor(name)
    at = {entry.key: entry.value for entry in tensor.external_data}
    each = int(at["length"]) // tensor.dims[0]
    with (folder / at["location"]).open("r+b") as file:
        file.seek(int(at.get("offset", 0)) + row * each)
        file.write(new.tobytes())


def _beside(name: str, new: NDArray[np.float32], folder: Path) -> Any:
    """Append a tensor to the file beside the graph; return its entry."""
    import onnx

    file = f"{MODEL}.data"
    with (folder / file).open("ab") as out:
        offset = out.tell()
        out.write(new.tobytes())
    made = onnx.TensorProto(name=name, dims=new.shape, data_type=onnx.TensorProto.FLOAT)
    made.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", offset), ("length", new.nbytes)):
        made.external_data.add(key=key, value=str(value))
    return made


def _add(
    graph: Graph, folder: Path, name: str, shift: NDArray[np.float32], group: int
) -> None:
    """Add D Σ_g(x) to what a node gives."""
    from onnx import helper, numpy_helper

    node, made = graph.node(name), graph.model.graph
    x, y = node.input[0], node.output[0]
    there = {tensor.name for tensor in made.initializer}
    sums = f"{x}/sums{group}"
    if f"{sums}/shape" not in there:
        shape = np.array([0, 0, -1, group], np.int64)
        axis = np.array([-1], np.int64)
        for tensor, end in ((shape, "shape"), (axis, "axis")):
            made.initializer.append(numpy_helper.from_array(tensor, f"{sums}/{end}"))
        made.node.extend([
            helper.make_node(
                "Reshape", [x, f"{sums}/shape"], [f"{sums}/grouped"], f"{sums}/Reshape"
            ),
            helper.make_node(
                "ReduceSum",
                [f"{sums}/grouped", f"{sums}/axis"],
                [sums],
                f"{sums}/ReduceSum",
                keepdims=0,
            ),
        ])  # fmt: skip
    made.initializer.append(_beside(name + SHIFT, shift.T.copy(), folder))
    node.output[0] = f"{y}/codes"
    parts = [f"{y}/codes", f"{y}/shift"]
    made.node.extend([
        helper.make_node("MatMul", [sums, name + SHIFT], [parts[1]], f"{name}/shift"),
        helper.make_node("Add", parts, [y], f"{name}/sum"),
    ])  # fmt: skip
