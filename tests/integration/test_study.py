"""Studies of real runs: what is better is found, what is equal is not, and what proves
nothing is refused."""

import json
from html.parser import HTMLParser

import pytest
import yaml

from loralab.errors import EvidenceError, RunError
from loralab.evaluation.statistics.seeds import t_interval
from loralab.experiments.analyse import analyse
from loralab.experiments.ledger import check_budgets, ledger
from loralab.experiments.noise import detectable
from loralab.experiments.study import Study, find_study
from loralab.experiments.study_config import StudyConfig
from loralab.reporting.page import MOST_BYTES
from tests.cli import loralab

SMALL = [
    "data.max_rows={train: 192, validation: 32, test: 64}",
    "model.dtype=fp32",
    "training.max_steps=6",
    "training.eval_steps=3",
    "training.callbacks=[]",
    "evaluation.base=false",
    "evaluation.resamples=200",
]
LR = "training.learning_rate"
STUDY = {
    "name": "rates",
    "question": "Does a learning rate that moves the adapter beat one that does not?",
    "experiment": "trec-6",
    "overrides": SMALL,
    "arms": {"still": [f"{LR}=1e-6"], "moving": [f"{LR}=3e-3"]},
    "baseline": "still",
    "controls": {
        "again": {"of": "still", "seed_offset": 1000, "expect": "equal"},
        "idle": {
            "of": "moving",
            "overrides": [f"{LR}=1e-7"],
            "expect": "worse",
        },
    },
    "smallest_difference": 0.02,
    "sizes": {"smoke": {"seeds": 4}},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A study that has run, and its analysis."""
    folder = tmp_path_factory.mktemp("study")
    study = Study(StudyConfig.model_validate(STUDY), "smoke", folder / "runs")
    assert study.run(workers=1)
    return study, analyse(study)


@pytest.mark.slow
def test_a_better_arm_is_found_better_and_an_equal_one_equal(done):
    _, analysis = done
    (moving,) = analysis["comparisons"]
    assert moving["verdict"] == "better"
    assert moving["difference"]["high"] < 0  # cross-entropy: lower is better
    assert moving["difference"]["method"] == "mixed"
    verdicts = {one["name"]: one for one in analysis["controls"]}
    assert verdicts["again"]["verdict"] in ("equivalent", "inconclusive")
    assert verdicts["idle"]["verdict"] == "worse"
    assert all(one["held"] for one in analysis["controls"])


@pytest.mark.slow
def test_every_number_of_the_analysis_is_that_of_its_runs(done):
    study, analysis = done
    by = {(one["arm"], one["seed"]): one for one in analysis["runs"]}
    assert len(by) == 16
    for cell in study.cells():
        result = study.run_of(cell).evaluations()["test"]
        value = result["metrics"]["cross_entropy"]["adapter"]["value"]
        assert by[cell.arm, cell.seed]["value"] == value
    (moving,) = analysis["comparisons"]
    gaps = [by["moving", s]["value"] - by["still", s]["value"] for s in range(4)]
    assert moving["difference"]["value"] == pytest.approx(t_interval(gaps, 0.95).value)
    floor = next(one for one in analysis["noise"] if one["arm"] == "still")
    values = [by["still", s]["value"] for s in range(4)]
    assert floor["largest_pair"] == pytest.approx(max(values) - min(values))


@pytest.mark.slow
def test_analysis_needs_the_runs_and_nothing_else(done, tmp_path, monkeypatch):
    study, analysis = done
    moved = tmp_path / "elsewhere"
    study.runs_dir.rename(moved)
    try:
        monkeypatch.setattr("loralab.models.base.load_base", None)
        monkeypatch.setattr("loralab.data.rows.load_rows", None)
        assert analyse(find_study(str(moved / study.path.name))) == analysis
    finally:
        moved.rename(study.runs_dir)


@pytest.mark.slow
def test_the_difference_it_can_see_comes_from_its_own_pairs(done, tmp_path):
    study, _ = done
    (seen,) = detectable(study)
    assert seen.source == "4 pairs of this study"
    assert seen.detectable > 0
    piloted = {**STUDY, "pilot": str(study.path / "analysis.json"), "name": "next"}
    config = StudyConfig.model_validate(piloted)
    (seen,) = detectable(Study(config, "smoke", tmp_path))
    assert seen.source.startswith("4 seeds of")
    (unknown,) = detectable(Study(study.config, "smoke", tmp_path))
    assert unknown.detectable is None


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        names = ("src", "href", "xlink:href", "action")
        self.found += [value for name, value in attrs if name in names]


@pytest.mark.slow
def test_the_report_is_one_file_that_needs_no_network(done, tmp_path):
    study, analysis = done
    out = loralab("study", "report", study.path, "--out", tmp_path)
    assert out.code == 0, out.err
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(page.encode()) < MOST_BYTES
    links = Links()
    links.feed(page)
    assert all(link.startswith("#") for link in links.found)
    assert "@import" not in page
    assert page.count("<svg") >= 3  # differences, seeds, curves
    for word in ("better", "; holds", STUDY["question"]):
        assert word in page
    assert json.loads((tmp_path / "analysis.json").read_text()) == analysis
    for name in ("comparisons", "noise", "runs"):
        for suffix in ("md", "tex", "csv", "html"):
            assert (tmp_path / "tables" / f"{name}.{suffix}").stat().st_size
    for suffix in ("pdf", "svg", "png"):
        assert (tmp_path / "figures" / f"differences.{suffix}").stat().st_size


@pytest.mark.slow
def test_the_verbs_say_what_the_study_shows(done):
    study, _ = done
    again = loralab("study", "run", study.path)
    assert again.code == 0, again.err
    assert "16 of 16 ended before" in again.out
    said = loralab("study", "analyse", study.path)
    assert said.code == 0
    assert "better" in said.out


def written(folder, **changes):
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump({**STUDY, "controls": {}, **changes}), "utf-8")
    return str(file)


def test_unequal_budgets_are_refused_before_anything_is_trained(tmp_path):
    arms = {"r4": ["peft.params.rank=4"], "r8": ["peft.params.rank=8"]}
    file = written(tmp_path, arms=arms, baseline="r4")
    out = loralab("study", "run", file, "--runs-dir", tmp_path / "runs")
    assert out.code == 2
    assert "the same trainable" in out.err
    assert not list(tmp_path.glob("runs/trec-6-*"))
    study = find_study(
        written(tmp_path, arms=arms, baseline="r4", budgets=["tokens", "steps"]),
        runs_dir=tmp_path / "runs",
    )
    entries = ledger(study, timed=False)
    check_budgets(study, {(e.data, e.arm): e.budgets for e in entries})


@pytest.mark.slow
def test_runs_that_did_not_spend_the_same_are_refused(done):
    study, _ = done
    same = {"trainable": 100.0, "steps": 6.0, "tokens": 1000.0}

    def spent(tokens):
        moving = {**same, "tokens": tokens}
        return {("trec-6", "still"): same, ("trec-6", "moving"): moving}

    check_budgets(study, spent(1009.0))
    with pytest.raises(EvidenceError, match="the same tokens"):
        check_budgets(study, spent(1011.0))


@pytest.mark.slow
def test_a_best_value_on_the_edge_of_the_grid_is_refused(tmp_path):
    few = ["training.max_steps=3", "training.eval_steps=3"]
    changes = {
        "arms": {"lora": few},
        "baseline": None,
        "tuning": {"grid": {LR: [1e-6, 1e-5, 1e-4]}},
        "sizes": {"smoke": {"seeds": 2}, "evidence": {"seeds": 2}},
    }
    study = find_study(
        written(tmp_path, **changes), "evidence", runs_dir=tmp_path / "runs"
    )
    with pytest.raises(RunError, match="an edge of the grid"):
        study.run(workers=1)
    assert {cell.stage for cell in study.cells()} == {"tuning"}
    with pytest.raises(RunError, match=r"best training\.learning_rate of lora"):
        analyse(study)
    tuning = {"grid": {LR: [1e-4, 3e-3, 10.0]}}
    wider = {**changes, "tuning": tuning}
    study = find_study(
        written(tmp_path, **wider), "evidence", runs_dir=tmp_path / "runs"
    )
    assert study.run(workers=1)
    (tuned,) = analyse(study)["tuning"]
    assert tuned["chosen"] == [f"{LR}=0.003"]
    assert {cell.point for cell in study.cells() if cell.stage == "final"} == {
        (f"{LR}=0.003",)
    }


WRONG = {
    "two arms without a baseline": ({"baseline": None}, "baseline"),
    "a control of no arm": (
        {"controls": {"x": {"of": "nobody", "seed_offset": 1}}},
        "controls.x",
    ),
    "a control that changes nothing": (
        {"controls": {"x": {"of": "still"}}},
        "run for run",
    ),
    "a grid that is all edges": (
        {"tuning": {"grid": {LR: [1e-4, 1e-3]}}},
        "three different values",
    ),
    "an unknown key": ({"sead": 3}, "unknown key"),
    "no such size": ({"sizes": {"evidence": {"seeds": 3}}}, "no size"),
    "no such experiment": ({"experiment": "trec-7"}, "trec-6"),
    "an unknown override": ({"arms": {"a": ["peft.rnk=2"]}, "baseline": None}, "rnk"),
    "a missing pilot": ({"pilot": "gone.json"}, "gone.json"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_study_is_one_clear_error(tmp_path, case):
    changes, fragment = WRONG[case]
    file = written(tmp_path, **changes)
    out = loralab("study", "plan", file, "--runs-dir", tmp_path / "runs")
    assert out.code == 2, out.out
    assert fragment in out.err
    assert "Traceback" not in out.err
    assert not (tmp_path / "runs").exists()
