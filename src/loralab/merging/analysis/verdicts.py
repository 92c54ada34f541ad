"""An analysis in plain sentences: one rule a kind, each from a number and a limit.

A sentence is a reading of a measurement, not a forecast of accuracy. Where it stands is
in `Limits`, as data, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from loralab.merging.analysis.findings import Analysis, Pair, Verdict
from loralab.units import percent


@dataclass(frozen=True)
class Limits:
    """From where on something is worth a sentence.

    Attributes:
        same: Two updates are one where 1 − cosine is below this: float32 factors of one
            update in two gauges differ by about 1e-7, two trainings by far more.
        rows: Median cosine of the rows of two A from which they began as one draw.
            Independent rows have 0 ± 1/√(rank·in) in a layer, which is 0.04 for rank 8
            of 64 inputs and less for all larger; training moves A away from 1.
        span: Two A began, or ended, in one span where the overlap of the right spans
            is at least this and that of the left ones at most 1 − this: for factors
            whose gauge was lost. Only layers with room for both spans count.
        loud: A norm is out of line at this many times the median of the others, or at
            its inverse: energies then differ by ten or more.
        orthogonal: Cosines that are all below this leave each task 99.75 % of its own
            direction (1 − 0.05²).
        against: A cosine below minus this pulls back what another task has put there.
        conflict: Two independent updates differ in sign in half of the elements; a
            share above this, by three standard errors, is more than that.
        kept: A rank that keeps less than this share of the sum is worth a warning.
        threshold: The threshold at which projection is judged, the default of ``opcm``.
        nothing: A projection that removes less than this share changes nothing.
        most: One that removes at least this leaves little of a new task.
    """

    same: float = 1e-6
    rows: float = 0.25
    span: float = 0.9
    loud: float = 10**0.5
    orthogonal: float = 0.05
    against: float = 0.05
    conflict: float = 0.52
    kept: float = 0.9
    threshold: float = 0.5
    nothing: float = 0.01
    most: float = 0.5


LIMITS = Limits()
_ERRORS = 3.0
"""Standard errors that an estimate must be away from a limit."""

Rule = Callable[[Analysis, Limits], Iterable[Verdict]]


def verdicts(found: Analysis, limits: Limits = LIMITS) -> tuple[Verdict, ...]:
    """Return all that is worth saying of an analysis, what is worst first."""
    return tuple(verdict for rule in RULES for verdict in rule(found, limits))


def _called(found: Analysis, *tasks: int) -> str:
    """Return adapters by number and name: ``adapters 2 (rte) and 5 (mrpc)``."""
    names = " and ".join(f"{task + 1} ({found.names[task]})" for task in tasks)
    return f"{'adapters' if len(tasks) > 1 else 'adapter'} {names}"


def _percent(share: float) -> str:
    """Return a share in words, never rounded to a false 0 or 100."""
    if 0 < share < 0.0005:
        return "less than 0.1 %"
    if 0.9995 <= share < 1:
        return "more than 99.9 %"
    return percent(share)


def _untrained(found: Analysis, limits: Limits) -> Iterable[Verdict]:
    for number, task in enumerate(found.tasks):
        if not task.norm:
            yield Verdict(
                "untrained",
                (number,),
                0.0,
                0.0,
                f"{_called(found, number)} changes nothing: its update is zero in "
                "every layer",
            )


def _same(pair: Pair, limits: Limits) -> bool:
    return pair.cosine is not None and pair.cosine >= 1 - limits.same


def _duplicates(found: Analysis, limits: Limits) -> Iterable[Verdict]:
    for pair in found.pairs:
        if pair.cosine is None or not _same(pair, limits):
            continue
        times = found.tasks[pair.other].norm / found.tasks[pair.one].norm
        equal = abs(times - 1) <= limits.same
        yield Verdict(
            "duplicate",
            (pair.one, pair.other),
            pair.cosine,
            1 - limits.same,
            f"{_called(found, pair.one, pair.other)} are the same"
            + ("" if equal else f" up to a factor of {times:.3g}")
            + ": what they share counts twice in a sum",
        )


def _same_draw(found: Analysis, limits: Limits) -> Iterable[Verdict]:
    for pair in found.pairs:
        if pair.rows is None or pair.rows < limits.rows or _same(pair, limits):
            continue
        yield Verdict(
            "same-seed",
            (pair.one, pair.other),
            pair.rows,
            limits.rows,
            f"the A of {_called(found, pair.one, pair.other)} was drawn with the same "
            f"seed, or one was trained on from the other (cosine of their rows "
            f"{pair.rows:.2f}): factor-wise methods would look better than they are, "
            "and spans of the inputs agree without the tasks agreeing",
        )


def _overlaps(found: Analysis, number: int) -> tuple[float, float]:
    """Return a pair's median overlaps, left and right, in layers with room for both."""
    pair = found.pairs[number]
    roomy = [
        layer.pairs[number]
        for layer in found.layers
        if layer.tasks[pair.one].used + layer.tasks[pair.other].used <= layer.shape[1]
    ]
    left = [one.left.overlap for one in roomy if one.left]
    right = [one.right.overlap for one in roomy if one.right]
    return median(left or [0.0]), median(right or [0.0])


