"""The cells of a study: one run each, and what became of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loralab.errors import RunError
from loralab.experiments.space import Point
from loralab.runs.files import check_format, write_json

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


def content_of(file: Path) -> dict[str, Any]:
    """Return the content of a study's record.

    Raises:
        RunError: it is of a later format.
        ValueError, KeyError, TypeError: it is no such record.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    check_format(content["format"], FORMAT_VERSION, RunError, file)
    return dict(content)


def write_cells(
    file: Path, cells: Sequence[Cell], size: str, config: dict[str, Any]
) -> None:
    """Write a study's record.

    Args:
        file: The record.
        cells: All of them.
        size: Of the study.
        config: The study's configuration.
    """
    head = {"format": FORMAT_VERSION, "kind": "study", "size": size, "config": config}
    write_json(file, {**head, "cells": [asdict(cell) for cell in cells]})


def read_cells(file: Path) -> list[Cell]:
    """Return the cells of a study's record; none where there is no record.

    Raises:
        RunError: it cannot be read, or is of a later format.
    """
    if not file.is_file():
        return []
    try:
        cells = content_of(file)["cells"]
        return [Cell(**{**cell, "point": tuple(cell["point"])}) for cell in cells]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            "the record of this study cannot be read",
            where=str(file),
            why=str(error),
            fix="move it away; runs beside it are found again",
        ) from None
