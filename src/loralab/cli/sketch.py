"""`loralab sketch`: what a run's layers read, kept beside its adapter for merging."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from loralab.cli.options import RunName, RunsDir
from loralab.units import size


def sketch(
    run: RunName,
    rows: Annotated[int, typer.Option(min=1, help="Training rows to read.")] = 256,
    rank: Annotated[int, typer.Option(min=1, help="Directions of each layer.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a forward pass.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Which rows.")] = 0,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Sketch the inputs of a run's adapted layers, for `--method regmean`.

    Rows go through the adapted model once, forward only; the sketch is saved as
    inputs.safetensors beside the adapter. Merging then needs neither rows nor base.
    It holds statistics of training rows, and `loralab publish` leaves it out.

    Example: loralab sketch trec-6 --rows 128
    """
    from loralab.cli import render
    from loralab.cli.progress import TrainingProgress
    from loralab.evaluation.sketch import sketch_cost, sketch_inputs
    from loralab.runs import find_run

    found = find_run(run, runs_dir)
    console = render.console()

    def tell(*lines: str) -> None:
        for line in lines:
            console.print(line, soft_wrap=True)

    cost = sketch_cost(found, rows, rank)
    tell(
        f"cost     {cost.rows:,} training rows forward through the adapted model, "
        f"and {cost.operations / 1e6:,.0f} M operations a token for the sketches",
        f"memory   {size(cost.memory_bytes)} beside the model, at most",
        f"file     {size(cost.file_bytes)} for {cost.modules} modules, at most",
    )
    progress = TrainingProgress()
    try:
        made = sketch_inputs(
            found, rows, rank, batch=batch, seed=seed, on_event=progress
        )
    finally:
        progress.close()
    tell(
        f"read     {made.facts['rows']:,} rows, {_tokens(made.facts)}",
        f"wrote    {made.file.path} ({size(made.file.path.stat().st_size)})",
    )


def _tokens(facts: Mapping[str, Any]) -> str:
    """Return how many inputs the modules have seen."""
    seen = [module["tokens"] for module in facts["modules"].values()]
    most, least = max(seen), min(seen)
    return f"{most:,} tokens" if most == least else f"{least:,} to {most:,} tokens"
