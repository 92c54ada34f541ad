"""What is published of a run, and the manifest that says so.

    adapter/* or artefact/*   at the root: the folder loads as it is; not inputs of
                              `loralab sketch`, which are statistics of training rows
    eval/<split>.json         measured results; not the predictions, which quote rows
    parity.json               an artefact's certificate
    config.yaml               the resolved configuration
    README.md                 the model card
    manifest.json             size and sha256 of every other file

Card and manifest are made in a folder outside the run, and depend on the run alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from loralab.errors import PublishingError
from loralab.logs import secrets
from loralab.lowrank.sketch import INPUTS
from loralab.publishing.card import model_card
from loralab.publishing.store import File
from loralab.runs import Run
from loralab.runs.files import TEMPORARY

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
CARD = "README.md"
_BLOCK = 1 << 20


def collect(run: Run, staging: Path, license_id: str | None = None) -> list[File]:
    """Return what is published of a run, sorted, the manifest last.

    Args:
        run: An adapter or an artefact.
        staging: An empty folder, for the model card and the manifest.
        license_id: For the model card.

    Raises:
        PublishingError: nothing to publish, a link, a name that is taken, or a file
            that holds a secret of the environment.
    """
    (staging / CARD).write_text(model_card(run, license_id), encoding="utf-8")
    paths = {**_of_the_run(run), CARD: staging / CARD}
    guarded = secrets()
    files = [_file(name, paths[name], guarded) for name in sorted(paths)]
    manifest = {
        "format": FORMAT_VERSION,
        "run": run.id,
        "kind": run.read()["kind"],
        "files": {f.name: {"bytes": f.bytes, "sha256": f.sha256} for f in files},
    }
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    (staging / MANIFEST).write_text(text, encoding="utf-8")
    return [*files, _file(MANIFEST, staging / MANIFEST, guarded)]


def _of_the_run(run: Run) -> dict[str, Path]:
    """Return name at the destination -> path, of what lies in the run."""
    content = run.path / str(run.read()["kind"])
    found = {
        path.relative_to(content).as_posix(): path
        for path in sorted(content.rglob("*"))
        if not path.is_dir() and TEMPORARY not in path.name and path.name != INPUTS
    }
    if not found:
        raise PublishingError("nothing to publish", where=str(content))
    beside = [*sorted((run.path / "eval").glob("*.json"))]
    beside += [run.path / name for name in ("parity.json", "config.yaml")]
    for path in beside:
        name = path.relative_to(run.path).as_posix()
        if path.is_file():
            if name in found:
                raise PublishingError(f"{name} would be there twice", where=run.id)
            found[name] = path
    if MANIFEST in found:
        raise PublishingError(f"{MANIFEST} is ours to write", where=str(content))
    for path in found.values():
        if path.is_symlink():
            raise PublishingError(
                "a link is not published", where=str(path), fix="put the file there"
            )
    return found


def _file(name: str, path: Path, guarded: Mapping[str, str]) -> File:
    """Read a file once: its size, its sha256, and that it holds no secret."""
    digest, count, tail = hashlib.sha256(), 0, b""
    wanted = {variable: value.encode() for variable, value in guarded.items()}
    overlap = max((len(value) for value in wanted.values()), default=1) - 1
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
            count += len(block)
            window = tail + block
            for variable, value in wanted.items():
                if value in window:
                    raise _secret(name, path, variable)
            tail = window[-overlap:] if overlap else b""
    return File(name, path, count, digest.hexdigest())


def _secret(name: str, path: Path, variable: str) -> PublishingError:
    return PublishingError(
        f"{name} holds the value of the environment variable {variable}",
        where=str(path),
        why="what is published may be read by others",
        fix="take it out of the run, and replace that secret if others saw the run",
    )
