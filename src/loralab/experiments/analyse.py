"""`analyse`: what the runs of a study show. It reads run directories and nothing else.

For every arm, against the arm it is compared with, on every data set:

    d_se = arm − reference, same seed s and same test row e
    interval and p from `seed_interval(d)`; p corrected over arms and data by Holm
    TOST against the smallest difference of interest, Holm's too; a verdict in a word

Runs that failed are counted and named, and where a comparison lost pairs by them it is
inconclusive: the runs that ended are then not a fair draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from loralab.evaluation.intervals import Interval
from loralab.evaluation.scores import Floats
from loralab.evaluation.statistics.decisions import (
    Equivalence,
    holm,
    paired_permutation,
    tost_of,
    verdict,
)
from loralab.evaluation.statistics.noise import detectable_difference, noise_floor
from loralab.evaluation.statistics.seeds import SeedInterval, seed_interval
from loralab.evaluation.statistics.tasks import LEAST, probability_of_improvement
from loralab.evaluation.statistics.trials import expected_best
from loralab.experiments.cells import UNFINISHED
from loralab.experiments.ledger import check_budgets
from loralab.experiments.objective import better
from loralab.experiments.readings import BUDGETS, Reading, Runs, read_all, values_of
from loralab.experiments.study import Study
from loralab.runs.files import write_json

FORMAT_VERSION = 1
NO_SPREAD = 1e-12
"""A standard error below this share of the value is rounding, not spread."""

LEAST_TASKS = 3
"""Data sets from which a number over all of them is told."""

ARM_SEEDS = (3, 5, 10)
"""Numbers of seeds for which the noise floor tells the half-width of a difference."""


def analyse(study: Study) -> dict[str, Any]:
    """Return what the runs of a study show, and write it to ``analysis.json``.

    Raises:
        RunError: no run has ended, tuning is not finished or has its best on an edge,
            or runs cannot be paired.
        EvidenceError: the arms did not spend the same.
    """
    tuned = _tuning(study)
    readings = read_all(study)
    runs = Runs(study, readings)
    spent = _spent(readings)
    check_budgets(study, spent)
    cells = [*study.finals(), *(c for c in study.cells() if c.stage == "tuning")]
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
        "waiting": sum(cell.status in UNFINISHED for cell in study.finals()),
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


def _arm(runs: Runs, data: str, arm: str) -> dict[str, Any]:
    """Return an arm's metric, with its interval if it has seeds enough."""
    readings = runs.of(data, arm)
    values = values_of(readings)
    found: dict[str, Any] = {
        "data": data,
        "arm": arm,
        "seeds": len(readings),
        "value": float(np.mean([one.value for one in readings])),
        "seconds": _mean_seconds(readings),
        "trainable": readings[0].budgets["trainable"],
        "adapter_bytes": readings[0].record["adapter_bytes"],
        "interval": None,
    }
    if len(readings) > 1:
        found["interval"] = _interval(_seeds(runs.study, values))
    return found


def _mean_seconds(readings: Sequence[Reading]) -> float | None:
    """Return the mean over runs that were not resumed; None if all were."""
    whole = [one.seconds for one in readings if not one.record["resumed"]]
    return float(np.mean(whole)) if whole else None


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


def _comparisons(runs: Runs, arms: Sequence[str]) -> list[dict[str, Any]]:
    """Return each arm against its reference on each data set.

    Both p values are Holm's over all planned comparisons; one that could not be tested
    yet counts as a p of 1, so that the others are not judged more kindly for it.
    """
    config = runs.study.config
    found: list[dict[str, Any]] = []
    for data in config.choices:
        for arm in arms:
            reference = config.reference(arm)
            if reference is not None:
                found.append(_compared(runs, data, arm, reference))
    for key in ("p", "p_equivalence"):
        raw = {str(i): one.get(key, 1.0) for i, one in enumerate(found)}
        for i, p in holm(raw).items():
            found[int(i)][f"{key}_holm"] = p
    for one in found:
        one |= _decided(runs, one, len(found))
    return found


def _compared(runs: Runs, data: str, arm: str, reference: str) -> dict[str, Any]:
    """Return what the runs say of a difference, before it is judged."""
    config = runs.study.config
    values = runs.differences(data, arm, reference)
    found: dict[str, Any] = {
        "data": data,
        "arm": arm,
        "reference": reference,
        "seeds": len(values),
        "planned": runs.study.seeds(data),
        "smallest_difference": config.choices[data].smallest_difference
        or config.smallest_difference,
    }
    if len(values) < 2:
        return {**found, "why": "fewer than two pairs of runs"}
    made = _seeds(runs.study, values)
    if made.standard_error <= NO_SPREAD * max(1.0, abs(made.interval.value)):
        return {**found, "why": "the pairs show no spread: has the seed an effect?"}
    equal = tost_of(
        made.interval.value,
        made.standard_error,
        made.reference,
        found["smallest_difference"],
        config.alpha,
    )
    return {
        **found,
        "difference": _interval(made),
        "p": made.p_value,
        "permutation": _permuted(values),
        "p_equivalence": equal.p_value,
        "equivalence": equal.interval.as_dict(),
    }


def _permuted(values: Floats) -> dict[str, Any]:
    by_seed = values if values.ndim == 1 else values.mean(1)
    return asdict(paired_permutation(by_seed))


def _decided(runs: Runs, one: dict[str, Any], family: int) -> dict[str, Any]:
    """Return the verdict of a comparison, and what limits it."""
    if "difference" not in one:
        return {"verdict": "inconclusive", "negligible": False, "underpowered": True}
    config = runs.study.config
    interval = Interval(*(one["difference"][k] for k in ("value", "low", "high")))
    spread = one["difference"]["standard_error"] * one["seeds"] ** 0.5
    detectable = detectable_difference(
        spread, one["seeds"], config.alpha / family, config.power
    )
    inside = Interval(*(one["equivalence"][k] for k in ("value", "low", "high")))
    margin = one["smallest_difference"]
    equal = Equivalence(one["p_equivalence_holm"], inside, margin, config.alpha)
    word = verdict(
        interval,
        one["p_holm"],
        equal,
        higher_is_better=runs.all[0].better == "higher",
        detectable=detectable,
        alpha=config.alpha,
    )
    found = {
        "verdict": word.word,
        "negligible": word.negligible,
        "underpowered": word.underpowered,
        "detectable": detectable,
    }
    if _lost(runs, one):  # the runs that ended are not a fair draw of those that began
        found |= {"verdict": "inconclusive", "why": "runs of it have failed"}
    return found


def _lost(runs: Runs, one: dict[str, Any]) -> bool:
    """Return whether a comparison lacks pairs because runs have failed."""
    return any(
        cell.status == "failed"
        and cell.data == one["data"]
        and cell.arm in (one["arm"], one["reference"])
        for cell in runs.study.finals()
    )


def _judged(study: Study, one: dict[str, Any]) -> dict[str, Any]:
    """Return whether a control came out as it must; None: it could not be seen."""
    expected, word = study.config.controls[one["arm"]].expect, one["verdict"]
    held: bool | None = None
    if expected == "worse" and "difference" in one:
        held = word == "worse"
    elif word == "equivalent" or one["negligible"]:
        held = True
    elif word in ("better", "worse"):
        held = False
    return {"expected": expected, "held": held}


def _noise(runs: Runs) -> list[dict[str, Any]]:
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


def over_tasks(runs: Runs) -> list[dict[str, Any]]:
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
