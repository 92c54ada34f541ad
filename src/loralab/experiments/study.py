"""`study`: the runs that a question needs, each trained once, in pieces if it is long.

    runs/<name>-<size>-<hash>/
      study.json         the study as it was asked, and what became of every cell
      analysis.json …    what `analyse` and `report` made of the runs

A cell is one run: a data set, an arm, a seed, and for tuning a point of the grid. With
a tuning policy every arm is tuned on the same grid, with the same number of trials, by
validation rows, on seeds that the final runs do not use; then the final runs are
trained at each arm's best point. A best value on the edge of the grid is refused:
beyond it may lie a better one, and an arm that is tuned worse proves nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from loralab.config import ExperimentConfig, compose
from loralab.errors import ConfigError, RunError
from loralab.experiments.cells import (
    UNFINISHED,
    Cell,
    content_of,
    key_of,
    read_cells,
    write_cells,
    written,
)
from loralab.experiments.jobs import Job, Outcome
from loralab.experiments.objective import better, objective
from loralab.experiments.space import Point
from loralab.experiments.study_config import TUNING_SEEDS, StudyConfig
from loralab.experiments.sweep import named
from loralab.runs import Run
from loralab.runs.run import held

OnEvent = Callable[[dict[str, Any]], None]


class Study:
    """The cells of a study, and the runs behind them.

    Args:
        config: The study.
        size: ``smoke`` or ``evidence``.
        runs_dir: Where runs and the study stand.

    Raises:
        ConfigError: the study has no such size, or an experiment or override is wrong.
    """

    def __init__(
        self, config: StudyConfig, size: str = "smoke", runs_dir: str | Path = "runs"
    ) -> None:
        if size not in config.sizes:
            known = ", ".join(config.sizes)
            raise ConfigError(f"the study has no size {size!r}", fix=f"it has: {known}")
        self.config, self.size, self.runs_dir = config, size, Path(runs_dir)
        self._composed: dict[Cell, ExperimentConfig] = {}
        content = {"size": size, **config.model_dump(mode="json")}
        text = json.dumps(content, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        self.path = self.runs_dir / f"{config.name}-{size}-{digest}"

    @property
    def file(self) -> Path:
        """The record."""
        return self.path / "study.json"

    def compose(self, cell: Cell) -> ExperimentConfig:
        """Return the configuration of a cell's run."""
        cell = key_of(cell)
        if cell not in self._composed:
            choice = self.config.choices[cell.data]
            arm, _ = self.config.everything[cell.arm]
            overrides = [
                *self.config.overrides,
                *choice.overrides,
                *self.config.sizes[self.size].overrides,
                *arm,
                *cell.point,
                f"training.seed={cell.seed}",
            ]
            self._composed[cell] = compose(choice.experiment, overrides)
        return self._composed[cell]

    def run_of(self, cell: Cell) -> Run:
        """Return the run of a cell: the recorded one, or the one it would have."""
        return Run(self.runs_dir / (cell.run or self.compose(cell).run_id))

    def seeds(self, data: str) -> int:
        """Return how many seeds a data set has."""
        most = self.config.choices[data].seeds
        count = self.config.sizes[self.size].seeds
        return min(count, most or count)

    def points(self) -> list[Point]:
        """Return the grid of the tuning policy; one empty point without."""
        grid = self.config.tuning.grid if self.config.tuning else {}
        values = [[f"{key}={written(v)}" for v in some] for key, some in grid.items()]
        return [tuple(point) for point in product(*values)]

    def tuning_cells(self) -> list[Cell]:
        """Return the cells that tune: the same points and seeds for every arm.

        A control that only shifts seeds is the arm it is of, tuned already.
        """
        tuning = self.config.tuning
        if tuning is None:
            return []
        return [
            Cell(data, arm, TUNING_SEEDS + seed, "tuning", point)
            for data in self.config.choices
            for arm in self.config.everything
            if self._tuned_as(arm) == arm
            for point in self.points()
            for seed in range(tuning.seeds)
        ]

    def _tuned_as(self, arm: str) -> str:
        control = self.config.controls.get(arm)
        return control.of if control and not control.overrides else arm

    def final_cells(self) -> list[Cell]:
        """Return the cells that answer, seed by seed, so that pieces are whole.

        Raises:
            RunError: tuning is not finished, or has its best value on an edge.
        """
        every = self.config.everything
        chosen = {
            (data, arm): self.chosen(data, arm)
            for data in self.config.choices
            for arm in every
        }
        return [
            Cell(data, arm, offset + seed, "final", chosen[data, arm])
            for data in self.config.choices
            for seed in range(self.seeds(data))
            for arm, (_, offset) in every.items()
        ]

    def finals(self) -> list[Cell]:
        """Return the final cells as they are recorded; waiting where they are not.

        Cells that another choice of tuning has left behind are not among them.

        Raises:
            RunError: see `final_cells`.
        """
        known = {key_of(cell): cell for cell in self.cells()}
        return [known.get(cell, cell) for cell in self.final_cells()]

    def chosen(self, data: str, arm: str) -> Point:
        """Return an arm's best point by validation rows.

        Raises:
            RunError: see `final_cells`.
        """
        if self.config.tuning is None:
            return ()
        scores = self.tuning_scores(data, self._tuned_as(arm))
        best = min(scores, key=lambda point: scores[point])
        if math.isinf(scores[best]):
            raise RunError(f"every trial of {arm} on {data} has failed")
        if self.size != "smoke":  # which proves nothing but that it runs
            self._refuse_edge(data, arm, best)
        return best

    def tuning_scores(self, data: str, arm: str) -> dict[Point, float]:
        """Return point -> mean validation loss; infinite where a trial failed.

        A metric that is better when higher is negated.

        Raises:
            RunError: a trial has not ended.
        """
        tuning = self.config.tuning
        assert tuning is not None
        sign = 1.0 if better(tuning.metric) == "lower" else -1.0
        known = {key_of(cell): cell for cell in self.cells()}
        found: dict[Point, float] = {}
        for cell in self.tuning_cells():
            if (cell.data, cell.arm) != (data, arm):
                continue
            record = known.get(cell, cell)
            if record.status == "failed":
                value: float | None = math.inf
            elif record.status == "complete":
                value = objective(self.run_of(record), tuning.metric)
            else:
                raise RunError(
                    f"tuning is not finished: {arm} on {data}",
                    where=str(self.path),
                    fix="continue with `loralab study run`",
                )
            if value is None:
                raise RunError("tuning needs validation rows", where=record.run)
            mean = (value if math.isinf(value) else sign * value) / tuning.seeds
            found[cell.point] = found.get(cell.point, 0.0) + mean
        return found

    def _refuse_edge(self, data: str, arm: str, best: Point) -> None:
        assert self.config.tuning is not None
        for text, (key, values) in zip(
            best, self.config.tuning.grid.items(), strict=True
        ):
            if not all(type(one) in (int, float) for one in values):
                continue  # names have no order, and no edge
            ordered = sorted(values)
            if text in [f"{key}={written(one)}" for one in (ordered[0], ordered[-1])]:
                raise RunError(
                    f"the best {key} of {arm} on {data} is {text.partition('=')[2]}, "
                    "an edge of the grid",
                    where=self.config.name,
                    why="beyond it may lie a better one, so the arm is not tuned",
                    fix=f"widen tuning.grid.{key}: {ordered}; what was trained is kept",
                )

    def cells(self) -> list[Cell]:
        """Return the recorded cells; empty before the first piece.

        Raises:
            RunError: the record cannot be read.
        """
        return read_cells(self.file)

    def write(self, cells: Sequence[Cell]) -> None:
        """Write the record."""
        config = self.config.model_dump(mode="json")
        write_cells(self.file, cells, self.size, config)

    def _refuse_twins(self, cells: Sequence[Cell]) -> None:
        """Refuse two cells that are the same run: their difference is nothing."""
        seen: dict[str, Cell] = {}
        for cell in cells:
            run = self.compose(cell).run_id
            if run in seen:
                both = [f"{one.arm} on {one.data}" for one in (seen[run], cell)]
                raise ConfigError(
                    f"{' and '.join(both)} are the same run",
                    where=self.config.name,
                    why="their overrides come to the same configuration",
                    fix="mend an override, or take one of them out",
                )
            seen[run] = cell

    def run(
        self,
        executor: str = "local",
        *,
        minutes: float | None = None,
        retry: bool = False,
        on_event: OnEvent | None = None,
        **params: Any,
    ) -> bool:
        """Train what is left; return whether all of it has ended.

        Args:
            executor: Where runs are trained.
            minutes: Begin no run after this long; the next call goes on.
            retry: Whether cells that failed are tried again.
            on_event: Told of what happens.
            **params: Of the executor.

        Raises:
            RunError: another process works at this study; an edge of a grid is best.
        """
        work, checked = named("executor", executor, params)
        until = math.inf if minutes is None else time.monotonic() + 60 * minutes
        tell = on_event or (lambda _: None)
        with held(self.path):
            for wanted in (self.tuning_cells, self.final_cells):
                self._refuse_twins(wanted())
                queue = Queue(self, wanted(), until, retry, tell)
                work(checked, queue, self.runs_dir, self.path)
                if queue.left:
                    return False
        return True


