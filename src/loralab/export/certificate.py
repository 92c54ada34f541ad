"""The parity certificate of an artefact's run, on test rows of its data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loralab.errors import ExportError
from loralab.evaluation.evaluate import split_of
from loralab.export.parity import Tolerance, certify
from loralab.export.subject import Subject
from loralab.inference.open import open_run
from loralab.runs import Run
from loralab.runs.environment import environment
from loralab.runs.files import write_json

ROWS = 200
"""Test rows of a certificate, unless told otherwise."""


def certify_run(
    run: Run,
    subject: Subject,
    rows: int,
    tolerance: Tolerance,
    tell: Callable[[dict[str, Any]], None],
) -> None:
    """Write ``parity.json``, and whether it passed into ``run.json``.

    Args:
        run: The artefact's.
        subject: What it was made of.
        rows: Test rows at most; the first ones, which are in random order. Where there
            are none, validation rows.
        tolerance: What must hold.
        tell: Told of progress.

    Raises:
        ExportError: neither are there.
    """
    there = [name for name in ("test", "validation") if name in subject.data["sizes"]]
    if not there:
        raise ExportError(
            "no rows to certify the artefact on: the data has neither test nor "
            "validation rows",
            where=run.id,
            fix="set data.test_fraction, or make no certificate with --rows 0",
        )
    found = split_of(run, subject.loaded, there[0])
    chosen = found.select(range(min(rows, len(found))))

    def progress(what: str, done: int, of: int) -> None:
        about = f"certificate, {what}"
        tell({"event": "storing", "what": about, "done": done, "of": of})

    made = certify(
        open_run(run),
        subject.loaded,
        chosen,
        subject.config.evaluation,
        tolerance,
        progress,
    )
    about = {"artefact": run.id, "predecessor": subject.name, "split": there[0]}
    content = {**about, **made, "environment": environment()}
    write_json(run.path / "parity.json", content)
    run.update(parity=made["passed"])
