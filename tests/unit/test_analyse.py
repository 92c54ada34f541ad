"""What a study concludes from readings that are written here, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from loralab.errors import ConfigError, RunError
from loralab.experiments.analyse import _comparisons, _judged, over_tasks
from loralab.experiments.cells import Cell
from loralab.experiments.readings import Reading, Runs
from loralab.experiments.readings import _budgets as spent_by
from loralab.experiments.report_tables import said
from loralab.experiments.study import Study
from loralab.experiments.study_config import StudyConfig, read_study

LR = "training.learning_rate"
STUDY = {
    "name": "s",
    "question": "?",
    "data": {
        name: {"experiment": "trec-6", "overrides": [f"training.max_steps={steps}"]}
        for name, steps in (("one", 1), ("two", 2), ("three", 3))
    },
    "arms": {"base": [], "other": ["peft.params.rank=4"]},
    "baseline": "base",
    "controls": {"again": {"of": "base", "seed_offset": 100}},
    "smallest_difference": 0.05,
    "budgets": [],
    "sizes": {"smoke": {"seeds": 6}},
}
ROWS = 40


def study(tmp_path, **changes):
    return Study(StudyConfig.model_validate({**STUDY, **changes}), "smoke", tmp_path)


def reading(data, arm, seed, values):
    cell = Cell(data, arm, seed, "final", (), f"{data}-{arm}-{seed}", "complete")
    keys = tuple(map(str, range(len(values))))
    ones = np.ones(len(values))
    mean = float(np.mean(values))
    return Reading(cell, mean, "lower", values, ones, keys, {}, 1.0, [], {})


def test_what_a_training_that_stopped_early_spent_is_what_it_took():
    plan = {"trainable": 8, "tokens": 900, "steps": 15, "examples": 120}
    whole = {"plan": plan, "training": {"steps": 15, "tokens": 905}}
    assert spent_by(whole) == plan
    early = {"plan": plan, "training": {"steps": 5, "tokens": 310, "trainable": 8}}
    assert spent_by(early) == {
        "trainable": 8, "tokens": 310, "steps": 5, "examples": 40,
    }  # fmt: skip


def readings(shifts, seeds=range(6), spread=0.02, offset=0):
    """Return readings of arms whose mean is 1 + shift, by data set and arm."""
    rng = np.random.default_rng(offset)
    found = []
    for (data, arm), shift in shifts.items():
        for seed in seeds:
            rows = 1 + shift + rng.normal(0, spread) + rng.normal(0, 0.02, ROWS)
            found.append(reading(data, arm, seed + offset, rows))
    return found


def compared(made, given, arms=("base", "other")):
    return _comparisons(Runs(made, given), list(arms))


def test_an_arm_that_is_better_is_better_and_one_that_is_equal_equivalent(tmp_path):
    made = study(tmp_path)
    shifts = {("one", "base"): 0, ("one", "other"): -0.3}
    shifts |= {("two", "base"): 0, ("two", "other"): 0.3}
    shifts |= {("three", "base"): 0, ("three", "other"): 0}
    found = compared(made, readings(shifts))
    assert [one["verdict"] for one in found] == ["better", "worse", "equivalent"]


def test_comparisons_that_have_not_ended_count_in_holms_family(tmp_path):
    made = study(tmp_path)
    shifts = {("one", "base"): 0, ("one", "other"): -0.03}
    first, *rest = compared(made, readings(shifts))
    assert first["p_holm"] == pytest.approx(min(1.0, 3 * first["p"]))
    assert [one["verdict"] for one in rest] == ["inconclusive"] * 2
    assert "fewer than two pairs" in said(rest[0])


def test_pairs_without_spread_conclude_nothing(tmp_path):
    made = study(tmp_path)
    rows = np.linspace(0, 1, ROWS)
    given = [reading("one", "base", s, rows) for s in range(3)]
    given += [reading("one", "other", s, rows - 0.5) for s in range(3)]
    one, *_ = compared(made, given)
    assert one["verdict"] == "inconclusive"
    assert "no spread" in one["why"]


def test_missing_pairs_are_told_and_failed_runs_conclude_nothing(tmp_path):
    made = study(tmp_path)
    shifts = {("one", "base"): 0, ("one", "other"): -0.3}
    given = [r for r in readings(shifts) if (r.cell.arm, r.cell.seed) != ("other", 5)]
    one, *_ = compared(made, given)
    assert one["verdict"] == "better"
    assert "on 5 of 6 pairs" in said(one)
    failed = [
        replace(cell, status="failed")
        if (cell.data, cell.arm, cell.seed) == ("one", "other", 5)
        else cell
        for cell in made.final_cells()
    ]
    made.path.mkdir(parents=True)
    made.write(failed)
    one, *_ = compared(made, given)
    assert one["verdict"] == "inconclusive"
    assert "failed" in one["why"]


@pytest.mark.parametrize(
    ("shift", "seeds", "held"), [(0, 6, True), (0.3, 6, False), (0, 1, None)]
)
def test_a_control_holds_only_where_it_was_seen_to(tmp_path, shift, seeds, held):
    made = study(tmp_path)
    given = readings({("one", "base"): 0}, range(seeds))
    given += readings({("one", "again"): shift}, range(seeds), offset=100)
    one, *_ = compared(made, given, ["again"])
    assert _judged(made, one)["held"] is held


def test_over_tasks_tells_how_likely_a_run_is_better(tmp_path):
    made = study(tmp_path)
    names = STUDY["data"]
    shifts = {(data, "base"): 0 for data in names}
    shifts |= {(data, "other"): -0.3 for data in names}
    (one,) = over_tasks(Runs(made, readings(shifts)))
    assert one["probability_of_improvement"]["value"] == 1
    two_of_three = {key: v for key, v in shifts.items() if key[0] != "three"}
    assert over_tasks(Runs(made, readings(two_of_three))) == []


def test_a_grid_in_yaml_s_spelling_of_numbers_is_a_grid_of_numbers(tmp_path):
    text = yaml.safe_dump({**STUDY, "controls": {}})
    text += f"tuning: {{grid: {{{LR}: [3e-4, 1e-3, 3e-3]}}}}\n"
    (tmp_path / "s.yaml").write_text(text, encoding="utf-8")
    config = read_study(tmp_path / "s.yaml")
    assert config.tuning.grid == {LR: [3e-4, 1e-3, 3e-3]}
    with pytest.raises(RunError, match="an edge of the grid"):
        Study(config, "smoke", tmp_path)._refuse_edge("one", "base", (f"{LR}=0.003",))


REFUSED = {
    "control seeds that the arm has": (
        {"controls": {"again": {"of": "base", "seed_offset": 3}}},
        "share seeds",
    ),
    "control seeds that tuning has": (
        {"controls": {"again": {"of": "base", "seed_offset": 9_999}}},
        "share seeds",
    ),
    "an arm that tuning undoes": (
        {
            "arms": {"base": [], "other": [f"{LR}=1"]},
            "tuning": {"grid": {LR: [1e-4, 1e-3, 1e-2]}},
        },
        "tuning sets it again",
    ),
    "a grid with a value twice": (
        {"tuning": {"grid": {LR: ["1e-3", 0.001, 1e-2]}}},
        "three different",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_study_that_could_not_answer_is_refused(tmp_path, case):
    changes, fragment = REFUSED[case]
    with pytest.raises(ValidationError, match=fragment):
        study(tmp_path, **changes)


def test_two_arms_that_are_the_same_run_are_refused_before_training(tmp_path):
    arms = {"base": [], "other": ["peft.params.rank=8"]}
    made = study(tmp_path, arms=arms, controls={})
    with pytest.raises(ConfigError, match="the same run"):
        made.run(workers=1)
    assert made.cells() == []


def test_an_experiment_that_has_changed_stops_the_study(tmp_path):
    made = study(tmp_path)
    cells = [replace(c, run="trec-6-0123456789") for c in made.final_cells()]
    made.path.mkdir(parents=True)
    made.write(cells)
    with pytest.raises(RunError, match="has changed since"):
        made.run(workers=1)


@pytest.mark.parametrize(
    "content", [{"defaults": ["/experiment/trec-6", "_self_"]}, {"task": {}, "data": 1}]
)
def test_an_experiment_is_no_study_and_is_told_so_once(tmp_path, content):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_study(file)
    assert caught.value.what == "this is an experiment, not a study"
