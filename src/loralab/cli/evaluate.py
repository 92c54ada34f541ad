"""`loralab evaluate`: adapters of runs, or a merged one as each, against the base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loralab.cli.json_output import Json, print_json
from loralab.cli.options import RunNames, RunsDir, Split

if TYPE_CHECKING:
    from rich.console import Console

    from loralab.runs import Run

Result = dict[str, Any]


def evaluate(
    run: RunNames,
    split: Split = "test",
    base: Annotated[bool, typer.Option(help="Measure the base too, paired.")] = True,
    merged: Annotated[
        Path | None,
        typer.Option(
            help="The folder of a merged adapter: measured instead of each run's own, "
            "with the run's head."
        ),
    ] = None,
    json_output: Json = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Evaluate adapters on a split of their runs' data, paired with their base.

    With --json a list, of each run: run, file (what was written), own (of --merged: the
    run's own adapter), evaluation (the file's content).

    Example: loralab evaluate trec-6 sms-spam --merged both
    """
    from loralab.cli import render
    from loralab.runs import find_run

    console = render.console(stderr=json_output)
    runs = [find_run(one, runs_dir) for one in dict.fromkeys(run)]
    results = [_one(found, split, base, merged, console) for found in runs]
    if json_output:
        pairs = zip(runs, results, strict=True)
        print_json([_told(one, result, merged) for one, result in pairs])
    elif len(runs) > 1:
        console.print(_all(runs, results, split, own=merged is not None))


def _told(run: Run, result: Result, merged: Path | None) -> Result:
    own = _own(run, result) if merged else None
    told = {"run": run.id, "file": _file(run, result["split"], merged), "own": own}
    return {**told, "evaluation": result}


def _file(run: Run, split: str, merged: Path | None) -> Path:
    folder = merged / "eval" / run.id if merged else run.path / "eval"
    return folder / f"{split}.json"


def _one(
    found: Run, split: str, base: bool, merged: Path | None, console: Console
) -> Result:
    """Measure a run, and tell what was measured."""
    from loralab.cli import render
    from loralab.cli.progress import TrainingProgress
    from loralab.evaluation.evaluate import evaluate as measure

    config = found.config.evaluation.model_copy(update={"base": base})
    progress = TrainingProgress(stderr=console.stderr)
    try:
        result = measure(found, split, config=config, merged=merged, on_event=progress)
    finally:
        progress.close()
    for part in render.evaluation_parts(result):
        console.print(part)
    if caution := found.read().get("data", {}).get("caution"):
        console.print(f"caution: {caution}")
    if merged and (own := _own(found, result)):
        text = f"the run's own adapter: {result['primary']} {render.interval(own)}"
        console.print(text)
    written = _file(found, split, merged)
    console.print(f"wrote    {written}", soft_wrap=True)
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
