"""`loralab log`: a research log that runs are added to, and people write in."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from loralab.cli.options import RunsDir


def log(
    file: Annotated[
        Path, typer.Argument(help="The log; made if it is missing.")
    ] = Path("RESEARCH_LOG.md"),
    since: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"], help="Only runs begun on or after this day."
        ),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Add the runs that have ended to a research log, in Markdown.

    Of each: what differs from its preset, its status, its results with intervals; after
    them, room for observations, next steps and ideas. Text is only ever appended, and a
    run that is in the log is not added again. One whose files cannot be read is left
    out, and told on stderr.

    Example: loralab log RESEARCH_LOG.md --since 2026-01-31
    """
    from loralab.cli import render
    from loralab.errors import LoralabError
    from loralab.reporting.research_log import add_runs

    def left_out(error: LoralabError) -> None:
        typer.secho(f"left out: {error}", err=True)

    found = add_runs(file, runs_dir, since.date() if since else None, left_out)
    console = render.console()
    for run in found:
        console.print(f"added    {run.id}")
    word = "run" if len(found) == 1 else "runs"
    told = f"{len(found)} {word} added" if found else "no run is new"
    console.print(f"{told}: {file}", soft_wrap=True)
