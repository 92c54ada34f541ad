"""Are two runs the same? What they hold, value by value, exactly or within a tolerance.

    tensors    max |a − b| ≤ t · max |a|          t = 0: every byte
    figures    |a − b| ≤ t · max(1, |a|)          t = 0: every bit
    answers    the share that differs ≤ t         t = 0: every one

What a clock or the memory says is never compared: seconds, rates, times of day.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loralab.runs import Run

CLOCK = ("time", "seconds", "tokens_per_second", "peak_memory_bytes", "run")
"""Keys of events that are no outcome."""
OUTCOMES = ("log", "validation")
"""Events that hold what a training came to."""


@dataclass(frozen=True)
class Compared:
    """One kind of thing, compared in two runs.

    Attributes:
        what: Such as ``adapter tensors``.
        equal: Whether all is the same, or within the tolerance.
        count: Things that were compared: tensors, figures, answers, files.
        differing: Of those, not bit for bit the same.
        largest: The largest difference, in the measure that the tolerance is of;
            infinite where one of the two lacks the thing, or has it in another shape.
        where: The thing that differs most; empty where none does.
    """

    what: str
    equal: bool
    count: int
    differing: int = 0
    largest: float = 0.0
    where: str = ""


def tensors(
    first: Path, second: Path, tolerance: float = 0.0, files: str = "*.safetensors"
) -> Compared:
    """Compare the tensors of two folders.

    Args:
        first: A folder, such as a run's adapter.
        second: Another.
        tolerance: Largest difference, as a share of a tensor's largest value.
        files: Which files hold them; those of folders inside count too.
    """
    ours, theirs = (_tensors(folder, files) for folder in (first, second))
    gaps = {
        name: _tensor_gap(ours[name], theirs[name])
        if name in ours and name in theirs
        else float("inf")
        for name in sorted({*ours, *theirs})
    }
    return _judged("adapter tensors", gaps, tolerance)


def _tensors(folder: Path, files: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {
        f"{file.relative_to(folder)}:{name}": tensor
        for file in sorted(folder.rglob(files))
        for name, tensor in load_file(file).items()
    }


def _tensor_gap(ours: Any, theirs: Any) -> float:
    """Return 0.0 only where the bytes are the same."""
    import torch

    if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
        return float("inf")
    # flat, for a scalar has no bytes to look at
    if torch.equal(*(one.flatten().view(torch.uint8) for one in (ours, theirs))):
        return 0.0
    largest = float(ours.double().abs().max())
    gap = float((ours.double() - theirs.double()).abs().max())
    if gap != gap or largest == 0.0:
        return float("inf")
    # −0.0 and 0.0 are other bytes of one value
    return max(gap / largest, sys.float_info.min)


def losses(first: Run, second: Run, tolerance: float = 0.0) -> Compared:
    """Compare what two trainings logged: losses, gradient norms, learning rates."""
    ours, theirs = (
        {
            f"step {event['step']}, {where}": value
            for event in run.events()
            if event["event"] in OUTCOMES
            for where, value in leaves(
                {k: v for k, v in event.items() if k not in (*CLOCK, "event", "step")}
            )
        }
        for run in (first, second)
    )
    return figures("logged losses", ours, theirs, tolerance)


def evaluation(first: Run, second: Run, split: str, tolerance: float) -> list[Compared]:
    """Compare the metrics, their intervals, and every prediction of a split."""
    what = f"{split} metrics"
    results = [run.evaluations().get(split) for run in (first, second)]
    if None in results:
        return [Compared(what, False, 0, where="one of the two has none")]
    ours, theirs = (dict(leaves(found["metrics"])) for found in results if found)
    rows = [_predictions(run, split) for run in (first, second)]
    numbers, words = (
        [
            {k: v for k, v in found.items() if isinstance(v, float) is kind}
            for found in rows
        ]
        for kind in (True, False)
    )
    return [
        figures(what, ours, theirs, tolerance),
        figures(f"{split} predictions", numbers[0], numbers[1], tolerance),
        answers(f"{split} answers", words[0], words[1], tolerance),
    ]


def _predictions(run: Run, split: str) -> dict[str, Any]:
    import pyarrow.parquet as pq

    table = pq.read_table(run.path / "eval" / f"predictions-{split}.parquet")
    return dict(leaves(table.to_pydict()))


def leaves(content: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what JSON holds that is neither object nor list, and where it stands."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from leaves(value, f"{where}.{key}" if where else str(key))
    elif isinstance(content, Sequence) and not isinstance(content, str):
        for number, value in enumerate(content):
            yield from leaves(value, f"{where}[{number}]")
    else:
        yield where, content


def figures(
    what: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], tolerance: float
) -> Compared:
    """Compare figures by name; one that is missing in either is a difference."""
    missing = object()
    gaps = {
        name: _gap(ours.get(name, missing), theirs.get(name, missing))
        for name in dict.fromkeys([*ours, *theirs])
    }
    return _judged(what, gaps, tolerance)


def _gap(ours: Any, theirs: Any) -> float:
    if ours == theirs or (ours != ours and theirs != theirs):  # NaN is not itself
        return 0.0
    kinds = (int, float)
    if not isinstance(ours, kinds) or not isinstance(theirs, kinds):
        return float("inf")
    gap = abs(ours - theirs) / max(1.0, abs(ours))
    return gap if gap == gap else float("inf")


def _judged(what: str, gaps: Mapping[str, float], tolerance: float) -> Compared:
    differing = [name for name, gap in gaps.items() if gap]
    if not differing:
        return Compared(what, True, len(gaps))
    worst = max(differing, key=lambda name: gaps[name])
    largest = gaps[worst]
    return Compared(
        what, largest <= tolerance, len(gaps), len(differing), largest, worst
    )


def answers(
    what: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], tolerance: float
) -> Compared:
    """Compare texts, classes and keys; the measure is the share that differs."""
    names = dict.fromkeys([*ours, *theirs])
    differing = [name for name in names if ours.get(name) != theirs.get(name)]
    share = len(differing) / len(names) if names else 0.0
    where = differing[0] if differing else ""
    return Compared(what, share <= tolerance, len(names), len(differing), share, where)


def files(what: str, ours: Mapping[str, str], theirs: Mapping[str, str]) -> Compared:
    """Compare files by their sha256; a file is the same or it is not."""
    return answers(what, ours, theirs, 0.0)
