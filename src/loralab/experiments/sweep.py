"""`sweep`: many runs of one experiment, each once, through kills and failures.

    runs/<name>-sweep-<hash>/
      sweep.json         what was asked, and what became of every trial
      worker-1.log …     what libraries printed

The runs stand beside it as every run does, under the hash of their configuration: a run
that is there already is found, one that was killed is resumed. The same command finds
its sweep again and goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loralab import registry
from loralab.config import ExperimentConfig, compose
from loralab.errors import ConfigError, RunError
from loralab.experiments.jobs import Job, Outcome
from loralab.experiments.objective import better, check_objective, measured, objective
from loralab.experiments.space import Point, read_space
from loralab.runs import Run
from loralab.runs.files import check_format, write_json
from loralab.runs.run import held

FORMAT_VERSION = 1
UNFINISHED = ("running", "pending")
INSIDE = 0.382
"""Where in an interval the point lies that is judged before the start."""

OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Trial:
    """One point of a sweep, and what became of it.

    Attributes:
        number: From 0, in the order they were asked for.
        point: Its overrides.
        run: The name of its run; empty if its configuration is refused.
        status: ``running`` (or stopped in the midst), ``pending`` (handed on, to be
            trained later), ``complete``, ``failed``, ``pruned``.
        objective: The metric on validation rows; None without.
        error: Why it failed or was pruned.
        seconds: Wall-clock, in this sweep; 0 where the run was there before.
    """

    number: int
    point: Point
    run: str
    status: str
    objective: float | None = None
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class SweepConfig:
    """What a sweep is asked for.

    Attributes:
        experiment: A preset or the path of a YAML file.
        overrides: As on the command line; some of them sweep.
        sampler: ``grid``, ``random`` or ``optuna``.
        params: Of the sampler.
        metric: What trials are judged by, on validation rows.
    """

    experiment: str
    overrides: tuple[str, ...]
    sampler: str = "grid"
    params: Mapping[str, Any] = field(default_factory=dict)
    metric: str = "cross_entropy"


def named(kind: str, name: str, params: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return a registered thing and its checked params.

    Raises:
        ConfigError: no such name, or params that it does not have.
    """
    entry = registry.get(kind, name)
    try:
        return entry.target, entry.schema.model_validate(dict(params))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        known = ", ".join(entry.schema.model_fields) or "none"
        raise ConfigError(
            f"{kind} {name}: {key}={first['input']!r}: {first['msg']}",
            fix=f"its keys are: {known}",
        ) from None


