"""`loralab reproduce`: make a run again, and say whether it is the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loralab.cli.completion import runs_like
from loralab.cli.json_output import Json, print_json
from loralab.cli.options import RunsDir
from loralab.units import duration

if TYPE_CHECKING:
    from loralab.experiments.reproduce import Reproduction
    from loralab.runs import Run


What = Annotated[
    str,
    typer.Argument(
        help="A run's path, id or name, or the folder of a merge.",
        autocompletion=runs_like,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Make it here and keep it; by default in a temporary folder."),
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="What is equal: tensors within this share of their largest value, "
        "figures within this (relative above 1), answers but this share. Default: "
        "0, bit for bit, on a CPU; 0.01 on a GPU.",
    ),
]


def reproduce(
    run: What,
    out: Out = None,
    tolerance: Tolerance = None,
    json_output: Json = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Make a run again from its own directory, and compare the two.

    The run is only read. An adapter is trained again, an artefact stored again from the
    run it was made of, a merge replayed from its log. Ends with 0 if all is equal and
    with 1 if something is not; rows or a base that are others now end it at once.

    With --json an object: equal, run, kind, again, tolerance, changes, inputs,
    compared.

    Example: loralab reproduce trec-6 --out again
    """
    from loralab.cli import render
    from loralab.cli.progress import TrainingProgress
    from loralab.experiments.reproduce import find_reproducible
    from loralab.experiments.reproduce import reproduce as make

    found = find_reproducible(run, runs_dir)
    console = render.console(stderr=json_output)
    for line in _beforehand(found):
        console.print(line, soft_wrap=True)
    progress = TrainingProgress(stderr=json_output)
    try:
        made = make(
            found, out, tolerance=tolerance, runs_dir=runs_dir, on_event=progress
        )
    finally:
        progress.close()
    if json_output:
        print_json(made.as_dict())
    else:
        _print(console, made)
    if not made.equal:
        raise typer.Exit(1)


def _beforehand(found: Run | Path) -> list[str]:
    """Return what is known before anything is computed: the cost, and what changed."""
    from loralab.experiments.reproduce import changes, recorded_seconds

    if isinstance(found, Path):
        return [f"merge    {found}"]
    seconds = recorded_seconds(found)
    took = "it does not say" if seconds is None else duration(seconds)
    told = [f"run      {found.path}", f"cost     {took}, as it took then"]
    changed = changes(found)
    told += [f"changed  {c.name}: {c.then} then, {c.now} now" for c in changed]
    return told if changed else [*told, "changed  nothing: the environment is the same"]


def _print(console: Any, made: Reproduction) -> None:
    from rich.table import Table

    table = Table("", "compared", "differ", "largest difference", "where", "")
    for one in (*made.inputs, *made.compared):
        exact = "" if not one.differing else f"{one.largest:.3g}"
        word = "equal" if one.equal else "NOT EQUAL"
        cells = (f"{one.count:,}", f"{one.differing:,}", exact, one.where, word)
        table.add_row(one.what, *cells)
    console.print(table)
    way = f"within {made.tolerance:g}" if made.tolerance else "bit for bit"
    console.print(f"{'equal' if made.equal else 'NOT EQUAL'}, {way}")
    for line in _why(made):
        console.print(line, soft_wrap=True)
    if made.again:
        console.print(f"run      {made.again}", soft_wrap=True)


def _why(made: Reproduction) -> list[str]:
    """Return what may explain a difference."""
    if made.equal:
        return []
    if not made.compared:
        other = " and ".join(one.what for one in made.inputs if not one.equal)
        return [f"the {other} of then is not here, so nothing was made again"]
    names = ", ".join(change.name for change in made.changes)
    return [f"changed since: {names or 'nothing that is recorded'}"]
