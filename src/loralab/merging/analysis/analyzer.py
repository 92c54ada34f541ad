r"""What a set of adapters has in common, before they are merged.

Everything is measured on the updates ΔW themselves, a layer at a time and without an
out × in matrix (`similarity.py`, `signs.py`), and then put together over the layers:

    cosine         Σ_l ⟨ΔW_s, ΔW_t⟩ / √(Σ_l ‖ΔW_s‖² · Σ_l ‖ΔW_t‖²)
    angles         per layer; over layers the mean of their means (and of their mean
                   squares) and the largest of their largest, of the layers in which
                   both tasks have an update
    A rows         the median over those layers
    sign conflict  of the elements of all layers, estimated on rows drawn from each
    norms          √(Σ_l ‖ΔW_t‖²)
    similarity     mean over pairs of √(left overlap · right overlap)

What it means in plain words is in `verdicts.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations
from operator import add
from statistics import fmean, median

import torch
from torch import Tensor

from loralab.errors import AdapterError
from loralab.lowrank.factors import effective_rank, stable_rank
from loralab.merging.analysis.findings import (
    Analysis,
    Cut,
    LayerAnalysis,
    Pair,
    Removal,
    Task,
)
from loralab.merging.analysis.signs import Signs, sampled
from loralab.merging.analysis.similarity import (
    Directions,
    angles,
    cosine,
    directions,
    gram,
    kept,
    pooled,
    removed,
    row_cosine,
    suggested_threshold,
)
from loralab.merging.analysis.verdicts import LIMITS, Limits, verdicts
from loralab.merging.layer import Layer
from loralab.merging.merge import Source, layers
from loralab.merging.projection import Mode, OrthogonalProjector

THRESHOLDS = tuple(tenth / 10 for tenth in range(1, 10))
MODES: tuple[Mode, ...] = ("code", "paper", "stable")
"""Of the projection of ``opcm``."""
RANKS = (8, 16, 32)
"""What a merge is often cut to."""
ROWS = 32
"""How many rows of each layer are made to count signs."""


@dataclass(frozen=True, eq=False)
class _Read:
    """A layer and what of it is added up over layers.

    Attributes:
        layer: Its analysis.
        inner: ⟨ΔW_s, ΔW_t⟩, [T, T].
        signs: Moments of the counts.
        total: ‖sum‖².
        kept: For each rank the energy kept of the sum, then of each task.
        removed: For each projection the energy that it removes.
    """

    layer: LayerAnalysis
    inner: Tensor
    signs: Signs
    total: float
    kept: tuple[tuple[float, ...], ...]
    removed: tuple[float, ...]


class MergingAnalyzer:
    """Analyses adapters layer by layer; what is held is one layer.

    Args:
        sources: The adapters, in the order of the tasks.
        dtype: What the algebra is done in.
        modes: Of the projections to try; each costs a merge for every threshold.
        thresholds: Their ``alpha_threshold``.
        ranks: What the sum might be cut to.
        rows: How many rows of each layer are made to count signs; at least 2.
        seed: Of their draw.
        limits: From where on something is worth a sentence.

    Raises:
        AdapterError: fewer than two adapters.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        dtype: torch.dtype = torch.float64,
        *,
        modes: Sequence[Mode] = MODES,
        thresholds: Sequence[float] = THRESHOLDS,
        ranks: Sequence[int] = RANKS,
        rows: int = ROWS,
        seed: int = 0,
        limits: Limits = LIMITS,
    ) -> None:
        if len(sources) < 2:
            raise AdapterError(
                f"{len(sources)} adapter to compare", fix="name at least two adapters"
            )
        if rows < 2:
            raise ValueError(f"{rows} row has no variance; draw at least 2")
        self.sources, self.dtype = tuple(sources), dtype
        self.ranks, self.rows, self.seed, self.limits = tuple(ranks), rows, seed, limits
        self.projections = tuple(
            OrthogonalProjector(alpha, mode) for mode in modes for alpha in thresholds
        )

    def report(self) -> Analysis:
        """Read every layer once and return the analysis.

        Raises:
            AdapterError: adapters of different bases, or a file that cannot be read.
        """
        found = [self._read(one) for one in layers(self.sources, dtype=self.dtype)]
        made = self._together(found)
        return replace(made, verdicts=verdicts(made, self.limits))

    def _read(self, layer: Layer) -> _Read:
        """Measure one layer."""
        found = directions(layer)
        inner, signs = gram(found), sampled(layer, self.rows, self.seed)
        spectrum, kept_of = kept(found, self.ranks)
        tasks = tuple(
            _task(task.rank, found.spectrum(number))
            for number, task in enumerate(layer.tasks)
        )
        analysed = LayerAnalysis(
            name=layer.name,
            shape=layer.shape,
            tasks=tasks,
            pairs=tuple(_pairs(layer, found, inner, signs)),
            total_rank=layer.total_rank,
            sum_rank=len(spectrum),
            spectra=tuple(tuple(found.spectrum(n).tolist()) for n in range(len(tasks))),
            sum_spectrum=tuple(spectrum.tolist()),
        )
        return _Read(
            layer=analysed,
            inner=inner,
            signs=signs,
            total=float(spectrum.square().sum()),
            kept=tuple((one.total, *one.tasks) for one in kept_of),
            removed=tuple(
                math.fsum(removed(found, projection)) for projection in self.projections
            ),
        )

    def _together(self, found: Sequence[_Read]) -> Analysis:
        """Put the layers together, without verdicts."""
        each = [one.layer for one in found]
        tasks = [
            _task_over([layer.tasks[number] for layer in each])
            for number in range(len(self.sources))
        ]
        norms = [task.norm for task in tasks]
        pairs = tuple(_pairs_over(found, norms))
        similarity = _similarity(pairs)
        return Analysis(
            names=tuple(source.name for source in self.sources),
            tasks=tuple(tasks),
            pairs=pairs,
            layers=tuple(each),
            imbalance=_imbalance(norms),
            total_rank=sum(layer.total_rank for layer in each),
            sum_rank=sum(layer.sum_rank for layer in each),
            cuts=tuple(self._cuts(found, norms)),
            removals=tuple(self._removals(found, norms)),
            similarity=similarity,
            suggested_threshold=suggested_threshold(similarity),
        )

    def _cuts(self, found: Sequence[_Read], norms: Sequence[float]) -> Iterable[Cut]:
        energies = [math.fsum(one.total for one in found), *(n**2 for n in norms)]
        for number, rank in enumerate(self.ranks):
            kept_of = zip(*(one.kept[number] for one in found), strict=True)
            total, *tasks = (
                _share(math.fsum(part), whole, of_nothing=1.0)
                for part, whole in zip(kept_of, energies, strict=True)
            )
            yield Cut(rank, total, tuple(tasks))

    def _removals(
        self, found: Sequence[_Read], norms: Sequence[float]
    ) -> Iterable[Removal]:
        brought = math.fsum(norm**2 for norm in norms[1:])
        for number, projection in enumerate(self.projections):
            lost = math.fsum(one.removed[number] for one in found)
            yield Removal(
                projection.mode,
                projection.alpha_threshold,
                _share(lost, brought, of_nothing=0.0),
            )


