"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml

from loralab.cli.completion import (
    experiments_like,
    named_like,
    overrides_like,
    runs_like,
)

RunsDir = Annotated[
    Path,
    typer.Option(
        help="Where runs are.",
        envvar="LORALAB_RUNS",
        show_default=True,
        file_okay=False,
    ),
]
RunName = Annotated[
    str, typer.Argument(help="A run's path, id or name.", autocompletion=runs_like)
]
RunNames = Annotated[
    list[str],
    typer.Argument(help="Paths, ids or names of runs.", autocompletion=runs_like),
]
Experiment = Annotated[
    str,
    typer.Argument(
        help="A preset (see `loralab config list`) or the path of a YAML file.",
        autocompletion=experiments_like,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="group=option or key=value, such as training.seed=1",
        autocompletion=overrides_like,
    ),
]
Executor = Annotated[
    str,
    typer.Option(
        help="Where runs are trained; see below for its keys.",
        autocompletion=named_like("executor"),
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes, sharing the cores (local, ray).")
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline",
        help="Of a base and rows that are not here: neither hub nor rows are read, and "
        "every row is taken to be as long as it may be.",
    ),
]
MachineFile = Annotated[
    Path | None,
    typer.Option(
        help="YAML with name, flops_per_second, memory_bytes and source of the machine "
        "that is meant; implies --offline."
    ),
]
Split = Annotated[
    Literal["train", "validation", "test"], typer.Option(help="Which rows.")
]
OF_EXECUTOR = "executor."


def executor_params(
    pairs: Sequence[str], workers: int | None
) -> tuple[list[str], dict[str, Any]]:
    """Return what is not ``executor.key=value``, and the params that are.

    Raises:
        ConfigError: a pair has no value, or a key stands twice.
    """
    from loralab.errors import ConfigError

    rest = [pair for pair in pairs if not pair.startswith(OF_EXECUTOR)]
    params: dict[str, Any] = {} if workers is None else {"workers": workers}
    for pair in pairs:
        if pair in rest:
            continue
        key, equals, text = pair.removeprefix(OF_EXECUTOR).partition("=")
        if not equals or not key:
            raise ConfigError(f"{pair!r} is not executor.key=value")
        if key in params:
            raise ConfigError(f"{key} of the executor is given twice")
        params[key] = _value(pair, text)
    return rest, params


def _value(pair: str, text: str) -> Any:
    """Return a value; a text stays one, for an account of digits is no number."""
    from loralab.errors import ConfigError

    if text == "null":
        return None
    if not text.startswith(("[", "{")):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{pair!r} cannot be read") from None
