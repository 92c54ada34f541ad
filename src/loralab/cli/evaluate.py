"""`loralab evaluate`: a run's adapter, or a merged one, against its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loralab.cli.options import RunsDir


def evaluate(
    run: Annotated[str, typer.Argument(help="A run's path, id or name.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    base: Annotated[bool, typer.Option(help="Measure the base too, paired.")] = True,
    merged: Annotated[
        Path | None,
        typer.Option(
            help="The folder of a merged adapter: measured instead of the run's own, "
            "with the run's head."
        ),
    ] = None,
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
        result = measure(found, split, config=config, merged=merged, on_event=progress)
    finally:
        progress.close()
    console = render.console()
    for part in render.evaluation_parts(result):
        console.print(part)
    if caution := found.read().get("data", {}).get("caution"):
        console.print(f"caution: {caution}", markup=False)
    folder = found.path / "eval"
    if merged:
        own = found.evaluations().get(split)
        if own and own["measured_rows"] == result["measured_rows"]:
            name = result["primary"]
            value = render.interval(own["metrics"].get(name, {}).get("adapter"))
            console.print(f"the run's own adapter: {name} {value}", markup=False)
        folder = merged / "eval" / found.id
    written = folder / f"{split}.json"
    console.print(f"written: {written}", markup=False, soft_wrap=True)
