"""The cells of a study: one run each, and what became of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loralab.errors import RunError
from loralab.experiments.space import Point
from loralab.runs.files import check_format

FORMAT_VERSION = 1
"""Of `study.json`."""
UNFINISHED = ("waiting", "pending")


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        data: Name of the data set.
        arm: Name of the arm or control.
        seed: Of the training.
        stage: ``tuning`` or ``final``.
        point: What tuning sets, as overrides.
        run: The name of its run.
        status: ``waiting``, ``pending`` (handed on, to be trained later), ``complete``
            or ``failed``.
        error: Why it failed.
    """

    data: str
    arm: str
    seed: int
    stage: str
    point: Point
    run: str = ""
    status: str = "waiting"
    error: str = ""


def written(value: Any) -> str:
    """Return a value of a grid as an override has it."""
    return value if isinstance(value, str) else json.dumps(value)


def key_of(cell: Cell) -> Cell:
    """Return a cell as it was asked for: without what became of it."""
    return Cell(cell.data, cell.arm, cell.seed, cell.stage, cell.point)


def read_cells(file: Path) -> list[Cell]:
    """Return the cells of a study's record; none where there is no record.

    Raises:
        RunError: it cannot be read, or is of a later format.
    """
    if not file.is_file():
        return []
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        check_format(content["format"], FORMAT_VERSION, RunError, file)
        return [Cell(**{**c, "point": tuple(c["point"])}) for c in content["cells"]]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            "the record of this study cannot be read",
            where=str(file),
            why=str(error),
            fix="move it away; runs beside it are found again",
        ) from None
