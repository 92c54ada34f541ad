"""What a rank allocation costs, and whether one calibration batch is enough.

Seconds of every rank strategy on two bases: those of its calibration (what it reads of
training rows) and those of sharing out the budget. Then the same statistic from several
batches: Spearman's correlation over modules (for ``eva`` of the ranks that come of it),
and the share of the adapter's parameters that sit in another module.

    python benchmarks/ranks.py            # both bases, some minutes
    python benchmarks/ranks.py minilm
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from loralab import compose, load_rows, registry
from loralab.adapters.allocation import Budget, Module, allocate, modules_of, needs_of
from loralab.adapters.allotment import MOST, budget_of
from loralab.adapters.attach import attach
from loralab.adapters.calibration import (
    Batches,
    Statistics,
    calibration_batches,
    measure,
)
from loralab.adapters.files import save_weights
from loralab.adapters.ranks_config import CalibrationConfig, RanksConfig
from loralab.adapters.site import site_of
from loralab.config import ExperimentConfig
from loralab.config.schema import RankStrategyConfig
from loralab.data.examples import get_preprocessor
from loralab.models.base import load_base
from loralab.models.loaded import LoadedModel
from loralab.models.numerics import seed_everything
from loralab.runs.environment import environment
from loralab.runs.run import create

RESULTS = Path(__file__).parent / "results" / "ranks.json"
BATCHES = 8
KINDS = ("gradient", "fisher", "eva")
REPEATS = 5
"""Times that a budget is shared out; the median is told."""

COMMON = ("model.dtype=fp32", "model.device=cpu")


@dataclass(frozen=True)
class Case:
    """A base with rows, and how many rows (packs) a batch has."""

    experiment: str
    overrides: tuple[str, ...]
    rows: int


CASES = {
    "minilm": Case("trec-6", (), 16),
    "smollm2": Case("chatterbot", ("task.params.max_length=128",), 2),
}


@dataclass(frozen=True)
class Bench:
    """What all measurements of a case stand on."""

    config: ExperimentConfig
    base: LoadedModel
    modules: list[Module]
    budget: Budget
    batches: list[Any]

    def some(self, chosen: Sequence[int]) -> Batches:
        """Return some of the batches, as calibration takes them."""

        def again() -> Iterator[Any]:
            return (self.batches[i] for i in chosen)

        return again

    def ranks(self, strategy: RankStrategyConfig, found: Any) -> dict[str, int]:
        """Return the ranks that a strategy gives."""
        return allocate(strategy, self.modules, self.budget, found, 0)


def prepared(case: Case) -> Bench:
    """Load rows and base of a case, without adapter."""
    config = compose(case.experiment, [*case.overrides, *COMMON])
    task = get_preprocessor(config.task)
    rows = load_rows(config.data, task)
    state = task.fit({name: list(split) for name, split in rows.splits.items()})
    seed_everything(config.training.seed)  # of a classifier's new head
    base = load_base(config.model, task.head, state.get("labels", ()))
    task.prepare(base.processor)
    examples = task(list(rows.splits["train"]), base.processor)
    settings = CalibrationConfig(batches=BATCHES, rows=case.rows)
    params: Any = registry.get("PEFT method", "lora").schema(**config.peft.params)
    site = site_of(base, params, "linear")
    modules = modules_of(base.facts, base.model, site.names)
    budget = budget_of(RanksConfig(name="uniform"), modules, params.rank)
    assert budget is not None
    batches = list(calibration_batches(examples, base, settings)())
    return Bench(config, base, modules, budget, batches)


def clocked(bench: Bench, kind: str, chosen: Sequence[int]) -> tuple[float, Statistics]:
    """Return the seconds of a calibration on some batches, and its statistic."""
    names = [module.name for module in bench.modules]
    began = time.perf_counter()
    found = measure(kind, bench.base, names, bench.some(chosen), MOST)
    return time.perf_counter() - began, found


def subsets() -> dict[str, tuple[int, ...]]:
    """Return which batches are looked at together: all, each half, each alone."""
    everything = tuple(range(BATCHES))
    half = BATCHES // 2
    return {
        "all": everything,
        "first half": everything[:half],
        "second half": everything[half:],
        **{f"batch {i}": (i,) for i in everything},
    }


def calibrated(bench: Bench) -> dict[str, dict[str, tuple[float, Statistics]]]:
    """Return seconds and statistic of every kind from every subset of the batches."""
    found: dict[str, dict[str, tuple[float, Statistics]]] = {}
    for kind in KINDS:
        first, _ = clocked(bench, kind, (0,))  # memory is warm after it
        passes = sum(map(len, subsets().values()))
        print(f"  {kind}: {passes} passes of up to {first:.1f} s", flush=True)
        own = found[kind] = {}
        for name, chosen in subsets().items():
            own[name] = clocked(bench, kind, chosen)
    return found


def strategies(run: str) -> list[RankStrategyConfig]:
    """Return every rank strategy; controls are of `gradient`, the table is rank 8."""
    params: dict[str, dict[str, Any]] = {
        "table": {"ranks": {".*": 8}},
        "from-run": {"run": run},
        "inverted": {"of": {"name": "gradient"}},
        "shuffled": {"of": {"name": "gradient"}},
    }
    return [
        RankStrategyConfig(name=name, params=params.get(name, {}))
        for name in registry.names("rank strategy")
    ]


def costs(bench: Bench, found: Any) -> list[dict[str, Any]]:
    """Return the seconds of every strategy. It ends with an adapter on the base."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        run = create(bench.config, Path(folder), "adapter")
        run.adapter.mkdir()
        save_weights(attach(bench.base, bench.config.peft).model, run.adapter)
        for strategy in strategies(str(run.path)):
            need = needs_of(strategy)
            calibration, read = found[need]["all"] if need else (0.0, None)
            times = []
            for _ in range(REPEATS):
                began = time.perf_counter()
                ranks = bench.ranks(strategy, read).values()
                times.append(time.perf_counter() - began)
            row = {
                "strategy": strategy.name,
                "statistic": need,
                "calibration_seconds": calibration,
                "allocation_seconds": statistics.median(times),
                "smallest": min(ranks),
                "largest": max(ranks),
            }
            rows.append(row)
            print(
                f"  {row['strategy']:16} calibration {calibration:7.2f} s, "
                f"allocation {1000 * row['allocation_seconds']:7.2f} ms, "
                f"ranks {row['smallest']} to {row['largest']}"
            )
    return rows


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Return mean and range."""
    return {
        "mean": statistics.fmean(values),
        "low": min(values),
        "high": max(values),
        "pairs": len(values),
    }


def pairs() -> dict[str, list[tuple[str, str]]]:
    """Return which subsets are compared, in words; only the last pairs share rows."""
    alone = [f"batch {i}" for i in range(BATCHES)]
    halves = ["first half", "second half"]
    half = BATCHES // 2
    return {
        "one batch, another": list(combinations(alone, 2)),
        f"one batch, {half} others": [
            (name, halves[1 - i // half]) for i, name in enumerate(alone)
        ],
        f"{half} batches, {half} others": [(halves[0], halves[1])],
        f"one batch, all {BATCHES}": [(name, "all") for name in alone],
    }


def stability(bench: Bench, kind: str, found: Any) -> dict[str, Any]:
    """Return how a kind's statistic, and its ranks, agree between subsets."""
    from scipy.stats import spearmanr

    own = RankStrategyConfig(name=kind)
    ranks = {name: bench.ranks(own, read) for name, (_, read) in found.items()}
    values = ranks if kind == "eva" else {n: read for n, (_, read) in found.items()}
    names = [module.name for module in bench.modules]

    def agree(first: str, second: str) -> float:
        both = [[values[which][n] for n in names] for which in (first, second)]
        return float(spearmanr(*both).statistic)

    def moved(first: dict[str, int], second: dict[str, int]) -> float:
        apart = sum(abs(first[m.name] - second[m.name]) * m.cost for m in bench.modules)
        return apart / 2 / bench.budget.amount

    uniform = bench.ranks(RankStrategyConfig(name="uniform"), None)
    return {
        "correlated": "ranks" if kind == "eva" else "statistic",
        "moved_from_uniform": moved(uniform, ranks["all"]),
        "compared": {
            name: {
                "spearman": spread([agree(a, b) for a, b in of]),
                "moved": spread([moved(ranks[a], ranks[b]) for a, b in of]),
            }
            for name, of in pairs().items()
        },
    }


