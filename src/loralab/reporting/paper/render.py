"""From a resolved paper to LaTeX, typst or PDF, with its lock and its manifest.

    Markdown --pandoc--> typst --typst--> PDF          the embedded default
    Markdown --pandoc--> LaTeX --a TeX that is installed--> PDF

pandoc and typst come as wheels (extra ``paper``). Everything is made in a folder of its
own first: a build that fails leaves what was there as it was. Same draft, same results,
same bytes: the PDF of typst has no date.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loralab.errors import PaperError
from loralab.reporting.paper import lock
from loralab.reporting.paper.build import Paper
from loralab.reporting.paper.manifest import manifest
from loralab.runs.files import atomic_file, write_json

TEMPLATES = Path(__file__).parent / "templates"
TARGETS = {"pdf": ".pdf", "tex": ".tex", "typst": ".typ"}
"""What can be made, and how its file ends."""
TEX_ENGINES: dict[str, tuple[Sequence[str], int]] = {
    "latexmk": (("latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error"), 1),
    "tectonic": (("tectonic",), 1),
    "pdflatex": (("pdflatex", "-interaction=nonstopmode", "-halt-on-error"), 2),
}
"""TeX: its command, and how often it must run."""
ENGINES = ("typst", *TEX_ENGINES)
CITATIONS = ("citeproc", "natbib", "biblatex")
_LATEX_TEMPLATES, _TYPST_TEMPLATES = (".tex", ".latex"), (".typ", ".typst")
_SECONDS = 300
_TOLD_LINES = 12


@dataclass(frozen=True)
class Style:
    """How a paper is made.

    Attributes:
        to: ``pdf``, ``tex`` or ``typst``.
        template: A pandoc template for LaTeX (.tex) or typst (.typ); None for ours.
        engine: What makes the PDF; None: typst, and of a LaTeX template the first TeX
            that is installed.
        citations: ``citeproc``, which needs no BibTeX run; of LaTeX also ``natbib`` and
            ``biblatex``.
    """

    to: str = "pdf"
    template: Path | None = None
    engine: str | None = None
    citations: str = "citeproc"

    @property
    def latex(self) -> bool:
        """Whether the way leads over LaTeX."""
        own = self.template is not None and self.template.suffix in _LATEX_TEMPLATES
        return self.to == "tex" or self.engine in TEX_ENGINES or own

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            PaperError: a template that is missing or of the other language, natbib or
                biblatex without LaTeX, a target that the language has not.
        """
        if self.template is not None:
            legal = _LATEX_TEMPLATES if self.latex else _TYPST_TEMPLATES
            if not self.template.is_file() or self.template.suffix not in legal:
                raise PaperError(
                    "the template cannot be used",
                    where=str(self.template),
                    why=f"here it is a file that ends with {' or '.join(legal)}",
                    fix="a pandoc template of LaTeX ends with .tex, one of typst .typ",
                )
        if self.to == "typst" and self.latex:
            raise PaperError("--to typst takes no TeX engine and no LaTeX template")
        if self.citations != "citeproc" and not self.latex:
            raise PaperError(
                f"{self.citations} is LaTeX's",
                fix="--to tex, or leave --citations out",
            )


def make(paper: Paper, out: Path, style: Style) -> list[Path]:
    """Write the document, its manifest, and the draft's lock.

    Args:
        paper: From `build`.
        out: The file to write; what LaTeX and typst sources need lies beside it.
        style: How.

    Returns:
        The files written.

    Raises:
        PaperError: pandoc, typst or TeX is missing or refuses the document.
    """
    style.check()
    name = re.sub(r"[^\w.-]+", "-", out.stem) + "-figures"
    with tempfile.TemporaryDirectory() as held:
        folder = Path(held)
        source, tools = _source(paper, folder, name, style)
        made = source if style.to != "pdf" else _pdf(source, style, tools)
        with atomic_file(out) as temporary:
            shutil.copyfile(made, temporary)
        written = [out]
        if style.to != "pdf":
            written += _beside(folder, out, name)
    listed = out.with_suffix(".manifest.json")
    write_json(listed, manifest(paper, written, tools))
    lock.write(paper.draft, paper.lock)
    return [*written, listed, lock.path_of(paper.draft)]


def _beside(folder: Path, out: Path, name: str) -> list[Path]:
    """Copy what a source file needs to where it lies: figures, bibliographies."""
    written = []
    for file in sorted([*(folder / name).glob("*"), *folder.glob("*.bib")]):
        target = out.parent / file.relative_to(folder)
        with atomic_file(target) as temporary:
            shutil.copyfile(file, temporary)
        written.append(target)
    return written


