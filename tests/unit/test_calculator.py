import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import loralab
from loralab import ConfigError, MetricsCalculator, get_metrics_calculator
from loralab.evaluation.scores import Answers

TEXT = Answers("text", [["red fox"], ["blue"], []], ["the fox", "blue", "x"])
OTHER = Answers("text", TEXT.references, ["red fox", "blue", ""])


def test_a_calculator_gives_each_arm_and_the_difference():
    calculator = get_metrics_calculator(["exact-match", "token-f1"], "text")
    found = calculator.calculate(TEXT, OTHER, resamples=200)
    assert list(found) == list(calculator.metrics) == ["exact-match", "token-f1"]
    assert calculator.better == {"exact-match": "higher", "token-f1": "higher"}
    values = {
        name: {arm: interval["value"] for arm, interval in arms.items()}
        for name, arms in found.items()
    }
    exact, f1 = values["exact-match"], values["token-f1"]
    assert exact == pytest.approx({"answers": 1 / 3, "other": 1, "difference": -2 / 3})
    assert f1 == pytest.approx({"answers": 5 / 9, "other": 1, "difference": -4 / 9})
    for arms in found.values():
        for one in arms.values():
            assert one["low"] <= one["value"] + 1e-12
            assert one["value"] <= one["high"] + 1e-12
    assert found["exact-match"]["other"]["low"] < 1  # Wilson's, not a bootstrap's


def test_one_arm_has_no_difference_and_no_metrics_give_nothing():
    found = get_metrics_calculator(["token-f1"], "text").calculate(TEXT, resamples=200)
    assert list(found["token-f1"]) == ["answers"]
    assert get_metrics_calculator([], "text").calculate(TEXT) == {}


def test_the_figures_are_a_function_of_the_seed():
    calculator = get_metrics_calculator(["token-f1"], "text")
    rng = np.random.default_rng(0)
    words = [" ".join(rng.choice(list("abcdefgh"), 6)) for _ in range(80)]
    given = Answers("text", [[word] for word in words], words[1:] + words[:1])
    first, again, other = (
        calculator.calculate(given, resamples=300, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_metric_with_other_params_may_stand_beside_itself():
    configs = [{"name": "rouge"}, {"name": "rouge", "params": {"variant": "rouge1"}}]
    calculator = MetricsCalculator(configs)
    assert list(calculator.metrics) == ["rouge", "rouge(variant=rouge1)"]
    found = calculator.calculate(Answers("text", [["a b c"]], ["c b a"]), resamples=200)
    assert found["rouge"]["answers"]["value"] == pytest.approx(1 / 3)
    assert found["rouge(variant=rouge1)"]["answers"]["value"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("chosen", "form", "says"),
    [
        (["accuracy"], "text", "cannot judge answers of form 'text'(.|\n)*exact-match"),
        (["bleu"], "class", "it judges text\n.*accuracy, ece, macro-f1, mcc, top-k"),
        (["entity-f1"], "words", "no such form of answers: 'words'"),
        (["exact-mach"], "text", "nearest: exact-match"),
        (["bleu", "bleu"], "text", "'bleu' stands twice"),
        ([{"name": "rouge", "params": {"varient": 1}}], "text", "nearest: variant"),
        (
            [{"name": "rouge", "params": {"variant": "x"}}],
            "text",
            "params.variant: 'x'",
        ),
        ([{"name": "top-k", "params": {"k": 11}}], "class", "params.k: 11"),
        ([{"nam": "bleu"}], "text", "is no metric"),
        (["pass-at-k"], "text", "executes code written by a model"),
    ],
)
def test_what_cannot_be_meant_is_refused(chosen, form, says):
    with pytest.raises(ConfigError, match=says):
        get_metrics_calculator(chosen, form)


def test_answers_that_lack_what_a_metric_needs_are_refused():
    given = Answers("class", [0], [0], classes=2)
    with pytest.raises(ConfigError, match="'ece' needs the answers' probabilities"):
        get_metrics_calculator(["ece"], "class").calculate(given)
    with pytest.raises(ConfigError, match="cannot judge answers of form 'class'"):
        get_metrics_calculator(["bleu"], "text").calculate(given)


PLUG_IN = """
from loralab.evaluation.scores import mean_of
from loralab.registry import Params, register


class LengthParams(Params):
    at_most: int = 3


@register("metric", "brevity", LengthParams, answers=("text", "tags"), better="higher")
def brevity(params, answers):
    short = [len(said) <= params.at_most for said in answers.predictions]
    return mean_of(short, proportion=True)
"""

USE_IT = """
from loralab import ConfigError, get_metrics_calculator
from loralab.evaluation.scores import Answers

given = Answers("text", [[], []], ["abc", "abcd"])
found = get_metrics_calculator(["brevity"], "text").calculate(given, resamples=200)
assert found["brevity"]["answers"]["value"] == 0.5, found
more = [{"name": "brevity", "params": {"at_most": 4}}, "bleu"]
found = get_metrics_calculator(more, "text").calculate(given, given, resamples=200)
assert found["brevity"]["other"]["value"] == 1, found
assert list(get_metrics_calculator(["brevity"], "tags").metrics) == ["brevity"]
try:
    get_metrics_calculator(["accuracy"], "text")
except ConfigError as error:
    assert "brevity" in str(error), error
else:
    raise AssertionError
"""


def test_a_metric_of_somebody_elses_is_one_function_and_an_entry_point(tmp_path):
    (tmp_path / "their_module.py").write_text(PLUG_IN)
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: their-package\nVersion: 1"
    )
    (info / "entry_points.txt").write_text(
        textwrap.dedent(
            """
            [loralab.metric]
            brevity = their_module
            """
        )
    )
    ours = Path(loralab.__file__).parents[1]
    paths = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ours}"}
    command = [sys.executable, "-c", USE_IT]
    done = subprocess.run(command, env={**os.environ, **paths}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
