"""The verbs, as a user calls them: what they print and what they leave behind."""

import json
import shutil
import subprocess
import sys
import time

import pytest

from tests.cli import loralab

TINY = [
    "data.max_rows={train: 300, validation: 16, test: 32}",
    "training.max_steps=3",
    "evaluation.resamples=200",
]


@pytest.mark.parametrize(
    "preset",
    [
        "sms-spam",
        "trec-6",
        pytest.param("newsgroups-20", marks=pytest.mark.slow),
    ],
)
def test_presets_train_in_one_line(preset, tmp_path):
    outcome = loralab("train", preset, *TINY, "--runs-dir", tmp_path)
    assert outcome.code == 0, outcome.err
    assert "accuracy" in outcome.out
    assert "steps" in outcome.out  # the cost is told


def test_help_is_instant_and_needs_no_torch():
    code = (
        "import sys; sys.argv = ['loralab', '--help']\n"
        "from loralab.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout
    assert time.perf_counter() - start < 5  # 0.2 s alone; torch would take longer


def test_runs_lists_and_filters(minilm_run, smollm2_run):
    folder = minilm_run.path.parent
    assert minilm_run.id in loralab("runs", "--runs-dir", folder).out
    rank = minilm_run.config.peft.params["rank"]
    hit = loralab("runs", f"peft.params.rank={rank}", "--runs-dir", folder)
    miss = loralab("runs", f"peft.params.rank={rank + 1}", "--runs-dir", folder)
    assert minilm_run.id in hit.out
    assert minilm_run.id not in miss.out
    failed = loralab("runs", "--status", "failed", "--runs-dir", folder)
    assert minilm_run.id not in failed.out


def test_infer_classifies_as_json(minilm_run):
    texts = ["Who wrote Hamlet?", "How far is the Moon?"]
    outcome = loralab("infer", minilm_run.path, *texts, "--json", "--with-base")
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert [row["input"] for row in rows] == texts
    for row in rows:
        total = sum(row["adapter"]["probabilities"].values())
        assert total == pytest.approx(1, abs=1e-3)
        assert row["base"] != row["adapter"]


def test_infer_generates(smollm2_run):
    args = ["infer", smollm2_run.path, "What is AI?", "--max-new-tokens", 4]
    streamed = loralab(*args)
    whole = loralab(*args, "--json")
    assert streamed.code == 0, streamed.err
    assert streamed.out.strip() == json.loads(whole.out)["adapter"]


def test_a_caution_stands_beside_results(minilm_run, tmp_path):
    copy = shutil.copytree(minilm_run.path, tmp_path / minilm_run.id)
    content = json.loads((copy / "run.json").read_text("utf-8"))
    content["data"]["caution"] = "seen before"
    (copy / "run.json").write_text(json.dumps(content), "utf-8")
    assert "caution: seen before" in loralab("compare", copy).out


def test_compare_pairs_runs_on_the_same_rows(minilm_run):
    again = loralab("compare", minilm_run.path, minilm_run.path, "--json")
    (pair,) = json.loads(again.out)["paired"]
    assert pair["value"] == 0
    assert pair["low"] == pytest.approx(-pair["high"])
    assert 0 < pair["high"] < 0.1  # other rows may tell them apart


def test_evaluate_writes_another_split(minilm_run):
    outcome = loralab("evaluate", minilm_run.path, "--split", "validation")
    assert outcome.code == 0, outcome.err
    assert "validation" in minilm_run.evaluations()
    file = minilm_run.path / "eval" / "validation.json"
    before = file.read_bytes()
    outcome = loralab("evaluate", minilm_run.path, "--split", "validation", "--no-base")
    assert outcome.code == 2 and "measured with the base" in outcome.err
    assert file.read_bytes() == before


def test_data_show_marks_what_is_supervised():
    outcome = loralab("data", "show", "chatterbot", "--samples", 2)
    assert outcome.out.count("⟦") == 2
    assert "<|im_end|>⟧" in outcome.out  # the end token is learnt
    assert "duplicate rows dropped" in outcome.out


def test_config_show_can_be_run_again(tmp_path):
    first = loralab("config", "show", "trec-6", "training.seed=3")
    file = tmp_path / "again.yaml"
    file.write_text(first.out, encoding="utf-8")
    again = loralab("config", "show", file)
    assert again.out.splitlines()[1:] == first.out.splitlines()[1:]


def test_config_schema_and_list():
    content = json.loads(loralab("config", "schema").out)
    assert "rank" in content["$defs"]["params"]["PEFT method"]["lora"]["properties"]
    assert "trec-6" in loralab("config", "list", "experiment").out


def test_doctor_says_what_works():
    outcome = loralab("doctor")
    assert outcome.code == 0
    assert "torch" in outcome.out
