"""The smoke size of a committed study runs from its file to its report."""

from pathlib import Path

import pytest

from loralab.data.packages import PACKAGES, missing
from loralab.experiments.analyse import analyse
from loralab.experiments.report import write_report
from loralab.experiments.study import find_study

STUDIES = Path(__file__).parents[2] / "studies"
FETCHED = ("bigbench", "dataset-fashion-mnist")
HERE = not any(missing(PACKAGES[name]) for name in FETCHED)
NAMES = [
    "aa_floor",
    "adaptive_rank",
    "adaptive_rank_smollm2",
    pytest.param(
        "vit_peft", marks=pytest.mark.skipif(not HERE, reason="358 MB, not fetched")
    ),
]
"""A study that is a script has its own tests."""


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_its_smoke_size_runs_and_is_reported(name, tmp_path):
    study = find_study(str(STUDIES / name / "study.yaml"), "smoke", tmp_path / "runs")
    assert study.run(workers=1)
    cells = study.cells()
    assert cells
    assert {cell.status for cell in cells} == {"complete"}
    found = analyse(study)
    assert (found["size"], found["waiting"], found["failed"]) == ("smoke", 0, [])
    page = write_report(study, tmp_path / "report").read_text(encoding="utf-8")
    assert "A smoke study" in page
