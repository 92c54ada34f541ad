"""What a run made, or what was published of it, ready to answer."""

from __future__ import annotations

import json
from pathlib import Path

from loralab.config import ModelConfig, load_resolved
from loralab.errors import RunError
from loralab.inference.artefact import load_artefact
from loralab.inference.load import Loaded, adapter_of
from loralab.runs import Run, find_run

MANIFEST = "manifest.json"
"""Of a published folder: which files it has, and whether of an adapter or artefact."""


def open_run(run: Run, **model_changes: str) -> Loaded:
    """Load the adapter of a run on its base, or the run's stored model in its engine.

    Args:
        run: A finished run.
        model_changes: Fields of `ModelConfig` to load with, such as ``dtype="fp32"``.

    Raises:
        LoralabError: see `adapter_of` and `load_artefact`.
    """
    kind = str(run.read()["kind"])
    return _open(run.require(kind), run.path, kind, model_changes)


def open_reference(reference: str, runs_dir: Path, **model_changes: str) -> Loaded:
    """Load what a path, an id or a name of a run means, or a published folder.

    Raises:
        LoralabError: there is no such thing, or see `open_run`.
    """
    folder = Path(reference).expanduser()
    if (folder / MANIFEST).is_file() and not (folder / "run.json").is_file():
        return _open(folder, folder, _published_kind(folder), model_changes)
    return open_run(find_run(reference, runs_dir), **model_changes)


def _open(folder: Path, beside: Path, kind: str, changes: dict[str, str]) -> Loaded:
    """Open a folder whose configuration lies in `beside`."""
    config = load_resolved(beside / "config.yaml")
    if kind == "artefact":
        fields = {**config.model.model_dump(), **changes}
        return load_artefact(folder, ModelConfig(**fields))
    return adapter_of(folder, config, **changes)


def _published_kind(folder: Path) -> str:
    """Return the kind of a published folder, all of whose files must be there.

    Raises:
        RunError: its manifest cannot be read, or a file is missing or cut short.
    """
    file = folder / MANIFEST
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        kind, files = str(told["kind"]), dict(told["files"])
        sizes = {name: int(entry["bytes"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            "the manifest cannot be read", where=str(file), why=repr(error)
        ) from None
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise RunError(
                f"{name} is missing or is not what was published",
                where=str(folder),
                fix="fetch it again",
            )
    return kind
