"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunsDir = Annotated[
    Path, typer.Option(help="Where runs are.", envvar="LORALAB_RUNS", show_default=True)
]
Experiment = Annotated[
    str,
    typer.Argument(
        help="A preset (see `loralab config list`) or the path of a YAML file."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="group=option or key=value, such as training.seed=1"),
]
