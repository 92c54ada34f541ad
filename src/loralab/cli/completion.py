"""What the shell completes: presets, runs, and everything that has a name.

Files' names alone are read, so that a tab is answered at once: no torch, no YAML.
Where nothing is begun like that, the shell completes paths.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer


def experiments_like(begun: str) -> list[str]:
    """Return the presets of experiments that begin so."""
    from loralab.config.compose import presets

    return _like(begun, presets("experiment"))


def pipelines_like(begun: str) -> list[str]:
    """Return the presets of pipelines that begin so."""
    from loralab.config.compose import presets

    return _like(begun, presets("pipeline"))


def studies_like(begun: str) -> list[str]:
    """Return the ``study.yaml`` files below ``studies`` that begin so."""
    return _like(begun, (p.as_posix() for p in Path("studies").glob("*/study.yaml")))


def groups_like(begun: str) -> list[str]:
    """Return the groups of presets that begin so."""
    from loralab.config.compose import GROUPS

    return _like(begun, ("experiment", *GROUPS))


def overrides_like(begun: str) -> list[str]:
    """Return ``group=`` and, once a group is written, its options."""
    from loralab.config.compose import GROUPS, presets

    group, equals, _ = begun.partition("=")
    if equals:
        found = presets(group) if group in GROUPS else ()
        return _like(begun, (f"{group}={option}" for option in found))
    return _like(begun, (f"{group}=" for group in GROUPS))


def runs_like(ctx: typer.Context, begun: str) -> list[str]:
    """Return the ids of runs that begin so, in the ``--runs-dir`` that is written."""
    written = ctx.params.get("runs_dir") or os.environ.get("LORALAB_RUNS") or "runs"
    files = Path(written).glob("*/run.json")
    return _like(begun, (file.parent.name for file in files))


def run_or_experiment_like(ctx: typer.Context, begun: str) -> list[str]:
    """Return runs and presets that begin so."""
    return [*runs_like(ctx, begun), *experiments_like(begun)]


def named_like(kind: str) -> Callable[[str], list[str]]:
    """Return what completes the names of a kind of the registry."""

    def like(begun: str) -> list[str]:
        from loralab import registry

        return _like(begun, registry.names(kind))

    return like


def _like(begun: str, names: Iterable[Any]) -> list[str]:
    return sorted(name for name in names if name.startswith(begun))
