"""`loralab evaluate`: a run's adapter against its base, on a split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loralab.cli.options import RunsDir


def evaluate(
    run: Annotated[str, typer.Argument(help="A run's path, id or name.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    base: Annotated[bool, typer.Option(help="Measure the base too, paired.")] = True,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Evaluate a run's adapter on a split of its data, paired with its base."""
    from loralab.cli import render
    from loralab.cli.progress import TrainingProgress
    from loralab.evaluation.evaluate import evaluate as measure
    from loralab.runs import find_run

    found = find_run(run, runs_dir)
    config = found.config.evaluation.model_copy(update={"base": base})
    progress = TrainingProgress()
    try:
        result = measure(found, split, config=config, on_event=progress)
    finally:
        progress.close()
    console = render.console()
    for part in render.evaluation_parts(result):
        console.print(part)
    written = found.path / "eval" / f"{split}.json"
    console.print(f"written: {written}", markup=False, soft_wrap=True)