class Sweep:
    """The trials of a sweep: handed out one by one, and written down.

    Args:
        config: What is asked.
        runs_dir: Where runs and the sweep stand.
        retry: Whether trials that failed are tried again.
        on_event: Told of every trial's events, with `trial` in each.

    Raises:
        ConfigError: the experiment, a key or a value is wrong; for a grid, of any
            point, before anything is trained.
    """

    def __init__(
        self,
        config: SweepConfig,
        runs_dir: str | Path = "runs",
        *,
        retry: bool = False,
        on_event: OnEvent | None = None,
    ) -> None:
        self.config = config
        self.runs_dir = Path(runs_dir)
        self.space = read_space(config.overrides)
        self._tell = on_event or (lambda _: None)
        self._retry = retry
        self._composed: dict[Point, ExperimentConfig] = {}
        self._params: Any = None
        self._make_sampler()
        self._refuse_twins()
        self.base = self._compose(self.points[0] if self.points else self._inside())
        check_objective(self.base, config.metric)
        self.path = self.runs_dir / f"{self.base.name}-sweep-{self._hash()}"
        self._sign = 1.0 if better(config.metric) == "lower" else -1.0
        self.trials: list[Trial] = []
        self._again: list[Trial] = []
        self._resume()

    def _make_sampler(self) -> None:
        make, self._params = named("sampler", self.config.sampler, self.config.params)
        self._sampler = make(self._params, self.space)
        self.points = getattr(self._sampler, "points", None)
        """All points, where the sampler knows them before the start."""

    def _refuse_twins(self) -> None:
        """Judge every point that is known; two may not be the same run."""
        seen: dict[str, Point] = {}
        for point in self.points or ():
            run = self._compose(point).run_id
            if run in seen:
                both = f"{' '.join(seen[run])} and {' '.join(point)}"
                raise ConfigError(f"{both} are the same run", fix="list it once")
            seen[run] = point

    def _compose(self, point: Point) -> ExperimentConfig:
        if point not in self._composed:
            overrides = [*self.space.fixed, *point]
            try:
                self._composed[point] = compose(self.config.experiment, overrides)
            except ConfigError as error:
                drawn = [a.key for a in self.space.axes if not (a.listed or a.whole)]
                if not any(key in str(error) for key in drawn):
                    raise
                fix = "whole numbers are drawn by key=tag(int,interval(2,9))"
                raise ConfigError(str(error), fix=fix) from None
        return self._composed[point]

    def _inside(self) -> Point:
        """Return a point of the space; of an interval, no end and no round number."""
        return tuple(
            axis.at(
                axis.values[0]
                if axis.listed
                else axis.number(axis.low + INSIDE * (axis.high - axis.low))
            )
            for axis in self.space.axes
        )

    def _hash(self) -> str:
        content = {"base": self.base.hash, **asdict(self.config)}
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def total(self) -> int:
        """How many trials there will be (at most, where the sampler decides)."""
        if self.points:
            return len(self.points)
        return int(getattr(self._params, "trials", len(self.trials)))

    @property
    def left(self) -> int:
        """How many trials are still to be run."""
        ended = sum(trial.status not in UNFINISHED for trial in self.trials)
        again = sum(trial.status not in UNFINISHED for trial in self._again)
        return self.total - ended + again

    def _read(self) -> list[Trial]:
        file = self.path / "sweep.json"
        if not file.is_file():
            return []
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            check_format(content["format"], FORMAT_VERSION, RunError, file)
            return [
                Trial(**{**trial, "point": tuple(trial["point"])})
                for trial in content["trials"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                "the record of this sweep cannot be read",
                where=str(file),
                why=str(error),
                fix="move the directory away; runs beside it are found again",
            ) from None

    def _resume(self) -> None:
        """Read the record, tell the sampler of it, and note what is tried again."""
        self._make_sampler()
        self.trials, self._again = self._read(), []
        for trial in self.trials:
            unfinished = trial.status in UNFINISHED
            if unfinished or (self._retry and trial.status == "failed"):
                self._again.append(trial)
            value = None if trial.objective is None else self._sign * trial.objective
            self._sampler.replay(trial.point, value)
        self._again.reverse()

    def _write(self) -> None:
        content = {
            "format": FORMAT_VERSION,
            "kind": "sweep",
            **asdict(self.config),
            "trials": [asdict(trial) for trial in self.trials],
        }
        write_json(self.path / "sweep.json", content)

    def _set(self, trial: Trial) -> None:
        self.trials[trial.number] = trial
        self._write()
        value = "" if trial.objective is None else f"validation {trial.objective:.4f}"
        self._tell(
            {
                "event": "job",
                "number": trial.number,
                "label": " ".join(trial.point) or "the experiment",
                "status": trial.status,
                "note": trial.error or value,
                "seconds": trial.seconds,
            }
        )

    def next(self) -> Job | None:
        """Return the next trial's run, or None: there are no more."""
        while (trial := self._next_trial()) is not None:
            try:
                config = self._compose(trial.point)
                self._check_new(trial, config.run_id)
            except ConfigError as error:  # a value that a sampler drew
                self._set(replace(trial, status="failed", error=str(error)))
                self._told(trial, None)
                continue
            pending = trial.status == "pending"
            self._set(replace(trial, run=config.run_id, status="running"))
            return Job(trial.number, config, pending)
        return None

    def _next_trial(self) -> Trial | None:
        if self._again:
            return replace(self._again.pop(), error="")
        point = self._sampler.ask()
        if point is None:
            return None
        trial = Trial(len(self.trials), point, "", "running")
        self.trials.append(trial)
        return trial

    def _check_new(self, trial: Trial, run: str) -> None:
        for other in self.trials:
            if other.run == run and other.number != trial.number:
                raise ConfigError(f"the same configuration as trial {other.number}")

    def _told(self, trial: Trial, value: float | None) -> None:
        loss = None if value is None else self._sign * value
        self._sampler.tell(trial.point, loss)

    def tell(self, event: dict[str, Any]) -> None:
        """Pass on what is of no single trial."""
        self._tell(event)

    def event(self, job: Job, event: dict[str, Any]) -> bool:
        """Pass an event on; return whether the sampler stops the trial."""
        self._tell({**event, "number": job.number})
        value = measured(event, self.config.metric)
        if event["event"] != "validation" or value is None:
            return False
        point = self.trials[job.number].point
        return bool(self._sampler.judge(point, event["step"], self._sign * value))

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Write down how a trial ended."""
        value = None
        if outcome.status == "complete":
            run = Run(self.runs_dir / job.config.run_id)
            value = objective(run, self.config.metric)
            if value is None and self.points is None:
                raise ConfigError(
                    "there are no validation rows, and trials are chosen by them",
                    where=str(run.path),
                    fix="raise data.validation_fraction, or take --sampler grid",
                )
        trial = replace(
            self.trials[job.number],
            status=outcome.status,
            objective=value,
            error=outcome.error,
            seconds=0.0 if outcome.found else round(outcome.seconds, 1),
        )
        self._set(trial)
        self._told(trial, value)

    def run(self, executor: str = "local", **params: Any) -> list[Trial]:
        """Train what is left; return all trials.

        Raises:
            ConfigError: no such executor or params; or it gives results too late.
            RunError: another process works at this sweep, or workers do not start.
        """
        work, checked = named("executor", executor, params)
        if self.points is None and registry.get("executor", executor).facts.get(
            "later"
        ):
            raise ConfigError(
                f"the sampler {self.config.sampler!r} cannot be used with {executor}",
                why="it chooses the next trial by the results of those before, and "
                f"{executor} has none when the next is asked for",
                fix="--sampler grid or random; or --executor local or ray",
            )
        with held(self.path):
            self._resume()  # nobody else writes the record from here on
            self._write()
            self._tell({"event": "stage", "total": self.total, "left": self.left})
            work(checked, self, self.runs_dir, self.path)
        return self.trials

    def rank(self, trial: Trial) -> float:
        """Return a number that is lower for a better trial; infinite without."""
        if trial.objective is None:
            return float("inf")
        return self._sign * trial.objective

    def best(self) -> Trial | None:
        """Return the complete trial whose objective is best, or None."""
        done = [trial for trial in self.trials if trial.objective is not None]
        return min(done, key=self.rank, default=None)


def sweep(
    experiment: str,
    overrides: Sequence[str],
    runs_dir: str | Path = "runs",
    *,
    sampler: str = "grid",
    metric: str = "cross_entropy",
    workers: int | None = None,
    on_event: OnEvent | None = None,
    **params: Any,
) -> list[Trial]:
    """Train an experiment at many points; see `Sweep`.

    Args:
        experiment: A preset or the path of a YAML file.
        overrides: ``key=value``; with commas, ``range()``, ``choice()``,
            ``interval()`` or ``glob()`` the key is swept.
        runs_dir: Where runs stand.
        sampler: ``grid``, ``random``, ``optuna`` or one of another package.
        metric: What trials are judged by, on validation rows.
        workers: Processes.
        on_event: Told of what happens.
        **params: Of the sampler.
    """
    config = SweepConfig(experiment, tuple(overrides), sampler, params, metric)
    asked: dict[str, Any] = {} if workers is None else {"workers": workers}
    return Sweep(config, runs_dir, on_event=on_event).run(**asked)
