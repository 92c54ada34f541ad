"""The sketch of a run's inputs: what activation-aware merging needs, and no data later.

Training rows go through the adapted model once, forward only. What is kept of them is
a sketch of the second moment of each adapted layer's inputs (`lowrank/sketch.py`),
saved beside the adapter; whoever merges it then needs neither rows nor base.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from loralab.adapters.calibration import calibration_batches
from loralab.adapters.layers import lora_layers
from loralab.adapters.ranks_config import CalibrationConfig
from loralab.adapters.sketching import input_sketches
from loralab.errors import AdapterError
from loralab.evaluation.evaluate import OnEvent, split_of
from loralab.inference.load import load_adapter
from loralab.lowrank.files import AdapterFolder
from loralab.lowrank.sketch import Sketched, write_sketches
from loralab.runs import Run

DOUBLE, SINGLE = 8, 4
BESIDE = 1.01
"""What names and shapes add to a file of sketches, at most about one percent."""


@dataclass(frozen=True)
class SketchCost:
    """What a sketch of a run would take.

    Attributes:
        rows: Training rows that go forward through the model.
        modules: Adapted layers.
        memory_bytes: Of all sketches while they are made, at most.
        file_bytes: Of the file, at most; modules that share inputs share tensors.
        operations: Floating-point operations a token beside the forward pass, at most.
    """

    rows: int
    modules: int
    memory_bytes: int
    file_bytes: int
    operations: int


def sketch_cost(run: Run, rows: int, rank: int) -> SketchCost:
    """Return what `sketch_inputs` would take; nothing but the adapter is read.

    Raises:
        RunError: the run has no adapter.
        AdapterError: it is no plain LoRA of linear layers, or a number is below 1.
    """
    for name, value in (("rows", rows), ("rank", rank)):
        if value < 1:
            raise AdapterError(f"{name} is {value}, and must be at least 1", where=name)
    folder = AdapterFolder.open(run.require_adapter())
    for module, kind in folder.kinds.items():
        if kind.name != "linear":
            raise AdapterError(
                f"{module} is of the kind {kind.name}, and only linear has a sketch",
                where=str(folder.path),
                fix="merge by a method that needs no sketch",
            )
    widths = [into for _, into in folder.shapes.values()]
    ranks = [min(rank, width) for width in widths]
    both = list(zip(widths, ranks, strict=True))
    return SketchCost(
        rows=rows,
        modules=len(widths),
        memory_bytes=DOUBLE * sum(width * (3 * k + 1) for width, k in both),
        file_bytes=int(BESIDE * SINGLE * sum(width * (k + 1) for width, k in both)),
        # of 3k rows the Gram matrix, 9k²·in, and k rotated ones, 3k²·in, each 2k tokens
        operations=sum(12 * k * width for width, k in both),
    )


def sketch_inputs(
    run: Run,
    rows: int = 256,
    rank: int = 32,
    *,
    batch: int = 8,
    seed: int = 0,
    on_event: OnEvent | None = None,
) -> Sketched:
    """Sketch the inputs of a run's adapted layers, and save them beside its adapter.

    Args:
        run: A finished run with a plain LoRA of linear layers.
        rows: Training rows, drawn by `seed`; all of them if there are fewer.
        rank: k of each sketch.
        batch: Rows of a forward pass.
        seed: Which rows.
        on_event: Told of progress.

    Returns:
        What has been written, open to be read.

    Raises:
        RunError: no adapter, or the data is no longer that of the run.
        AdapterError: as in `sketch_cost`, or it belongs to another base.
    """
    cost = sketch_cost(run, rows, rank)
    adapter = load_adapter(run)
    split = split_of(run, adapter, "train")
    chosen = random.Random(seed).sample(range(len(split)), min(cost.rows, len(split)))
    examples = adapter.task(list(split.select(sorted(chosen))), adapter.base.processor)
    count = -(-len(chosen) // batch)
    settings = CalibrationConfig(batches=count, rows=batch, seed=seed)

    def done(number: int) -> None:
        if on_event:
            on_event({"event": "sketching", "done": number, "of": count})

    sketches, shared = input_sketches(
        adapter.model,
        lora_layers(adapter.model),
        adapter.base,
        calibration_batches(examples, adapter.base, settings),
        rank,
        done,
    )
    return write_sketches(
        adapter.folder,
        sketches,
        shared,
        rows=len(chosen),
        rank=rank,
        base=adapter.base.fingerprint,
    )
