"""`loralab plan`: what a training will cost, before weights are loaded."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loralab.cli.options import Experiment, Overrides

if TYPE_CHECKING:
    from loralab.training.plan import Plan


def plan(
    experiment: Experiment,
    overrides: Overrides = None,
    timed: Annotated[
        bool, typer.Option(help="Measure this machine's rate (some seconds).")
    ] = True,
    json_output: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Say what a training will cost: parameters, steps, hours, bytes, peak memory.

    Ends with 1 if it does not fit into memory, and lists what would.
    """
    from loralab.cli import render
    from loralab.config import compose
    from loralab.training.plan import plan as make_plan

    config = compose(experiment, overrides or [])
    console = render.console()

    def tell(what: str) -> None:
        if not json_output:
            console.print(f"{what} …", markup=False)

    found = make_plan(config, timed=timed, tell=tell)
    if json_output:
        typer.echo(json.dumps({"run": config.run_id, **asdict(found)}))
    else:
        _print(console, config.run_id, found)
    if not found.memory.fits:
        raise typer.Exit(1)


def _print(console: Any, run_id: str, found: Plan) -> None:
    from loralab.cli.progress import plan_lines

    console.print(f"run {run_id}", markup=False)
    for line in plan_lines(found.counts):
        console.print(line, markup=False, soft_wrap=True)
    console.print(_modules_table(found))
    console.print(_cost_table(found))
    console.print(_rooms_table(found))
    if found.remedies:
        console.print("it does not fit; these would need:")
        console.print(_remedies_table(found))


def _modules_table(found: Plan) -> Any:
    from rich.table import Table

    table = Table(title="trained parameters", title_justify="left")
    table.add_column("modules that match")
    table.add_column("modules", justify="right")
    table.add_column("parameters", justify="right")
    for name, row in found.modules.items():
        table.add_row(name, f"{row['modules']:,}", f"{row['trained']:,}")
    return table


def _cost_table(found: Plan) -> Any:
    from rich.table import Table

    from loralab.cli import render

    memory = found.memory
    table = Table(title="cost", title_justify="left", show_header=False)
    if found.rates:
        rate = f"{found.rates.tokens_per_second:,.0f} tokens/s measured here"
        table.add_row("training", f"{render.duration(found.rates.training)} ({rate})")
        table.add_row("evaluation", render.duration(found.rates.evaluation))
    table.add_row("adapter on disk", render.size(found.adapter_bytes))
    table.add_row("checkpoints on disk", render.size(found.checkpoint_bytes))
    for name in ("loading", "training", "evaluation"):
        table.add_row(f"peak memory, {name}", render.size(getattr(memory, name)))
    word = "fits" if memory.fits else "DOES NOT FIT"
    table.add_row("memory there is", f"{render.size(memory.available)}: {word}")
    return table


def _rooms_table(found: Plan) -> Any:
    from rich.table import Table

    from loralab.cli import render

    table = Table("machine of", "peak memory", "", title="where it fits")
    table.title_justify = "left"
    for room in found.rooms:
        word = "fits" if room.fits else room.change or "does not fit"
        table.add_row(f"{room.gigabytes} GB", render.size(room.peak), word)
    return table


def _remedies_table(found: Plan) -> Any:
    from rich.table import Table

    from loralab.cli import render

    table = Table("change", "peak memory", "")
    for remedy in found.remedies:
        word = "fits" if remedy.fits else "does not fit"
        table.add_row(remedy.change, render.size(remedy.peak), word)
    return table