def _share(part: float, whole: float, of_nothing: float) -> float:
    """Return a part of an energy as a share that rounding does not put above 1."""
    return min(1.0, part / whole) if whole else of_nothing


def _task(rank: int, spectrum: Tensor) -> Task:
    """Return a task's numbers in one layer."""
    return Task(
        rank=rank,
        used=len(spectrum),
        norm=float(spectrum.norm()),
        effective_rank=effective_rank(spectrum),
        stable_rank=stable_rank(spectrum) if len(spectrum) else 0.0,
    )


def _task_over(each: Sequence[Task]) -> Task:
    """Return a task's numbers over all layers."""
    changed = [task for task in each if task.used]
    return Task(
        rank=sum(task.rank for task in each),
        used=sum(task.used for task in each),
        norm=math.hypot(*(task.norm for task in each)),
        effective_rank=fmean([t.effective_rank for t in changed]) if changed else 0.0,
        stable_rank=fmean([t.stable_rank for t in changed]) if changed else 0.0,
    )


def _pairs(
    layer: Layer, found: Directions, inner: Tensor, signs: Signs
) -> Iterable[Pair]:
    """Yield every pair of tasks in one layer."""
    norms = [float(found.spectrum(number).norm()) for number in range(len(layer.tasks))]
    for one, other in combinations(range(len(layer.tasks)), 2):
        mine, its = found.parts[one], found.parts[other]
        yield Pair(
            one,
            other,
            cosine=cosine(float(inner[one, other]), norms[one], norms[other]),
            left=angles(found.X[:, mine], found.X[:, its]),
            right=angles(found.Y[:, mine], found.Y[:, its]),
            rows=row_cosine(layer.tasks[one], layer.tasks[other]),
            conflict=signs.share(one, other),
        )


def _pairs_over(found: Sequence[_Read], norms: Sequence[float]) -> Iterable[Pair]:
    """Yield every pair of tasks over all layers."""
    signs = reduce(add, (one.signs for one in found))
    for pairs in zip(*(one.layer.pairs for one in found), strict=True):
        one, other = pairs[0].one, pairs[0].other
        inner = math.fsum(float(read.inner[one, other]) for read in found)
        rows = [pair.rows for pair in pairs if pair.rows is not None]
        yield Pair(
            one,
            other,
            cosine=cosine(inner, norms[one], norms[other]),
            left=pooled([pair.left for pair in pairs if pair.left]),
            right=pooled([pair.right for pair in pairs if pair.right]),
            rows=median(rows) if rows else None,
            conflict=signs.share(one, other),
        )


def _similarity(pairs: Sequence[Pair]) -> float:
    """Return the mean over pairs of √(left overlap · right overlap)."""
    found = [
        math.sqrt(pair.left.overlap * pair.right.overlap)
        for pair in pairs
        if pair.left and pair.right
    ]
    return fmean(found) if found else 0.0


def _imbalance(norms: Sequence[float]) -> float:
    """Return the largest norm over the smallest, of those that are not zero."""
    loud = [norm for norm in norms if norm]
    return max(loud) / min(loud) if loud else 1.0