def _tool(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise PaperError(
            f"a paper needs {module}, which is not installed",
            fix="pip install 'loralab[paper]'",
        ) from None


def _source(
    paper: Paper, folder: Path, name: str, style: Style
) -> tuple[Path, dict[str, str]]:
    """Write the LaTeX or typst source and its figures into a folder."""
    pandoc = _tool("pypandoc")
    text = paper.text
    for number, (target, file) in enumerate(paper.figures.items(), 1):
        into = folder / name / f"{number}-{file.name}"
        into.parent.mkdir(exist_ok=True)
        placed = _figure(file, into, style.latex)
        text = text.replace(f"]({target}", f"]({placed.relative_to(folder).as_posix()}")
    for file in paper.bibliography:
        if style.citations != "citeproc":
            shutil.copyfile(file, folder / file.name)
    to, suffix = ("latex", ".tex") if style.latex else ("typst", ".typ")
    source = folder / f"{paper.draft.stem}{suffix}"
    template = style.template or TEMPLATES / f"paper{suffix}"
    command = [
        str(pandoc.get_pandoc_path()),
        # code is free of the guard against typed numbers, so none may become raw text
        *("--from", "markdown-raw_attribute", "--to", to, "--standalone"),
        "--fail-if-warnings",
        *("--template", str(template.resolve()), f"--{style.citations}"),
        *("--syntax-highlighting", "none", "--columns", "1000"),
        *("--metadata", "link-citations=true", "--output", str(source)),
    ]
    _run("pandoc", command, paper.draft.parent, text)
    tools = {"pandoc": str(pandoc.get_pandoc_version())}
    return source, tools


def _figure(file: Path, into: Path, latex: bool) -> Path:
    """Put a figure into the folder: SVG as PDF for LaTeX, which reads none."""
    if not latex or file.suffix != ".svg":
        shutil.copyfile(file, into)
        return into
    made = into.with_suffix(".pdf")
    beside = file.with_suffix(".pdf")
    if beside.is_file():  # of the same figure, as `reporting.figures.save` writes them
        shutil.copyfile(beside, made)
    else:
        made.write_bytes(svg_to_pdf(file))
    return made


def svg_to_pdf(file: Path) -> bytes:
    """Return an SVG as a PDF page of its size: a typst document of one figure."""
    page = '#set page(width: auto, height: auto, margin: 0pt)\n#image("figure.svg")\n'
    with tempfile.TemporaryDirectory() as held:
        shutil.copyfile(file, Path(held) / "figure.svg")
        source = Path(held) / "figure.typ"
        source.write_text(page, encoding="utf-8")
        return compile_typst(source)


def compile_typst(source: Path, **options: Any) -> bytes:
    """Return the PDF of a typst file; the same file gives the same bytes.

    Raises:
        PaperError: typst is not installed, or refuses the document.
    """
    typst = _tool("typst")
    try:
        made = typst.compile(
            source, root=source.parent, ignore_system_fonts=True, timestamp=0, **options
        )
    except typst.TypstError as error:
        raise PaperError(
            "typst refuses the document",
            why=str(error.diagnostic or error).strip(),
            fix="mend what it names in the draft or the template; --to typst keeps its "
            "source",
        ) from None
    return bytes(made)


def _pdf(source: Path, style: Style, tools: dict[str, str]) -> Path:
    made = source.with_suffix(".pdf")
    if not style.latex:
        made.write_bytes(compile_typst(source))
        tools["typst"] = version("typst")
        return made
    engine = style.engine or next(filter(shutil.which, TEX_ENGINES), None)
    if engine is None or shutil.which(engine) is None:
        raise PaperError(
            f"{engine or ', '.join(TEX_ENGINES)}: no such TeX is installed",
            fix="--to tex writes what any TeX takes; without a LaTeX template the PDF "
            "is made by typst",
        )
    command, times = TEX_ENGINES[engine]
    near = style.template.resolve().parent if style.template else source.parent
    for _ in range(times):
        _run(engine, [*command, source.name], source.parent, near=near)
    tools[engine] = str(shutil.which(engine))
    return made


def _run(
    name: str,
    command: Sequence[str],
    folder: Path,
    text: str | None = None,
    near: Path | None = None,
) -> None:
    """Run a program; what it says when it fails is the error.

    Args:
        name: For the message.
        command: Program and arguments.
        folder: Where it runs.
        text: Its input.
        near: A folder in which TeX looks for classes and styles, too.
    """
    extra = {"TEXINPUTS": f"{near}{os.pathsep}"} if near else {}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            input=text,
            env={**os.environ, **extra},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PaperError(f"{name} has not ended after {_SECONDS} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise PaperError(
            f"{name} refuses the document",
            why="\n    ".join(said[-_TOLD_LINES:]),
            fix="mend what it names in the draft or the template",
        )
