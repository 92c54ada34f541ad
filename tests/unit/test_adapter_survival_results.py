"""The committed results of the study of adapter survival, and their page."""

import json

import pytest
from studies.adapter_survival import measure, page
from studies.adapter_survival.formats import GROUPS, INTEGER, ZEROS, grids, name_of


@pytest.fixture(scope="module")
def committed():
    return json.loads(measure.RESULTS.read_text(encoding="utf-8"))


def test_the_committed_page_is_that_of_the_results(committed):
    assert measure.PAGE.read_text(encoding="utf-8") == page.page(committed)
    assert (measure.HERE / "figures" / "survival.svg").is_file()


def test_a_page_of_other_results_is_another(committed):
    changed = json.loads(json.dumps(committed))
    changed["adapters"][0]["cells"][0]["kept"] += 0.5
    assert page.page(changed) != page.page(committed)


def test_every_case_was_measured_in_every_way(committed):
    assert [one["name"] for one in committed["adapters"]] == [
        case.name for case in measure.EVIDENCE.cases
    ]
    for case, one in zip(measure.EVIDENCE.cases, committed["adapters"], strict=True):
        targets = case.targets or measure.EVIDENCE.targets
        if one["method"] == "qa-lora":
            ways = len(ZEROS)
        else:
            ways = 2 * len(case.grids or grids())
        assert len(one["cells"]) == ways * (len(targets) + 1)
        assert bool(one["answers"]) == bool(case.answered)


def test_the_results_say_what_the_mathematics_says(committed):
    encoders = page.of_base(committed, page.FLOAT_BASE)
    for group in GROUPS:
        real, whole = (name_of(4, group, z) for z in ("fp32", INTEGER))
        (shift,) = page.cells_of(encoders, real, "zeros", 0.01)
        assert shift["kept"] == pytest.approx(1, abs=1e-4)  # exact but for rounding
        (control,) = page.cells_of(encoders, whole, "zeros", 0.01)
        assert control["kept"] < 0.5
    for adapter in encoders:
        for cell in adapter["cells"]:
            if cell["start"] == "float":  # unbiased rounding loses nothing
                assert cell["kept"] == pytest.approx(1, abs=0.1)
