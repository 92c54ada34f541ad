"""`loralab ranks`: where rank would go, or where it went and what it was used for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loralab.cli.completion import experiments_like, runs_like
from loralab.cli.json_output import Json, print_json
from loralab.cli.options import Overrides, RunsDir

if TYPE_CHECKING:
    from loralab.adapters.autopsy import Autopsy
    from loralab.runs import Run


KEPT = 0.9
"""Share of the energy that is kept where none is named."""


Asked = Annotated[
    str | None,
    typer.Argument(
        help="A preset or the path of a YAML file.", autocompletion=experiments_like
    ),
]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="A run, whose adapter is looked into.",
        autocompletion=runs_like,
    ),
]
Keep = Annotated[
    float | None,
    typer.Option(help="Share of the energy Σσ² that is kept, with --from: 0.9."),
]
Measure = Annotated[
    bool, typer.Option(help="Measure the truncated adapter, with --from.")
]
Out = Annotated[
    Path | None, typer.Option(help="Write the truncated adapter here, with --from.")
]
Figures = Annotated[Path | None, typer.Option(help="Write figures into this folder.")]


def ranks(
    experiment: Asked = None,
    overrides: Overrides = None,
    source: From = None,
    keep: Keep = None,
    measure: Measure = True,
    out: Out = None,
    figures: Figures = None,
    json_output: Json = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Show the ranks that an experiment's strategy gives, layer by module.

    With --from RUN: the spectra of a trained adapter, the smallest ranks that keep a
    share of its energy, and the truncated adapter's quality beside the whole one's.

    With --json an object: strategy, ranks, scales, unit, budget, met, parameters,
    seconds; of a run: autopsy, measured.

    Example: loralab ranks trec-6 peft=gradient-ranks

    Example: loralab ranks --from trec-6 --keep 0.9
    """
    from loralab.adapters.autopsy import check_empty
    from loralab.errors import ConfigError

    if (experiment is None) == (source is None):
        raise ConfigError("name an experiment, or a run with --from")
    if source is None:
        if out is not None or keep is not None or not measure:
            raise ConfigError(
                "--keep, --out and --no-measure look into a trained adapter",
                fix="name its run with --from",
            )
        _allocate(str(experiment), overrides or [], figures, json_output)
        return
    if out is not None:
        check_empty(out)
    share = KEPT if keep is None else keep
    _look_into(source, runs_dir, share, measure, out, figures, json_output)


def _allocate(
    experiment: str, overrides: list[str], figures: Path | None, json_output: bool
) -> None:
    from loralab.cli import render
    from loralab.config import compose
    from loralab.training.allotted import ranks_of_experiment

    config = compose(experiment, overrides)
    console = render.console(stderr=json_output)

    def tell(what: str) -> None:
        console.print(f"{what} …")

    found = ranks_of_experiment(config, tell)
    if json_output:
        print_json(found)
    else:
        _print(console, found)
    if figures:
        from loralab.reporting.figures import rank_map, save

        drawn = rank_map(
            found["ranks"],
            found["strategy"],
            found["budget"] or found["met"],
            found["met"],
            found["unit"],
            found["parameters"],
        )
        _told(console, save(drawn, figures, "ranks"))


def _print(console: Any, found: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from loralab.reporting.ranks import rank_matrix

    columns, rows = rank_matrix(found["ranks"])
    table = Table(title=f"ranks by {found['strategy']}", title_justify="left")
    table.add_column("layer")
    for column in columns:
        table.add_column(column, justify="right")
    most = max(found["ranks"].values())
    for name, row in rows:
        table.add_row(name, *(Text(_cell(rank), _shade(rank, most)) for rank in row))
    console.print(table)
    asked = f" of {found['budget']:,}" if found["budget"] else ""
    scales = ", ".join(f"{s:g} (×{n})" for s, n in found["scales"].items())
    for line in (
        f"budget   {found['met']:,}{asked} {found['unit']} "
        f"({found['parameters']:,} parameters, {len(found['ranks'])} modules)",
        f"scale    alpha / rank is {scales}",
        f"cost     {found['seconds']:.1f} s",
    ):
        console.print(line, soft_wrap=True)


def _cell(rank: int | None) -> str:
    return "" if rank is None else str(rank)


def _shade(rank: int | None, most: int) -> str:
    """Return a background that darkens with rank, in 24 steps of grey."""
    if rank is None:
        return ""
    step = 255 - round(23 * rank / most)
    return f"{'white' if step < 244 else 'black'} on color({step})"


def _look_into(
    source: str,
    runs_dir: Path,
    keep: float,
    measure: bool,
    out: Path | None,
    figures: Path | None,
    json_output: bool,
) -> None:
    from loralab.adapters.autopsy import autopsy, write_truncated
    from loralab.cli import render
    from loralab.cli.autopsy_view import autopsy_lines, autopsy_table, truncation_table
    from loralab.evaluation.autopsy import evaluate_truncated
    from loralab.runs import find_run

    run = find_run(source, runs_dir)
    console = render.console(stderr=json_output)
    found = autopsy(run, keep)
    result = evaluate_truncated(run, found) if measure else None
    if json_output:
        print_json({"autopsy": found.as_dict(), "measured": result})
    else:
        console.print(autopsy_table(found))
        for line in autopsy_lines(found):
            console.print(line, soft_wrap=True)
        if result:
            console.print(truncation_table(result))
    if out:
        write_truncated(found, out)
        _told(console, [out])
    if figures:
        _told(console, _draw(run, found, figures))


def _draw(run: Run, found: Autopsy, folder: Path) -> list[Path]:
    """Write the spectra, and for ranks that changed their history."""
    from loralab.reporting.figures import Spectrum, save, spectra_map
    from loralab.reporting.figures.rank_history import rank_history, read_rank_history

    kept = found.by_rank.ranks
    spectra = [Spectrum(m.name, m.sigma, kept[m.name]) for m in found.modules]
    paths = save(spectra_map(spectra, found.curve, found.keep), folder, "spectra")
    if any(event["event"] == "ranks" for event in run.events()):
        history = read_rank_history(run.events())
        paths += save(rank_history(history), folder, "rank-history")
    return paths


def _told(console: Any, paths: list[Path]) -> None:
    for path in paths:
        console.print(f"wrote    {path}", soft_wrap=True)
