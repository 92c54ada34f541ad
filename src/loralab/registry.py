"""Named things: found by file name, imported only when asked for.

A plug-in is one file in its kind's package. The file is named after the thing
(``text-classification`` lives in ``text_classification.py``) and holds one object
under ``@register(kind, name, schema)``. Listing names imports nothing. A package of
somebody else's adds a thing with an entry point in the group of its kind::

    [project.entry-points."loralab.merge_method"]
    my-method = "my_package.my_module"

A script or notebook registers what it defines itself; other processes, such as workers
of a sweep, then do not know it. `Contract` says what a thing of each kind must be; what
is not so, cannot be imported, or takes the name of another is refused when it is asked
for, and the package that it came with is named.
"""

from __future__ import annotations

import inspect
import logging
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import Distribution, EntryPoint, distributions
from importlib.util import find_spec
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic_core import PydanticCustomError

from loralab.errors import ConfigError, nearest

logger = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class Contract:
    """What a thing of a kind must be.

    Attributes:
        call: What it is called with, in this order and by position.
        facts: What must be said of it where it is registered.
        instead: Fact -> what it is called with if the fact is there and true.
    """

    call: tuple[str, ...]
    facts: tuple[str, ...] = ()
    instead: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


CONTRACTS = {
    "task": Contract(("params",)),
    "data source": Contract(("params",)),
    "PEFT method": Contract(("params", "site"), ("able",)),
    "rank strategy": Contract(("params", "modules", "statistics", "seed")),
    "metric": Contract(("params", "answers"), ("answers", "better")),
    "callback": Contract(("params", "run")),
    "sampler": Contract(("params", "space")),
    "executor": Contract(("params", "jobs", "runs_dir", "logs_dir")),
    "storage format": Contract(
        ("params", "source", "folder", "tell"),
        ("engine", "heads", "predict", "rounded", "values"),
    ),
    "engine": Contract(("folder", "note", "numerics")),
    "route": Contract(("params", "adapter")),
    "publishing target": Contract(("params", "run_id"), ("destination",)),
    "merge method": Contract(
        ("params", "layer"),
        instead={"continual": ("params", "merged", "new", "step")},
    ),
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
    """A registered thing: the object, the schema of its params, and its facts.

    `module` is where it was registered; the object itself may be another package's.
    """

    name: str
    target: Any
    schema: type[Params]
    facts: dict[str, Any]
    module: str


@dataclass(frozen=True)
class Claim:
    """A module that says it has a thing of a name.

    Attributes:
        module: Which is imported for it.
        package: Of somebody else, with its version; empty for loralab.
    """

    module: str
    package: str = ""

    @property
    def owner(self) -> str:
        """The importable package that the module is in."""
        return self.module.partition(".")[0]


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

    Raises:
        ConfigError: no such kind, a name that another package has, or a thing that is
            not what its `Contract` says.
    """
    if kind not in PACKAGES:
        raise ConfigError(f"no such kind: {kind!r}", fix=nearest(kind, PACKAGES))
    module = str(sys._getframe(1).f_globals["__name__"])  # whoever calls this

    def keep(target: T) -> T:
        _check_contract(kind, name, schema, facts, target)
        _check_free(kind, name, module)
        _entries[kind, name] = Entry(name, target, schema, facts, module)
        return target

    return keep


def _check_contract(
    kind: str, name: str, schema: Any, facts: Mapping[str, Any], target: Any
) -> None:
    """Refuse a thing that could only fail later, where nobody knows why."""
    where = f"{kind} {name!r}"
    if not (isinstance(schema, type) and issubclass(schema, Params)):
        raise ConfigError(
            f"its schema {schema!r} is no subclass of Params",
            where=where,
            fix="class NameParams(loralab.Params): …",
        )
    contract = CONTRACTS[kind]
    missing = [fact for fact in contract.facts if fact not in facts]
    if missing:
        said = ", ".join(f"{fact}=…" for fact in missing)
        raise ConfigError(
            f"it is registered without {', '.join(missing)}",
            where=where,
            fix=f"@register({kind!r}, {name!r}, …, {said})",
        )
    chosen = (call for fact, call in contract.instead.items() if facts.get(fact))
    call = next(chosen, contract.call)
    try:
        inspect.signature(target).bind(*call)
    except TypeError as error:
        raise ConfigError(
            f"it cannot be called with ({', '.join(call)}): {error}",
            where=where,
            why=f"so every {kind} is called"
            + "".join(f", unless it is {fact}" for fact in contract.instead),
        ) from None


def _check_free(kind: str, name: str, module: str) -> None:
    """Refuse a name that another package has; its own may register it anew."""
    before = _entries.get((kind, name))
    claims = [Claim(before.module)] if before else []
    claims += _claims(kind).get(name, ())
    owner = Claim(module).owner
    other = next((claim for claim in claims if claim.owner != owner), None)
    if other:
        raise ConfigError(
            f"{module} registers the {kind} {name!r}, which "
            f"{other.package or other.owner} has already",
            why="a configuration that says it would mean two things",
            fix="choose another name",
        )


@cache
def _points() -> list[tuple[EntryPoint, Distribution]]:
    """Return our entry points of all packages, read in one pass; imports none."""
    found: dict[str, list[tuple[EntryPoint, Distribution]]] = {}
    for dist in distributions():
        ours = [p for p in dist.entry_points if p.group.startswith("loralab.")]
        if ours:  # of a package that is there twice the first is the one imported
            found.setdefault(dist.name, [(point, dist) for point in ours])
    return [point for points in found.values() for point in points]


def group_of(kind: str) -> str:
    """Return the group of a kind's entry points: words and dots, as the standard asks.

    https://packaging.python.org/en/latest/specifications/entry-points/
    """
    return f"loralab.{kind.replace(' ', '_').lower()}"


@cache
def _claims(kind: str) -> dict[str, tuple[Claim, ...]]:
    """Map each name of a kind to who says to have it; imports none."""
    package = PACKAGES[kind]
    spec = find_spec(package)
    paths = list(spec.submodule_search_locations or []) if spec else []
    found: dict[str, tuple[Claim, ...]] = {
        info.name.replace("_", "-"): (Claim(f"{package}.{info.name}"),)
        for info in pkgutil.iter_modules(paths)
        if not info.name.startswith("_")
    }
    for point, dist in _points():
        if point.group == group_of(kind):
            claim = Claim(point.module, f"{dist.name} {dist.version}")
            found[point.name] = (*found.get(point.name, ()), claim)
    return found


def plug_ins() -> dict[str, str]:
    """Return the packages that add something, and their versions; imports none."""
    return {dist.name: dist.version for _, dist in _points()}


def names(kind: str) -> list[str]:
    """Return the sorted names of a kind, without importing any of them."""
    return sorted(_claims(kind))


def known(kind: str, name: str) -> bool:
    """Return whether there is a `kind` called `name`; imports none."""
    return (kind, name) in _entries or name in _claims(kind)


def get(kind: str, name: str) -> Entry:
    """Return the `kind` called `name`, importing its one module.

    Raises:
        ConfigError: nothing of that name exists (the message lists the nearest), two
            packages have it, or the package that has it is broken.
    """
    claims = _claims(kind).get(name, ())
    if len(claims) > 1:
        whose = [claim.package or "loralab" for claim in claims]
        raise ConfigError(
            f"{' and '.join(whose)} each have a {kind} {name!r}",
            why="a configuration that says it would mean two things",
            fix=f"pip uninstall {whose[-1].split()[0]}, or have its name changed",
        )
    if (kind, name) not in _entries:
        if not claims:
            raise ConfigError(
                f"no {kind} {name!r}; {nearest(name, names(kind))}",
                why=_astray(name),
            )
        _load(kind, name, claims[0])
    return _entries[kind, name]


def entries(kind: str) -> dict[str, Entry]:
    """Return all things of a kind, by name; each is imported.

    What cannot be, of a broken package, is left out with a warning: a list of what
    there is does not end for it, and `get` says so to whoever asks for it.
    """
    found = {}
    for name in names(kind):
        try:
            found[name] = get(kind, name)
        except ConfigError as error:
            logger.warning("left out: %s", error)
    return found


def _astray(name: str) -> str:
    """Return what an entry point of this name does in a group that is of no kind."""
    groups = [group_of(kind) for kind in PACKAGES]
    for point, dist in _points():
        if point.name == name and point.group not in groups:
            return (
                f"{dist.name} has it in the group {point.group}, which is of no kind; "
                f"{nearest(point.group, groups, 1)}"
            )
    return ""


def _load(kind: str, name: str, claim: Claim) -> None:
    """Import the module that has a thing.

    Raises:
        ConfigError: it is somebody else's, and cannot be imported, or does not
            register the thing.
    """
    if not claim.package:
        import_module(claim.module)
        return
    where, fix = claim.package, f"mend it, or pip uninstall {claim.package.split()[0]}"
    try:
        import_module(claim.module)
    except Exception as error:  # whatever somebody else's code may raise
        logger.debug("importing %s", claim.module, exc_info=True)
        said = str(error) if isinstance(error, ConfigError) else repr(error)
        raise ConfigError(
            f"its {kind} {name!r} cannot be imported from {claim.module}",
            where=where,
            why=said.replace("\n", "\n  "),
            fix=f"{fix}; loralab --log-level debug … shows where",
        ) from None
    if (kind, name) not in _entries:
        raise ConfigError(
            f"{claim.module} registers no {kind} {name!r}",
            where=where,
            why="its entry point says so",
            fix=f"@register({kind!r}, {name!r}, …) in {claim.module}, or {fix}",
        )
