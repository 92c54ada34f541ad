"""Every example runs as a user runs it, from its configuration to answers."""

import ast
import re
import runpy
from pathlib import Path

import pytest

from loralab import InferencePipeline, list_runs, registry
from loralab.evaluation.scores import Answers

EXAMPLES = Path(__file__).parents[2] / "examples"
LINES = 60
NUMBER = r"[+-]?[01]\.\d{3}"

SAID = {
    "text_classification": (
        rf"accuracy base +{NUMBER} \[{NUMBER}, {NUMBER}\]",
        rf"accuracy difference +{NUMBER} \[{NUMBER}, {NUMBER}\]",
        r"(ham|spam) +WINNER! You have won",
    ),
    "text_generation": (
        r"cross-entropy of the adapter: \d\.\d{3} nats",
        r"<\|im_start\|>user\nWhat is your favorite book\?",
        r"My printer is not working\.\n  base:    .+\n  adapter: .+",
    ),
    "question_answering": (
        rf"token-f1: base {NUMBER}, adapter {NUMBER}",
        r"Who built the bridge of Oldham\? .+",
    ),
    "image_classification": (
        rf"accuracy: base {NUMBER}, adapter {NUMBER}",
        r"(?:\S.* \([01]\.\d\d\)\n){4}",
    ),
    "merge_adapters": (
        rf"2 adapters in runs/both, λ {NUMBER}",
        rf"sms-spam: merged {NUMBER}, alone {NUMBER}",
        rf"trec-6: merged {NUMBER}, alone {NUMBER}",
        r"(ham|spam) Call now, you won!",
        r"[A-Z]+ Who is she\?",
    ),
    "quantize_and_deploy": (
        r"[\d,]{9,} bytes, \d\d % of fp16",
        r"of the adapter (9\d|100)\.\d % survived",
        "the certificate passed",
        r"'label': '(ham|spam)'",
    ),
    "custom_peft_method": (r"[\d,]{6,} trained parameters", r"\n[A-Z]+\n"),
    "custom_rank_strategy": (
        r"layer .*query",
        r"\n0 [\d ]+–\n",
        r"\n5 [\d ]+–\n",
        r"\n[A-Z]+\n",
    ),
    "custom_metric": (
        rf"recall, base: {NUMBER} \[{NUMBER}, {NUMBER}\]",
        rf"recall, difference: {NUMBER} \[{NUMBER}, {NUMBER}\]",
    ),
}
QUICK = ("text_classification", "custom_rank_strategy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all of them work, as a user would: the same run is trained once."""
    before = dict(registry._entries)
    yield tmp_path_factory.mktemp("examples")
    for key, entry in list(registry._entries.items()):
        if entry.target.__module__ == "__main__" and key not in before:
            del registry._entries[key]


def marked(name):
    return pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("name", [marked(name) for name in SAID])
def test_it_goes_from_a_configuration_to_answers(name, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    for pattern in SAID[name]:
        assert re.search(pattern, said), said
    assert all(run.status == "complete" for run in list_runs(folder / "runs"))


def test_the_custom_metric_is_right():
    registry._entries.pop(("metric", "recall"), None)  # of the example's own run
    made = runpy.run_path(str(EXAMPLES / "custom_metric.py"), run_name="recalling")
    del registry._entries["metric", "recall"]
    answers = Answers("class", [1, 1, 0, 1], [1, 0, 1, 1])
    params = made["RecallParams"](of=1)
    assert made["recall"](params, answers).total() == pytest.approx(2 / 3)


def test_every_example_is_run_and_short():
    files = {file.stem: file for file in EXAMPLES.glob("*.py")}
    assert set(files) == set(SAID)
    for name, file in files.items():
        text = file.read_text(encoding="utf-8")
        assert len(text.splitlines()) < LINES, name
        tree = ast.parse(text)
        assert f"python examples/{name}.py" in ast.get_docstring(tree)
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert {"compose", "train", InferencePipeline.__name__} <= used, name
