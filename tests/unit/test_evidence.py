"""No number without a run: committed results and the code that writes them are read."""

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest

from loralab.evaluation.statistics.noise import noise_floor
from loralab.experiments.report_tables import tables
from loralab.reporting.renderers import to_markdown

ROOT = Path(__file__).parents[2]
BENCHMARKS = sorted(ROOT.glob("benchmarks/results/*.json"))
STUDIES = sorted(ROOT.glob("studies/**/analysis.json"))
SCRIPTED = sorted(ROOT.glob("studies/*/results.json"))
"""Of studies that are a script of their own, with a test of its own."""
WRITERS = sorted(
    [
        *(ROOT / "src" / "loralab" / "reporting").rglob("*.py"),
        *(ROOT / "src" / "loralab" / "experiments").rglob("*.py"),
        *ROOT.glob("studies/*/*.py"),
    ]
)
PLAIN = {0.0, 0.5, 1.0, 2.0}
"""Numbers that a formula may hold: halves, signs, squares."""


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda f: f.stem)
def test_a_benchmark_s_result_names_its_script_and_what_it_was_measured_on(file):
    assert (ROOT / "benchmarks" / f"{file.stem}.py").is_file()
    here = read(file)["environment"]
    if file.stem != "training":  # measured before commits were written down
        assert re.fullmatch(r"[0-9a-f]{40}", here["git_commit"])
    assert here["cpu"]
    assert here["packages"]["torch"]


@pytest.mark.parametrize("file", SCRIPTED, ids=lambda f: f.parent.name)
def test_a_script_s_result_names_its_commit_and_has_a_test(file):
    assert (file.parent / "measure.py").is_file()
    assert (Path(__file__).parent / f"test_{file.parent.name}.py").is_file()
    here = read(file)["environment"]
    assert re.fullmatch(r"[0-9a-f]{40}", here["git_commit"])
    assert here["cpu"]
    assert here["packages"]["peft"]


def test_there_is_a_committed_study():
    assert STUDIES


@pytest.mark.parametrize("file", STUDIES, ids=lambda f: f.parent.name)
def test_every_number_of_a_committed_study_follows_from_its_runs(file):
    found = read(file)
    assert found["size"] == "evidence"
    for run in found["runs"]:
        assert re.fullmatch(r".+-[0-9a-f]{10}", run["run"])
        assert re.fullmatch(r"[0-9a-f]{40}", run["commit"])
        assert np.isfinite(run["value"])
    assert len({run["run"] for run in found["runs"]}) == len(found["runs"])
    for one in [*found["arms"], *found["noise"]]:
        values = [
            run["value"]
            for run in found["runs"]
            if (run["data"], run["arm"]) == (one["data"], one["arm"])
        ]
        assert one["seeds"] == len(values)
        if "sd" not in one:
            assert one["value"] == pytest.approx(np.mean(values))
            continue
        floor = noise_floor(values)
        assert one["sd"] == pytest.approx(floor.sd.as_dict())
        assert one["largest_pair"] == pytest.approx(floor.pairs[-1])
        for seeds, width in one["half_width"].items():
            assert width == pytest.approx(floor.half_width(int(seeds)))


@pytest.mark.parametrize("file", STUDIES, ids=lambda f: f.parent.name)
def test_the_tables_of_a_committed_study_are_those_of_its_analysis(file):
    for name, table in tables(read(file)).items():
        written = (file.parent / "tables" / f"{name}.md").read_text(encoding="utf-8")
        assert written == to_markdown(table)


def constants(tree):
    """Yield numbers in the bodies of functions, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Constant) and isinstance(inner.value, float):
                    yield inner.lineno, inner.value


@pytest.mark.parametrize("file", WRITERS, ids=lambda f: f.stem)
def test_a_writer_of_results_holds_no_number_that_could_be_one(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = [(line, v) for line, v in constants(tree) if v not in PLAIN]
    assert not found, f"{file.name}: name these as constants of the module"


@pytest.mark.parametrize("file", WRITERS, ids=lambda f: f.stem)
def test_a_writer_of_results_draws_nothing(file):
    if file.parent.name == "samplers":
        return  # they draw what is tried, and write no result
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
    assert not names & {"random", "numpy.random", "secrets", "default_rng"}


def test_the_scoreboard_of_laws_follows_from_its_results():
    from benchmarks.merging_laws import PAGE, RESULTS, page

    assert PAGE.read_text(encoding="utf-8") == page(read(RESULTS))
