"""Where rank went: layers down, module types across, the rank in each cell."""

from __future__ import annotations

import math
from collections.abc import Mapping

from matplotlib.figure import Figure

from loralab.reporting.figures.heat import heat_map
from loralab.reporting.ranks import rank_matrix


def rank_map(
    ranks: Mapping[str, int],
    strategy: str,
    asked: int,
    met: int,
    unit: str,
    parameters: int,
) -> Figure:
    """Draw the ranks of an adapter.

    Args:
        ranks: Path of a module -> rank, in the model's order.
        strategy: How they were allocated.
        asked: The budget.
        met: What the ranks take of it.
        unit: Of both: ``parameters`` or ``rank``.
        parameters: Of the adapter.

    Raises:
        ValueError: no ranks.
    """
    columns, rows = rank_matrix(ranks)
    names = {"parameters": "parameters", "rank": "ranks"}
    return heat_map(
        [[math.nan if rank is None else rank for rank in own] for _, own in rows],
        [f"layer {row}" if row.isdigit() else row for row, _ in rows],
        columns,
        "rank (columns of B)",
        title=f"{strategy}: {met:,} of {asked:,} {names[unit]}\n"
        f"{parameters:,} parameters in {len(ranks):,} modules",
    )
