"""`loralab sweep`: many runs of one experiment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loralab.cli.completion import named_like
from loralab.cli.json_output import Json, print_json
from loralab.cli.options import (
    Executor,
    Experiment,
    RunsDir,
    Workers,
    executor_params,
)
from loralab.units import counted, duration, size

if TYPE_CHECKING:
    from loralab.experiments.sweep import Sweep


Points = Annotated[
    list[str] | None,
    typer.Argument(
        help="key=value; a key with a,b,c or range(5) or interval(1e-5,1e-3) is "
        "swept. `seed` is training.seed. executor.key=value is of the executor."
    ),
]
Sampler = Annotated[
    str,
    typer.Option(
        help="grid, random, optuna: which are tried.",
        autocompletion=named_like("sampler"),
    ),
]
Trials = Annotated[int | None, typer.Option(min=1, help="How many (random, optuna).")]
Seed = Annotated[int | None, typer.Option(help="Of the points (random, optuna).")]
Pruner = Annotated[str | None, typer.Option(help="none, median, hyperband (optuna).")]
Metric = Annotated[str, typer.Option(help="Of validation rows: what is best.")]
Retry = Annotated[bool, typer.Option("--retry", help="Try failed trials again.")]
Cost = Annotated[bool, typer.Option(help="Measure first what a run will take.")]
OPTIONS = {"trials": "--trials", "seed": "--sampler-seed", "pruner": "--pruner"}
"""How a key of a sampler is set on the command line."""


def sweep(
    experiment: Experiment,
    overrides: Points = None,
    sampler: Sampler = "grid",
    trials: Trials = None,
    sampler_seed: Seed = None,
    pruner: Pruner = None,
    metric: Metric = "cross_entropy",
    workers: Workers = None,
    executor: Executor = "local",
    retry: Retry = False,
    cost: Cost = True,
    json_output: Json = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Train an experiment at many points; each configuration once.

    A sweep that was stopped goes on with the same command. A trial that fails is
    written down, and the rest go on; the exit code is then 1.

    With --json a list, of each trial: number, point, status, run, objective, seconds,
    error, and whether it was pruned.

    Example: loralab sweep trec-6 training.learning_rate=3e-4,1e-3 --workers 2
    """
    from loralab.cli import render
    from loralab.cli.progress import JobsProgress
    from loralab.experiments.sweep import Sweep, SweepConfig

    given = {"trials": trials, "seed": sampler_seed, "pruner": pruner}
    params = {key: value for key, value in given.items() if value is not None}
    _check_sampler(sampler, params)
    points, of_executor = executor_params(overrides or (), workers)
    config = SweepConfig(experiment, tuple(points), sampler, params, metric)
    console = render.console(stderr=json_output)
    progress = JobsProgress(console)
    made = Sweep(config, runs_dir, retry=retry, on_event=progress)
    for line in _ahead(made, cost and not _later(executor)):
        console.print(line, soft_wrap=True)
    try:
        made.run(executor, **of_executor)
    finally:
        progress.close()
    if json_output:
        print_json(made.trials)
    else:
        console.print(_table(made))
        console.print(f"sweep {made.path}", soft_wrap=True)
    if any(trial.status == "failed" for trial in made.trials):
        raise typer.Exit(1)


def _check_sampler(name: str, params: Iterable[str]) -> None:
    """Refuse an option that the sampler does not take, and name those that do."""
    from loralab import registry
    from loralab.errors import ConfigError

    own = registry.get("sampler", name).schema.model_fields
    key = next((key for key in params if key not in own), None)
    if key is None:
        return
    others = registry.entries("sampler").items()
    able = [f"--sampler {one}" for one, of in others if key in of.schema.model_fields]
    raise ConfigError(
        f"the sampler {name} takes no {OPTIONS[key]}",
        why="grid tries every value" if name == "grid" else "",
        fix=f"{' or '.join(able)} takes {OPTIONS[key]}",
    )


def _ahead(sweep: Sweep, cost: bool) -> Iterator[str]:
    """Say what is swept, and what it costs."""
    swept = ", ".join(axis.key for axis in sweep.space.axes) or "nothing"
    yield f"sweep {sweep.path}: {counted(sweep.total, 'trial')} of {swept}"
    if cost and sweep.left:
        yield _cost(sweep, sweep.left)


def _later(executor: str) -> bool:
    """Return whether runs are trained elsewhere, where our rates say nothing."""
    from loralab import registry

    return bool(registry.get("executor", executor).facts.get("later"))


def _cost(sweep: Sweep, left: int) -> str:
    """Return what is left to do, at the rate of this machine."""
    from loralab.training.plan import plan

    found = plan(sweep.base)
    if not found.memory.fits or found.rates is None:
        return "one run does not fit into memory: see `loralab plan`"
    seconds = found.rates.training + found.rates.evaluation
    peak = size(found.memory.peak)
    return (
        f"about {duration(seconds)} a run ({counted(found.counts['steps'], 'step')}), "
        f"{duration(seconds * left)} for {left} one after the other; "
        f"{peak} at peak, each process"
    )


def _table(sweep: Sweep) -> Any:
    from rich.table import Table

    best = sweep.best()
    title = f"{sweep.config.metric} on validation rows; test rows are for what you keep"
    table = Table(title=title, title_justify="left")
    for axis in sweep.space.axes:
        table.add_column(axis.key)
    for name in ("status", "validation", "time", "run"):
        table.add_column(name, justify="right" if name == "validation" else "left")
    for trial in sorted(sweep.trials, key=lambda t: (sweep.rank(t), t.number)):
        values = [text.partition("=")[2] for text in trial.point]
        found = "found" if trial.status == "complete" else "–"
        shown = "–" if trial.objective is None else f"{trial.objective:.4f}"
        table.add_row(
            *values,
            trial.status if trial is not best else "complete, best",
            shown,
            duration(trial.seconds) if trial.seconds else found,
            trial.run or "–",
        )
    return table
