"""How figures look: units, intervals, tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

HIGHER_IS_BETTER = {"accuracy", "macro-f1", "mcc"}


def console() -> Console:
    """Return the console; wide enough for a table when output goes to a file."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=160)


def size(count: float) -> str:
    """Return bytes in a unit that reads well (powers of ten)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return (
                f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
            )
        count /= 1000
    return ""


def duration(seconds: float) -> str:
    """Return ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def interval(found: Mapping[str, float] | None, sign: bool = False) -> str:
    """Return ``0.912 [0.88, 0.94]``, with a sign for differences."""
    if found is None:
        return "–"
    form = "+.3f" if sign else ".3f"
    return f"{found['value']:{form}} [{found['low']:{form}}, {found['high']:{form}}]"


def verdict(metric: str, difference: Mapping[str, float]) -> str:
    """Say in a word what an interval of adapter minus base shows."""
    if difference["low"] <= 0 <= difference["high"]:
        return "no difference shown"
    up = difference["low"] > 0
    return "better" if up == (metric in HIGHER_IS_BETTER) else "worse"


def metrics_table(result: Mapping[str, Any]) -> Table:
    """Return the table of an evaluation: metric, base, adapter, difference."""
    share = f"{100 * result['confidence']:.0f} %"
    title = f"{result['split']}: {result['measured_rows']:,} rows, {share} intervals"
    table = Table(title=title, title_justify="left")
    has_base = any("base" in arms for arms in result["metrics"].values())
    table.add_column("metric")
    for name in ("base", "adapter", "difference") if has_base else ("adapter",):
        table.add_column(name, justify="right")
    if has_base:
        table.add_column("")
    for metric, arms in result["metrics"].items():
        row = [metric]
        if has_base:
            gap = arms.get("difference")
            row += [interval(arms["base"]), interval(arms["adapter"])]
            row += [interval(gap, sign=True), verdict(metric, gap) if gap else ""]
        else:
            row.append(interval(arms["adapter"]))
        table.add_row(*row)
    return table


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
