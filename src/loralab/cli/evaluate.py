"""`loralab evaluate`: adapters of runs, or a merged one as each, against the base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loralab.cli.options import RunsDir

if TYPE_CHECKING:
    from rich.console import Console

    from loralab.runs import Run

Result = dict[str, Any]


def evaluate(
    run: Annotated[list[str], typer.Argument(help="Paths, ids or names of runs.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    base: Annotated[bool, typer.Option(help="Measure the base too, paired.")] = True,
    merged: Annotated[
        Path | None,
        typer.Option(
            help="The folder of a merged adapter: measured instead of each run's own, "
            "with the run's head."
        ),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Evaluate adapters on a split of their runs' data, paired with their base.

    Example: loralab evaluate trec-6 sms-spam --merged both
    """
    from loralab.cli import render
    from loralab.runs import find_run

    console = render.console()
    runs = [find_run(one, runs_dir) for one in dict.fromkeys(run)]
    results = [_one(found, split, base, merged, console) for found in runs]
    if len(runs) > 1:
        console.print(_all(runs, results, split, own=merged is not None))


def _one(
    found: Run, split: str, base: bool, merged: Path | None, console: Console
) -> Result:
    """Measure a run, and print what was measured."""
    from loralab.cli import render
    from loralab.cli.progress import TrainingProgress
    from loralab.evaluation.evaluate import evaluate as measure

    config = found.config.evaluation.model_copy(update={"base": base})
    progress = TrainingProgress()
    try:
        result = measure(found, split, config=config, merged=merged, on_event=progress)
    finally:
        progress.close()
    for part in render.evaluation_parts(result):
        console.print(part)
    if caution := found.read().get("data", {}).get("caution"):
        console.print(f"caution: {caution}", markup=False)
    folder = found.path / "eval"
    if merged:
        if own := _own(found, result):
            text = f"the run's own adapter: {result['primary']} {render.interval(own)}"
            console.print(text, markup=False)
        folder = merged / "eval" / found.id
    written = folder / f"{split}.json"
    console.print(f"written: {written}", markup=False, soft_wrap=True)
    return result


def _own(found: Run, result: Result) -> Result | None:
    """Return the interval of the run's own adapter, measured on the same rows."""
    own = found.evaluations().get(result["split"])
    if not own or own["measured_rows"] != result["measured_rows"]:
        return None
    interval: Result | None = own["metrics"].get(result["primary"], {}).get("adapter")
    return interval


def _all(runs: list[Run], results: list[Result], split: str, *, own: bool) -> Any:
    """Return the table of several runs, and their mean where they share a metric."""
    from rich.table import Table

    from loralab.cli import render

    arms = ["base", "merged" if own else "adapter", *(["own adapter"] if own else [])]
    rows = [
        (result["metrics"][result["primary"]], _own(found, result))
        for found, result in zip(runs, results, strict=True)
    ]
    intervals = [
        [of.get("base"), of["adapter"], *([alone] if own else [])] for of, alone in rows
    ]
    table = Table(title=f"{split} rows of all", title_justify="left")
    for name in ("", "metric", *arms):
        table.add_column(name)
    for found, result, told in zip(runs, results, intervals, strict=True):
        cells = [render.interval(one) for one in told]
        table.add_row(found.id, result["primary"], *cells)
    if len({result["primary"] for result in results}) == 1:
        columns = zip(*intervals, strict=True)
        means = [
            f"{sum(one['value'] for one in told) / len(told):.3f}" if all(told) else "–"
            for told in columns
        ]
        table.add_row("mean", results[0]["primary"], *means)
    return table
