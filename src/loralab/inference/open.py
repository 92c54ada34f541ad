"""What a run or a merge made, or what was published of it, ready to answer."""

from __future__ import annotations

import json
from pathlib import Path

from loralab.config import ModelConfig, load_resolved
from loralab.errors import AdapterError, RunError
from loralab.inference.artefact import load_artefact
from loralab.inference.baked import load_baked
from loralab.inference.load import Loaded, adapter_of, merged_of
from loralab.lowrank.base import Base
from loralab.lowrank.files import AdapterFolder
from loralab.lowrank.settings import CONFIG
from loralab.merging.export.bake import RECORD as BAKED
from loralab.merging.export.exported import FORMAT_VERSION, RECORD
from loralab.merging.export.heads import own_head
from loralab.merging.state.fit import other_base
from loralab.runs import Run, find_run
from loralab.runs.files import check_format

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


def open_merged(run: Run, folder: Path) -> Loaded:
    """Load a merged adapter on a run's base, with the run's head, for its task.

    Args:
        run: A finished run of an adapter, merged or not.
        folder: The merged adapter's.

    Raises:
        AdapterError: it is no merged adapter, or one of another base.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        check_format(record["format"], FORMAT_VERSION, AdapterError, folder / RECORD)
        bases = [Base(**one["base"]) for one in record["adapters"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            f"no merged adapter: {RECORD} cannot be read",
            where=str(folder),
            why=str(error),
            fix="name the --out of loralab merge",
        ) from None
    own = AdapterFolder.open(run.require_adapter())
    for base in bases:
        if difference := other_base(own.base, base):
            raise AdapterError(
                f"of another base than {own.name}: {difference}",
                where=str(folder),
                why="an update is a difference to the very weights it was trained on",
                fix="measure it on runs of its base",
            )
    return adapter_of(folder, run.config, own_head(own))


def open_reference(
    reference: str, runs_dir: Path, head: str | None = None, **model_changes: str
) -> Loaded:
    """Load what a path, an id or a name of a run means, or a published folder.

    Args:
        reference: The text; also the folder of a merged adapter, or of a model with
            one in its weights.
        runs_dir: Where a name is looked for.
        head: The task as which a merged adapter, or such a model, answers.
        model_changes: See `open_run`.

    Raises:
        LoralabError: there is no such thing, or see `open_run`, `merged_of` and
            `load_baked`.
    """
    folder = Path(reference).expanduser()
    if (folder / RECORD).is_file() and (folder / CONFIG).is_file():
        return merged_of(folder, head, **model_changes)
    if (folder / BAKED).is_file():
        return load_baked(folder, head, **model_changes)
    published = (folder / MANIFEST).is_file() and not (folder / "run.json").is_file()
    run = None if published else find_run(reference, runs_dir)
    if head is not None:
        raise AdapterError(
            f"no merged adapter, and --head {head} chooses a task of one",
            where=reference,
            fix="leave --head out",
        )
    if run is None:
        return _open(folder, folder, _published_kind(folder), model_changes)
    return open_run(run, **model_changes)


def _open(folder: Path, beside: Path, kind: str, changes: dict[str, str]) -> Loaded:
    """Open a folder whose configuration lies in `beside`."""
    config = load_resolved(beside / "config.yaml")
    if kind == "artefact":
        fields = {**config.model.model_dump(), **changes}
        return load_artefact(folder, ModelConfig(**fields))
    return adapter_of(folder, config, None, **changes)


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
