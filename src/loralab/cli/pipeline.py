"""`loralab pipeline`: base, base quantized, LoRA, LoRA quantized, and all compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loralab.cli.completion import pipelines_like
from loralab.cli.json_output import Json, print_json
from loralab.cli.options import Overrides, RunsDir
from loralab.units import duration

Preset = Annotated[
    str,
    typer.Argument(
        help="A preset, or a path that ends in .yaml.", autocompletion=pipelines_like
    ),
]


def pipeline(
    name: Preset,
    overrides: Overrides = None,
    json_output: Json = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Go through the four stages of a pipeline, and compare them.

    A pipeline that was stopped goes on with the same command; what stands is found.

    With --json an object: pipeline, seconds (by stage), comparison (as of `compare`).

    Example: loralab pipeline minilm-four-stage training.seed=1
    """
    from loralab.cli import render
    from loralab.cli.compare import show
    from loralab.cli.progress import TrainingProgress
    from loralab.experiments.pipeline import CompleteTrainingPipeline, read_pipeline

    config = read_pipeline(name)
    if overrides:
        both = [*config.overrides, *overrides]
        config = config.model_copy(update={"overrides": both})
    console = render.console(stderr=json_output)
    progress = TrainingProgress(stderr=json_output)
    stem = Path(name).stem
    made = CompleteTrainingPipeline(config, stem, runs_dir, on_event=progress)
    console.print(f"pipeline {made.path}")
    try:
        found = made.run()
    finally:
        progress.close()
    if json_output:
        told = {"pipeline": made.path, "seconds": made.timer.seconds}
        print_json({**told, "comparison": found})
        return
    show(found)
    spent = made.timer.seconds.items()
    took = ", ".join(f"{stage} {duration(took)}" for stage, took in spent)
    console.print(f"took     {took}", soft_wrap=True)
    page: Any = made.path / "comparison.html"
    console.print(f"page     {page}", soft_wrap=True)
