"""`loralab paper`: a paper whose every number is read from a committed result."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from loralab.cli.json_output import Json, print_json
from loralab.cli.options import RunsDir

if TYPE_CHECKING:
    from loralab.reporting.paper.build import Paper
    from loralab.reporting.paper.references import Resolved

app = typer.Typer(
    help="A paper whose every number is bound to a run: build it, list the numbers.",
    no_args_is_help=True,
)

Root = Annotated[
    Path,
    typer.Option(
        help="The project's root, which sources are named from.",
        exists=True,
        file_okay=False,
    ),
]


@app.command()
def build(
    draft: Annotated[Path, typer.Argument(help="Markdown with {{ references }}.")],
    to: Annotated[
        Literal["pdf", "tex", "typst"], typer.Option(help="What is made.")
    ] = "pdf",
    out: Annotated[
        Path | None, typer.Option(help="The file; by default beside the draft.")
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Accept numbers that have changed.")
    ] = False,
    template: Annotated[
        Path | None, typer.Option(help="A pandoc template, .tex or .typ; ours if none.")
    ] = None,
    engine: Annotated[
        Literal["typst", "latexmk", "tectonic", "pdflatex"] | None,
        typer.Option(help="Makes the PDF; typst needs no TeX."),
    ] = None,
    citations: Annotated[
        Literal["citeproc", "natbib", "biblatex"],
        typer.Option(help="citeproc needs no BibTeX; the others are LaTeX's."),
    ] = "citeproc",
    root: Root = Path(),
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Resolve every reference, refuse what no result carries, and make the document.

    A number is {{ STUDY DATA/ARM QUANTITY }}, {{ SOURCE $.path }} or
    {{ runs/ID SPLIT/METRIC adapter }}, a claim {{ claim STUDY DATA/ARM better }}, and
    what no run measured {{ literal 0.05 "why" }}; see docs/how-to/paper.md.

    Example: loralab paper build paper/draft.md --to tex --out build/paper.tex
    """
    from loralab.cli import render
    from loralab.reporting.paper.build import build as make_paper
    from loralab.reporting.paper.render import TARGETS, Style, make

    style = Style(to, template, engine, citations)
    style.check()
    console = render.console()
    console.print(f"reading {draft} …", soft_wrap=True)
    paper = make_paper(draft, root, runs_dir, update=update)
    console.print(_said(paper), soft_wrap=True)
    made = make(paper, out or draft.with_suffix(TARGETS[to]), style)
    for path in made:
        console.print(f"wrote    {path}", soft_wrap=True)


def _said(paper: Paper) -> str:
    read = [one for one in paper.numbers if one.source]
    literals = sum(bool(one.why) for one in paper.numbers)
    return (
        f"{len(read)} references to {len({one.source for one in read})} results, "
        f"{literals} literals, {len(paper.figures)} figures: all hold"
    )


@app.command()
def numbers(
    source: Annotated[
        str | None, typer.Argument(help="A study, runs/ID or a JSON file; none: which.")
    ] = None,
    words: Annotated[
        list[str] | None, typer.Argument(help="Show lines with all of these only.")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Lines to show.")] = 200,
    json_output: Json = False,
    root: Root = Path(),
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """List what a paper can refer to, and what it comes to now.

    With --json a list, of each number: reference, shown (as a paper has it), values (as
    the source has them), source (its file), pointers; without a source: the names.

    Example: loralab paper numbers adaptive_rank trec-6/gradient
    """
    from loralab.cli import render
    from loralab.reporting.paper.catalogue import numbers as all_numbers
    from loralab.reporting.paper.sources import Library

    library = Library(root, runs_dir)
    console = render.console(stderr=json_output)
    if source is None:
        names = [*library.studies(), *library.runs()]
        if json_output:
            print_json(names)
            return
        for name in names:
            console.print(name, soft_wrap=True)
        return
    found = (
        one
        for one in all_numbers(library, source)
        if all(word in one.reference.text for word in words or [])
    )
    shown = list(islice(found, most))
    if json_output:
        print_json([_number(one) for one in shown])
    else:
        for one in shown:
            line = f"{{{{ {one.reference.text} }}}}  {one.shown}"
            console.print(line, soft_wrap=True)
    if next(found, None) is not None:
        console.print(f"… more than {most}: add words, or --most")


def _number(found: Resolved) -> dict[str, Any]:
    told = {"reference": found.reference.text, "shown": found.shown}
    where = {"source": found.source, "pointers": found.pointers}
    return {**told, "values": found.values, **where}
