"""The verbs, as a user calls them: what they print and what they leave behind."""

import json
import shutil
import subprocess
import sys
import time

import pyarrow.parquet as parquet
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


def evaluated(run, folder, split="test", rows=None, **changes):
    """Return the folder of a run's copy whose evaluation says something else."""
    copy = shutil.copytree(run.path, folder / run.id)
    file = copy / "eval" / "test.json"
    result = {**json.loads(file.read_text("utf-8")), "split": split, **changes}
    predictions = parquet.read_table(copy / "eval" / "predictions-test.parquet")
    if rows is not None:
        predictions = predictions.take(list(rows))
    result["measured_rows"] = len(predictions)
    (copy / "eval" / f"{split}.json").write_text(json.dumps(result), "utf-8")
    parquet.write_table(predictions, copy / "eval" / f"predictions-{split}.parquet")
    return copy


def compared(folder, *words):
    """Return what compare prints, its JSON and its Markdown."""
    shown = loralab("compare", *words, "--out", folder / "out")
    assert shown.code == 0, shown.err
    found = json.loads(loralab("compare", *words, "--json").out)
    assert found == json.loads((folder / "out" / "comparison.json").read_text("utf-8"))
    return shown.out, found, (folder / "out" / "comparison.md").read_text("utf-8")


def test_what_runs_do_not_share_is_said_of_each(minilm_run, tmp_path):
    changed = {"primary": "cross_entropy", "confidence": 0.8}
    other = evaluated(minilm_run, tmp_path, rows=range(40), **changed)
    shown, found, text = compared(tmp_path, minilm_run.path, other)
    assert found["paired"] == []
    (pair,) = found["unpaired"]
    assert pair["why"] == "other metrics (accuracy, cross_entropy), other test rows"
    for told in (shown, text.replace("\\", "")):
        assert f"not paired: {pair['why']}." in " ".join(told.split())
        assert "80 %" in told
        assert "95 % intervals" not in told
    assert "64 test rows" not in text
    rows = [line for line in text.splitlines() if line.startswith("| trec-6")]
    first, second = (row.replace("\\", "") for row in rows)
    for word in ("accuracy (share)", "higher", " 64 |", "95 %"):
        assert word in first
    for word in ("cross_entropy (nats/label)", "lower", " 40 |", "80 %"):
        assert word in second
    page = (tmp_path / "out" / "comparison.html").read_text("utf-8")
    assert "<svg" not in page  # two metrics have no axis in common


def test_a_paired_difference_says_its_confidence_where_it_is_not_that_of_all(
    minilm_run, tmp_path
):
    other = evaluated(minilm_run, tmp_path, confidence=0.8)
    shown, found, text = compared(tmp_path, minilm_run.path, other)
    (pair,) = found["paired"]
    assert pair["confidence"] == 0.95 and found["unpaired"] == []
    assert "+0.000" not in shown and "of 95 % (no difference shown)" in shown
    assert "64 test rows, intervals over rows" in text


def test_a_comparison_says_whose_rows_it_is_of(minilm_run, tmp_path):
    run = evaluated(minilm_run, tmp_path, "validation")
    shown, found, text = compared(tmp_path, run, run, "--split", "validation")
    assert [one["split"] for one in found["records"]] == ["validation"] * 2
    assert "validation rows, 95 % intervals" in shown
    assert "64 validation rows, 95 % intervals" in text


def test_rows_in_another_order_are_not_called_other_rows(minilm_run, tmp_path):
    other = evaluated(minilm_run, tmp_path, rows=range(63, -1, -1))
    shown, _, _ = compared(tmp_path, minilm_run.path, other)
    assert "the same test rows in another order" in shown


def test_a_metric_of_more_than_the_answers_is_not_paired(minilm_run, tmp_path):
    result = minilm_run.evaluations()["test"]
    better = {**result["better"], "ece": "lower"}
    metrics = {**result["metrics"], "ece": result["metrics"]["accuracy"]}
    changed = {"primary": "ece", "better": better, "metrics": metrics}
    run = evaluated(minilm_run, tmp_path, **changed)
    shown, _, _ = compared(tmp_path, run, run)
    assert "ece takes more than the answers that are stored" in shown


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
