"""What the commands of `loralab merge` do alike: tell, draw, tune, write."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from loralab.cli.progress import TrainingProgress
    from loralab.experiments.merge_tuning import Tuned
    from loralab.merging.export.exported import Exported
    from loralab.merging.method import Method


@contextmanager
def progress() -> Iterator[TrainingProgress]:
    """Draw how far a merge is."""
    from loralab.cli.progress import TrainingProgress

    drawn = TrainingProgress()
    try:
        yield drawn
    finally:
        drawn.close()


def write_and_tell(
    write: Callable[..., Exported],
    out: Path,
    dtype: str | None,
    method: Method,
    base: Path | None,
) -> None:
    """Write a merged adapter, or a base with it in its weights, and tell of it."""
    from loralab.cli.merge_view import baked_lines, exported_lines

    if base is None:
        with progress() as on_event:
            made = write(out, dtype=dtype, on_event=on_event)
        tell(*exported_lines(made, method))
        return
    from loralab.lowrank.files import AdapterFolder
    from loralab.merging.export.bake import bake
    from loralab.merging.export.exported import RECORD
    from loralab.merging.export.heads import FOLDER as HEADS

    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent) as beside, progress() as on_event:
        adapter = Path(beside) / "adapter"
        # rounded once, to what the base is stored in
        made = write(adapter, dtype=dtype or "fp32", on_event=on_event)
        baked = bake(base, AdapterFolder.open(adapter), out)
        shutil.copyfile(adapter / RECORD, out / RECORD)
        if (adapter / HEADS).is_dir():
            shutil.copytree(adapter / HEADS, out / HEADS)
    tell(*exported_lines(made, method)[:-1], *baked_lines(baked))


def tuned_weights(
    method: Method, named: list[str], trials: int, one: bool, runs_dir: Path
) -> Tuned:
    """Try weights on validation rows, and show what they gave."""
    from loralab.cli import render
    from loralab.cli.merge_view import trials_table, tuned_line
    from loralab.experiments.merge_tuning import tune
    from loralab.runs import find_run

    runs = [find_run(text, runs_dir) for text in named]
    free: Literal["weights", "scale"] = "scale" if one else "weights"
    with progress() as on_event:
        found = tune(method, runs, trials, free=free, on_event=on_event)
    render.console().print(trials_table(found))
    tell(tuned_line(found))
    return found


def tell(*lines: str) -> None:
    """Print lines as they are."""
    from loralab.cli import render

    console = render.console()
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
