"""`loralab compare`: runs side by side in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loralab.cli.json_output import Json, print_json
from loralab.cli.lines import read_lines
from loralab.cli.options import RunNames, RunsDir, Split
from loralab.units import duration, percent, size

Prompts = Annotated[
    Path | None, typer.Option(help="Ask every run this: one input a line.")
]
Out = Annotated[
    Path | None,
    typer.Option(help="Write comparison.json, .md and .html into this folder."),
]


def compare(
    runs: RunNames,
    split: Split = "test",
    quality: Annotated[
        bool, typer.Option("--quality", help="Evaluate first what was not evaluated.")
    ] = False,
    latency: Annotated[
        bool, typer.Option("--latency", help="Time them, interleaved; load and memory.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=6, help="Of the timing.")] = 10,
    prompts: Prompts = None,
    out: Out = None,
    json_output: Json = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Compare runs: quality, size, how they were made; speed and answers if asked.

    With --json an object: records (of each run), paired, unpaired (and why); latency
    and footprint with --latency, answers with --prompts.

    Example: loralab compare trec-6 trec-6-onnx-int8 --quality --out comparison
    """
    from loralab.cli import render
    from loralab.experiments.evaluator import ModelEvaluator
    from loralab.runs import find_run

    chosen = [find_run(run, runs_dir) for run in runs]
    progress = render.console(stderr=True)

    def tell(what: str, done: int, of: int) -> None:
        if progress.is_terminal:
            progress.print(f"{what}: {done} of {of}")

    evaluator = ModelEvaluator(split, tell)
    for run in chosen:
        if quality:
            evaluator.evaluate_model(run)
    asked = [line for line in read_lines(prompts) if line.strip()] if prompts else []
    found = evaluator.compare(chosen, rounds=rounds if latency else 0, inputs=asked)
    if out:
        _write(out, found)
    if json_output:
        print_json(found)
    else:
        show(found)


def _write(folder: Path, found: dict[str, Any]) -> None:
    from loralab.cli import render
    from loralab.reporting.comparison import html, markdown
    from loralab.runs.files import write_json, write_text

    write_json(folder / "comparison.json", found)
    write_text(folder / "comparison.md", markdown("Comparison", found))
    write_text(folder / "comparison.html", html("Comparison", found))
    console = render.console(stderr=True)  # of --json, too
    console.print(f"wrote    {folder}: comparison.json, .md, .html", soft_wrap=True)


def show(found: dict[str, Any]) -> None:
    """Print a comparison: runs, paired differences, what else was measured."""
    from loralab.cli import render
    from loralab.reporting.comparison import (
        answers,
        memory,
        speed,
        told_apart,
        why_unpaired,
    )

    console = render.console()
    console.print(_table(found["records"]))
    cautions = {one["caution"] for one in found["records"] if one["caution"]}
    for text in sorted(cautions):
        console.print(f"caution: {text}")
    own = "intervals" in told_apart(found["records"])
    for pair in found["paired"]:
        gap = render.interval(pair, sign=True)
        gap += f" of {percent(pair['confidence'], None)}" if own else ""
        says = render.verdict(pair["better"], pair)
        console.print(
            f"{pair['second']} − {pair['first']}, same rows: {pair['metric']} {gap} "
            f"({says})",
        )
    for line in why_unpaired(found):
        console.print(line)
    for made in (speed(found), memory(found), answers(found)):
        if made:
            console.print(render.report_table(made))


def _table(records: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    from loralab.reporting.comparison import split_of, told_apart

    apart, first = told_apart(records), records[0]
    split = "" if "split" in apart else f"{split_of(first)} "
    share = "" if "intervals" in apart else f"{percent(first['confidence'], None)} "
    title = f"{split}rows, {share}intervals over rows, adapter − base paired"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for record in records:
        table.add_column(record["run"])
    columns = [
        _cells(record, {name: str(apart[name][i]) for name in OWN if name in apart})
        for i, record in enumerate(records)
    ]
    for name in columns[0]:
        cells = [column[name] for column in columns]
        if set(cells) != {NONE}:
            table.add_row(name, *cells)
    return table


NONE = "–"
OWN = ("split", "intervals")
"""What the title tells of all runs where it is the same, and a row where it is not."""


def _cells(record: dict[str, Any], own: dict[str, str]) -> dict[str, str]:
    """Return what the table says of one run, by row; `own` stands below its metric."""
    from loralab.cli import render

    metric, values = record["metric"], record["values"]
    gap, majority = values.get("difference"), record["majority"]
    new_head = " (its head untrained)" if record["new_head"] else ""
    return {
        "base model": record["base"] + new_head,
        "metric (rows)": f"{metric} ({record['rows']:,})",
        **{f"  {name}": text for name, text in own.items()},
        "  most frequent class": NONE if majority is None else f"{majority:.3f}",
        "  base": render.interval(values.get("base")),
        "  this run": render.interval(values["adapter"]),
        "  difference": render.interval(gap, sign=True),
        "  verdict": render.verdict(record["better"], gap) if gap else NONE,
        **dict.fromkeys((*TRAINED, *STORED), NONE),
        **(_stored if record["kind"] == "artefact" else _trained)(record),
    }


TRAINED = (
    *("trained parameters", "adapter size", "training time", "tokens/s"),
    "peak memory",
)
STORED = (
    *("stored as", "engine", "size", "of fp32, fp16", "route", "adapter kept"),
    "parity",
)
"""Rows of the table that only one kind of run fills."""


def _trained(record: dict[str, Any]) -> dict[str, str]:

    rate = record["tokens_per_second"]
    cells = (
        f"{record['trainable']:,}",
        size(record["adapter_bytes"]),
        _time(record),
        f"{rate:,.0f}" if rate else NONE,
        size(record["peak_memory_bytes"]),
    )
    return dict(zip(TRAINED, cells, strict=True))


def _stored(record: dict[str, Any]) -> dict[str, str]:

    kept, parity = record["kept"], record["parity"]
    cells = (
        record["storage"]["name"],
        record["engine"],
        size(record["bytes"]["measured"]),
        f"{percent(record['of_fp32'])}, {percent(record['of_fp16'])}",
        record["route"] or NONE,
        NONE if kept is None else percent(kept),
        {None: NONE, True: "passed", False: "NOT PASSED"}[parity],
    )
    return dict(zip(STORED, cells, strict=True))


def _time(record: dict[str, Any]) -> str:

    shown = duration(record["seconds"])
    return f"{shown} (since the last resume)" if record["resumed"] else shown
