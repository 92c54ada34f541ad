"""Weights of a merge, chosen on real validation rows."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from loralab.errors import MergeError
from loralab.evaluation.multitask import MultiTaskEvaluator
from loralab.experiments.merge_tuning import HIGH, LOW, tune
from loralab.merging.merge import merge
from loralab.merging.method import method
from loralab.runs import Run

ROWS = 16

pytestmark = pytest.mark.slow  # it trains two adapters


@pytest.fixture(scope="module")
def runs(minilm_run, tmp_path_factory):
    """A run, and one whose adapter is the same but large and the other way round."""
    folder = tmp_path_factory.mktemp("tuning") / "against"
    shutil.copytree(minilm_run.path, folder)
    file = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    turned = {k: t * -20 if "lora_B" in k else t for k, t in tensors.items()}
    save_file(turned, file, {"format": "pt"})
    return [minilm_run, Run(folder)]


@pytest.fixture(scope="module")
def tuned(runs):
    return tune(method("task-arithmetic"), runs, 5, rows=ROWS, seed=1)


def test_weights_of_one_come_first_and_the_best_is_no_worse(tuned):
    assert tuned.plain.weights == (1.0, 1.0) and len(tuned.trials) == 6
    assert tuned.best.cross_entropy < tuned.plain.cross_entropy
    assert all(LOW <= w <= HIGH for trial in tuned.trials for w in trial.weights)
    assert len({trial.weights for trial in tuned.trials}) == 6


def test_what_is_told_is_what_these_weights_give(tuned, runs):
    evaluator = MultiTaskEvaluator(runs, ROWS, "validation", 1)
    best = tuned.best
    updates = merge(method("task-arithmetic"), evaluator.sources(), best.weights)
    said = evaluator.measure(updates).values()
    assert best.cross_entropy == pytest.approx(sum(s.cross_entropy for s in said) / 2)
    assert best.accuracy == tuple(s.accuracy for s in said)


def test_one_scale_is_one_weight_for_all(runs):
    found = tune(method("average"), runs, 1, free="scale", rows=ROWS)
    assert len(found.trials) == 2
    assert len(set(found.trials[1].weights)) == 1
    assert json.loads(json.dumps(found.record()))["best"]["weights"]


def test_what_cannot_be_tuned(runs):
    with pytest.raises(MergeError, match="0 trials"):
        tune(method("average"), runs, 0)
    with pytest.raises(MergeError, match="same adapter"):
        tune(method("average"), [runs[0], runs[0]], 1, rows=ROWS)
