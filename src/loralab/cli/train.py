"""`loralab train`: train, save and evaluate the adapter of an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loralab.cli.json_output import Json, print_json
from loralab.cli.options import Experiment, Overrides, RunsDir


def train(
    experiment: Experiment,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run that was killed.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Train again; the old run is kept aside.")
    ] = False,
    json_output: Json = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Train an adapter, evaluate it against its base, and write a run.

    The same configuration finds its run instead of training again.

    With --json an object: run, path, adapter, evaluations (by split), training.

    Example: loralab train trec-6 peft.params.rank=4 training.seed=1
    """
    from loralab.cli import render
    from loralab.cli.progress import TrainingProgress
    from loralab.config import compose
    from loralab.training.train import train as run_training

    config = compose(experiment, overrides or [])
    console = render.console(stderr=json_output)
    console.print(f"run      {config.run_id}")
    progress = TrainingProgress(stderr=json_output)
    try:
        run = run_training(
            config, runs_dir, resume=resume, force=force, on_event=progress
        )
    finally:
        progress.close()
    found, spent = run.evaluations(), run.read().get("training")
    if json_output:
        told = {"run": run.id, "path": run.path, "adapter": run.adapter}
        print_json({**told, "evaluations": found, "training": spent})
        return
    for result in found.values():
        for part in render.evaluation_parts(result):
            console.print(part)
    if spent:
        console.print(render.budget(spent), soft_wrap=True)
    console.print(f"run      {run.path}\nadapter  {run.adapter}", soft_wrap=True)
