"""Shapes of models that are not on this machine, from the numbers in ``known.yaml``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from loralab.config import ModelConfig
from loralab.errors import ModelError, nearest
from loralab.models.source import Source, resolve_source

NUMBERS = Path(__file__).with_suffix(".yaml")


def known_models() -> dict[str, dict[str, Any]]:
    """Return the hub's id of each known model, with ``parameters`` and ``config``."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(NUMBERS.read_text("utf-8"))
    return found


@contextmanager
def shape_source(config: ModelConfig) -> Iterator[Source]:
    """Yield a folder with a model's ``config.json``, without asking the hub.

    Args:
        config: Of the base. A folder, and an embedded model, is its own source.

    Raises:
        ModelError: a model of the hub whose numbers are not known.
    """
    if config.path.startswith((".", "/", "~", "embedded:")):
        yield resolve_source(config, weights=False)
        return
    known = known_models()
    if config.path not in known:
        raise ModelError(
            f"the numbers of {config.path!r} are not known; "
            f"{nearest(config.path, known)}",
            where="model.path",
            fix="name a folder with its config.json: model.path=./FOLDER",
        )
    with TemporaryDirectory(prefix="loralab-shape-") as made:
        text = json.dumps(known[config.path]["config"])
        (Path(made) / "config.json").write_text(text, encoding="utf-8")
        yield Source(made, config.revision, Path(made))
