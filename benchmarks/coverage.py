"""How often the intervals over seeds, tasks and proportions hold the truth.

The grid of `loralab.evaluation.statistics.coverage`, with 2 and 20 seeds and lognormal
example effects besides; `seeds.offered` rests on this table. No model, no torch needed.

    python benchmarks/coverage.py                       # some two minutes
    python benchmarks/coverage.py --repetitions 10000
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from loralab.evaluation.intervals import Interval, paired_proportions, wilson
from loralab.evaluation.statistics.coverage import (
    METHODS,
    RATIOS,
    RESIDUALS,
    SEEDS,
    Case,
    coverage,
    proportion_coverage,
)
from loralab.evaluation.statistics.seeds import LEAST_SEEDS, offered
from loralab.evaluation.statistics.tasks import iqm, probability_of_improvement

RESULTS = Path(__file__).parent / "results" / "coverage.json"
BAND = (0.93, 0.97)
CASES = [
    *(Case(k, r, s) for k in (2, *SEEDS, 20) for r in RATIOS for s in RESIDUALS),
    *(Case(k, r, heavy=True) for k in SEEDS for r in RATIOS),
    *(Case(k, r, examples=n) for k in SEEDS for n in (30, 1000) for r in (0.1, 10.0)),
]
ROWS = (10, 30, 100)
CELLS = ((0.5, 0.2, 0.1, 0.2), (0.8, 0.07, 0.03, 0.1), (0.88, 0.05, 0.02, 0.05))
"""Shares of rows that both have right, the first alone, the second alone, neither."""
TASKS, TASK_SEEDS = (3, 6, 12), (3, 5, 10, 20)


def standard_error(share: float, repetitions: int) -> float:
    """Return the simulation's standard error of a share."""
    return float((share * (1 - share) / repetitions) ** 0.5)


def seed_rows(repetitions: int) -> list[dict[str, Any]]:
    """Return one row a case: what each method covers, and its standard error."""
    print(f"{'seeds ratio residual':32}", *(f"{name[:12]:>13}" for name in METHODS))
    rows = []
    for seed, case in enumerate(CASES):
        found = coverage(case, repetitions=repetitions, seed=seed)
        errors = {name: standard_error(p, repetitions) for name, p in found.items()}
        rows.append({**asdict(case), "coverage": found, "standard_error": errors})
        extra = "lognormal" if case.heavy else ""
        head = f"{case.seeds:2} {case.ratio:5} {case.residual:4} n={case.examples}"
        cells = (f"{100 * p:13.1f}" for p in found.values())
        print(f"{f'{head} {extra}':32}", *cells, flush=True)
    return rows


def jeffreys(successes: int, n: int, confidence: float) -> Interval:
    """Return a share with the interval of p ~ Beta(½ + right, ½ + wrong).

    The ends are 0 where nothing is right and 1 where everything is (Brown, Cai &
    DasGupta 2001, section 4.1.2).
    """
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, 1 - confidence, method="jeffreys")
    low, high = low if successes else 0.0, high if successes < n else 1.0
    return Interval(successes / n, float(low), float(high))


def proportion_rows() -> list[dict[str, Any]]:
    """Return the exact coverage of one proportion, mean and worst over 1 to 99 %."""
    rows = []
    for n in ROWS:
        row: dict[str, Any] = {"rows": n}
        for name, make in (("wilson", wilson), ("jeffreys", jeffreys)):
            at = np.linspace(0.01, 0.99, 99)
            found = [proportion_coverage(make, n, float(p)) for p in at]
            row[name] = {"mean": float(np.mean(found)), "worst": min(found)}
        rows.append(row)
        print(f"proportion, n={n}: {row['wilson']} {row['jeffreys']}", flush=True)
    return rows


def paired_rows(repetitions: int) -> list[dict[str, Any]]:
    """Return the coverage of the paired difference of two accuracies.

    Of the interval that is offered, and of a percentile bootstrap of the rows, with how
    often that has no width.
    """
    rng, rows = np.random.default_rng(0), []
    for n in ROWS:
        for cells in CELLS:
            true, held = cells[1] - cells[2], np.zeros(3)
            for counts in rng.multinomial(n, cells, size=repetitions):
                both, first, second, neither = map(int, counts)
                made = paired_proportions(both, first, second, neither, 0.95)
                drawn = rng.multinomial(n, counts / n, size=1000)
                gaps = (drawn[:, 1] - drawn[:, 2]) / n
                low, high = np.quantile(gaps, [0.025, 0.975])
                held += (
                    made.low <= true <= made.high,
                    low <= true <= high,
                    low == high,
                )
            ours, bootstrap, none = (held / repetitions).tolist()
            row = {
                "rows": n,
                "cells": cells,
                "coverage": ours,
                "standard_error": standard_error(ours, repetitions),
                "bootstrap": bootstrap,
                "bootstrap_without_width": none,
            }
            rows.append(row)
            print(
                f"paired proportions, n={n} {cells}: {held / repetitions}", flush=True
            )
    return rows


def task_shares(seeds: int, tasks: int, repetitions: int) -> dict[str, float]:
    """Return what the intervals of IQM and of the probability of improvement cover.

    Normal scores of tasks of different means, spread between seeds and gain. The true
    IQM is that of very many seeds.
    """
    from scipy.stats import norm, trim_mean

    rng, held = np.random.default_rng(seeds), np.zeros(2)
    mean, sd = np.linspace(0.3, 0.8, tasks), np.linspace(0.02, 0.1, tasks)
    gain = np.linspace(-0.02, 0.1, tasks)
    true_iqm = float(trim_mean(rng.normal(mean, sd, (200_000, tasks)), 0.25, axis=None))
    true_poi = float(norm.cdf(gain / (sd * 2**0.5)).mean())
    for repetition in range(repetitions):
        base = rng.normal(mean, sd, (seeds, tasks))
        other = rng.normal(mean + gain, sd, (seeds, tasks))
        one = iqm(base, draws=1000, seed=repetition).interval
        two = probability_of_improvement(other, base, draws=1000, seed=repetition)
        held[0] += one.low <= true_iqm <= one.high
        held[1] += two.interval.low <= true_poi <= two.interval.high
    first, second = (held / repetitions).tolist()
    return {"iqm": first, "improvement": second}


def task_rows(repetitions: int) -> list[dict[str, Any]]:
    """Return what the intervals over tasks cover, and their standard errors."""
    rows = []
    for tasks in TASKS:
        for k in TASK_SEEDS:
            found = task_shares(k, tasks, repetitions)
            errors = {name: standard_error(p, repetitions) for name, p in found.items()}
            row = {"seeds": k, "tasks": tasks, "coverage": found}
            rows.append({**row, "standard_error": errors})
            print(f"over {tasks} tasks, {k} seeds: {found}", flush=True)
    return rows


def main() -> None:
    """Simulate, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=4000)
    repetitions = parser.parse_args().repetitions
    from loralab.runs.environment import environment

    content = {
        "environment": environment(),
        "repetitions": repetitions,
        "confidence": 0.95,
        "band": BAND,
        "offered_from_seeds": LEAST_SEEDS,
        "seeds": seed_rows(repetitions),
        "proportions": proportion_rows(),
        "paired_proportions": paired_rows(1000),
        "tasks": task_rows(1000),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for row in content["seeds"]:
        for name in LEAST_SEEDS:
            p = row["coverage"][name]
            if offered(name, row["seeds"]) and not BAND[0] <= p <= BAND[1]:
                print(f"{name} is offered and covers {100 * p:.1f} %: {row}")
    print(f"written: {RESULTS.name}")


if __name__ == "__main__":
    main()
