"""What difference a study can see: told before it runs, from an A/A pilot.

The spread of paired differences between seeds comes from, in this order:

    this study's own pairs of runs, where three have ended
    its first arm's runs, three or more; two arms of such seeds differ by √2 of theirs
    the study that `pilot` names, by data set: the same
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loralab.errors import ConfigError, RunError
from loralab.evaluation.statistics.noise import detectable_difference
from loralab.evaluation.statistics.seeds import seed_interval
from loralab.experiments.readings import Runs, read_cell
from loralab.experiments.study import Study

ENOUGH = 3
"""Runs from which a spread is told."""

LOWER_BOUND = "a lower bound, on these test rows"
"""Pairs of runs tell what the test rows add; single runs do not."""


@dataclass(frozen=True)
class Detectable:
    """What a study can see on one data set.

    Attributes:
        data: Name.
        seeds: Planned.
        of_interest: The smallest difference of interest.
        detectable: The smallest true difference that it sees with its power, with
            Holm's correction at its strictest; None where the noise is unknown.
        source: Where the noise comes from.
    """

    data: str
    seeds: int
    of_interest: float
    detectable: float | None
    source: str


def detectable(study: Study) -> list[Detectable]:
    """Return what the study can see on every data set.

    Raises:
        ConfigError: the pilot cannot be read.
    """
    config = study.config
    comparisons = max(1, (len(config.arms) - 1) * len(config.choices))
    found = []
    for data, choice in config.choices.items():
        seeds = study.seeds(data)
        spread, source = _spread(study, data)
        seen = None
        if spread is not None and seeds > 1:
            level = config.alpha / comparisons
            seen = detectable_difference(spread, seeds, level, config.power)
        interest = choice.smallest_difference or config.smallest_difference
        found.append(Detectable(data, seeds, interest, seen, source))
    return found


def _spread(study: Study, data: str) -> tuple[float | None, str]:
    """Return the standard deviation of paired differences, and where it is from."""
    try:
        done = [
            read_cell(study, cell)
            for cell in study.finals()
            if cell.data == data and cell.status == "complete"
        ]
    except RunError:  # tuning is not finished, or a run was deleted since
        done = []
    runs, arms = Runs(study, done), study.config.arms
    first = study.config.baseline or next(iter(arms))
    pairs = [runs.differences(data, arm, first) for arm in arms if arm != first]
    enough = [gaps for gaps in pairs if len(gaps) >= ENOUGH]
    if enough:
        spreads = [seed_interval(g).standard_error * len(g) ** 0.5 for g in enough]
        return max(spreads), f"{len(enough[0])} pairs of this study"
    alone = [one.value for one in runs.of(data, first)]
    if len(alone) >= ENOUGH:
        spread = float(np.std(alone, ddof=1))
        source = f"{len(alone)} seeds of {first}, this study; {LOWER_BOUND}"
        return 2**0.5 * spread, source
    return _piloted(study, data)


def _piloted(study: Study, data: str) -> tuple[float | None, str]:
    if study.config.pilot is None:
        return None, "–"
    file = Path(study.config.pilot).expanduser()
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        noise = [one for one in content["noise"] if one["data"] == data]
        metric, size = content["study"]["metric"], content["size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            "the pilot cannot be read",
            where=str(file),
            why=str(error),
            fix="name the analysis.json that `loralab study analyse` wrote",
        ) from None
    if metric != study.config.metric:
        raise ConfigError(
            f"the pilot measured {metric}, not {study.config.metric}", where=str(file)
        )
    if size != study.size:
        raise ConfigError(
            f"the pilot is of the size {size}, the study of the size {study.size}",
            where=str(file),
            fix="name a pilot of the same size",
        )
    if not noise:
        return None, f"{file.name} has no {data}"
    one = max(noise, key=lambda one: float(one["sd"]["value"]))
    source = f"{one['seeds']} seeds of {file}; {LOWER_BOUND}"
    return 2**0.5 * float(one["sd"]["value"]), source
