"""The log tells runs as their files have them, and leaves what a person writes."""

import shutil
from datetime import date, timedelta

import pytest
from tests.cli import loralab
from tests.conftest import CLASSIFY

from loralab import compose
from loralab.reporting.research_log import add_runs, from_preset
from loralab.runs import Run
from loralab.runs.run import create, move_aside


@pytest.fixture
def kept(minilm_run, tmp_path):
    """A directory with a copy of one real run."""
    shutil.copytree(minilm_run.path, tmp_path / "runs" / minilm_run.id)
    return Run(tmp_path / "runs" / minilm_run.id)


def failed(runs_dir, name="trec-6", seed=7):
    run = create(compose(name, [f"training.seed={seed}"]), runs_dir, "adapter")
    run.update(status="failed", error="the loss is NaN\nmore of it")
    return run


def test_a_run_is_told_with_what_differs_and_every_interval(kept, tmp_path):
    file = tmp_path / "log.md"
    assert add_runs(file, kept.path.parent) == [kept]
    text = file.read_text(encoding="utf-8")
    assert f"### {kept.id}\n" in text
    assert "preset `trec-6` with " in text
    assert "`training.max_steps=6` (`" in text
    assert "`data.max_rows.train=96` (`null`)" in text
    result = kept.evaluations()["test"]
    for name in result["metrics"]:
        assert f"    - {name}: " in text
    accuracy = result["metrics"]["accuracy"]["adapter"]
    assert f"accuracy: {accuracy['value']:.2f}" in text
    for room in ("Observations", "Next steps", "Ideas"):
        assert f"\n### {room}\n" in text


def test_called_again_it_adds_new_runs_and_keeps_every_byte(kept, tmp_path):
    file = tmp_path / "log.md"
    runs_dir = kept.path.parent
    add_runs(file, runs_dir)
    lines = file.read_text(encoding="utf-8").replace(
        "### Observations\n",
        "### Observations\n\nThe loss fell, mind the 3rd step.  \n",
    )
    mine = (lines + "\r\nan idea without an end of line").encode()
    file.write_bytes(mine)
    assert add_runs(file, runs_dir) == []
    assert file.read_bytes() == mine
    new = failed(runs_dir)
    assert add_runs(file, runs_dir) == [new]
    now = file.read_bytes()
    assert now.startswith(mine)
    added = now[len(mine) :].decode()
    assert "error: the loss is NaN\n" in added
    assert kept.id not in added
    assert added.startswith("\n\n## ")
    assert add_runs(file, runs_dir) == []


def test_what_a_person_wrote_in_another_encoding_stays(tmp_path):
    file, new = tmp_path / "log.md", failed(tmp_path / "runs")
    mine = "the loss fell für 3 %\n".encode("latin-1")
    file.write_bytes(mine)
    assert add_runs(file, tmp_path / "runs") == [new]
    assert file.read_bytes().startswith(mine)
    assert add_runs(file, tmp_path / "runs") == []


def test_a_run_that_was_made_again_is_new_and_the_old_one_known(kept, tmp_path):
    file, runs_dir = tmp_path / "log.md", kept.path.parent
    first = failed(runs_dir)
    first.update(started="2026-01-01T00:00:00+00:00")
    add_runs(file, runs_dir)
    move_aside(first)
    again = failed(runs_dir)
    assert add_runs(file, runs_dir) == [again]


def test_a_run_that_may_go_on_is_left_for_later(kept, tmp_path):
    kept.update(status="running")
    assert add_runs(tmp_path / "log.md", kept.path.parent) == []
    assert not (tmp_path / "log.md").exists()


def test_since_leaves_earlier_runs_out(kept, tmp_path):
    kept.update(started="2026-03-04T23:59:59+00:00")
    day = date(2026, 3, 4)
    later = day + timedelta(days=1)
    assert add_runs(tmp_path / "none.md", kept.path.parent, later) == []
    assert add_runs(tmp_path / "one.md", kept.path.parent, day) == [kept]


def test_the_nearest_preset_is_found_where_the_name_is_another():
    config = compose("trec-6", [*CLASSIFY, "name=mine"])
    name, differences = from_preset(config)
    assert name == "trec-6"
    assert differences["training.max_steps"][1] == "6"
    own = compose("text-classification", ["data.source.params.path=t.csv", "name=own"])
    assert from_preset(own) == (
        "text-classification",
        {"data.source.params.path": ("YOURS", "t.csv")},
    )
    assert from_preset(compose("sms-spam")) == ("sms-spam", {})
    ranked = compose("trec-6", ["peft=gradient-ranks"])
    assert from_preset(ranked)[1]["peft.params.ranks"] == (
        "null",
        "{name: gradient, unit: parameters, minimum: 1, seed: 0}",
    )


def test_the_verb_adds_and_says_so(kept, tmp_path):
    file = tmp_path / "notes" / "log.md"
    runs_dir = ("--runs-dir", kept.path.parent)
    out = loralab("log", file, *runs_dir)
    assert out.code == 0, out.err
    assert f"added    {kept.id}" in out.out
    assert "no run is new" in loralab("log", file, *runs_dir).out
    wrong = loralab("log", file, "--runs-dir", tmp_path / "nowhere")
    assert wrong.code == 2
    assert "no such directory" in wrong.err
    assert loralab("log", file, *runs_dir, "--since", "yesterday").code == 2


@pytest.mark.parametrize("part", ["config.yaml", "eval/test.json", "run.json"])
def test_a_run_that_cannot_be_read_is_told_and_the_others_are_added(
    kept, tmp_path, part
):
    broken = shutil.copytree(kept.path, kept.path.with_name("broken-0123456789"))
    Run(broken).update(started="2026-01-01T00:00:00+00:00")
    whole = (broken / part).read_text(encoding="utf-8")
    (broken / part).write_text("{", encoding="utf-8")
    words = ("log", tmp_path / "log.md", "--runs-dir", kept.path.parent)
    out = loralab(*words)
    assert out.code == 0, out.err
    assert f"added    {kept.id}" in out.out
    assert "left out: " in out.err
    assert broken.name in out.err
    assert broken.name not in (tmp_path / "log.md").read_text(encoding="utf-8")
    (broken / part).write_text(whole, encoding="utf-8")
    assert f"added    {broken.name}" in loralab(*words).out  # once it is mended
