"""The ledger of a study: what it will take, and the budgets that must be equal.

    hours = Σ runs × (steps × tokens a step / rate measured here + evaluation)

A run of the same data and arm that has ended tells its own seconds; before that, the
rate of this machine is measured on the first arm and taken for the others. Offline,
neither hub nor rows are read, and what they would tell is taken to be at its most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loralab.config import ExperimentConfig
from loralab.data.examples import get_preprocessor
from loralab.errors import ConfigError, EvidenceError, RunError
from loralab.evaluation.calculator import get_metrics_calculator
from loralab.evaluation.evaluate import metrics_of
from loralab.experiments.cells import UNFINISHED, Cell
from loralab.experiments.objective import check_objective
from loralab.experiments.readings import BUDGETS, read_cell
from loralab.experiments.study import Study
from loralab.training.estimate import Estimate, Machine, estimate, rows_of_a_step
from loralab.training.plan import plan
from loralab.training.prepare import plan_of, prepare
from loralab.training.timing import Rates

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    """What one arm on one data set takes.

    Attributes:
        data: Name.
        arm: Name.
        runs: Of tuning and final.
        left: Of those, not ended yet.
        seconds: Of one run, training and evaluation; None if it was not measured.
        measured: Whether `seconds` is what a run took, not what is predicted.
        budgets: Trained parameters, tokens, steps and examples of a run, counted on
            the built model.
        disk: Bytes of a run's adapter and checkpoints; None if it was not planned.
        memory: Bytes at the peak of a run; None likewise. Offline: of a step's tensors.
        unknown: What is taken for granted, in words, where neither hub nor rows were
            read; tokens and memory are then at most so much.
    """

    data: str
    arm: str
    runs: int
    left: int
    seconds: float | None
    measured: bool
    budgets: dict[str, float]
    disk: int | None
    memory: int | None
    unknown: tuple[str, ...] = ()

    @property
    def seconds_left(self) -> float:
        """Of all its runs that have not ended, one after the other."""
        return self.left * (self.seconds or 0.0)


def _cells(study: Study, data: str, arm: str) -> list[Cell]:
    """Return the cells of an arm; final ones at any point while it is not chosen."""
    tuning = [c for c in study.tuning_cells() if (c.data, c.arm) == (data, arm)]
    _, offset = study.config.everything[arm]
    points = study.points()
    middle = points[len(points) // 2]
    return [
        *tuning,
        *(
            Cell(data, arm, offset + seed, "final", middle)
            for seed in range(study.seeds(data))
        ),
    ]


def _ended(study: Study, data: str, arm: str) -> list[Cell]:
    try:
        finals = study.finals()
    except RunError:  # tuning is not finished
        finals = []
    tuning = [cell for cell in study.cells() if cell.stage == "tuning"]
    return [
        cell
        for cell in [*tuning, *finals]
        if (cell.data, cell.arm) == (data, arm) and cell.status not in UNFINISHED
    ]


def _measured_seconds(study: Study, ended: Sequence[Cell]) -> float | None:
    for cell in reversed(ended):
        if cell.status == "complete":
            reading = read_cell(study, cell)
            if not reading.record["resumed"]:
                return reading.seconds + float(reading.record["evaluation_seconds"])
    return None


@dataclass(frozen=True)
class _Asked:
    """An arm on a data set that is to be planned; `seconds` are those measured."""

    data: str
    arm: str
    config: ExperimentConfig
    runs: int
    left: int
    seconds: float | None

    def entry(
        self,
        fits: bool,
        predicted: float | None,
        budgets: Mapping[str, float],
        disk: int | None,
        memory: int | None,
        unknown: tuple[str, ...] = (),
    ) -> Entry:
        """Return the line of the ledger.

        Raises:
            EvidenceError: a run does not fit into memory.
        """
        if not fits:
            raise EvidenceError(
                f"a run of {self.arm} on {self.data} does not fit into memory",
                fix="see `loralab plan` for what would",
            )
        return Entry(
            self.data,
            self.arm,
            self.runs,
            self.left,
            self.seconds or predicted,
            self.seconds is not None,
            {name: float(value) for name, value in budgets.items()},
            disk,
            memory,
            unknown,
        )


def _asked(study: Study, tell: Tell) -> Iterator[_Asked]:
    """Yield what is to be planned; refuse what would be found wrong after hours."""
    for data in study.config.choices:
        for arm in study.config.everything:
            tell(f"planning {arm} on {data}")
            cells, ended = _cells(study, data, arm), _ended(study, data, arm)
            config = study.compose(cells[-1])
            _check(study, config, data, arm)
            left, seconds = len(cells) - len(ended), _measured_seconds(study, ended)
            yield _Asked(data, arm, config, len(cells), left, seconds)


def ledger(
    study: Study, *, timed: bool = True, tell: Tell = lambda _: None
) -> list[Entry]:
    """Return what every arm on every data set takes.

    Args:
        study: The study.
        timed: Whether memory is rehearsed and the rate of this machine measured (up
            to a minute a data set); without, only what is counted is told.
        tell: Told what is being done.

    Raises:
        LoralabError: an experiment is wrong, or a run does not fit into memory.
    """
    found: list[Entry] = []
    rates: dict[str, Rates] = {}  # of this machine, measured once a data set
    for one in _asked(study, tell):
        fits, disk, memory = True, None, None
        if timed:
            untimed = one.seconds is None and one.data not in rates
            planned = plan(one.config, timed=untimed)
            if planned.rates:
                rates[one.data] = planned.rates
            fits, counts = planned.memory.fits, planned.counts
            disk = planned.adapter_bytes + planned.checkpoint_bytes
            memory = planned.memory.peak
        else:
            counts = plan_of(prepare(one.config, weights=False))
        seconds = _predicted_seconds(counts, rates.get(one.data))
        budgets = {name: counts[name] for name in BUDGETS}
        found.append(one.entry(fits, seconds, budgets, disk, memory))
    return found


def offline_ledger(
    study: Study, machine: Machine | None = None, tell: Tell = lambda _: None
) -> list[Entry]:
    """Return what every arm takes, of models and rows that are not here.

    Args:
        study: The study.
        machine: The one that is meant; without one, hours are told of arms that have
            a finished run.
        tell: Told what is being done.

    Raises:
        LoralabError: an experiment is wrong, the numbers of a base are not known, or a
            run does not fit into the machine's memory.
    """
    found: list[Entry] = []
    for one in _asked(study, tell):
        planned = estimate(one.config, machine)
        budgets = {"trainable": planned.trained, **_known(one.config, planned)}
        disk = planned.adapter_bytes + planned.checkpoint_bytes
        fits = planned.fits is not False
        found.append(
            one.entry(
                fits,
                planned.seconds,
                budgets,
                disk,
                planned.peak_bytes,
                planned.unknown,
            )
        )
    return found


def _known(config: ExperimentConfig, planned: Estimate) -> dict[str, int]:
    """Return steps, tokens and examples; nothing where they hang on unread rows."""
    if planned.steps is None or planned.tokens is None:
        return {}
    examples = planned.steps * rows_of_a_step(config)
    return {"tokens": planned.tokens, "steps": planned.steps, "examples": examples}


def _check(study: Study, config: ExperimentConfig, data: str, arm: str) -> None:
    """Refuse what would be found wrong only after hours."""
    task = get_preprocessor(config.task)
    chosen = metrics_of(task, config.evaluation)
    known = [*get_metrics_calculator(chosen, task.form).metrics, "cross_entropy"]
    if study.config.metric not in known:
        raise ConfigError(
            f"runs of {arm} on {data} do not measure {study.config.metric!r}",
            where=study.config.name,
            fix=f"take one of {', '.join(known)}, or set evaluation.metrics",
        )
    if study.config.tuning:
        check_objective(config, study.config.tuning.metric)
    spent = {"tokens", "steps", "examples"} & set(study.config.budgets)
    if config.training.early_stopping and spent:
        raise EvidenceError(
            f"{arm} on {data} stops early, so what it spends is not known beforehand",
            where=study.config.name,
            fix="set training.early_stopping=null, or leave out of `budgets`: "
            + ", ".join(sorted(spent)),
        )


def _predicted_seconds(counts: Mapping[str, Any], rates: Rates | None) -> float | None:
    if rates is None:
        return None
    return float(counts["tokens"] / rates.tokens_per_second + rates.evaluation)


def check_budgets(
    study: Study, spent: Mapping[tuple[str, str], Mapping[str, float]]
) -> None:
    """Refuse arms that do not spend the same.

    Args:
        study: Says which budgets must be equal, and within what.
        spent: (data, arm) -> budget -> what a run spends; one that is not known is
            left out.

    Raises:
        EvidenceError: they do not; every arm is named with what it spends.
    """
    for data in study.config.choices:
        for name in study.config.budgets:
            values = {
                arm: v[name]
                for (of, arm), v in spent.items()
                if of == data and name in v
            }
            if not values:
                continue
            low, high = min(values.values()), max(values.values())
            if high - low > study.config.tolerance * high:
                listed = ", ".join(f"{arm} {v:,.0f}" for arm, v in values.items())
                share = 100 * study.config.tolerance
                raise EvidenceError(
                    f"the arms do not spend the same {name} on {data}: {listed}",
                    where=study.config.name,
                    why=f"a difference of arms that differ by more than {share:g} % in "
                    "a budget may be the budget's",
                    fix=f"make them equal, or leave {name!r} out of `budgets` and say "
                    "so in the question",
                )