def told(kind: str, found: dict[str, Any]) -> None:
    """Print the stability of a kind in words."""
    away = 100 * found["moved_from_uniform"]
    print(f"  {kind}: {away:.0f} % of parameters sit elsewhere than uniformly")
    for name, one in found["compared"].items():
        rho, moved = one["spearman"], one["moved"]
        print(
            f"    {name:24} Spearman of the {found['correlated']} {rho['mean']:.2f} "
            f"({rho['low']:.2f} to {rho['high']:.2f}, {rho['pairs']} pairs); "
            f"{100 * moved['mean']:.0f} % of parameters move "
            f"(at most {100 * moved['high']:.0f} %)"
        )


def run_case(name: str) -> dict[str, Any]:
    """Measure a case."""
    case = CASES[name]
    bench = prepared(case)
    sizes = [int(batch["input_ids"].numel()) for batch in bench.batches]
    print(
        f"{name} ({case.experiment}): {len(bench.modules)} modules, {BATCHES} batches "
        f"of {case.rows} rows, {min(sizes)} to {max(sizes)} positions",
        flush=True,
    )
    found = calibrated(bench)
    stable = {kind: stability(bench, kind, found[kind]) for kind in KINDS}
    rows = costs(bench, found)
    for kind, one in stable.items():
        told(kind, one)
    return {
        "model": name,
        **asdict(case),
        "batches": BATCHES,
        "positions": sizes,
        "modules": len(bench.modules),
        "budget": bench.budget.amount,
        "costs": rows,
        "one_batch_seconds": {
            kind: statistics.median(
                seconds for sub, (seconds, _) in own.items() if sub.startswith("batch")
            )
            for kind, own in found.items()
        },
        "stability": stable,
    }


def main() -> None:
    """Run the cases and write the table."""
    here = environment()
    cases = [run_case(name) for name in sys.argv[1:] or CASES]
    RESULTS.parent.mkdir(exist_ok=True)
    content = {"environment": here, "cases": cases}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written: {RESULTS.name}")


if __name__ == "__main__":
    main()
