"""Named things: found by file name, imported only when asked for.

A plug-in is one file in its kind's package. The file is named after the thing
(``text-classification`` lives in ``text_classification.py``) and holds one object
under ``@register(kind, name, schema)``. Listing names imports nothing. A package of
somebody else's adds a thing with an entry point in the group of its kind::

    [project.entry-points."loralab.task"]
    my-task = "my_package.my_module"
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic_core import PydanticCustomError

from loralab.errors import ConfigError, nearest

PACKAGES = {
    "task": "loralab.data.tasks",
    "data source": "loralab.data.sources",
    "PEFT method": "loralab.adapters.methods",
    "rank strategy": "loralab.adapters.ranks",
    "metric": "loralab.evaluation.metrics",
    "callback": "loralab.training.callbacks",
    "sampler": "loralab.experiments.samplers",
    "executor": "loralab.experiments.executors",
    "storage format": "loralab.quantization.formats",
    "engine": "loralab.inference.engines",
    "route": "loralab.export.routes",
    "publishing target": "loralab.publishing.targets",
    "merge method": "loralab.merging.methods",
}

T = TypeVar("T")


class Strict(BaseModel):
    """Frozen, no key beyond the declared ones, and none left at Hydra's ``???``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _is_set(cls, value: Any) -> Any:
        if value == "???":
            raise PydanticCustomError("missing", "must be set")
        return value


class Params(Strict):
    """Base of the schemas that named things declare for their own `params`."""


@dataclass(frozen=True)
class Entry:
    """A registered thing: the object, the schema of its params, and its facts."""

    name: str
    target: Any
    schema: type[Params]
    facts: dict[str, Any]


_entries: dict[tuple[str, str], Entry] = {}


def register(
    kind: str, name: str, schema: type[Params] = Params, **facts: Any
) -> Callable[[T], T]:
    """Register the decorated function or class as the `kind` called `name`.

    Args:
        kind: A key of `PACKAGES`.
        name: What a configuration calls it.
        schema: Of its `params`.
        facts: What others must know of it before it is used, such as a metric's
            ``answers="text"``.
    """
    if kind not in PACKAGES:
        raise ConfigError(f"no such kind: {kind!r}", fix=nearest(kind, PACKAGES))

    def keep(target: T) -> T:
        _entries[kind, name] = Entry(name, target, schema, facts)
        return target

    return keep


@cache
def _modules(kind: str) -> dict[str, str]:
    """Map each name of a kind to the module that registers it; imports none."""
    package = PACKAGES[kind]
    spec = find_spec(package)
    paths = list(spec.submodule_search_locations or []) if spec else []
    found = {
        info.name.replace("_", "-"): f"{package}.{info.name}"
        for info in pkgutil.iter_modules(paths)
        if not info.name.startswith("_")
    }
    for point in entry_points(group=f"loralab.{kind.replace(' ', '-')}"):
        found.setdefault(point.name, point.module)
    return found


def names(kind: str) -> list[str]:
    """Return the sorted names of a kind, without importing any of them."""
    return sorted(_modules(kind))


def get(kind: str, name: str) -> Entry:
    """Return the `kind` called `name`, importing its one module.

    Raises:
        ConfigError: nothing of that name exists; the message lists the nearest.
    """
    if (kind, name) not in _entries:
        module = _modules(kind).get(name)
        if module is None:
            raise ConfigError(f"no {kind} {name!r}; {nearest(name, names(kind))}")
        import_module(module)
    return _entries[kind, name]
