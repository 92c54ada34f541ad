"""A session of ONNX Runtime, opened with explicit threads."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from loralab.errors import ModelError
from loralab.quantization.onnx_graph import MODEL, Graph


def open_session(folder: Path, threads: int) -> Any:
    """Return an `onnxruntime.InferenceSession` of a folder's graph.

    Args:
        folder: Where the graph is.
        threads: Of a product; nodes run one after another.

    Raises:
        ModelError: the runtime refuses the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # what fails is raised, and told once
    try:
        return onnxruntime.InferenceSession(
            str(folder / MODEL), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its classes have no common base of their own
        raise refused(folder, error) from None


def refused(folder: Path, error: Exception) -> ModelError:
    """Return the error of a runtime that cannot open a folder."""
    return ModelError(
        "ONNX Runtime cannot open this model",
        where=str(folder),
        why=str(error).split("\n")[0],
        fix="store the model again with this version of onnxruntime",
    )


def described(graph: Graph, threads: int, *more: str) -> dict[str, Any]:
    """Return engine, version, kernel and threads, to stand beside a measurement.

    Args:
        graph: The model's.
        threads: Of a product.
        more: Packages besides onnxruntime that take part.
    """
    packages = ("onnxruntime", *more)
    return {
        "engine": "onnx",
        "version": ", ".join(f"{name} {version(name)}" for name in packages),
        "kernel": "; ".join(graph.kernels()),
        "threads": threads,
    }
