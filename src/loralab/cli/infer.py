"""`loralab infer`: answers from a trained adapter."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loralab.cli.completion import runs_like
from loralab.cli.json_output import Json, print_json
from loralab.cli.options import RunsDir

if TYPE_CHECKING:
    from loralab.inference.pipeline import InferencePipeline


Answering = Annotated[
    str,
    typer.Argument(
        help="A run's path, id or name; a published, merged or baked folder.",
        autocompletion=runs_like,
    ),
]
Texts = Annotated[
    list[str] | None,
    typer.Argument(help="Texts (or questions); or lines on standard input."),
]
TextsFile = Annotated[
    Path | None,
    typer.Option(
        "--file", help="One text a line; or .jsonl: one object of columns a line."
    ),
]
Context = Annotated[
    str | None, typer.Option(help="What questions are asked of: a text.")
]
ContextFile = Annotated[
    Path | None, typer.Option(help="What questions are asked of: a text file.")
]
Embeddings = Annotated[
    Path | None,
    typer.Option(help="Write features to this .npy (task feature-extraction)."),
]
Head = Annotated[
    str | None,
    typer.Option(
        help="Of a merged adapter, baked or not: the task as which it answers."
    ),
]
WithBase = Annotated[
    bool, typer.Option("--with-base", help="Show the base's answer too.")
]


def infer(
    run: Answering,
    texts: Texts = None,
    file: TextsFile = None,
    context: Context = None,
    context_file: ContextFile = None,
    head: Head = None,
    with_base: WithBase = False,
    json_output: Json = False,
    embeddings: Embeddings = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Answer texts with a run's adapter: classify, tag, find, or write.

    With --json an object a line, of each input: input, adapter, and base with
    --with-base.

    Example: loralab infer trec-6 "Who wrote Hamlet?" --with-base --json

    Example: loralab infer both --head trec-6 "How far is the Moon?"
    """
    from loralab.inference.pipeline import InferencePipeline

    _check(embeddings, with_base or json_output)
    inputs = _inputs(texts, file, _context(context, context_file))
    pipeline = InferencePipeline.from_run(
        run, runs_dir=runs_dir, batch_size=batch_size, head=head
    )
    if embeddings is not None:
        _write_embeddings(embeddings, pipeline, inputs)
        return
    written = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    options: dict[str, Any] = written if pipeline.generates else {}
    if pipeline.generates and len(inputs) == 1 and not (json_output or with_base):
        _stream(pipeline.stream(inputs[0], **options))
        return
    answers = _answers(pipeline, inputs, with_base, options)
    for number, given in enumerate(inputs):
        said = {arm: found[number] for arm, found in answers.items()}
        _print(given, said, len(inputs) > 1 or with_base, json_output)


def _check(embeddings: Path | None, answers: bool) -> None:
    from loralab.errors import DataError

    if embeddings is None:
        return
    if answers:
        raise DataError(
            "--embeddings writes features, and --with-base and --json are of answers",
            fix="leave one of them out",
        )
    if embeddings.suffix != ".npy":
        raise DataError("embeddings are written as .npy", where=str(embeddings))


def _answers(
    pipeline: InferencePipeline,
    inputs: list[Any],
    with_base: bool,
    options: dict[str, Any],
) -> dict[str, list[Any]]:
    """Return the answers to all inputs, by arm."""
    from loralab.cli.progress import RowsProgress

    # refused before the adapter has answered, where there is no base
    base = pipeline.without_adapter() if with_base else None
    with RowsProgress() as progress:
        found = {"adapter": pipeline(inputs, progress=progress, **options)}
        if base:
            with base:
                found["base"] = pipeline(inputs, progress=progress, **options)
    return found


def _stream(pieces: Iterator[str]) -> None:
    for piece in pieces:
        typer.echo(piece, nl=False)
    typer.echo()


def _context(text: str | None, file: Path | None) -> str | None:
    from loralab.cli.lines import read_text
    from loralab.errors import DataError

    if text is not None and file is not None:
        raise DataError("give --context or --context-file, not both")
    return read_text(file) if file is not None else text


def _inputs(
    texts: list[str] | None, file: Path | None, context: str | None
) -> list[Any]:
    """Return the inputs: an answer goes with each text, so none is left out.

    Raises:
        DataError: no text, a blank one, or a line that is no object.
    """
    from loralab.cli.lines import lines_of, read_lines
    from loralab.errors import DataError

    found, place = texts or [], "text "
    if file is not None:
        if texts:
            raise DataError("give texts or --file, not both")
        found, place = read_lines(file), f"{file}:"
    elif not texts and not sys.stdin.isatty():
        found, place = lines_of(sys.stdin.read()), "standard input:"
    if not any(text.strip() for text in found):
        raise DataError("no text", fix="give texts, --file, or lines on standard input")
    blank = next((n for n, text in enumerate(found, 1) if not text.strip()), None)
    if blank:
        fix = "remove it, or write a text there: there is an answer to each"
        raise DataError("blank", where=f"{place}{blank}", fix=fix)
    if file is not None and file.suffix == ".jsonl":
        return [_object(line, f"{place}{n}") for n, line in enumerate(found, 1)]
    return [(text, context) for text in found] if context is not None else list(found)


def _object(line: str, where: str) -> dict[str, Any]:
    from loralab.errors import DataError

    try:
        found = json.loads(line)
    except ValueError as error:
        raise DataError(f"not JSON: {error}", where=where) from None
    if not isinstance(found, dict):
        raise DataError("a line must be one JSON object", where=where)
    return found


def _write_embeddings(
    file: Path, pipeline: InferencePipeline, inputs: list[Any]
) -> None:
    import numpy as np

    from loralab.runs.files import atomic_file

    found = pipeline.embed(inputs)
    with atomic_file(file) as temporary, temporary.open("wb") as handle:
        np.save(handle, found, allow_pickle=False)
    typer.echo(f"wrote    {file} ({found.shape[0]} × {found.shape[1]}, fp32)")


def _print(given: Any, said: dict[str, Any], several: bool, json_output: bool) -> None:
    """Print the answers to an input, below it where there are several."""
    if json_output:
        print_json({"input": given, **said})
        return
    if several:
        typer.echo(f"› {_asked(given)}")
    for arm, answer in said.items():
        text = _said(answer)
        typer.echo(f"  {arm}: {text}" if len(said) > 1 else text)


def _asked(given: Any) -> str:
    if isinstance(given, tuple):
        return str(given[0])
    if isinstance(given, dict):
        return json.dumps(given, ensure_ascii=False)
    return str(given)


def _said(answer: Any) -> str:
    """Return an answer in a line: its first field, and its probability."""
    if not isinstance(answer, dict):
        return str(answer)
    head = next(iter(answer.values()))
    if isinstance(head, list):
        head = "; ".join(f"{e['type']}: {e['text']}" for e in head)
    chance = answer.get("probability")
    tail = f" ({chance:.3f})" if isinstance(chance, float) else ""
    return f"{head or 'nothing'}{tail}"
