"""A run that is there already: found, continued, or refused."""

from __future__ import annotations

from loralab.config import ExperimentConfig
from loralab.data.examples import get_preprocessor
from loralab.data.rows import load_rows
from loralab.errors import RunError
from loralab.runs import Run
from loralab.training.prepare import Prepared


def refuse_begun(run: Run) -> None:
    """Refuse a run that another process has begun while this one prepared.

    Raises:
        RunError: there is one.
    """
    if (run.path / "run.json").is_file():
        raise RunError(
            "another process has begun this run",
            where=str(run.path),
            fix="wait for it; the same call then finds it",
        )


def not_finished(run: Run, status: str) -> RunError:
    """Return the error of a run that must be continued, or begun again."""
    return RunError(
        f"this run was {status}",
        where=str(run.path),
        why=str(run.read().get("error", "")),
        fix="continue it with --resume, or begin again with --force",
    )


def check_same_data(run: Run, config: ExperimentConfig) -> None:
    """Refuse a complete run whose rows have changed since.

    Raises:
        RunError: they have.
    """
    before = run.read()["data"]
    rows = load_rows(config.data, get_preprocessor(config.task), before.get("locks"))
    if rows.fingerprint != before["fingerprint"]:
        raise RunError(
            "this configuration was trained before, on other rows",
            where=str(run.path),
            why="the data behind the same path has changed",
            fix="train again with --force; the old run is kept under another name",
        )


def check_resumable(run: Run, prepared: Prepared) -> None:
    """Refuse to continue on other rows or another base than the run began with.

    Raises:
        RunError: they differ, or the adapter's initialisation came out otherwise.
    """
    before = run.read()
    for name, was, now_is in (
        ("data", before.get("data"), prepared.rows.fingerprint),
        ("base", before.get("base"), prepared.base.fingerprint),
    ):
        if was is not None and was["fingerprint"] != now_is:
            raise RunError(
                f"the {name} has changed since this run began",
                where=str(run.path),
                why="a resumed run would be trained on two of them",
                fix="begin again with --force; the old run is kept under another name",
            )
    was = before.get("calibration", {}).get("init")
    again = prepared.attached.record.get("init")
    if was and again and was["hash_after"] != again["hash_after"]:
        raise RunError(
            f"init={was['init']} came out otherwise than when this run began",
            where=str(run.path),
            why=f"{was['hash_after']} then, {again['hash_after']} now: another machine "
            "or library; a resumed run would mix two adapters",
            fix="begin again with --force; the old run is kept under another name",
        )
