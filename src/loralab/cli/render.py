"""How figures look: units, intervals, tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from loralab.logs import Redacting, libraries, logger
from loralab.units import counted, duration, percent

if TYPE_CHECKING:
    from loralab.reporting.tables import Table as ReportTable


def console(stderr: bool = False) -> Console:
    """Return the console; wide enough for a table when output goes to a file.

    Brackets are shown as they are: ``[q_proj]`` is a value here, and no markup.
    """
    plain: dict[str, Any] = {"highlight": False, "emoji": False, "markup": False}
    found = Console(stderr=stderr, **plain)
    if found.is_terminal:
        return found
    return Console(width=160, stderr=stderr, **plain)


def log_to_stderr(level: str) -> Callable[[], None]:
    """Show our log on stderr; return what ends it.

    What libraries say is shown at ``debug`` only: a run has it in its ``log.txt``.
    """
    handler = RichHandler(
        level.upper(), Console(stderr=True), show_path=False, markup=False
    )
    handler.addFilter(Redacting())
    if level != "debug":
        handler.addFilter(lambda record: record.name != libraries.name)
    before = logger.level
    logger.addHandler(handler)
    if level in ("debug", "info"):
        logger.setLevel(level.upper())

    def end() -> None:
        logger.removeHandler(handler)
        logger.setLevel(before)

    return end


def budget(spent: Mapping[str, Any]) -> str:
    """Return what a training has spent: parameters, tokens, time, products."""
    most = ""
    if spent.get("most_trainable", 0) > spent.get("trainable", 0):
        most = f" ({spent['most_trainable']:,} at most)"
    words = [f"{spent['trainable']:,} parameters{most}"] if "trainable" in spent else []
    words += [f"{spent['tokens']:,} tokens", duration(spent["step_seconds"])]
    if spent.get("flops"):
        words.append(f"{spent['flops'] / 1e12:.2f} TFLOP")
    return f"spent    {', '.join(words)} in {counted(spent['steps'], 'step')}"


def interval(found: Mapping[str, float] | None, sign: bool = False) -> str:
    """Return ``0.912 [0.88, 0.94]``, with a sign for differences."""
    if found is None:
        return "–"
    from loralab.reporting.tables import format_number

    numbers = (found["value"], found["low"], found["high"])
    value, low, high = (format_number(float(n), 3, signed=sign) for n in numbers)
    return f"{value} [{low}, {high}]"


def verdict(better: str, difference: Mapping[str, float]) -> str:
    """Say in a word what an interval of a difference shows.

    Args:
        better: ``higher`` or ``lower``: which way the metric is better.
        difference: An interval.
    """
    if difference["low"] <= 0 <= difference["high"]:
        return "no difference shown"
    up = difference["low"] > 0
    return "better" if up == (better == "higher") else "worse"


def metrics_table(result: Mapping[str, Any]) -> Table:
    """Return the table of an evaluation: metric, base, adapter, difference."""
    share = percent(result["confidence"], None)
    title = f"{result['split']}: {result['measured_rows']:,} rows, {share} intervals"
    table = Table(title=title, title_justify="left")
    has_base = any("base" in arms for arms in result["metrics"].values())
    table.add_column("metric")
    for name in ("base", "adapter", "difference") if has_base else ("adapter",):
        table.add_column(name, justify="right")
    if has_base:
        table.add_column("")
    better = result["better"]
    for metric, arms in result["metrics"].items():
        row = [metric]
        if has_base:
            gap = arms.get("difference")
            row += [interval(arms["base"]), interval(arms["adapter"])]
            word = verdict(better[metric], gap) if gap else ""
            row += [interval(gap, sign=True), word]
        else:
            row.append(interval(arms["adapter"]))
        table.add_row(*row)
    return table


def evaluation_parts(result: Mapping[str, Any]) -> list[Any]:
    """Return all that is shown of an evaluation, in order."""
    parts: list[Any] = [metrics_table(result)]
    if result.get("groups"):
        parts.append(groups_table(result))
    if "majority" in result:
        share = f"{result['majority']:.3f}"
        parts.append(f"always the most frequent class: accuracy {share}")
    if 0 < len(result.get("per_class", ())) <= 30:
        parts.append(per_class_table(result))
    if mistaken := most_mistaken(result):
        parts.append(mistaken)
    return parts


def groups_table(result: Mapping[str, Any]) -> Table:
    """Return the table of metrics by group of rows (answerable, unanswerable)."""
    first, *_ = result["groups"].values()
    metrics = [name for name in first if name != "rows"]
    table = Table(title="by kind of row", title_justify="left")
    for name in ("rows that are", "rows"):
        table.add_column(name)
    for name in metrics:
        for arm in first[name]:
            table.add_column(f"{name}, {arm}", justify="right")
    for group, values in result["groups"].items():
        cells = [f"{v:.3f}" for name in metrics for v in values[name].values()]
        table.add_row(group, f"{values['rows']:,}", *cells)
    return table


def most_mistaken(result: Mapping[str, Any], count: int = 3) -> str:
    """Return the classes that are most often taken for another, in words."""
    cells = [cell for cell in result.get("confusion", ()) if cell[0] != cell[1]]
    most = sorted(cells, key=lambda cell: -cell[2])[:count]
    shown = ", ".join(f"{true} for {said} ({rows:,})" for true, said, rows in most)
    return f"most often mistaken: {shown}" if shown else ""


def per_class_table(result: Mapping[str, Any]) -> Table:
    """Return the table of precision, recall and F1 by class."""
    table = Table(title="adapter, by class", title_justify="left")
    table.add_column("class")
    for name in ("rows", "precision", "recall", "F1"):
        table.add_column(name, justify="right")
    for row in result["per_class"]:
        values = [row["precision"], row["recall"], row["f1"]]
        shown = ["–" if v is None else f"{v:.3f}" for v in values]
        table.add_row(row["label"], f"{row['support']:,}", *shown)
    return table


def report_table(made: ReportTable) -> Table:
    """Return a table of a report for the terminal; its notes are the caption."""
    from loralab.reporting.tables import format_cell

    notes = "\n".join(made.notes)
    table = Table(
        title=made.title, title_justify="left", caption=notes, caption_justify="left"
    )
    for index, column in enumerate(made.columns):
        right = made.aligned(index) == "right"
        table.add_column(column.header, justify="right" if right else "left")
    for row in made.rows:
        cells = zip(row, made.columns, strict=True)
        table.add_row(*(format_cell(cell, column) for cell, column in cells))
    return table
