"""The adapters that are merged: trained one after the other, from `adapters.yaml`.

A run that stands is found, one that was killed is resumed. On few cores that others
use too, one thread (OMP_NUM_THREADS=1) is several times faster than two.

    python -m studies.continual_merging.train cost minilm     # trains nothing
    python -m studies.continual_merging.train minilm smollm2  # minutes each
    python -m studies.continual_merging.train table minilm    # what stands

The larger suites need the hub and a GPU. What they take is told without either, from
the numbers of their architectures; hours, if a file tells of the machine that is meant
(`loralab plan --help`):

    python -m studies.continual_merging.train offline llama-2-7b --machine h100.yaml
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from loralab import compose, train
from loralab.config import ExperimentConfig
from loralab.runs import Run
from loralab.training.estimate import Estimate, Machine, estimate, read_machine
from loralab.training.prepare import plan_of, prepare
from loralab.training.timing import Rates, measure_rates

ADAPTERS = Path(__file__).parent / "adapters.yaml"
RUNS = Path("runs") / "continual_merging"
GB = 1e9


@dataclass(frozen=True)
class Adapter:
    """An adapter to train.

    Attributes:
        group: Those of a group share a base, and are merged with each other.
        experiment: A preset: its rows are the task.
        seed: Of the training.
        rank: Of every module.
        alpha: The scale is alpha / rank.
        steps: Of the optimizer.
        overrides: Of the preset: shared by the group, then its own.
        name: Of the task, where it is not the preset's.
    """

    group: str
    experiment: str
    seed: int
    rank: int
    alpha: int
    steps: int
    overrides: tuple[str, ...]
    name: str = ""

    def compose(self) -> ExperimentConfig:
        """Return the configuration that is trained."""
        own = (
            f"name={self.group}-{self.name or self.experiment}",
            f"training.seed={self.seed}",
            f"peft.params.rank={self.rank}",
            f"peft.params.alpha={self.alpha}",
            f"training.max_steps={self.steps}",
        )
        made: ExperimentConfig = compose(self.experiment, [*self.overrides, *own])
        return made

    def run(self, runs_dir: Path = RUNS) -> Run:
        """Return its run, which need not be there."""
        return Run(runs_dir / self.compose().run_id)


def adapters(group: str) -> list[Adapter]:
    """Return the adapters of a group, in the order of the file."""
    found = yaml.safe_load(ADAPTERS.read_text(encoding="utf-8"))[group]
    shared = tuple(found["overrides"])
    return [
        Adapter(
            group=group, overrides=(*shared, *row.get("overrides", ())), **_rest(row)
        )
        for row in found["adapters"]
    ]


def _rest(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "overrides"}


def stands(run: Run) -> bool:
    """Return whether a run is complete."""
    return (run.path / "run.json").is_file() and run.status == "complete"


def tell_cost(chosen: Sequence[Adapter], runs_dir: Path) -> None:
    """Print what training will take; a group's rate is measured on its first."""
    rates: dict[str, Rates] = {}
    total = 0.0
    for one in chosen:
        name = f"{one.group:8} {one.experiment:20}"
        if stands(one.run(runs_dir)):
            print(f"{name} stands", flush=True)
            continue
        prepared = prepare(one.compose(), weights=False)
        tokens = plan_of(prepared)["tokens"]
        if one.group not in rates:
            rates[one.group] = measure_rates(prepared)
        rate = rates[one.group]
        seconds = tokens / rate.tokens_per_second + rate.evaluation
        total += seconds
        print(
            f"{name} rank {one.rank:2}, {one.steps} steps, {tokens:,} tokens: "
            f"{seconds:.0f} s",
            flush=True,
        )
    print(f"in all {total / 60:.0f} minutes", flush=True)