class Queue:
    """The cells of a stage, handed out one by one, and written down."""

    def __init__(
        self,
        study: Study,
        wanted: Sequence[Cell],
        until: float,
        retry: bool,
        tell: OnEvent,
    ) -> None:
        self._study, self._until, self._tell = study, until, tell
        self._cells = study.cells()
        places = {key_of(cell): i for i, cell in enumerate(self._cells)}
        self._waiting: list[int] = []
        for cell in wanted:
            if key_of(cell) not in places:
                places[key_of(cell)] = len(self._cells)
                run = study.compose(cell).run_id
                self._cells.append(replace(cell, run=run))
            place = places[key_of(cell)]
            if self._cells[place].run != study.compose(cell).run_id:
                raise RunError(
                    "an experiment has changed since this study began",
                    where=str(study.path),
                    why="half of its runs would be of another experiment",
                    fix="restore the experiment, or give the study another name",
                )
            status = self._cells[place].status
            if status in UNFINISHED or (status == "failed" and retry):
                self._waiting.append(place)
        self._waiting.reverse()
        self._pending = 0
        study.write(self._cells)
        tell({"event": "stage", "total": len(wanted), "left": len(self._waiting)})

    @property
    def left(self) -> int:
        """How many cells have not been handed out, or only been handed on."""
        return len(self._waiting) + self._pending

    def next(self) -> Job | None:
        """Return the next cell's run, unless the piece is over."""
        if not self._waiting or time.monotonic() > self._until:
            return None
        place = self._waiting.pop()
        cell = self._cells[place]
        self._say(place, replace(cell, status="running"))
        config = self._study.compose(key_of(cell))
        return Job(place, config, cell.status == "pending")

    def tell(self, event: dict[str, Any]) -> None:
        """Pass on what is of no single cell."""
        self._tell(event)

    def event(self, job: Job, event: dict[str, Any]) -> bool:
        """Pass an event on; nothing is pruned."""
        self._tell({**event, "number": job.number})
        return False

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Write down how a cell ended."""
        cell = replace(
            self._cells[job.number], status=outcome.status, error=outcome.error
        )
        self._cells[job.number] = cell
        self._pending += outcome.status == "pending"
        self._study.write(self._cells)
        self._say(job.number, cell, 0.0 if outcome.found else outcome.seconds)

    def _say(self, place: int, cell: Cell, seconds: float = 0.0) -> None:
        parts = (cell.data, cell.arm, *cell.point, f"seed {cell.seed}")
        self._tell(
            {
                "event": "job",
                "number": place,
                "label": " · ".join(parts),
                "status": cell.status,
                "note": cell.error,
                "seconds": seconds,
            }
        )


def find_study(
    reference: str, size: str = "smoke", runs_dir: str | Path = "runs"
) -> Study:
    """Return the study of a `study.yaml`, or of a study's directory.

    Raises:
        ConfigError: it is neither.
    """
    from loralab.experiments.study_config import read_study

    record = Path(reference) / "study.json"
    if not record.is_file():
        return Study(read_study(reference), size, runs_dir)
    try:
        content = content_of(record)
        config = StudyConfig.model_validate(content["config"])
        study = Study(config, content["size"], record.parent.parent)
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            "the record of this study cannot be read",
            where=str(record),
            why=str(error),
            fix="name the study.yaml instead",
        ) from None
    study.path = record.parent
    return study
