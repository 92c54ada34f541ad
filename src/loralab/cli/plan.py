"""`loralab plan`: what a training will cost, before weights are loaded."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loralab.cli.json_output import Json, print_json
from loralab.cli.options import Experiment, MachineFile, Offline, Overrides
from loralab.units import duration, size

if TYPE_CHECKING:
    from loralab.config import ExperimentConfig
    from loralab.training.estimate import Estimate
    from loralab.training.plan import Plan


def plan(
    experiment: Experiment,
    overrides: Overrides = None,
    timed: Annotated[
        bool, typer.Option(help="Measure this machine's rate (some seconds).")
    ] = True,
    offline: Offline = False,
    machine: MachineFile = None,
    json_output: Json = False,
) -> None:
    """Say what a training will cost: parameters, steps, hours, bytes, peak memory.

    Ends with 1 if it does not fit into memory, and lists what would.

    With --json an object: run, counts, modules, adapter_bytes, checkpoint_bytes,
    memory, remedies, rates, rooms; with --offline or --machine: run, model, parameters,
    trained, steps, tokens, base_bytes, adapter_bytes, checkpoint_bytes, peak_bytes,
    flops, seconds, fits, unknown.

    Example: loralab plan trec-6 peft.params.rank=4 --offline
    """
    from loralab.cli import render
    from loralab.config import compose
    from loralab.training.plan import plan as make_plan

    config = compose(experiment, overrides or [])
    console = render.console(stderr=json_output)
    if offline or machine:
        _estimate(console, config, machine, json_output)
        return

    def tell(what: str) -> None:
        console.print(f"{what} …")

    found = make_plan(config, timed=timed, tell=tell)
    if json_output:
        print_json({"run": config.run_id, **asdict(found)})
    else:
        _print(console, config.run_id, found)
    if not found.memory.fits:
        raise typer.Exit(1)


def _estimate(
    console: Any, config: ExperimentConfig, machine: Path | None, json_output: bool
) -> None:
    """Tell what is known without hub and rows; end with 1 if it does not fit."""
    from loralab.training.estimate import estimate, read_machine

    found = estimate(config, read_machine(machine) if machine else None)
    if json_output:
        print_json({"run": config.run_id, **asdict(found)})
    else:
        console.print(f"run      {config.run_id}")
        console.print(_estimate_table(found))
        for line in found.unknown:
            console.print(f"unknown  {line}", soft_wrap=True)
    if found.fits is False:
        raise typer.Exit(1)


def _estimate_table(found: Estimate) -> Any:
    from rich.table import Table

    table = Table(title="at most", title_justify="left", show_header=False)
    counts = {
        "parameters": found.parameters,
        "trained": found.trained,
        "steps": found.steps,
        "tokens": found.tokens,
    }
    for name, count in counts.items():
        table.add_row(name, "unknown" if count is None else f"{count:,}")
    sizes = {
        "base in memory": found.base_bytes,
        "adapter on disk": found.adapter_bytes,
        "checkpoints on disk": found.checkpoint_bytes,
        "tensors at the peak of a step": found.peak_bytes,
    }
    for name, count in sizes.items():
        table.add_row(name, size(count))
    if found.flops is not None:
        table.add_row("operations", f"{found.flops:.3g} FLOP")
    if found.seconds is not None:
        table.add_row("training steps", duration(found.seconds))
    if found.fits is not None:
        table.add_row("memory there is", "fits" if found.fits else "DOES NOT FIT")
    return table


def _print(console: Any, run_id: str, found: Plan) -> None:
    from loralab.cli.progress import plan_lines

    console.print(f"run      {run_id}")
    for line in plan_lines(found.counts):
        console.print(line, soft_wrap=True)
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

    memory = found.memory
    table = Table(title="cost", title_justify="left", show_header=False)
    if found.rates:
        rate = f"{found.rates.tokens_per_second:,.0f} tokens/s measured here"
        table.add_row("training", f"{duration(found.rates.training)} ({rate})")
        table.add_row("evaluation", duration(found.rates.evaluation))
    table.add_row("adapter on disk", size(found.adapter_bytes))
    table.add_row("checkpoints on disk", size(found.checkpoint_bytes))
    for name in ("loading", "training", "evaluation"):
        table.add_row(f"peak memory, {name}", size(getattr(memory, name)))
    word = "fits" if memory.fits else "DOES NOT FIT"
    table.add_row("memory there is", f"{size(memory.available)}: {word}")
    return table


def _rooms_table(found: Plan) -> Any:
    from rich.table import Table

    table = Table("machine of", "peak memory", "", title="where it fits")
    table.title_justify = "left"
    for room in found.rooms:
        word = "fits" if room.fits else room.change or "does not fit"
        table.add_row(f"{room.gigabytes} GB", size(room.peak), word)
    return table


def _remedies_table(found: Plan) -> Any:
    from rich.table import Table

    table = Table("change", "peak memory", "")
    for remedy in found.remedies:
        word = "fits" if remedy.fits else "does not fit"
        table.add_row(remedy.change, size(remedy.peak), word)
    return table
