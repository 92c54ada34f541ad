"""The arguments and options of `loralab merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from loralab.cli.completion import named_like, runs_like

State = Annotated[Path, typer.Argument(help="The folder of a merge.")]
MethodName = Annotated[
    str,
    typer.Option(
        "--method",
        help="The merge method.",
        autocompletion=named_like("merge method"),
    ),
]
Adapters = Annotated[
    list[str],
    typer.Argument(help="Adapter folders or runs.", autocompletion=runs_like),
]
Words = Annotated[
    list[str],
    typer.Argument(
        metavar="ADAPTER… [KEY=VALUE…]",
        help="Adapter folders or runs; key=value of the method.",
        autocompletion=runs_like,
    ),
]
Pairs = Annotated[list[str] | None, typer.Argument(help="key=value of the method.")]
Out = Annotated[Path, typer.Option("--out", help="The folder of the merged adapter.")]
Rank = Annotated[
    str,
    typer.Option(help="exact, or the rank of every module."),
]
Energy = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Smallest ranks that keep this share of Σσ²."),
]
Budget = Annotated[
    float | None,
    typer.Option(min=0, help="Best ranks within this many megabytes (10⁶ bytes)."),
]
OutDtype = Annotated[
    Literal["fp64", "fp32", "bf16", "fp16"] | None,
    typer.Option("--dtype", help="Of the merged factors; by default the adapters'."),
]
Head = Annotated[
    str | None,
    typer.Option(help="The task whose head it has; by default one that all have."),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="What each adapter's update is multiplied with before the method, such as "
        "0.5,0.5,1; `average` still divides by their number."
    ),
]
Bake = Annotated[
    str | None,
    typer.Option(
        help="A base (embedded:NAME, ./folder or org/name): write it with the merged "
        "update in its weights, not an adapter."
    ),
]
Tune = Annotated[
    int | None,
    typer.Option(min=1, help="Try so many weights on the runs' validation rows."),
]
TuneScale = Annotated[
    bool, typer.Option("--tune-scale", help="One weight for all, with --tune.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Also other bases, and an adapter twice.")
]
