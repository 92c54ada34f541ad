"""Where a base model is, and whether what lies there may be loaded.

A folder here, one of those that packages bring (``embedded:NAME``), or a commit on the
hub. Safetensors only; nothing is loaded that would run code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from loralab.config import ModelConfig
from loralab.errors import ModelError
from loralab.models.embedded import check_folder, embedded_folder
from loralab.models.quiet import quiet_libraries
from loralab.runs.files import sha256_file

COPIES = "consolidated*"
"""Weights that stand beside transformers' own in another layout (Mistral)."""


@dataclass(frozen=True)
class Source:
    """Where a base model is: a folder here, or a commit on the hub.

    Attributes:
        load_from: What `from_pretrained` takes.
        revision: The hub's commit, or None for a folder.
        folder: The local folder.
    """

    load_from: str
    revision: str | None
    folder: Path


def weight_files(folder: Path) -> list[Path]:
    """Return the weights' files of a model folder, sorted by name."""
    found = sorted(folder.glob("*.safetensors"))
    return [file for file in found if not fnmatch(file.name, COPIES)]


def resolve_source(config: ModelConfig, weights: bool = True) -> Source:
    """Return where the configured model is, downloading it from the hub if it is there.

    Args:
        config: Path and revision.
        weights: Whether the hub's weights are needed, or configuration and tokenizer
            will do.

    Raises:
        ModelError: no such folder, an ambiguous path, or the hub does not answer.
    """
    path = config.path
    if path.startswith("embedded:"):
        folder = embedded_folder(path.removeprefix("embedded:"))
        check_folder(folder)
        return Source(str(folder), None, folder)
    if path.startswith((".", "/", "~")):
        folder = Path(path).expanduser()
        if not (folder / "config.json").is_file():
            raise ModelError(
                "no model in this folder (it has no config.json)", where=path
            )
        return Source(str(folder), None, folder)
    if Path(path).exists():
        raise ModelError(
            f"{path!r} may be a folder here or a hub id",
            where="model.path",
            fix=f"write ./{path} for the folder; rename the folder to use the hub's",
        )
    return _from_hub(path, config.revision, weights)


def _from_hub(path: str, revision: str | None, weights: bool) -> Source:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*.model", "*.jinja"]
    if weights:
        wanted.append("*.safetensors")
    try:
        with quiet_libraries():
            folder = Path(
                snapshot_download(
                    path,
                    revision=revision,
                    allow_patterns=wanted,
                    ignore_patterns=[COPIES],
                )
            )
    except Exception as error:  # the hub client raises a dozen unrelated kinds
        first = str(error).strip().splitlines()
        raise ModelError(
            f"cannot get {path!r} from the hub",
            where="model.path",
            why=first[0] if first else type(error).__name__,
            fix="check the id and the network; or write embedded:NAME or ./FOLDER",
        ) from None
    return Source(str(folder), folder.name, folder)


def fingerprint_of(folder: Path) -> str:
    """Return the sha256 over a model folder's configuration and weights."""
    digest = hashlib.sha256()
    for file in [folder / "config.json", *weight_files(folder)]:
        digest.update(f"{file.name}:{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def check_contents(folder: Path, path: str) -> None:
    """Refuse a folder that needs remote code or holds no safetensors."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"config.json is not JSON: {error}", where=path) from None
    if not isinstance(config, dict):
        raise ModelError("config.json is not a JSON object", where=path)
    if "auto_map" in config and config.get("model_type") not in _known_types():
        raise ModelError(
            "this model needs code from its repository, which is never run",
            where=path,
            fix="choose a model whose architecture is part of transformers",
        )
    if not weight_files(folder):
        pickles = [f.name for f in folder.glob("*.bin")]
        raise ModelError(
            "no .safetensors weights",
            where=path,
            why=f"{pickles[0]} is a pickle, which can run code" if pickles else "",
            fix="convert the weights to safetensors first",
        )


def _known_types() -> set[str]:
    """Return the architectures that are part of transformers itself."""
    from transformers import CONFIG_MAPPING

    return set(CONFIG_MAPPING.keys())
