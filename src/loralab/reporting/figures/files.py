"""Figures to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from loralab.reporting.style import METADATA, style
from loralab.runs.files import atomic_file


def save(
    figure: Figure,
    folder: Path,
    name: str,
    formats: Sequence[str] = ("pdf", "svg", "png"),
) -> list[Path]:
    """Write a figure, each file atomically; the same data give the same bytes.

    Args:
        figure: Made by a function of this package.
        folder: Made if it is missing.
        name: Without a suffix.
        formats: Of ``pdf`` (fonts embedded, Type 42), ``svg`` (text as paths) and
            ``png`` (200 dots an inch).

    Returns:
        The paths written, one a format.

    Raises:
        ValueError: an unknown format.
    """
    if unknown := sorted(set(formats) - set(METADATA)):
        raise ValueError(f"unknown formats {unknown}; known: {sorted(METADATA)}")
    paths = []
    for form in formats:
        path = Path(folder) / f"{name}.{form}"
        with style(), atomic_file(path) as temporary:
            figure.savefig(temporary, format=form, metadata=METADATA[form])
        paths.append(path)
    return paths
