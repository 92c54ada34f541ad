"""Points chosen by Optuna: TPE (Bergstra et al. 2011), with pruning by the median.

What a trial minimizes is a loss; a metric that is better when higher is negated by the
caller. Complete trials of a sweep that was killed are told to Optuna again (those that
were pruned or failed are only not tried again); with several workers the points depend
on which ends first.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from loralab.errors import ConfigError
from loralab.experiments.space import Axis, Point, Space
from loralab.registry import Params, register

if TYPE_CHECKING:
    from optuna import Trial


DRAWS_PER_POINT = 200
"""How often Optuna is asked for a point that has not been tried, before giving up."""


class OptunaParams(Params):
    """How many points, how they are chosen, and whether poor trials stop early."""

    trials: int = Field(20, gt=0)
    seed: int = Field(0, ge=0)
    pruner: Literal["none", "median", "hyperband"] = "none"


class OptunaSampler:
    """Asks Optuna, and tells it what trials came to."""

    def __init__(self, params: OptunaParams, space: Space) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        pruners: dict[str, Any] = {
            "none": optuna.pruners.NopPruner,
            "median": optuna.pruners.MedianPruner,
            "hyperband": optuna.pruners.HyperbandPruner,
        }
        self._study = optuna.create_study(
            direction="minimize",
            sampler=optuna.samplers.TPESampler(seed=params.seed),
            pruner=pruners[params.pruner](),
        )
        self._space, self._seed = space, params.seed
        self._laws = {axis.key: _law(axis) for axis in space.axes}
        self._left = params.trials
        self._running: dict[Point, Trial] = {}
        self._seen: set[Point] = set()

    def ask(self) -> Point | None:
        """Return a point, one that has not been tried if there is any; or None."""
        if self._left <= 0:
            return None
        for _ in range(DRAWS_PER_POINT):
            trial = self._study.ask(self._laws)
            point = tuple(axis.at(trial.params[axis.key]) for axis in self._space.axes)
            if point not in self._seen:
                self._left -= 1
                self._seen.add(point)
                self._running[point] = trial
                return point
            self._end(trial, None)  # the same run again would teach nothing
        return None

    def replay(self, point: Point, value: float | None) -> None:
        """Tell Optuna of a trial of an earlier process."""
        import optuna

        self._left -= 1
        self._seen.add(point)
        self._seed += 1  # or the first draws would come again
        self._study.sampler = optuna.samplers.TPESampler(seed=self._seed)
        if value is not None:
            self._add(point, value)

    def _add(self, point: Point, value: float) -> None:
        from optuna.trial import create_trial

        params = {
            axis.key: _read(axis, text.partition("=")[2])
            for axis, text in zip(self._space.axes, point, strict=True)
        }
        done = create_trial(params=params, distributions=self._laws, value=value)
        self._study.add_trial(done)

    def tell(self, point: Point, value: float | None) -> None:
        """Tell Optuna how a trial ended; None: it failed or was pruned."""
        trial = self._running.pop(point, None)
        if trial is not None:
            self._end(trial, value)
        elif value is not None:  # begun by an earlier process
            self._add(point, value)

    def _end(self, trial: Trial, value: float | None) -> None:
        from optuna.trial import TrialState

        if value is None:
            state = TrialState.PRUNED if _reported(trial) else TrialState.FAIL
            self._study.tell(trial, state=state)
        else:
            self._study.tell(trial, value)

    def judge(self, point: Point, step: int, value: float) -> bool:
        """Report a validation; return whether the trial should stop."""
        trial = self._running.get(point)
        if trial is None:
            return False
        trial.report(value, step)
        return bool(trial.should_prune())


def _reported(trial: Trial) -> bool:
    return bool(trial.study.trials[trial.number].intermediate_values)


def _law(axis: Axis) -> Any:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if axis.listed:
        return CategoricalDistribution(axis.values)
    if axis.whole:
        low, high = math.ceil(axis.low), math.floor(axis.high)
        return IntDistribution(low, high, log=axis.log)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


def _read(axis: Axis, text: str) -> Any:
    if axis.listed:
        return text
    return int(text) if axis.whole else float(text)


@register("sampler", "optuna", OptunaParams)
def optuna(params: OptunaParams, space: Space) -> OptunaSampler:
    """Return Optuna's sampler.

    Raises:
        ConfigError: Optuna is not installed.
    """
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise ConfigError(
            "the sampler 'optuna' needs the package optuna, which is not here",
            fix="pip install 'loralab[optuna]', or take --sampler random",
        )
    return OptunaSampler(params, space)
