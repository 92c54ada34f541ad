"""An adapter beside stored weights, in the form that each engine takes."""

from __future__ import annotations

import shutil
from pathlib import Path

from loralab.config import StorageConfig
from loralab.errors import ExportError
from loralab.export.routed import Routed
from loralab.lowrank.factors import Factors

BESIDE = "adapter"
"""What the adapter is called in an artefact."""


def check_beside(storage: StorageConfig, engine: str) -> None:
    """Refuse a format whose engine takes no adapter beside its weights.

    Raises:
        ExportError: it takes none, or its graph has no place for one.
    """
    where = "--route side-path"
    if engine == "onnx" and not storage.params["slots"]:
        raise ExportError(
            "the graph has no place for an adapter",
            where=where,
            fix="add slots=true; it costs about a quarter of the speed",
        )
    if engine not in ("torch", "onnx"):
        raise ExportError(
            f"{storage.name} is run by {engine}, which takes no adapter beside the "
            "weights here",
            where=where,
            fix="merge it with another route, or choose another format",
        )


def put_beside(routed: Routed, engine: str, folder: Path) -> None:
    """Write the adapter into an artefact's folder.

    Args:
        routed: What the route gave.
        engine: ``torch`` takes PEFT's folder, ``onnx`` its own file of factors.
        folder: The artefact's.
    """
    if engine == "torch":
        assert routed.beside is not None
        shutil.copytree(routed.beside, folder / BESIDE)
        return
    from loralab.quantization.onnx_slots import write_adapter

    factors = {}
    for name in routed.names:
        update = routed.update(name)
        assert isinstance(update, Factors)  # the route lets nothing else through
        factors[name] = (update.A, update.scale * update.B)
    write_adapter(factors, BESIDE, folder)
