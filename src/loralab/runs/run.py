"""A run is a directory, and the only interface between stages.

    runs/<name>-<hash>/
      config.yaml        resolved, complete, re-runnable
      run.json           format, kind, status, timings, counts, fingerprints, versions
      metrics.jsonl      one event a line
      adapter/           plain PEFT
      checkpoints/       resumable
      eval/              <split>.json, predictions-<split>.parquet

The hash is that of the configuration, so the same configuration finds its run. A lock
that the operating system drops with the process tells a running run from a killed one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from loralab.config import ExperimentConfig, load_resolved
from loralab.errors import RunError, nearest
from loralab.runs.files import read_record, write_json, write_text

FORMAT_VERSION = 1
HEAD = ("kind", "name", "hash", "status", "started")
"""What every ``run.json`` says, as texts."""
MEASURED = ("primary", "metrics", "confidence", "measured_rows")
"""What every ``eval/<split>.json`` says."""


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@contextmanager
def held(
    path: Path, fix: str = "wait for it, or change the configuration"
) -> Iterator[None]:
    """Hold a directory, so that nobody else works in it; it is made if need be.

    Args:
        path: The directory.
        fix: What the error advises.

    Raises:
        RunError: another process holds it.
    """
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise RunError(
            "another process is at work here",
            where=str(path),
            fix=fix,
        ) from None
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Run:
    """A run directory; every property is read from the files each time."""

    path: Path

    @property
    def id(self) -> str:
        """The directory's name, ``<name>-<hash>``."""
        return self.path.name

    @property
    def config(self) -> ExperimentConfig:
        """The resolved configuration."""
        return load_resolved(self.path / "config.yaml")

    @property
    def adapter(self) -> Path:
        """The directory of the finished adapter."""
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        """The directory of the resumable checkpoints."""
        return self.path / "checkpoints"

    def read(self) -> dict[str, Any]:
        """Return the content of ``run.json``.

        Raises:
            RunError: it is missing, broken, or of a later format.
        """
        fix = "name the directory that `loralab train` printed"
        wrong = "not a run: run.json cannot be read"
        found = read_record(
            self.path / "run.json", FORMAT_VERSION, RunError, wrong, fix
        )
        if lacking := [key for key in HEAD if not isinstance(found.get(key), str)]:
            why = f"it does not say {', '.join(lacking)}"
            raise RunError(wrong, where=str(self.path), why=why, fix=fix)
        return found

    def update(self, **changes: Any) -> None:
        """Write ``run.json`` again with `changes`, atomically."""
        write_json(self.path / "run.json", {**self.read(), **changes})

    @property
    def status(self) -> str:
        """``complete``, ``failed``, ``running``, or ``interrupted`` (killed)."""
        status = str(self.read()["status"])
        if status != "running":
            return status
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return "running"
        lock.release()
        return "interrupted"

    @property
    def standing(self) -> str:
        """Its status, or ``absent`` where nothing has been begun under this name."""
        return self.status if (self.path / "run.json").is_file() else "absent"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run, so that nobody else writes it.

        Raises:
            RunError: another process holds it.
        """
        with held(self.path):
            yield

    def require_adapter(self) -> Path:
        """Return the finished adapter's directory.

        Raises:
            RunError: the run has none yet, or is none that can be read here.
        """
        return self.require("adapter")

    def require(self, what: str) -> Path:
        """Return the directory of what a run made: ``adapter`` or ``artefact``.

        Raises:
            RunError: the run has none yet, or is none that can be read here.
        """
        kind = self.read()["kind"]
        folder = self.path / what
        if not folder.is_dir():  # written at once, or not at all
            again = "again" if what == "artefact" else "with --resume"
            other = f"it is a run of kind {kind}" if kind != what else ""
            raise RunError(
                f"this run has no {what} yet (status: {self.status})",
                where=str(self.path),
                why=other,
                fix=f"name a run of kind {what}"
                if other
                else f"finish it: the same command {again}",
            )
        return folder

    def evaluations(self) -> dict[str, dict[str, Any]]:
        """Return the content of every ``eval/<split>.json``, by split.

        Raises:
            RunError: one is broken.
        """
        files = sorted((self.path / "eval").glob("*.json"))
        return {file.stem: _evaluation(file) for file in files}

    def events(self) -> list[dict[str, Any]]:
        """Return the events of ``metrics.jsonl``; a half last line is left out.

        Raises:
            RunError: it cannot be read.
        """
        file = self.path / "metrics.jsonl"
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(
                "the events of this run cannot be read", where=str(file), why=str(error)
            ) from None
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                break
        return found


def _evaluation(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        lacking = [key for key in MEASURED if key not in found]
        if lacking or found["primary"] not in found["metrics"]:
            raise ValueError(f"it does not say {', '.join(lacking or ['its metric'])}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        run = file.parent.parent
        raise RunError(
            "an evaluation of this run cannot be read",
            where=str(file),
            why=str(error),
            fix=f"measure it again: loralab evaluate {run} --split {file.stem}",
        ) from None
    return dict(found)


def create(
    config: ExperimentConfig, runs_dir: Path, kind: str, digest: str | None = None
) -> Run:
    """Make the directory of a new run, with its configuration and status.

    Args:
        config: The configuration.
        runs_dir: Where it is made.
        kind: ``adapter`` or ``artefact``.
        digest: Ten hex digits in place of the configuration's own hash, for a run that
            is made of more than its configuration.
    """
    digest = digest or config.hash
    run = Run(runs_dir / f"{config.name}-{digest}")
    run.path.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_text(run.path / "config.yaml", text)
    write_text(run.path / "metrics.jsonl", "")
    head = {"format": FORMAT_VERSION, "kind": kind, "name": config.name}
    content = {**head, "hash": digest, "status": "running", "started": now()}
    write_json(run.path / "run.json", content)
    return run


def move_aside(run: Run) -> Path:
    """Rename a run to the first free ``<id>.N``; nothing is deleted."""
    number = 1
    while (aside := run.path.with_name(f"{run.id}.{number}")).exists():
        number += 1
    run.path.rename(aside)
    return aside


def list_runs(runs_dir: Path) -> list[Run]:
    """Return the runs below a directory, oldest first; those that are broken, last."""

    def started(run: Run) -> tuple[str, str]:
        try:
            return str(run.read().get("started")), run.id
        except RunError:
            return "unreadable", run.id

    return sorted((Run(f.parent) for f in runs_dir.glob("*/run.json")), key=started)


NO_RUNS = {
    "trainer_state.json": (
        "a checkpoint",
        "it is resumed from, and does not answer",
        "name the folder of its run",
    ),
    "bake.json": (
        "a model with merged adapters in its weights",
        "rows and metrics are of the runs that trained them; a merge has none",
        "loralab infer FOLDER --head TASK answers with it; else it is a model like its "
        "base: model.path=FOLDER, and `hf upload ORG/NAME FOLDER` publishes it",
    ),
    "adapter_config.json": (
        "an adapter alone",
        "rows, metrics and base are of the run that trained it; a merged adapter has "
        "none of its own",
        "loralab infer FOLDER --head TASK answers with a merged adapter, loralab "
        "evaluate RUN --merged FOLDER measures it, loralab merge … --bake BASE writes "
        "a model of it; the folder itself is plain PEFT, and `hf upload ORG/NAME "
        "FOLDER` publishes it",
    ),
    "state.json": (
        "the folder of a merge, adapters and log",
        "it is what others are added to, not what answers",
        "loralab merge export FOLDER --out DIR writes the merged adapter, which "
        "loralab infer, evaluate RUN --merged and `hf upload ORG/NAME DIR` take",
    ),
}
"""Folders that are no runs, by a file of theirs: what they are, why that is something
else, and what to do with them."""


def called(reference: str, runs: Sequence[Run]) -> list[Run]:
    """Return the runs that an id or a name means; not one that was moved aside."""
    exact = [run for run in runs if run.id == reference]
    own = re.compile(rf"{re.escape(reference)}-[0-9a-f]{{10}}")
    return exact or [run for run in runs if own.fullmatch(run.id)]


def find_run(reference: str, runs_dir: Path) -> Run:
    """Return the run of a path, an id, or a name that only one run has.

    Raises:
        RunError: there is none, or several have the name.
    """
    path = Path(reference).expanduser()
    if (path / "run.json").is_file():
        return Run(path)
    known = list_runs(runs_dir)
    named = called(reference, known)
    if len(named) == 1:
        return named[0]
    if named:
        ids = ", ".join(run.id for run in named)
        raise RunError(f"several runs are called {reference!r}", fix=f"name one: {ids}")
    for file, (what, why, fix) in NO_RUNS.items():
        if reference and (path / file).is_file():
            what = f"{path}: {what}, and this takes a run"
            raise RunError(what, why=why, fix=fix.replace("FOLDER", str(path)))
    if reference and path.is_dir():
        Run(path).read()  # says why it is not one
    hint = nearest(reference, [run.id for run in known]) if known else "there are none"
    raise RunError(
        f"no run {reference!r} in {runs_dir}; {hint}", fix="see `loralab runs`"
    )
