"""What the measurements say: intervals of every arm, and comparisons in families.

Every comparison is paired over test rows, and over orders where there are orders
(`loralab.evaluation.statistics.merges`). p values are corrected by Holm within the
family that a comparison stands in. Intervals cover test rows of these tasks and, of
continual arms, orders; no other adapters, seeds or tasks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from studies.continual_merging.plan import (
    ALONE,
    BASE,
    OWN,
    SUGGESTED,
    TUNED,
    Measurement,
    Study,
    measurements,
    told,
)

from loralab.evaluation.continual import (
    EVERY_UP_TO,
    average_accuracy,
    backward_transfer,
    forgetting,
    normalised,
    order_std,
    worst_task,
)
from loralab.evaluation.scores import Floats
from loralab.evaluation.statistics.decisions import holm
from loralab.evaluation.statistics.merges import COVERS, Difference, paired_difference

Record = dict[str, Any]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Found:
    """What was measured.

    Attributes:
        header: Of the measurements: study, adapters, environment.
        lines: Key -> measurement.
    """

    header: Record
    lines: Mapping[str, Record]

    @property
    def study(self) -> Study:
        """As it was measured."""
        return Study.model_validate(self.header["study"])

    @property
    def tasks(self) -> list[str]:
        """In the order of the file."""
        return list(self.header["adapters"])

    @property
    def suggested(self) -> float:
        """The threshold that the analysis suggests."""
        return float(self.header["analysis"]["suggested_threshold"])

    @property
    def missing(self) -> list[Measurement]:
        """What the study asks for and nobody measured yet."""
        study, tasks = self.study, len(self.tasks)
        size = study.sizes[self.header["size"]]
        wanted = measurements(study, size, tasks, self.suggested)
        return [one for one in wanted if one.key not in self.lines]

    def line(
        self,
        method: str,
        scale: str | float = OWN,
        rank: int | None = None,
        order: int = 0,
    ) -> Record | None:
        """Return a measurement on test rows, None if it does not stand."""
        key = Measurement("", method, "test", scale, rank, order).key
        return self.lines.get(key)

    def in_orders(self, method: str, scale: str = OWN) -> dict[int, Record]:
        """Return order -> measurement, those that stand."""
        size = self.study.sizes[self.header["size"]]
        most = max(size.orders, 2 ** len(self.tasks))
        found = {k: self.line(method, scale, order=k) for k in range(1, most + 1)}
        return {order: line for order, line in found.items() if line}

    def right(self, lines: Sequence[Record]) -> list[Floats]:
        """Return which rows were right, one [orders, rows] a task, as 0 and 1."""
        return [
            np.stack(
                [unpacked(line["right"][name], line["rows"][name]) for line in lines]
            )
            for name in self.tasks
        ]


def unpacked(bits: str, rows: int) -> Floats:
    """Return the rows of `measure.bits`."""
    found = np.unpackbits(np.frombuffer(bytes.fromhex(bits), dtype=np.uint8))
    return found[:rows].astype(np.float64)


def matrix_of(line: Record) -> Floats:
    """Return a matrix with NaN where nothing was measured."""
    return np.array(line["matrix"], dtype=np.float64)  # None is NaN


def read_found(work: Path, size: str) -> Found:
    """Return what stands of a size."""
    header = json.loads((work / f"{size}.json").read_text(encoding="utf-8"))
    text = (work / f"{size}.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    return Found(header, {line["key"]: line for line in lines})


def plain(found: Difference) -> Record:
    """Return a difference as JSON."""
    return {
        **found.interval.as_dict(),
        "p": found.p_value,
        "covers": COVERS[found.covers],
        "orders": found.orders,
        "rows": found.rows,
    }


def level(found: Found, lines: Sequence[Record]) -> Record:
    """Return the mean accuracy over tasks (and orders), with its interval."""
    right = found.right(lines)
    nothing = [np.zeros_like(one) for one in right]
    return plain(
        paired_difference(right, nothing, CONFIDENCE, every_order=every(found, lines))
    )


def every(found: Found, lines: Sequence[Record]) -> bool:
    """Whether all orders there are were measured."""
    tasks = len(found.tasks)
    return tasks <= EVERY_UP_TO and len(lines) == int(np.prod(range(1, tasks + 1)))


def gap(found: Found, first: Sequence[Record], second: Sequence[Record]) -> Record:
    """Return the first minus the second, paired."""
    return plain(
        paired_difference(
            found.right(first),
            found.right(second),
            CONFIDENCE,
            every_order=every(found, first),
        )
    )


# ---- levels ----


def alone_of(found: Found) -> dict[str, float]:
    """Return the accuracy of each task's own adapter on it."""
    line = found.line(ALONE)
    assert line is not None
    return dict(zip(line["tasks"], line["matrix"][-1], strict=True))


