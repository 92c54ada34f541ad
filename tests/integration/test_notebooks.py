"""The notebooks teach by code that runs: prose before each cell, no output in git."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
FILES = sorted(NOTEBOOKS.glob("*.ipynb"))
NAMES = [
    "01_setup_environment", "02_first_adapter", "03_adaptive_rank", "04_merging",
    "05_reading_results",
]  # fmt: skip
TAG = "parameters"
SMALL = [
    "data.max_rows={train: 64, validation: 8, test: 24}",
    "training.max_steps=3",
    "training.logging_steps=1",
    "evaluation.resamples=200",
]
SMOKE = {
    "EXPERIMENT": "trec-6",
    "CHANGES": SMALL,
    "STRATEGIES": ["uniform", "u-shape"],
    "TASKS": ["trec-6", "sms-spam", "sentiment-movies"],
    "METHODS": {"average": {}, "opcm": {}},
    "ROWS": 16,
}


def cells(book, kind):
    return [cell for cell in book.cells if cell.cell_type == kind]


def parameters(book):
    (cell,) = (c for c in book.cells if TAG in c.metadata.get("tags", ()))
    return cell


def names_in(source):
    return [
        target.id
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
    ]


def run(name, folder):
    """Execute a notebook at smoke size, as papermill would: its parameters replaced."""
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    cell = parameters(book)
    cell.source = "\n".join(f"{n} = {SMOKE[n]!r}" for n in names_in(cell.source))
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(book, timeout=600, kernel_name="python3", resources=where).execute()
    return book


def text_of(book):
    outputs = [output for cell in cells(book, "code") for output in cell.outputs]
    return "".join(o.text for o in outputs if o.output_type == "stream")


def figures_of(book):
    shown = [o for c in cells(book, "code") for o in c.outputs if "data" in o]
    return sum("image/png" in output.data for output in shown)


def test_there_are_these():
    assert [file.stem for file in FILES] == NAMES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_is_clean_and_teaches(file):
    book = nbformat.read(file, as_version=4)
    nbformat.validate(book)
    assert book.metadata == {"language_info": {"name": "python"}}  # of no one's kernel
    for before, cell in zip([None, *book.cells], book.cells, strict=False):
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            assert before.cell_type == "markdown", cell.source
    assert cells(book, "markdown")[0].source.startswith(f"# {int(file.stem[:2])}. ")
    assert set(names_in(parameters(book).source)) <= set(SMOKE)
    assert file.read_text(encoding="utf-8").endswith("}\n")
    assert json.loads(file.read_text(encoding="utf-8"))["nbformat"] == 4


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_cells_are_python(file):
    book = nbformat.read(file, as_version=4)
    for cell in cells(book, "code"):
        compile(TransformerManager().transform_cell(cell.source), file.name, "exec")


def test_links_lead_somewhere():
    for file in FILES:
        book = nbformat.read(file, as_version=4)
        prose = "\n".join(cell.source for cell in cells(book, "markdown"))
        for target in re.findall(r"\]\(([^)]+)\)", prose):
            assert (NOTEBOOKS / target).exists(), (file.name, target)


def test_the_first_one_runs(tmp_path):
    said = text_of(run(NAMES[0], tmp_path))
    assert "cpu works:" in said and "parameters are trained" in said
    assert (
        "nearest: learning_rate" in said
        and "no PEFT method 'lorra'; nearest: lora" in said
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("notebooks")


SAID = {
    "02_first_adapter": ("complete", "accuracy: base 0.", "Who wrote Hamlet?"),
    "03_adaptive_rank": ("u-shape   cross-entropy", "truncated − whole"),
    "04_merging": ("4 undo sentiment-movies", "of the energy", "A dull film"),
    "05_reading_results": ("against its base:", "are wrong"),
}
FIGURES = {
    "02_first_adapter": 1,
    "03_adaptive_rank": 2,
    "04_merging": 3,
    "05_reading_results": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAID)
def test_the_others_run(name, folder):
    book = run(name, folder)
    said = text_of(book)
    for words in SAID[name]:
        assert words in said, said
    assert figures_of(book) == FIGURES[name]
