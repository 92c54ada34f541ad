"""What the commands of `loralab merge` do alike: tell, draw, tune, write."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from loralab.cli.progress import TrainingProgress
    from loralab.experiments.merge_tuning import Tuned
    from loralab.merging.export.bake import Baked
    from loralab.merging.export.exported import Exported
    from loralab.merging.method import Method


@contextmanager
def progress(stderr: bool = False) -> Iterator[TrainingProgress]:
    """Draw how far a merge is."""
    from loralab.cli.progress import TrainingProgress

    drawn = TrainingProgress(stderr)
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
    quiet: bool = False,
) -> dict[str, Any]:
    """Write a merged adapter, or a base with it in its weights, and tell of it.

    Args:
        write: Writes the adapter into a folder.
        out: The folder.
        dtype: Of the factors.
        method: Of the merge.
        base: What it is baked into, if it is.
        quiet: Whether stdout is left to JSON.

    Returns:
        What was written, as JSON has it.
    """
    from loralab.cli.merge_view import baked_lines, exported_lines

    if base is None:
        with progress(quiet) as on_event:
            made = write(out, dtype=dtype, on_event=on_event)
        tell(*exported_lines(made, method), quiet=quiet)
        return {**made.as_dict(), "folder": out, "baked": None}
    from loralab.lowrank.files import AdapterFolder
    from loralab.lowrank.settings import NOTE
    from loralab.merging.export.bake import bake
    from loralab.merging.export.exported import RECORD
    from loralab.merging.export.heads import FOLDER as HEADS
    from loralab.merging.export.heads import Heads, write_heads

    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent) as beside, progress(quiet) as on_event:
        adapter = Path(beside) / "adapter"
        # rounded once, to what the base is stored in
        made = write(adapter, dtype=dtype or "fp32", on_event=on_event)
        baked = bake(base, AdapterFolder.open(adapter), out)
        shutil.copyfile(adapter / RECORD, out / RECORD)
        if (adapter / NOTE).is_file() and not (adapter / HEADS).is_dir():
            write_heads(adapter, Heads(None, (AdapterFolder.open(adapter),)))
        if (adapter / HEADS).is_dir():
            shutil.copytree(adapter / HEADS, out / HEADS)
    tell(*exported_lines(made, method)[:-1], *baked_lines(baked), quiet=quiet)
    return {**made.as_dict(), "folder": out, "baked": _baked(baked)}


def _baked(found: Baked) -> dict[str, Any]:
    content = asdict(found)
    del content["folder"]
    return content


def tuned_weights(
    method: Method,
    named: list[str],
    trials: int | None,
    one: bool,
    runs_dir: Path,
    quiet: bool,
) -> Tuned | None:
    """Try weights on validation rows, if so many are asked for, and show the best."""
    if not trials:
        return None
    from loralab.cli import render
    from loralab.cli.merge_view import trials_table, tuned_line
    from loralab.experiments.merge_tuning import tune
    from loralab.runs import find_run

    runs = [find_run(text, runs_dir) for text in named]
    free: Literal["weights", "scale"] = "scale" if one else "weights"
    with progress(quiet) as on_event:
        found = tune(method, runs, trials, free=free, on_event=on_event)
    render.console(stderr=quiet).print(trials_table(found))
    tell(tuned_line(found), quiet=quiet)
    return found


def tell(*lines: str, quiet: bool = False) -> None:
    """Print lines as they are; on stderr where stdout is left to JSON."""
    from loralab.cli import render

    console = render.console(stderr=quiet)
    for line in lines:
        console.print(line, soft_wrap=True)