def joint_rows(found: Found) -> Iterator[Record]:
    """Yield every arm at every scale and rank, in the order of the file."""
    study, alone = found.study, alone_of(found)
    variants = [(OWN, None), *((TUNED, rank) for rank in (None, *study.ranks))]
    for name, arm in study.merged.items():
        for scale, rank in variants:
            line = found.line(told(arm), scale, rank)
            if line is None:
                continue
            matrix = matrix_of(line)
            own = np.array([alone[task] for task in line["tasks"]])
            yield {
                "arm": name,
                "scale": scale,
                "rank": rank,
                "accuracy": level(found, [line]),
                "normalised": normalised(matrix, own),
                "worst": worst_task(matrix),
                "cross_entropy": float(np.mean(line["cross_entropy"][-1])),
                **{key: line[key] for key in ("factor", "parameters", "lost")},
            }


def continual_row(found: Found, name: str, method: str, scale: str) -> Record | None:
    """Return an arm over its orders."""
    lines = list(found.in_orders(method, scale).values())
    if not lines:
        return None
    alone = alone_of(found)
    matrices = [matrix_of(line) for line in lines]
    ends = [m for m in matrices if not np.isnan(m.diagonal()).any() and len(m) > 1]
    whole = [m for m in ends if not np.isnan(m[np.tril_indices(len(m))]).any()]
    accuracies = [average_accuracy(m) for m in matrices]

    def mean(values: Sequence[float]) -> float | None:
        return float(np.mean(values)) if values else None

    return {
        "arm": name,
        "scale": scale,
        "orders": len(lines),
        "accuracy": level(found, lines),
        "order_std": order_std(accuracies) if len(lines) > 1 else None,
        "bwt_mingle": mean([backward_transfer(m, "mingle") for m in ends]),
        "bwt_fusion_bench": mean([backward_transfer(m, "fusion_bench") for m in ends]),
        "forgetting": mean([forgetting(m) for m in whole]),
        "whole_orders": len(whole),
        "worst": mean([worst_task(m) for m in matrices]),
        "normalised": mean(
            [
                normalised(m, np.array([alone[task] for task in line["tasks"]]))
                for m, line in zip(matrices, lines, strict=True)
            ]
        ),
        "curves": [
            [float(np.mean(row[: t + 1])) for t, row in enumerate(m)] for m in whole
        ],
    }


# ---- comparisons ----


def compared(
    found: Found, family: str, first: str, second: str, pair: tuple[Any, Any]
) -> Record:
    """Return a comparison; p is not corrected yet."""
    return {
        "family": family,
        "first": first,
        "second": second,
        **gap(found, *pair),
    }


def joint_comparisons(found: Found) -> Iterator[Record]:
    """Yield comparisons in the order of the file, over rows alone."""
    study = found.study
    reference = told(study.continual[study.reference])
    average = next((a for a in study.joint.values() if a.method == "average"), None)
    for name, arm in study.merged.items():
        own, tuned = found.line(told(arm)), found.line(told(arm), TUNED)
        base = found.line(told(average)) if average else None
        if own and base and arm != average:
            yield compared(found, "own scale", name, "average", ([own], [base]))
        base = found.line(reference, TUNED)
        if tuned and base and name != study.reference:
            pair = ([tuned], [base])
            yield compared(found, "tuned scale", name, study.reference, pair)
        for rank in study.ranks:
            cut, base = (
                found.line(told(arm), TUNED, rank),
                found.line(reference, TUNED, rank),
            )
            if cut and tuned:
                pair = ([cut], [tuned])
                yield compared(found, f"rank {rank}, or exact", name, "exact", pair)
            if cut and base and name != study.reference:
                pair = ([cut], [base])
                yield compared(found, f"rank {rank}", name, study.reference, pair)


