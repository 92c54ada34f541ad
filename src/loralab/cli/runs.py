"""`loralab runs`: list and filter runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loralab.cli.options import RunsDir

if TYPE_CHECKING:
    from loralab.runs import Run


def runs(
    filters: Annotated[
        list[str] | None,
        typer.Argument(help="key=value of the configuration: peft.params.rank=8"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only runs of this name.")] = None,
    status: Annotated[
        str | None, typer.Option(help="complete, failed, running or interrupted.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Only runs of this task.")] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """List runs: status, task, base, primary metric, time."""
    from rich.table import Table

    from loralab.cli import render
    from loralab.errors import RunError
    from loralab.runs import list_runs

    wanted = [_filter(text) for text in filters or []]
    plain = {"name": name, "status": status, "task": task}
    table = Table("run", "status", "task", "base", "primary metric (test)", "started")
    for run in list_runs(runs_dir):
        try:
            row = _row(run)
            fits = all(v in (None, row[k]) for k, v in plain.items())
            if fits and _matches(run, wanted):
                table.add_row(run.id, *list(row.values())[1:])
        except RunError as error:
            typer.secho(f"left out: {error}", err=True)
    console = render.console()
    if table.row_count:
        console.print(table)
    else:
        console.print(f"no such run in {runs_dir}", markup=False)


def _row(run: Run) -> dict[str, str]:
    content = run.read()
    return {
        "name": content["name"],
        "status": run.status,
        "task": content.get("task", "–"),
        "base": content.get("base", {}).get("path", "–"),
        "metric": _primary(run),
        "started": content["started"],
    }


def _filter(text: str) -> tuple[list[str], str]:
    from loralab.errors import ConfigError

    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r} is not key=value")
    return key.split("."), value


def _matches(run: Run, wanted: list[tuple[list[str], str]]) -> bool:
    content: Any = run.config.model_dump(mode="json") if wanted else {}
    for path, value in wanted:
        found = content
        for part in path:
            found = found.get(part) if isinstance(found, dict) else None
        if str(found) != value:
            return False
    return True


def _primary(run: Run) -> str:
    from loralab.cli import render

    result = run.evaluations().get("test")
    if not result:
        return "–"
    metric = result["primary"]
    return f"{metric} {render.interval(result['metrics'][metric]['adapter'])}"
