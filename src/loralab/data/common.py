"""`COMMON_DATASETS`: well-known sets of the hub, with their columns named for tasks.

Each is a preset (``data=squad-v2``) in ``config/presets/data``; this reads those files,
so a new one is a new file. What the hub serves is not ours: licences stand in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import yaml

from loralab.config.compose import describe, presets

TASK = "# task: "


@dataclass(frozen=True)
class CommonDataset:
    """A data set of the hub.

    Attributes:
        name: Of the preset.
        path: The hub id.
        config: Its subset, or None.
        task: The task that its columns are named for.
        columns: The task's column -> its own.
        about: What it is, in a line.
    """

    name: str
    path: str
    config: str | None
    task: str
    columns: Mapping[str, str]
    about: str


def _read() -> Mapping[str, CommonDataset]:
    found = {}
    for name, file in presets("data").items():
        text = file.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        if content["source"]["name"] != "hub":
            continue
        lines = [x for x in text.splitlines() if x.startswith(TASK)]
        params = content["source"]["params"]
        found[name] = CommonDataset(
            name,
            params["path"],
            params.get("config"),
            lines[0].removeprefix(TASK),
            MappingProxyType(content.get("columns", {})),
            describe(file),
        )
    return MappingProxyType(found)


COMMON_DATASETS = _read()
"""Preset name -> data set."""
