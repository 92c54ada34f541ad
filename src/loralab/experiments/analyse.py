"""`analyse`: what the runs of a study show. It reads run directories and nothing else.

For every arm, against the arm it is compared with, on every data set:

    d_se = arm − reference, same seed s and same test row e
    interval and p from `seed_interval(d)`; p corrected over arms and data by Holm
    TOST against the smallest difference of interest; a verdict in one word

Runs that failed are counted and named, never left out in silence: a pair is missing
where either run is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from loralab.evaluation.scores import Floats
from loralab.evaluation.statistics.decisions import (
    holm,
    paired_permutation,
    tost_of,
    verdict,
)
from loralab.evaluation.statistics.noise import detectable_difference, noise_floor
from loralab.evaluation.statistics.seeds import (
    SeedInterval,
    ratio_values,
    seed_interval,
)
from loralab.evaluation.statistics.tasks import LEAST, probability_of_improvement
from loralab.evaluation.statistics.trials import expected_best
from loralab.experiments.ledger import check_budgets
from loralab.experiments.objective import better
from loralab.experiments.readings import BUDGETS, Reading, read_all
from loralab.experiments.study import Study
from loralab.runs.files import write_json

FORMAT_VERSION = 1
LEAST_TASKS = 3
"""Data sets from which a number over all of them is told."""

ARM_SEEDS = (3, 5, 10)
"""Numbers of seeds for which the noise floor tells the half-width of a difference."""


def values_of(readings: Sequence[Reading]) -> Floats:
    """Return the metric by seed and row, [S, E]; by seed, [S], where rows have none.

    The mean over rows is the metric of the seed, exactly.
    """
    above = [one.above for one in readings]
    below = readings[0].below
    shared = below is not None and all(
        one.below is not None and np.array_equal(one.below, below) for one in readings
    )
    if below is None or not shared or any(part is None for part in above):
        return np.array([one.value for one in readings])
    return ratio_values(np.stack([part for part in above if part is not None]), below)


class _Runs:
    """The readings of a study, by data set and arm."""

    def __init__(self, study: Study, readings: Sequence[Reading]) -> None:
        self.study, self.all = study, readings
        offsets = {arm: offset for arm, (_, offset) in study.config.everything.items()}
        self._by: dict[tuple[str, str], dict[int, Reading]] = {}
        for one in readings:
            place = one.cell.seed - offsets[one.cell.arm]
            self._by.setdefault((one.cell.data, one.cell.arm), {})[place] = one

    def of(self, data: str, arm: str) -> list[Reading]:
        """Return an arm's readings, by seed."""
        found = self._by.get((data, arm), {})
        return [found[place] for place in sorted(found)]

    def differences(self, data: str, arm: str, reference: str) -> Floats:
        """Return arm minus reference where both have ended, [S, E] or [S]."""
        one, two = self._by.get((data, arm), {}), self._by.get((data, reference), {})
        shared = sorted(one.keys() & two.keys())
        if not shared:
            return np.empty(0)
        both = [one[i] for i in shared] + [two[i] for i in shared]
        values = values_of(both)  # one denominator for both arms
        return np.asarray(values[: len(shared)] - values[len(shared) :])


def analyse(study: Study) -> dict[str, Any]:
    """Return what the runs of a study show, and write it to ``analysis.json``.

    Raises:
        RunError: no run has ended, tuning is not finished or has its best on an edge,
            or runs cannot be paired.
        EvidenceError: the arms did not spend the same.
    """
    tuned = _tuning(study)
    readings = read_all(study)
    runs = _Runs(study, readings)
    spent = _spent(readings)
    check_budgets(study, spent)
    cells = [cell for cell in study.cells() if cell.stage == "final"]
    compared = _comparisons(runs, list(study.config.arms))
    controls = _comparisons(runs, list(study.config.controls))
    found = {
        "format": FORMAT_VERSION,
        "kind": "analysis",
        "size": study.size,
        "study": study.config.model_dump(mode="json"),
        "better": readings[0].better,
        "runs": [_run(one) for one in readings],
        "failed": [asdict(cell) for cell in cells if cell.status == "failed"],
        "waiting": sum(cell.status == "waiting" for cell in cells),
        "arms": [_arm(runs, data, arm) for data, arm in spent],
        "comparisons": compared,
        "controls": [
            {**one, **_judged(study, one), "name": one["arm"]} for one in controls
        ],
        "over_tasks": over_tasks(runs),
        "noise": _noise(runs),
        "tuning": tuned,
    }
    write_json(study.path / "analysis.json", found)
    return found