def continual_comparisons(found: Found) -> Iterator[Record]:
    """Yield comparisons over orders and rows, on the orders that both have."""
    study = found.study
    reference = told(study.continual[study.reference])
    arms = {name: told(arm) for name, arm in study.continual.items()}
    for scale in (OWN, TUNED):
        for name, method in arms.items():
            if name != study.reference:
                family = f"continual, {scale} scale"
                yield from in_common(
                    found, family, (name, method), (study.reference, reference), scale
                )
    swept = {name: told(arm) for name, arm in study.swept(found.suggested).items()}
    for name, method in swept.items():
        other = (study.reference, reference)
        yield from in_common(found, "threshold", (name, method), other, OWN)
    for mode in study.sweep.modes:
        name = f"{study.sweep.method} {mode}"
        heuristic = f"{name} {SUGGESTED}"
        for at in study.sweep.thresholds:
            if at != SUGGESTED and heuristic in swept:
                pair = (
                    (heuristic, swept[heuristic]),
                    (f"{name} {at}", swept[f"{name} {at}"]),
                )
                yield from in_common(found, "heuristic", *pair, OWN)


def in_common(
    found: Found,
    family: str,
    first: tuple[str, str],
    second: tuple[str, str],
    scale: str,
) -> Iterator[Record]:
    """Yield the comparison of two arms on the orders that both have, if any."""
    one = found.in_orders(first[1], scale)
    other = found.in_orders(second[1], scale)
    both = sorted(set(one) & set(other))
    if both:
        pair = [one[k] for k in both], [other[k] for k in both]
        yield compared(found, family, first[0], second[0], pair)


def corrected(comparisons: Sequence[Record]) -> list[Record]:
    """Return comparisons with Holm's p within each family."""
    found = []
    for family in dict.fromkeys(one["family"] for one in comparisons):
        own = [one for one in comparisons if one["family"] == family]
        p = holm({str(i): one["p"] for i, one in enumerate(own)})
        found += [
            {**one, "p_holm": p[str(i)], "of": len(own)} for i, one in enumerate(own)
        ]
    return found


def chosen_norms(found: Found) -> dict[str, Record]:
    """Return arm -> the validation accuracy of every candidate of its scale."""
    tuned: dict[str, Record] = {}
    for name, arm in found.study.merged.items():
        keys = {
            norm: Measurement("", told(arm), "validation", norm).key
            for norm in found.study.norms
        }
        tuned[name] = {
            str(norm): float(np.mean(found.lines[key]["matrix"][-1]))
            for norm, key in keys.items()
            if key in found.lines
        }
    return tuned


def analysed(found: Found) -> Record:
    """Return all that the page shows, as JSON; nothing of it is typed in."""
    study = found.study
    arms = {name: told(arm) for name, arm in study.continual.items()}
    swept = {name: told(arm) for name, arm in study.swept(found.suggested).items()}
    rows = [
        continual_row(found, name, method, scale)
        for scale in (OWN, TUNED)
        for name, method in arms.items()
    ]
    base = found.line(BASE)
    assert base is not None
    return {
        **found.header,
        "commits": sorted({str(line["commit"]) for line in found.lines.values()}),
        "measurements": len(found.lines),
        "minutes": sum(line["seconds"] for line in found.lines.values()) / 60,
        "base": dict(zip(base["tasks"], base["matrix"][-1], strict=True)),
        "alone": alone_of(found),
        "tuning": chosen_norms(found),
        "joint": list(joint_rows(found)),
        "continual": [row for row in rows if row],
        "sweep": [
            row
            for name, method in swept.items()
            if (row := continual_row(found, name, method, OWN))
        ],
        "comparisons": corrected(
            [*joint_comparisons(found), *continual_comparisons(found)]
        ),
    }
