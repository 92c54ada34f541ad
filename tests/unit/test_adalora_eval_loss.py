"""The study of PEFT's loss beside ours: its functions run, its results hold."""

import json

import pytest
from studies.adalora_eval_loss import measure
from tests.tiny import tiny

from loralab import compose

EPSILON = 2.0**-23
"""Of fp32."""
ROUNDINGS = 32
"""Of the largest number that a sum goes through: two forward passes and their means."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = tmp_path_factory.mktemp("models")
    return {kind: tiny(kind, made / kind) for kind in ("bert", "llama")}


def watched(folder, experiment, weight, *more):
    given = [
        *measure.COMMON,
        f"model.path={folder}",
        "data.max_rows={train: 24, validation: 8, test: 12}",
        "training.max_steps=4",
        "training.per_device_train_batch_size=4",
        "training.learning_rate=0.02",
        "evaluation.per_device_eval_batch_size=5",  # several batches
        "peft.params.init_rank=3",
        "peft.params.target_rank=2",
        f"peft.params.orth_reg_weight={weight}",
        *more,
    ]
    return measure.watched(compose(experiment, given), (0, 4))


def assert_explained(one):
    within = ROUNDINGS * EPSILON * max(1.0, one["told"])
    assert one["difference"] == pytest.approx(one["regulariser"], abs=within)
    assert one["error"] <= within
    assert one["told"] > one["cross_entropy"]


@pytest.mark.slow
@pytest.mark.parametrize("weight", measure.WEIGHTS)
@pytest.mark.parametrize(
    ("kind", "experiment", "more"),
    [
        ("bert", "trec-6", ()),
        ("llama", "chatterbot", ("task.params.max_length=64",)),
    ],
)
def test_the_difference_is_the_weighted_regulariser(
    folders, kind, experiment, more, weight
):
    found = watched(folders[kind], experiment, weight, *more)
    assert [one["step"] for one in found] == [0, 4]
    for one in found:
        assert_explained(one)
        assert one["regulariser"] > weight / 4  # there is something to explain
    first, last = found
    assert first["cross_entropy"] != last["cross_entropy"]
    assert first["regulariser"] != last["regulariser"]


def test_without_the_regulariser_both_losses_are_one(folders):
    for one in watched(folders["bert"], "trec-6", 0):
        assert one["regulariser"] == 0
        assert one["error"] <= ROUNDINGS * EPSILON * one["told"]


@pytest.fixture(scope="module")
def committed():
    return json.loads(measure.RESULTS.read_text(encoding="utf-8"))


def test_every_committed_difference_is_explained(committed):
    for run in committed["runs"]:
        for one in run["measured"]:
            assert_explained(one)


def test_the_committed_runs_are_those_of_the_cases(committed):
    wanted = [
        (case.experiment, weight, seed, step)
        for case in measure.CASES
        for weight in measure.WEIGHTS
        for seed in range(case.seeds)
        for step in case.measured
    ]
    assert wanted == [
        (run["data"], run["weight"], run["seed"], one["step"])
        for run in committed["runs"]
        for one in run["measured"]
    ]
    assert len({run["run"] for run in committed["runs"]}) == len(committed["runs"])


def test_the_committed_page_is_that_of_the_results(committed):
    assert measure.PAGE.read_text(encoding="utf-8") == measure.page(committed)
    assert (measure.HERE / "figures" / f"{measure.DRAWN}.svg").is_file()


def test_a_page_of_other_results_is_another(committed):
    changed = json.loads(json.dumps(committed))
    changed["runs"][0]["measured"][-1]["told"] += 1
    assert measure.page(changed) != measure.page(committed)