def _same_span(found: Analysis, limits: Limits) -> Iterable[Verdict]:
    for number, pair in enumerate(found.pairs):
        if _same(pair, limits) or (pair.rows or 0.0) >= limits.rows:
            continue
        left, right = _overlaps(found, number)
        if right >= limits.span and left <= 1 - limits.span:
            yield Verdict(
                "same-span",
                (pair.one, pair.other),
                right,
                limits.span,
                f"{_called(found, pair.one, pair.other)} read the same inputs (overlap "
                f"of the right spans {right:.2f}) and write others ({left:.2f}): "
                "probably one A, drawn with the same seed and rotated since",
            )


def _loudness(found: Analysis, limits: Limits) -> Iterable[Verdict]:
    norms = [task.norm for task in found.tasks]
    for number, norm in enumerate(norms):
        others = [n for m, n in enumerate(norms) if m != number and n]
        if not norm or not others:
            continue
        times, who = norm / median(others), _called(found, number)
        if times >= limits.loud:
            yield Verdict(
                "loud",
                (number,),
                times,
                limits.loud,
                f"{who} is {times:.1f} times louder than the others: a sum at a fixed "
                "rank will keep mostly it",
            )
        if times <= 1 / limits.loud:
            yield Verdict(
                "quiet",
                (number,),
                times,
                1 / limits.loud,
                f"{who} is {1 / times:.1f} times quieter than the others: a sum at a "
                "fixed rank will lose it first",
            )


def _orthogonal(found: Analysis, limits: Limits) -> Iterable[Verdict]:
    cosines = [abs(pair.cosine) for pair in found.pairs if pair.cosine is not None]
    if cosines and max(cosines) < limits.orthogonal:
        yield Verdict(
            "orthogonal",
            (),
            max(cosines),
            limits.orthogonal,
            f"the updates are nearly orthogonal (largest |cosine| {max(cosines):.3f}): "
            "in their exact sum none takes from another; that is of weights, and a "
            "task still runs with what the others add (measure it: loralab evaluate "
            "RUN --merged DIR)",
        )


def _against(found: Analysis, limits: Limits) -> Iterable[Verdict]:
    for pair in found.pairs:
        if pair.cosine is not None and pair.cosine <= -limits.against:
            yield Verdict(
                "against",
                (pair.one, pair.other),
                pair.cosine,
                -limits.against,
                f"{_called(found, pair.one, pair.other)} pull against each other "
                f"(cosine {pair.cosine:.2f}): their sum takes back part of both",
            )


def _conflicts(found: Analysis, limits: Limits) -> Iterable[Verdict]:
    for pair in found.pairs:
        share = pair.conflict
        if share is None or share.value - _ERRORS * share.error <= limits.conflict:
            continue
        yield Verdict(
            "sign-conflict",
            (pair.one, pair.other),
            share.value,
            limits.conflict,
            f"{_called(found, pair.one, pair.other)} differ in sign in "
            f"{_percent(share.value)} of the elements (standard error "
            f"{100 * share.error:.2f} points; 50 % is chance)",
        )


def _cuts(found: Analysis, limits: Limits) -> Iterable[Verdict]:
    for cut in found.cuts:
        if cut.total >= limits.kept:
            continue
        yield Verdict(
            "rank",
            (),
            cut.total,
            limits.kept,
            f"rank {cut.rank} keeps at most {_percent(cut.total)} of the energy of the "
            f"sum, with {_percent(min(cut.tasks))} to {_percent(max(cut.tasks))} of a "
            "task's own in the directions that are kept",
        )


def _modes(count: int) -> str:
    return "mode" if count == 1 else "modes"


def _projection(found: Analysis, limits: Limits) -> Iterable[Verdict]:
    judged = [one for one in found.removals if one.threshold == limits.threshold]
    idle = [one for one in judged if one.share < limits.nothing]
    if idle:
        most = max(one.share for one in idle)
        modes = " and ".join(one.mode for one in idle)
        some = "" if idle == judged else f" in the {_modes(len(idle))} {modes}"
        yield Verdict(
            "no-projection",
            (),
            most,
            limits.nothing,
            f"projection{some} will do nothing here (removes {_percent(most)} of the "
            f"energy at a threshold of {limits.threshold:g}): this is a rescaled sum",
        )
    for one in judged:
        if one in idle:
            continue
        much = one.share >= limits.most
        yield Verdict(
            "overprojection" if much else "projection",
            (),
            one.share,
            limits.most if much else limits.nothing,
            f"projection in the mode {one.mode} removes {_percent(one.share)} of the "
            f"energy that new tasks bring, at a threshold of {one.threshold:g}"
            + (": little of a new task is left" if much else ""),
        )


RULES: Sequence[Rule] = (
    _untrained,
    _duplicates,
    _same_draw,
    _same_span,
    _loudness,
    _orthogonal,
    _against,
    _conflicts,
    _cuts,
    _projection,
)