def _run(one: Reading) -> dict[str, Any]:
    cell = one.cell
    return {
        "data": cell.data,
        "arm": cell.arm,
        "seed": cell.seed,
        "point": list(cell.point),
        "value": one.value,
        "seconds": one.seconds,
        **one.budgets,
        **one.record,
        "curve": [list(point) for point in one.curve],
    }


def _spent(readings: Sequence[Reading]) -> dict[tuple[str, str], dict[str, float]]:
    """Return (data, arm) -> budget -> mean over its runs."""
    names = list(dict.fromkeys((one.cell.data, one.cell.arm) for one in readings))
    return {
        key: {
            name: float(
                np.mean(
                    [
                        one.budgets[name]
                        for one in readings
                        if (one.cell.data, one.cell.arm) == key
                    ]
                )
            )
            for name in BUDGETS
        }
        for key in names
    }


def _arm(runs: _Runs, data: str, arm: str) -> dict[str, Any]:
    """Return an arm's metric, with its interval if it has seeds enough."""
    readings = runs.of(data, arm)
    values = values_of(readings)
    found: dict[str, Any] = {
        "data": data,
        "arm": arm,
        "seeds": len(readings),
        "value": float(np.mean([one.value for one in readings])),
        "seconds": float(np.mean([one.seconds for one in readings])),
        "trainable": readings[0].budgets["trainable"],
        "adapter_bytes": readings[0].record["adapter_bytes"],
        "interval": None,
    }
    if len(readings) > 1:
        found["interval"] = _interval(_seeds(runs.study, values))
    return found


def _seeds(study: Study, values: Floats) -> SeedInterval:
    return seed_interval(values, 1 - study.config.alpha)


def _interval(found: SeedInterval) -> dict[str, Any]:
    return {
        **found.interval.as_dict(),
        "method": found.method,
        "claim": found.claim,
        "standard_error": found.standard_error,
        "confidence": found.confidence,
    }


def _comparisons(runs: _Runs, arms: Sequence[str]) -> list[dict[str, Any]]:
    """Return each arm against its reference on each data set, with Holm's p."""
    config = runs.study.config
    found: list[dict[str, Any]] = []
    raw: dict[str, float] = {}
    intervals: dict[str, SeedInterval] = {}
    for data in config.choices:
        for arm in arms:
            reference = config.reference(arm)
            if reference is None:
                continue
            values = runs.differences(data, arm, reference)
            one: dict[str, Any] = {"data": data, "arm": arm, "reference": reference}
            one |= {"seeds": len(values), "planned": runs.study.seeds(data)}
            found.append(one)
            if len(values) > 1:
                name = f"{data} {arm}"
                intervals[name] = _seeds(runs.study, values)
                raw[name] = intervals[name].p_value
                one["permutation"] = _permuted(values)
    corrected = holm(raw)
    for one in found:
        name = f"{one['data']} {one['arm']}"
        if name in raw:
            one |= _decided(
                runs, one["data"], intervals[name], corrected[name], len(raw)
            )
        else:
            one |= {"verdict": "inconclusive", "why": "fewer than two pairs of runs"}
    return found


def _permuted(values: Floats) -> dict[str, Any]:
    by_seed = values if values.ndim == 1 else values.mean(1)
    return asdict(paired_permutation(by_seed))


