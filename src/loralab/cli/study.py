"""`loralab study`: a question answered by many runs, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loralab.cli.completion import studies_like
from loralab.cli.json_output import Json, print_json
from loralab.cli.listing import listing
from loralab.cli.options import (
    Executor,
    MachineFile,
    Offline,
    RunsDir,
    Workers,
    executor_params,
)
from loralab.units import duration, percent, size

if TYPE_CHECKING:
    from loralab.experiments.ledger import Entry
    from loralab.experiments.noise import Detectable
    from loralab.experiments.study import Study

app = typer.Typer(
    help="A question, its arms, and what its runs say: plan, run, analyse, report.",
    no_args_is_help=True,
)

StudyFile = Annotated[
    str,
    typer.Argument(
        help="study.yaml, or the directory that `run` made.",
        autocompletion=studies_like,
    ),
]
Size = Annotated[str, typer.Option(help="smoke (it runs) or evidence (it proves).")]
PIECE = 3600
"""Seconds that a study should not take in one go."""
UNKNOWN = "–"


@app.command()
def plan(
    study: StudyFile,
    size: Size = "smoke",
    offline: Offline = False,
    machine: MachineFile = None,
    json_output: Json = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Tell what the study takes and what difference it can see; train nothing.

    With --offline, of models of the hub: each arm's memory and disk, and hours with
    --machine, without network, at most.

    With --json an object: question, size, ledger (of each arm: data, arm, runs, left,
    seconds, measured, budgets, disk, memory, unknown), power (data, seeds, detectable,
    of_interest, source).

    Example: loralab study plan studies/aa_floor/study.yaml --size evidence
    """
    from loralab.cli import render
    from loralab.experiments.ledger import check_budgets, ledger, offline_ledger
    from loralab.experiments.noise import detectable
    from loralab.experiments.study import find_study
    from loralab.training.estimate import read_machine

    found = find_study(study, size, runs_dir)
    meant = read_machine(machine) if machine else None
    console = render.console(stderr=json_output)
    console.print(found.config.question)
    power, tell = detectable(found), _teller(console)
    if offline or machine:
        entries = offline_ledger(found, meant, tell)
    else:
        entries = ledger(found, tell=tell)
    if json_output:
        asked = {"question": found.config.question, "size": found.size}
        print_json({**asked, "ledger": entries, "power": power})
    else:
        console.print(_ledger_table(found, entries))
        console.print(_total(entries))
        for line in dict.fromkeys(text for e in entries for text in e.unknown):
            console.print(f"unknown  {line}", soft_wrap=True)
        console.print(_power_table(found, power))
    check_budgets(found, {(e.data, e.arm): e.budgets for e in entries})


def _teller(console: Any) -> Callable[[str], None]:
    return lambda what: console.print(f"{what} …")


def _ledger_table(study: Study, entries: list[Entry]) -> Any:
    from rich.table import Table

    most = ", at most" if any(entry.unknown for entry in entries) else ""
    table = Table(title=f"ledger, {study.size}{most}", title_justify="left")
    for name in ("data", "arm"):
        table.add_column(name)
    numbers = ("runs", "left", "steps", "tokens", "trained parameters", "peak memory")
    for name in (*numbers, "disk, a run", "time, a run", "time left"):
        table.add_column(name, justify="right")
    for entry in entries:
        mark = "" if entry.measured else "~"
        times = (entry.seconds, entry.seconds_left)
        spent = [entry.budgets.get(n) for n in ("steps", "tokens", "trainable")]
        table.add_row(
            entry.data,
            entry.arm,
            str(entry.runs),
            str(entry.left),
            *(UNKNOWN if one is None else f"{one:,.0f}" for one in spent),
            *(
                UNKNOWN if one is None else size(one)
                for one in (entry.memory, entry.disk)
            ),
            *(
                UNKNOWN if entry.seconds is None else mark + duration(one or 0)
                for one in times
            ),
        )
    return table


def _total(entries: list[Entry]) -> str:

    left = sum(entry.left for entry in entries)
    text = f"{left} runs left"
    if all("tokens" in entry.budgets for entry in entries):
        tokens = sum(entry.left * entry.budgets["tokens"] for entry in entries)
        text += f", {tokens:,.0f} tokens"
    if all(entry.seconds is not None for entry in entries):
        seconds = sum(entry.seconds_left for entry in entries)
        text += f", {duration(seconds)} one after the other"
        if seconds > PIECE:
            text += " (`study run --minutes 60` does it in pieces)"
    if all(entry.disk is not None for entry in entries):
        disk = sum(entry.runs * (entry.disk or 0) for entry in entries)
        text += f", {size(disk)} on disk"
    return text


