"""`loralab infer`: answers from a trained adapter."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loralab.cli.options import RunsDir

if TYPE_CHECKING:
    from loralab.inference.pipeline import InferencePipeline


def infer(
    run: Annotated[str, typer.Argument(help="A run's path, id or name.")],
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; or lines on standard input.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="One text a line.")] = None,
    with_base: Annotated[
        bool, typer.Option("--with-base", help="Show the base's answer too.")
    ] = False,
    json_lines: Annotated[
        bool, typer.Option("--json", help="One JSON object a line.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Classify texts, or answer prompts, with a run's adapter."""
    from loralab.inference.pipeline import InferencePipeline

    inputs = _inputs(texts, file)
    pipeline = InferencePipeline.from_run(run, runs_dir=runs_dir, batch_size=batch_size)
    options: dict[str, Any] = {}
    if pipeline.task.head == "causal-lm":
        options = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    one = len(inputs) == 1 and not json_lines and not with_base
    if one and options:
        for piece in pipeline.stream(inputs[0], **options):
            typer.echo(piece, nl=False)
        typer.echo()
        return
    for line in _answer(pipeline, inputs, with_base, json_lines, options):
        typer.echo(line)


def _inputs(texts: list[str] | None, file: Path | None) -> list[str]:
    from loralab.errors import DataError

    if file is not None:
        if not file.is_file():
            raise DataError("no such file", where=str(file))
        try:
            found = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise DataError("not UTF-8", where=str(file)) from None
    elif texts:
        found = texts
    else:
        found = [] if sys.stdin.isatty() else sys.stdin.read().splitlines()
    found = [text for text in found if text.strip()]
    if not found:
        raise DataError("no text", fix="give texts, --file, or lines on standard input")
    return found


def _answer(
    pipeline: InferencePipeline,
    inputs: list[str],
    with_base: bool,
    json_lines: bool,
    options: dict[str, Any],
) -> Iterator[str]:

    answers = {"adapter": pipeline(inputs, **options)}
    if with_base:
        with pipeline.without_adapter():
            answers = {"base": pipeline(inputs, **options), **answers}
    for i, text in enumerate(inputs):
        if json_lines:
            line = {"input": text, **{arm: a[i] for arm, a in answers.items()}}
            yield json.dumps(line, ensure_ascii=False)
            continue
        if len(inputs) > 1 or with_base:
            yield f"› {text}"
        for arm, found in answers.items():
            shown = found[i]
            if isinstance(shown, dict):
                shown = f"{shown['label']} ({shown['probability']:.3f})"
            yield f"  {arm}: {shown}" if with_base else shown