def _decided(
    runs: _Runs, data: str, found: SeedInterval, corrected: float, family: int
) -> dict[str, Any]:
    config = runs.study.config
    margin = config.choices[data].smallest_difference or config.smallest_difference
    spread = found.standard_error * found.seeds**0.5
    detectable = detectable_difference(
        spread, found.seeds, config.alpha / family, config.power
    )
    equal = tost_of(
        found.interval.value,
        found.standard_error,
        found.reference,
        margin,
        config.alpha,
    )
    word = verdict(
        found.interval,
        corrected,
        equal,
        higher_is_better=runs.all[0].better == "higher",
        detectable=detectable,
        alpha=config.alpha,
    )
    return {
        "difference": _interval(found),
        "p": found.p_value,
        "p_holm": corrected,
        "equivalence": asdict(equal),
        "smallest_difference": margin,
        "detectable": detectable,
        "verdict": word.word,
        "negligible": word.negligible,
        "underpowered": word.underpowered,
    }


def _judged(study: Study, one: dict[str, Any]) -> dict[str, Any]:
    """Return whether a control came out as it must."""
    expected = study.config.controls[one["arm"]].expect
    word = one["verdict"]
    held = word == "worse" if expected == "worse" else word not in ("better", "worse")
    return {"expected": expected, "held": held}


def _noise(runs: _Runs) -> list[dict[str, Any]]:
    """Return the A/A noise floor of every arm that has seeds enough."""
    config = runs.study.config
    found = []
    for data in config.choices:
        for arm in config.arms:
            values = [one.value for one in runs.of(data, arm)]
            if len(values) < 3:
                continue
            floor = noise_floor(values, 1 - config.alpha)
            found.append(
                {
                    "data": data,
                    "arm": arm,
                    "seeds": floor.seeds,
                    "mean": float(np.mean(values)),
                    "sd": floor.sd.as_dict(),
                    "largest_pair": float(floor.pairs[-1]),
                    "median_halves": float(np.median(floor.halves)),
                    "largest_halves": float(floor.halves[-1]),
                    "half_width": {str(m): floor.half_width(m) for m in ARM_SEEDS},
                    "detectable": {
                        str(m): detectable_difference(
                            2**0.5 * floor.sd.value, m, config.alpha, config.power
                        )
                        for m in ARM_SEEDS
                    },
                }
            )
    return found


def over_tasks(runs: _Runs) -> list[dict[str, Any]]:
    """Return how likely a run of an arm beats one of the baseline, over all data sets.

    Only where all of at least three data sets have three seeds of every arm.
    """
    config = runs.study.config
    higher = 1.0 if runs.all[0].better == "higher" else -1.0
    scores: dict[str, Floats] = {}
    for arm in config.arms:
        values = [[one.value for one in runs.of(data, arm)] for data in config.choices]
        seeds = min(len(one) for one in values)
        if len(values) < LEAST_TASKS or seeds < LEAST:
            return []
        scores[arm] = higher * np.array([one[:seeds] for one in values]).T
    found = []
    for arm, of_arm in scores.items():
        reference = config.reference(arm)
        if reference is None:
            continue
        likely = probability_of_improvement(of_arm, scores[reference], 1 - config.alpha)
        found.append(
            {
                "arm": arm,
                "reference": reference,
                "tasks": likely.tasks,
                "seeds": likely.seeds,
                "probability_of_improvement": likely.interval.as_dict(),
                "undercovers": likely.undercovers,
            }
        )
    return found


def _tuning(study: Study) -> list[dict[str, Any]]:
    """Return each arm's trials, its best point, and what fewer trials would give.

    Raises:
        RunError: a best point lies on an edge, or trials have not ended.
    """
    tuning = study.config.tuning
    if tuning is None:
        return []
    study.final_cells()  # refuses edges
    sign = 1.0 if better(tuning.metric) == "lower" else -1.0
    found = []
    for data, arm in dict.fromkeys((c.data, c.arm) for c in study.tuning_cells()):
        scores = study.tuning_scores(data, arm)
        values = [sign * v for v in scores.values()]
        whole = bool(np.isfinite(values).all())  # none has failed
        found.append(
            {
                "data": data,
                "arm": arm,
                "metric": tuning.metric,
                "trials": [
                    {"point": list(p), "value": sign * v if np.isfinite(v) else None}
                    for p, v in scores.items()
                ],
                "chosen": list(study.chosen(data, arm)),
                "expected_best": expected_best(values, sign < 0).tolist()
                if whole
                else None,
            }
        )
    return found