def tell_offline(chosen: Sequence[Adapter], machine: Machine | None) -> None:
    """Print what training takes at most of bases and rows that are not here.

    Adapters of a group with one rank differ in their steps alone.
    """
    known: dict[tuple[str, int], Estimate] = {}
    disk, seconds, bases = 0, 0.0, {}
    for one in chosen:
        key = (one.group, one.rank)
        if key not in known:
            known[key] = estimate(one.compose(), machine)
        first = known[key]
        assert first.steps and first.tokens and first.flops  # the file sets the steps
        share = one.steps / first.steps
        hours = f", {share * first.seconds / 3600:.1f} h" if first.seconds else ""
        print(
            f"{one.group:12} {one.name or one.experiment} rank {one.rank}, "
            f"{one.steps:,} steps, {share * first.tokens:,.0f} tokens, "
            f"{share * first.flops:.2g} FLOP{hours}; trains {first.trained:,}, "
            f"peak {first.peak_bytes / GB:.1f} GB{_word(first.fits)}",
            flush=True,
        )
        disk += first.adapter_bytes + first.checkpoint_bytes
        seconds += share * (first.seconds or 0.0)
        bases[first.model] = first.base_bytes
    hours = f"{seconds / 3600:.1f} hours, " if machine else ""
    print(
        f"in all {hours}{disk / GB:.1f} GB of runs, and of bases "
        f"{sum(bases.values()) / GB:.1f} GB"
    )
    for text in dict.fromkeys(t for one in known.values() for t in one.unknown):
        print(f"unknown: {text}")


def _word(fits: bool | None) -> str:
    return {None: "", True: ", fits", False: ", DOES NOT FIT"}[fits]


def train_all(chosen: Sequence[Adapter], runs_dir: Path) -> list[Run]:
    """Return the runs, trained where they do not stand.

    Raises:
        LoralabError: one cannot be trained.
        ValueError: they do not stand on one base.
    """
    runs = []
    for one in chosen:
        run = train(one.compose(), runs_dir, resume=True)
        print(json.dumps(row_of(one, run)), flush=True)
        runs.append(run)
    check_bases(chosen, runs)
    return runs


def check_bases(chosen: Sequence[Adapter], runs: Sequence[Run]) -> None:
    """Refuse adapters of a group that stand on different bases.

    Raises:
        ValueError: they do; the fingerprints are named.
    """
    pairs = zip(chosen, runs, strict=True)
    found = {(one.group, run.read()["base"]["fingerprint"]) for one, run in pairs}
    if len(found) != len({group for group, _ in found}):
        raise ValueError(f"adapters of one group on several bases: {sorted(found)}")


def row_of(one: Adapter, run: Run) -> dict[str, Any]:
    """Return what a complete run measured."""
    record, test = run.read(), run.evaluations()["test"]
    accuracy = test["metrics"]["accuracy"]["adapter"]
    return {
        "adapter": f"{one.group} {one.experiment}",
        "accuracy": accuracy["value"],
        "low": accuracy["low"],
        "high": accuracy["high"],
        "n": test["rows"],
        "majority": test["majority"],
        "seconds": record["training"]["seconds"],
        "rank": one.rank,
        "trained": record["training"]["trainable"],
        "seed": one.seed,
        "base": record["base"]["fingerprint"][:12],
        "run": str(run.path),
    }


def main() -> None:
    """Tell the cost, train, or print what stands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="+", help="cost, offline or table; groups")
    parser.add_argument("--machine", type=Path, help="YAML, for `offline`")
    given = parser.parse_args()
    asked = given.words
    verb = asked[0] if asked[0] in ("cost", "offline", "table") else "train"
    groups = asked[1:] if asked[:1] == [verb] else asked
    if not groups:
        parser.error("name a group of adapters.yaml")
    chosen = [one for group in groups for one in adapters(group)]
    if verb == "table":
        for one in chosen:
            if stands(one.run()):
                print(json.dumps(row_of(one, one.run())))
    elif verb == "offline":
        machine = read_machine(given.machine) if given.machine else None
        tell_offline(chosen, machine)
    else:
        tell_cost(chosen, RUNS)
    if verb == "train":
        train_all(chosen, RUNS)


if __name__ == "__main__":
    main()
