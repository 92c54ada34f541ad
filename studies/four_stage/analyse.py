"""From the runs of a base to what is said of it: differences of the same rows.

With ℓ the loss of a row (cross-entropy, nats), of one seed and over its test rows

    cost   Σ ℓ_stored − ℓ_unmerged                       what storing costs the adapter
    base   Σ ℓ_stored probe − ℓ_probe                    what storing costs the base
    gain   Σ ℓ_probe − ℓ_unmerged                        what the adapter is worth
    kept   Σ (ℓ_probe − ℓ_stored) / Σ (ℓ_probe − ℓ_unmerged)   share of it that is left

Over three seeds or more an interval is over seeds and rows (`seed_interval`, mixed; a
ratio by its influence values); over fewer it is a paired bootstrap over the rows of the
first seed, and says nothing of others. The survival of the weights has no rows: its
interval is Student's t over seeds.

Shape suffixes: S seeds, E rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from studies.four_stage.plan import BF16, LORA, NONE, PROBE, Base, Way

from loralab.errors import EvidenceError
from loralab.evaluation.compare import row_scores
from loralab.evaluation.intervals import Interval, score_intervals
from loralab.evaluation.scores import Floats, ratio_of
from loralab.evaluation.statistics.seeds import (
    LEAST_SEEDS,
    ratio_values,
    seed_interval,
    t_interval,
)
from loralab.runs import Run

Record = dict[str, Any]
Runs = Mapping[tuple[int, Way], Run]
LOSS = "cross_entropy"
CONFIDENCE, RESAMPLES = 0.95, 2000
ENOUGH = 0.99
"""A layer, or an adapter, that kept this share has survived whole."""
DIGITS = 6
"""Significant figures of what is written."""


def shown(value: float) -> float:
    """Return a number with `DIGITS` significant figures."""
    return float(f"{value:.{DIGITS}g}")


def plain(interval: Interval) -> dict[str, float]:
    """Return an interval as JSON."""
    return {key: shown(value) for key, value in interval.as_dict().items()}


def over(above_SE: Floats, below_SE: Floats) -> dict[str, float]:
    """Return Σ above / Σ below, mean over seeds, with its interval.

    Args:
        above_SE: [S, E].
        below_SE: [S, E], its sum of each seed above 0.
    """
    if len(above_SE) < LEAST_SEEDS["mixed"]:
        scores = {"": ratio_of(above_SE[0], below_SE[0])}
        (found,) = score_intervals([scores], CONFIDENCE, RESAMPLES, 0)[""]
        return plain(found)
    pairs = zip(above_SE, below_SE, strict=True)
    values = np.stack([ratio_values(above, below) for above, below in pairs])
    return plain(seed_interval(values, CONFIDENCE, "mixed").interval)


class Scored:
    """Numbers of the test rows of one base's runs.

    Args:
        runs: Seed and way -> run.

    Raises:
        EvidenceError: they did not see the same rows.
    """

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.seeds = sorted({seed for seed, _ in runs})
        first = next(iter(runs.values()))
        self.metric: str = first.evaluations()["test"]["primary"]
        self._keys, _ = row_scores(first, "test", LOSS)
        self._known: dict[tuple[Way, str], tuple[Floats, Floats]] = {}

    @property
    def rows(self) -> int:
        """Test rows."""
        return len(self._keys)

    def of(self, way: Way, metric: str) -> tuple[Floats, Floats]:
        """Return numerators and denominators of a metric, each [S, E]."""
        if (way, metric) not in self._known:
            found = [self._one(self.runs[seed, way], metric) for seed in self.seeds]
            above, below = zip(*found, strict=True)
            self._known[way, metric] = (np.stack(above), np.stack(below))
        return self._known[way, metric]

    def _one(self, run: Run, metric: str) -> tuple[Floats, Floats]:
        keys, pair = row_scores(run, "test", metric)
        if keys != self._keys or pair is None:
            raise EvidenceError("not the same test rows as the others", where=run.id)
        return pair

    def value(self, way: Way, metric: str) -> dict[str, float]:
        """Return a metric of a way."""
        return over(*self.of(way, metric))

    def change(self, way: Way, reference: Way, metric: str) -> dict[str, float]:
        """Return a metric minus that of a reference, on the same rows."""
        above, below = self.of(way, metric)
        return over(above - self.of(reference, metric)[0], below)

    def kept(self, way: Way, reference: Way, probe: Way) -> dict[str, float] | None:
        """Return the share of the gain in loss that is left; None of no gain."""
        base, own = self.of(probe, LOSS)[0], self.of(reference, LOSS)[0]
        gain = base - own
        if not (gain.sum(1) > 0).all():
            return None
        return over(base - self.of(way, LOSS)[0], gain)


def of_base(base: Base, runs: Runs) -> Record:
    """Return what is said of a base: its trainings, and what was stored of them."""
    scored = Scored(runs)
    ways = base.ways
    trained = [way for way in ways if way.route == NONE]
    unmerged = {way.method: way for way in trained}
    return {
        "name": base.name,
        "caution": base.caution,
        "seeds": base.seeds,
        "test_rows": scored.rows,
        "metric": scored.metric,
        "trained": [_trained(way, unmerged, scored) for way in trained],
        "stored": [_stored(way, unmerged, scored) for way in ways if way.route != NONE],
    }


def _trained(way: Way, unmerged: Mapping[str, Way], scored: Scored) -> Record:
    probe = unmerged[PROBE]
    return {
        "method": way.method,
        "runs": [scored.runs[seed, way].id for seed in scored.seeds],
        "metric": scored.value(way, scored.metric),
        "loss": scored.value(way, LOSS),
        "gain": None if way == probe else scored.change(probe, way, LOSS),
    }


def _stored(way: Way, unmerged: Mapping[str, Way], scored: Scored) -> Record:
    reference = unmerged[way.method]
    runs = [scored.runs[seed, way] for seed in scored.seeds]
    notes = [run.read()["artefact"] for run in runs]
    adapter = way.method != PROBE
    return {
        "method": way.method,
        "route": way.route,
        "format": way.format,
        "runs": [run.id for run in runs],
        "predicted": notes[0]["bytes"]["predicted"],
        "measured": notes[0]["bytes"]["measured"],
        "beside": _beside(notes[0], runs[0]),
        "of_fp32": shown(notes[0]["of_fp32"]),
        "of_fp16": shown(notes[0]["of_fp16"]),
        "metric": scored.value(way, scored.metric),
        "metric_change": scored.change(way, reference, scored.metric),
        "loss_change": scored.change(way, reference, LOSS),
        "kept_gain": scored.kept(way, reference, unmerged[PROBE]) if adapter else None,
        "survival": _survival([one["survival"] for one in notes]) if adapter else None,
    }


def _beside(told: Record, run: Run) -> int:
    """Return the bytes of an adapter's weights that stand beside the stored base."""
    if not told.get("beside"):
        return 0
    folder = run.path / "artefact" / told["beside"]
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _survival(each: list[Record]) -> Record:
    """Return what was kept of all layers, and of each, the mean over seeds."""
    kept = [one["kept"] for one in each]
    names = list(each[0]["layers"])
    layers = {
        name: shown(float(np.mean([one["layers"][name]["kept"] for one in each])))
        for name in names
    }
    several = len(kept) >= LEAST_SEEDS["t"]
    return {
        "kept": shown(float(np.mean(kept))),
        "least": shown(min(kept)),
        "interval": plain(t_interval(kept, CONFIDENCE)) if several else None,
        "noise": shown(float(np.mean([one["noise"] for one in each]))),
        "size": shown(float(np.mean([one["size"] for one in each]))),
        "layers": layers,
    }


def survivors(base: Record) -> list[Record]:
    """Return what kept `ENOUGH` of LoRA's weights in every seed, in fewer bits."""
    return [
        one
        for one in base["stored"]
        if one["method"] == LORA
        and one["format"] != BF16.label
        and one["survival"]["least"] >= ENOUGH
    ]
