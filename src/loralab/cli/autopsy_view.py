"""How the autopsy of an adapter's ranks looks in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from loralab.units import percent

if TYPE_CHECKING:
    from loralab.adapters.autopsy import Autopsy
    from loralab.lowrank.budget import Budget


def autopsy_table(found: Autopsy) -> Table:
    """Return the table by module: shape, rank, what it used, what a budget keeps."""
    share = f"{100 * found.keep:g} %"
    table = Table(
        title=f"{found.folder}: ranks that keep {share} of the energy Σσ²",
        title_justify="left",
    )
    table.add_column("module")
    for name in (
        "out × in",
        "rank",
        "effective rank",
        "stable rank",
        "‖ΔW‖",
        "σ₁",
        "kept (ranks)",
        "kept (parameters)",
    ):
        table.add_column(name, justify="right")
    for module in found.modules:
        table.add_row(
            module.name,
            f"{module.shape[0]:,} × {module.shape[1]:,}",
            str(module.rank),
            f"{module.effective_rank:.2f}",
            f"{module.stable_rank:.2f}",
            f"{module.norm:.4g}",
            f"{module.sigma[0]:.4g}",
            str(found.by_rank.ranks[module.name]),
            str(found.by_parameters.ranks[module.name]),
        )
    return table


def autopsy_lines(found: Autopsy) -> list[str]:
    """Return the sentences below the table: the two budgets, and what they cost."""
    return [
        f"configured: {found.total_rank:,} ranks over {len(found.modules):,} modules, "
        f"{found.parameters:,} parameters",
        _line("fewest ranks", found, found.by_rank),
        _line("fewest parameters (greedy)", found, found.by_parameters),
    ]


def _line(name: str, found: Autopsy, budget: Budget) -> str:
    empty = sum(not rank for rank in budget.ranks.values())
    none = f"; {empty:,} modules keep nothing" if empty else ""
    return (
        f"{name}: {budget.total_rank:,} ranks, {budget.parameters:,} parameters "
        f"({percent(budget.parameters / found.parameters)}) keep "
        f"{percent(budget.energy, 2)} of the energy{none}"
    )


def truncation_table(result: Mapping[str, Any]) -> Table:
    """Return the table of a truncated adapter beside the whole one, paired."""
    from loralab.cli import render

    share = percent(result["confidence"], None)
    table = Table(
        title=f"{result['split']}: {result['measured_rows']:,} rows, "
        f"{share} intervals, truncated − whole paired",
        title_justify="left",
    )
    table.add_column("metric")
    for name in ("whole", "truncated", "difference"):
        table.add_column(name, justify="right")
    table.add_column("")
    for metric, arms in result["metrics"].items():
        gap = arms.get("difference")
        table.add_row(
            metric,
            render.interval(arms["whole"]),
            render.interval(arms["truncated"]),
            render.interval(gap, sign=True),
            render.verdict(result["better"][metric], gap) if gap else "",
        )
    return table