def _power_table(study: Study, rows: list[Detectable]) -> Any:
    from rich.table import Table

    share = percent(study.config.power, None)
    table = Table(
        title=f"smallest true difference of {study.config.metric} that is seen in "
        f"{share} of studies like this",
        title_justify="left",
    )
    for name in ("data", "seeds", "detectable", "of interest", "", "noise measured on"):
        table.add_column(name)
    for row in rows:
        if row.detectable is None:
            seen, word = "–", "unknown: run some of its seeds first, or name a pilot"
        else:
            enough = row.detectable <= row.of_interest
            seen = f"{row.detectable:.4g}"
            word = "enough" if enough else "TOO FEW SEEDS"
        interest = f"{row.of_interest:.4g}"
        table.add_row(row.data, str(row.seeds), seen, interest, word, row.source)
    return table


@app.command(cls=listing("executor", "Executors and their keys:", "--executor"))
def run(
    study: StudyFile,
    params: Annotated[
        list[str] | None, typer.Argument(help="executor.key=value of the executor.")
    ] = None,
    size: Size = "smoke",
    workers: Workers = None,
    executor: Executor = "local",
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Begin no run after this long.")
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try failed runs again.")
    ] = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Train what is left of the study; goes on where it was stopped.

    Example: loralab study run studies/aa_floor/study.yaml --workers 2 --minutes 60
    """
    from loralab.cli import render
    from loralab.cli.progress import JobsProgress
    from loralab.experiments.ledger import check_budgets, ledger
    from loralab.experiments.study import find_study
    from loralab.experiments.sweep import named

    of_executor = _of_executor(params or (), workers)
    named("executor", executor, of_executor)  # a wrong one is told before the ledger
    found = find_study(study, size, runs_dir)
    console = render.console()
    entries = ledger(found, timed=False, tell=_teller(console))
    check_budgets(found, {(e.data, e.arm): e.budgets for e in entries})
    console.print(_total(entries))
    progress = JobsProgress(console)
    try:
        ended = found.run(
            executor, minutes=minutes, retry=retry, on_event=progress, **of_executor
        )
    finally:
        progress.close()
    if _tell_ended(console, found, ended):
        raise typer.Exit(1)


def _of_executor(pairs: Sequence[str], workers: int | None) -> dict[str, Any]:
    """Return the params of the executor; nothing else is set on the command line."""
    from loralab.errors import ConfigError

    others, found = executor_params(pairs, workers)
    if others:
        raise ConfigError(
            f"{others[0]!r} is not executor.key=value",
            fix="what is trained stands in the study's file",
        )
    return found


def _tell_ended(console: Any, found: Study, ended: bool) -> int:
    """Say what a piece has come to; return how many runs have failed."""
    failed = [cell for cell in found.cells() if cell.status == "failed"]
    word = "all runs have ended" if ended else "runs are left: the same command goes on"
    console.print(f"{word}; {len(failed)} failed")
    console.print(f"study {found.path}", soft_wrap=True)
    return len(failed)


@app.command()
def analyse(
    study: StudyFile,
    size: Size = "smoke",
    json_output: Json = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Say what the runs show; reads run directories and nothing else.

    With --json an object, the content of analysis.json: format, kind, size, study,
    better (which way), runs, failed, waiting (runs not ended), arms, comparisons,
    controls, over_tasks, noise, tuning.

    Example: loralab study analyse studies/aa_floor/study.yaml --size evidence
    """
    from loralab.cli import render
    from loralab.experiments.analyse import analyse as make_analysis
    from loralab.experiments.report_tables import tables
    from loralab.experiments.study import find_study

    found = find_study(study, size, runs_dir)
    analysis = make_analysis(found)
    console = render.console(stderr=json_output)
    if json_output:
        print_json(analysis)
    else:
        for name, table in tables(analysis).items():
            if name != "runs":
                console.print(render.report_table(table))
    broken = [c["name"] for c in analysis["controls"] if c["held"] is False]
    console.print(f"analysis {found.path / 'analysis.json'}", soft_wrap=True)
    if broken:
        console.print(f"CONTROLS THAT DID NOT HOLD: {', '.join(broken)}")
        raise typer.Exit(1)


@app.command()
def figures(
    folder: Annotated[
        Path, typer.Argument(help="A study's directory with its analysis.json.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where to write; default: its figures/.")
    ] = None,
) -> None:
    """Draw the figures of an analysis again, as PDF, SVG and PNG; needs no runs.

    The same analysis gives the same bytes.

    Example: loralab study figures studies/aa_floor --out figures
    """
    from loralab.cli import render
    from loralab.experiments.report import read_analysis, write_figures

    into = out or folder / "figures"
    drawn = write_figures(read_analysis(folder), into)
    for name in drawn:
        render.console().print(f"wrote    {into / name}", soft_wrap=True)


@app.command()
def report(
    study: StudyFile,
    size: Size = "smoke",
    out: Annotated[
        Path | None, typer.Option(help="Where to write; default: beside the study.")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Write the analysis, tables, figures and one self-contained HTML page.

    Example: loralab study report studies/aa_floor/study.yaml --size evidence
    """
    from loralab.cli import render
    from loralab.experiments.report import write_report
    from loralab.experiments.study import find_study

    found = find_study(study, size, runs_dir)
    page = write_report(found, out or found.path)
    render.console().print(f"wrote    {page}", soft_wrap=True)
