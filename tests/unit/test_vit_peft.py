"""The study of vision transformers: every cell composes, of the whole grid too."""

from functools import cache
from pathlib import Path

import pytest
from studies.vit_peft.page import base_bytes, page

from loralab.experiments.cells import Cell
from loralab.experiments.report import read_analysis
from loralab.experiments.study import find_study

FOLDER = Path(__file__).parents[2] / "studies" / "vit_peft"


@cache
def configs(file):
    study = find_study(str(FOLDER / file), "evidence")
    return {
        (data, arm): study.compose(Cell(data, arm, 0, "final", ()))
        for data in study.config.choices
        for arm in study.config.arms
    }


@pytest.mark.parametrize("file", ["study.yaml", "pilot.yaml", "full.yaml"])
def test_every_cell_is_a_configuration_of_its_own(file):
    found = configs(file)
    assert len({config.run_id for config in found.values()}) == len(found)


def test_the_grid_is_bases_by_sets_by_methods():
    found = configs("full.yaml").values()
    assert len({(c.model.path, c.data.source.params["path"]) for c in found}) == 9
    assert {c.peft.name for c in found} == {
        "lora", "linear-probe", "adalora", "qa-lora", "full"
    }  # fmt: skip
    lora = [c for c in found if c.peft.name == "lora" and not c.model.storage]
    assert {c.peft.params["rank"] for c in lora} == {2, 4, 8, 16, 32}
    seen = [c for c in found if c.data.source.params["caution"]]
    assert {c.data.source.params["path"] for c in seen} == {"zh-plus/tiny-imagenet"}
    assert len(seen) == len(found) / 3


def test_stored_bytes_are_those_of_the_format():
    found = configs("study.yaml")
    ten = [str(label) for label in range(10)]
    whole, nf4, int4 = (
        base_bytes(found["cifar-10", arm], ten)
        for arm in ("lora-8", "lora-8-nf4", "qa-lora-int4")
    )
    assert 2 * 22e6 < whole < 2 * 22.2e6
    assert 0.25 < nf4 / whole < 0.35
    assert nf4 < int4 < 0.4 * whole


def test_the_page_says_what_the_runs_say():
    written = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert page(read_analysis(FOLDER)) == written
