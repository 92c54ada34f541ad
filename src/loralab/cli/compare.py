"""`loralab compare`: runs side by side in one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from loralab.cli.options import RunsDir


def compare(
    runs: Annotated[list[str], typer.Argument(help="Paths, ids or names of runs.")],
    split: Annotated[str, typer.Option(help="Which rows.")] = "test",
    json_output: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Compare runs: quality against the base, size, time, rate, memory."""
    from loralab.cli import render
    from loralab.evaluation.compare import compare as gather
    from loralab.runs import find_run

    found = gather([find_run(run, runs_dir) for run in runs], split)
    if json_output:
        typer.echo(json.dumps(found))
        return
    console = render.console()
    console.print(_table(found["records"], split))
    for pair in found["paired"]:
        gap = render.interval(pair, sign=True)
        says = render.verdict(pair["better"], pair)
        console.print(
            f"{pair['second']} − {pair['first']}, same rows: {pair['metric']} {gap} "
            f"({says})",
            markup=False,
        )


def _table(records: list[dict[str, Any]], split: str) -> Any:
    from rich.table import Table

    share = f"{100 * records[0]['confidence']:.0f} %"
    title = f"{split} rows, {share} intervals over rows, adapter − base paired"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for record in records:
        table.add_column(record["run"])
    columns = [_cells(record) for record in records]
    for name in columns[0]:
        table.add_row(name, *(cells[name] for cells in columns))
    return table


def _cells(record: dict[str, Any]) -> dict[str, str]:
    """Return what the table says of one run, by row."""
    from loralab.cli import render

    metric, values, rate = (
        record["metric"],
        record["values"],
        record["tokens_per_second"],
    )
    gap, majority = values.get("difference"), record["majority"]
    new_head = " (its head untrained)" if majority is not None else ""
    return {
        "base model": record["base"] + new_head,
        "metric (rows)": f"{metric} ({record['rows']:,})",
        "  most frequent class": "–" if majority is None else f"{majority:.3f}",
        "  base": render.interval(values.get("base")),
        "  adapter": render.interval(values["adapter"]),
        "  difference": render.interval(gap, sign=True),
        "  verdict": render.verdict(record["better"], gap) if gap else "–",
        "trained parameters": f"{record['trainable']:,}",
        "adapter size": render.size(record["adapter_bytes"]),
        "training time": _time(record),
        "tokens/s": f"{rate:,.0f}" if rate else "–",
        "peak memory": render.size(record["peak_memory_bytes"]),
    }


def _time(record: dict[str, Any]) -> str:
    from loralab.cli import render

    shown = render.duration(record["seconds"])
    return f"{shown} (since the last resume)" if record["resumed"] else shown
