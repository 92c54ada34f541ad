"""What an analysis of adapters has found, as data; `analysis.py` says how."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from loralab.merging.analysis.signs import Share
from loralab.merging.analysis.similarity import Angles


@dataclass(frozen=True)
class Pair:
    """Two tasks, in one layer or over all.

    Attributes:
        one: Number of the first task, from 0.
        other: Of the second; greater.
        cosine: Of their ΔW; None where one is zero.
        left: What their left spans (of the outputs) share; None where one is empty.
        right: Likewise of the inputs.
        rows: Mean cosine of the rows of their A as stored; None where they have none.
        conflict: Share of elements, of those that both change, whose signs differ.
    """

    one: int
    other: int
    cosine: float | None
    left: Angles | None
    right: Angles | None
    rows: float | None
    conflict: Share | None


@dataclass(frozen=True)
class Task:
    """One task's update, in one layer or over all.

    Attributes:
        rank: Directions that are stored; over all layers their sum.
        used: Directions that are more than rounding; likewise.
        norm: ‖ΔW‖_F.
        effective_rank: exp of the entropy of σ/Σσ; over all layers the mean of those
            that the task changes.
        stable_rank: ‖ΔW‖_F² / σ₁²; likewise.
    """

    rank: int
    used: int
    norm: float
    effective_rank: float
    stable_rank: float


@dataclass(frozen=True)
class Cut:
    """What cutting the exact sum to a rank in every layer keeps of its energy.

    Attributes:
        rank: Of each layer.
        total: Share of Σ‖·‖² of the sum; 1 where the sum is zero.
        tasks: Share of each task's own energy that lies between the spans kept; 1 for
            a task that is zero.
    """

    rank: int
    total: float
    tasks: tuple[float, ...]


@dataclass(frozen=True)
class Removal:
    """What a projection removes of the tasks that come after the first.

    Attributes:
        mode: Of ``opcm``.
        threshold: Its ``alpha_threshold``.
        share: Of the energy of all tasks but the first, in their order.
    """

    mode: str
    threshold: float
    share: float


@dataclass(frozen=True)
class LayerAnalysis:
    """One layer.

    Attributes:
        name: Module path in the base.
        shape: (out, in).
        tasks: One a task.
        pairs: One a pair.
        total_rank: What an exact merge stores: Σ rank, or the weight's own.
        sum_rank: Numerical rank of the sum.
        spectra: Singular values of each task.
        sum_spectrum: Singular values of the sum.
    """

    name: str
    shape: tuple[int, int]
    tasks: tuple[Task, ...]
    pairs: tuple[Pair, ...]
    total_rank: int
    sum_rank: int
    spectra: tuple[tuple[float, ...], ...]
    sum_spectrum: tuple[float, ...]


@dataclass(frozen=True)
class Verdict:
    """One thing that is worth knowing before a merge.

    Attributes:
        kind: Its name; `verdicts.py` has one rule for each.
        tasks: Numbers of the tasks that it is about, from 0; empty: all.
        value: What was measured.
        limit: From where on it is said; a field of `verdicts.Limits` has its reason.
        sentence: In plain words.
    """

    kind: str
    tasks: tuple[int, ...]
    value: float
    limit: float
    sentence: str


@dataclass(frozen=True)
class Analysis:
    """A set of adapters, over all layers and layer by layer.

    Attributes:
        names: Of the adapters, in the order of the tasks.
        tasks: One a task, over all layers.
        pairs: One a pair, over all layers.
        layers: Each layer.
        imbalance: Largest norm over smallest, of the tasks that are not zero.
        total_rank: Σ over layers of what an exact merge stores.
        sum_rank: Σ over layers of the numerical rank of the sum.
        cuts: What ranks keep of the sum.
        removals: What projection removes, by mode and threshold.
        similarity: Mean over pairs of √(left overlap · right overlap), in [0, 1].
        suggested_threshold: A heuristic, see `similarity.suggested_threshold`.
        verdicts: What all of it means.
    """

    names: tuple[str, ...]
    tasks: tuple[Task, ...]
    pairs: tuple[Pair, ...]
    layers: tuple[LayerAnalysis, ...]
    imbalance: float
    total_rank: int
    sum_rank: int
    cuts: tuple[Cut, ...]
    removals: tuple[Removal, ...]
    similarity: float
    suggested_threshold: float
    verdicts: tuple[Verdict, ...] = ()

    def cosines(self) -> list[list[float]]:
        """Return the cosines of all tasks, [tasks, tasks]; NaN where one is zero."""
        count = len(self.names)
        found = [[1.0] * count for _ in range(count)]
        for pair in self.pairs:
            value = math.nan if pair.cosine is None else pair.cosine
            found[pair.one][pair.other] = found[pair.other][pair.one] = value
        return found

    def spectra(self) -> list[list[float]]:
        """Return the singular values of each task, then of their sum.

        Those of all layers together, descending.
        """
        found = [layer.spectra for layer in self.layers]
        whole = [layer.sum_spectrum for layer in self.layers]
        updates = [*zip(*found, strict=True), whole]
        return [sorted(chain.from_iterable(one), reverse=True) for one in updates]

    def record(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return asdict(self)
