"""`loralab pipeline`: base, base quantized, LoRA, LoRA quantized, and all compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loralab.cli.options import RunsDir


def pipeline(
    name: Annotated[
        str, typer.Argument(help="A preset, or a path that ends in .yaml.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="group=option or key=value of its experiment."),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Go through the four stages of a pipeline, and compare them.

    A pipeline that was stopped goes on with the same command; what stands is found.
    """
    from loralab.cli import render
    from loralab.cli.compare import show
    from loralab.cli.progress import TrainingProgress
    from loralab.experiments.pipeline import CompleteTrainingPipeline, read_pipeline

    config = read_pipeline(name)
    if overrides:
        both = [*config.overrides, *overrides]
        config = config.model_copy(update={"overrides": both})
    console = render.console()
    progress = TrainingProgress()
    stem = Path(name).stem
    made = CompleteTrainingPipeline(config, stem, runs_dir, on_event=progress)
    console.print(f"pipeline {made.path}", markup=False)
    try:
        found = made.run()
    finally:
        progress.close()
    show(found)
    took = ", ".join(
        f"{stage} {render.duration(seconds)}"
        for stage, seconds in made.timer.seconds.items()
    )
    console.print(f"took     {took}", markup=False, soft_wrap=True)
    page: Any = made.path / "comparison.html"
    console.print(f"page     {page}", markup=False, soft_wrap=True)
