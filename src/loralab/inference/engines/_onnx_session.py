"""A session of ONNX Runtime with explicit threads, and the adapters beside it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from loralab.errors import AdapterError, ModelError, nearest
from loralab.quantization.onnx_graph import MODEL, Graph
from loralab.quantization.onnx_slots import SUFFIX

BESIDE = "session.model_external_initializers_file_folder_path"
"""Of ONNX Runtime: where tensors are that a graph has not in itself."""


def open_session(folder: Path, threads: int, graph: Any = None) -> Any:
    """Return an `onnxruntime.InferenceSession` of a folder's graph.

    Args:
        folder: Where the graph is, and its tensors.
        threads: Of a product; nodes run one after another.
        graph: One that is run in its place, on the same tensors.

    Raises:
        ModelError: the runtime refuses the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # what fails is raised, and told once
    options.add_session_config_entry(BESIDE, str(folder))
    opened = str(folder / MODEL) if graph is None else graph.SerializeToString()
    try:
        return onnxruntime.InferenceSession(
            opened, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its classes have no common base of their own
        raise refused(folder, error) from None


class Adapters:
    """The adapters beside a graph, of which one or none is active.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.active: str | None = None
        self._loaded: dict[str, Any] = {}

    @property
    def names(self) -> list[str]:
        """What they are called, sorted."""
        found = self._folder.glob(f"*{SUFFIX}")
        return sorted(file.name.removesuffix(SUFFIX) for file in found)

    def file(self, name: str) -> str:
        """Return the file of an adapter."""
        return str(self._folder / f"{name}{SUFFIX}")

    def choose(self, name: str | None) -> None:
        """Make an adapter the active one; None: the base answers.

        Raises:
            AdapterError: there is no such adapter.
        """
        if name is not None and name not in self.names:
            raise AdapterError(
                f"no adapter {name!r} beside the model",
                where=str(self._folder),
                fix=nearest(name, self.names),
            )
        self.active = name

    def options(self) -> Any:
        """Return onnxruntime's options of a run with the active adapter."""
        import onnxruntime

        made = onnxruntime.RunOptions()
        if self.active is not None:
            if self.active not in self._loaded:
                self._loaded[self.active] = onnxruntime.LoraAdapter()
                self._loaded[self.active].Load(self.file(self.active))
            made.add_active_adapter(self._loaded[self.active])
        return made


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
