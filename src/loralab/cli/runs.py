"""`loralab runs`: list and filter runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from loralab.cli.json_output import Json, print_json
from loralab.cli.options import RunsDir

if TYPE_CHECKING:
    from rich.table import Table

    from loralab.runs import Run

Status = Literal["complete", "failed", "running", "interrupted"]


def runs(
    filters: Annotated[
        list[str] | None,
        typer.Argument(help="key=value of the configuration: peft.params.rank=8"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only runs of this name.")] = None,
    status: Annotated[Status | None, typer.Option(help="Only such runs.")] = None,
    task: Annotated[str | None, typer.Option(help="Only runs of this task.")] = None,
    json_output: Json = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """List runs: status, task, base, primary metric, time.

    One whose files cannot be read is left out, and told on stderr.

    With --json a list, of each run: run, path, name, status, task, base, metric (of
    test rows: name, value, low, high), started.

    Example: loralab runs --status complete peft.params.rank=4
    """
    from loralab.cli import render
    from loralab.errors import LoralabError, RunError
    from loralab.runs import list_runs

    wanted = [_filter(text) for text in filters or []]
    if not runs_dir.is_dir():
        raise RunError(
            "no such directory",
            where=str(runs_dir),
            fix="train a run, or set --runs-dir",
        )
    plain = {"name": name, "status": status, "task": task}
    found = []
    for run in list_runs(runs_dir):
        try:
            row = _row(run)
            fits = all(v in (None, row[k]) for k, v in plain.items())
            if fits and _matches(run, wanted):
                found.append(row)
        except LoralabError as error:
            typer.secho(f"left out: {error}", err=True)
    if json_output:
        print_json(found)
        return
    console = render.console()
    if found:
        console.print(_table(found))
    else:
        console.print(f"no such run in {runs_dir}")


def _row(run: Run) -> dict[str, Any]:
    content = run.read()
    return {
        "run": run.id,
        "path": str(run.path),
        "name": content["name"],
        "status": run.status,
        "task": content.get("task"),
        "base": content.get("base", {}).get("path"),
        "metric": _primary(run),
        "started": content["started"],
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    from loralab.cli import render

    table = Table("run", "status", "task", "base", "primary metric (test)", "started")
    for row in rows:
        metric = row["metric"]
        shown = f"{metric['name']} {render.interval(metric)}" if metric else "–"
        task, base = row["task"] or "–", row["base"] or "–"
        table.add_row(row["run"], row["status"], task, base, shown, row["started"])
    return table


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


def _primary(run: Run) -> dict[str, Any] | None:
    result = run.evaluations().get("test")
    if not result:
        return None
    metric = result["primary"]
    return {"name": metric, **result["metrics"][metric]["adapter"]}
