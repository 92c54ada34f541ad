"""What an .onnx file holds: nodes, the modules they came from, and matrices read back.

A graph knows nodes, not modules. So every format of ours writes into the file, under
`KEY`, which rows of which nodes' matrices a module's matrix is. GenAI's builder packs
q, k and v into one node, and splits what a model has packed; both are rows.

Three kinds of node hold a linear module's matrix (O × I), K = I padded to whole blocks:

``MatMul``         float (I × O)
``MatMulNBits``    codes uint8 (O × K/b × b/2), the first code in the low bits; scales
                   (O × K/b); zeros uint8, two in a byte, 8 where there are none
``MatMulInteger``  int8 (I × O), a scale and a zero a column or for all; x is quantized
                   to uint8, a scale and a zero a tensor, as it runs
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from loralab.errors import ExportError, QuantizationError
from loralab.logs import routed

MODEL = "model.onnx"
KEY = "loralab.modules"
SUFFIXES = {"MatMul": "", "MatMulNBits": "_Q4", "MatMulInteger": "_quant"}
CODED = {"MatMulNBits", "MatMulInteger"}
SHIFT = "/D"
"""Ends the name of D (I/g × O): see `loralab.quantization.onnx_affine`."""

Piece = tuple[str, int, int]
"""A node of the float graph, and the rows (first, past the last) of its matrix."""

Pieces = Mapping[str, Sequence[Piece]]
"""Module -> the pieces whose rows, one below the other, are its matrix."""


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep prints, progress bars and log records of exporters off the console."""
    root, exporters = logging.getLogger(), logging.getLogger("onnxruntime")
    before = root.handlers[:], root.level, exporters.level
    exporters.setLevel(logging.WARNING)
    nowhere = io.StringIO()
    try:
        with (
            routed(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            yield
    finally:  # importing the quantizer configures the root logger
        root.handlers[:], root.level = before[0], before[1]
        exporters.setLevel(before[2])


def load(folder: Path) -> Any:
    """Return the graph of a folder, without the tensors that lie beside it.

    Raises:
        ExportError: no such file, or not an .onnx file.
    """
    import onnx

    file = folder / MODEL
    try:
        made = onnx.load(str(file), load_external_data=False)
    except FileNotFoundError:
        raise ExportError("no such file", where=str(file)) from None
    except Exception as error:  # protobuf has a class of its own for every build
        raise ExportError(
            "this is no .onnx file",
            where=str(file),
            why=str(error).split("\n")[0] or "it is truncated",
            fix="store the model again",
        ) from None
    if not made.graph.node:
        raise ExportError("the graph is empty", where=str(file))
    _check_beside(made, folder)
    return made


def _check_beside(made: Any, folder: Path) -> None:
    """Check that every tensor that lies beside the graph is there, to its last byte."""
    for tensor in made.graph.initializer:
        at = {entry.key: entry.value for entry in tensor.external_data}
        if not at:
            continue
        file = folder / at["location"]
        end = int(at.get("offset", 0)) + int(at["length"])
        size = file.stat().st_size if file.is_file() else 0
        if size < end:
            raise ExportError(
                "the weights are missing" if not size else "the weights are truncated",
                where=str(file),
                why=f"{tensor.name} ends at byte {end:,}, the file at {size:,}",
                fix="store the model again",
            )


def save(model: Any, folder: Path) -> None:
    """Write a graph; tensors that lie beside it are left there."""
    (folder / MODEL).write_bytes(model.SerializeToString())


def annotate(model: Any, pieces: Pieces) -> None:
    """Write into a graph which rows of which nodes are which module's."""
    import onnx

    onnx.helper.set_model_props(model, {KEY: json.dumps(pieces)})


class Graph:
    """The nodes of a stored model, by the names they had in the float graph.

    Args:
        folder: Where the file is.

    Raises:
        ExportError: it is missing, broken, or another program's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.model = load(folder)
        props = {p.key: p.value for p in self.model.metadata_props}
        if KEY not in props:
            raise ExportError(
                "the file does not say which node is which module",
                where=str(folder / MODEL),
                why="it was not written by loralab",
            )
        self.pieces: dict[str, list[Piece]] = {
            module: [(node, first, last) for node, first, last in parts]
            for module, parts in json.loads(props[KEY]).items()
        }
        self._nodes = {
            node.name.removesuffix(SUFFIXES[node.op_type]): node
            for node in self.model.graph.node
            if node.op_type in SUFFIXES
        }
        self._tensors = {t.name: t for t in self.model.graph.initializer}

    def quantized(self) -> tuple[str, ...]:
        """Return the modules whose whole matrix is held in codes, sorted."""
        return tuple(sorted(m for m in self.pieces if self._ops(m) <= CODED))

    def _ops(self, module: str) -> set[str]:
        names = [name for name, _, _ in self.pieces[module]]
        return {self._nodes[n].op_type if n in self._nodes else "" for n in names}

    def kernels(self) -> list[str]:
        """Return the kinds of product with a module's matrix, in words, sorted."""
        names = {node for parts in self.pieces.values() for node, _, _ in parts}
        return sorted({_kernel(self._nodes[n]) for n in names if n in self._nodes})

    def require(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return `quantized`, once every one of `names` is in it.

        Raises:
            QuantizationError: one was left in float.
        """
        found = self.quantized()
        left = sorted(set(names) - set(found))
        if left:
            raise QuantizationError(
                f"{len(left)} of {len(names)} modules were not quantized",
                where=left[0],
                why="its node in the graph holds no codes",
            )
        return found

    def matrix(self, module: str) -> torch.Tensor:
        """Return a module's matrix as it is stored, dequantized (O × I), fp32."""
        rows = [
            self._dequantized(name)[first:last]
            for name, first, last in self.pieces[module]
        ]
        return torch.from_numpy(np.concatenate(rows))

    def node(self, name: str) -> Any:
        """Return a node by its name in the float graph."""
        return self._nodes[name]

    def shape(self, name: str) -> tuple[int, int]:
        """Return the rows and the inputs of a node's matrix, O and I."""
        node = self._nodes[name]
        found = {a.name: a.i for a in node.attribute}
        if node.op_type == "MatMulNBits":
            return found["N"], found["K"]
        width, rows = self._tensors[node.input[1]].dims
        return rows, width

    def ends(self, name: str) -> tuple[str, Any, str]:
        """Return what a node takes, and which node gives what it gave, and its name."""
        node = self._nodes[name]
        x = node.input[0].removesuffix("_quantized")
        ours = (f"{name}/output_0", f"{name}_output_0", "logits")
        for last in self.model.graph.node:
            for out in ours:
                if out in last.output and (out != "logits" or "lm_head" in name):
                    return x, last, out
        raise ExportError("a product has no output", where=name)

    def uses(self, name: str) -> int:
        """Return how many nodes use a node's matrix."""
        matrix = self._nodes[name].input[1]
        return sum(matrix in node.input for node in self.model.graph.node)

    def tensor(self, name: str) -> Any:
        """Return an initializer's entry."""
        return self._tensors[name]

    def array(self, name: str) -> NDArray[Any]:
        """Return an initializer."""
        from onnx import numpy_helper

        found: NDArray[Any] = numpy_helper.to_array(
            self._tensors[name], str(self._folder)
        )
        return found

    def _dequantized(self, name: str) -> NDArray[np.float32]:
        node = self._nodes[name]
        if node.op_type == "MatMul":
            return self.array(node.input[1]).T.astype(np.float32)
        if node.op_type == "MatMulInteger":
            stem = node.input[1].removesuffix("_quantized")
            ends = ("_quantized", "_scale", "_zero_point")
            codes, scale, zero = (self.array(stem + end) for end in ends)
            turned: NDArray[np.float32] = (codes.astype(np.float32) - zero) * scale
            return turned.T
        found = {a.name: a.i for a in node.attribute}
        zeros = self.array(node.input[3]) if len(node.input) > 3 else None
        codes, scales = self.array(node.input[1]), self.array(node.input[2])
        made = dequantize_blocks(codes, scales, zeros, found["K"])
        if name + SHIFT in self._tensors:
            made += self.array(name + SHIFT).T.repeat(found["block_size"], axis=1)
        return made


def _kernel(node: Any) -> str:
    found = {a.name: a.i for a in node.attribute}
    if node.op_type == "MatMulNBits":
        level = found.get("accuracy_level", 0)
        inputs = "int8" if level == 4 else "fp32"
        return (
            f"MatMulNBits {found['bits']} bits, block {found['block_size']}, "
            f"{inputs} inputs"
        )
    return {"MatMul": "MatMul fp32", "MatMulInteger": "MatMulInteger int8"}[
        node.op_type
    ]


def dequantize_blocks(
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zeros: NDArray[np.uint8] | None,
    width: int,
) -> NDArray[np.float32]:
    """Return scale · (code − zero) of a MatMulNBits node.

    Args:
        codes: Two in a byte (O × L × b/2).
        scales: Of each block, O · L in any shape.
        zeros: Two in a byte, each row's last filled up; None is 8.
        width: I; the last block may be wider.
    """
    rows, blocks = codes.shape[:2]
    each = np.stack([codes & 15, codes >> 4], -1).reshape(rows, blocks, -1)
    zero: NDArray[np.float32] = np.full((rows, blocks, 1), 8, np.float32)
    if zeros is not None:
        packed = zeros.reshape(rows, -1)
        pairs = np.stack([packed & 15, packed >> 4], -1).reshape(rows, -1)
        zero = pairs[:, :blocks, None].astype(np.float32)
    values = (each.astype(np.float32) - zero) * scales.reshape(rows, blocks, 1)
    return np.ascontiguousarray(values.reshape(rows, -1)[:, :width], np.float32)


def values(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each quantized module of a folder and its values (O × I), fp32."""
    graph = Graph(folder)
    for module in graph.quantized():
        yield module, graph.matrix(module)


def weight_files(folder: Path) -> dict[str, int]:
    """Return the files that hold weights -> bytes."""
    kinds = (".onnx", ".data", ".safetensors")
    files = (file for file in sorted(folder.iterdir()) if file.name.endswith(kinds))
    return {file.name: file.stat().st_size for file in files}


def sort_nodes(graph: Any) -> None:
    """Put nodes after those that they read from; otherwise the order stays."""
    made = {out for node in graph.node for out in node.output}
    ready: set[str] = {""}
    left, done = list(graph.node), []
    while left:
        now = [
            node
            for node in left
            if all(name in ready or name not in made for name in node.input)
        ]
        ready.update(out for node in now for out in node.output)
        done += now
        chosen = {id(node) for node in now}
        left = [node for node in left if id(node) not in chosen]
    put(graph.node, done)


def put(field: Any, entries: Sequence[Any]) -> None:
    """Put these entries, some of which may be a field's own, in place of all it has."""
    copies = [type(entry).FromString(entry.SerializeToString()) for entry in entries]
    del field[:]
    field.extend(copies)
