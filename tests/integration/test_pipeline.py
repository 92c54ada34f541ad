"""Four stages: each a run, found again, and whole after a kill in any of them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loralab.config.compose import presets
from loralab.errors import ConfigError
from loralab.experiments.pipeline import (
    CompleteTrainingPipeline,
    PipelineConfig,
    read_pipeline,
)
from tests.cli import loralab
from tests.conftest import CLASSIFY

STAGES = ["base", "base quantized", "LoRA", "LoRA quantized"]
CONFIG = {
    "experiment": "trec-6",
    "overrides": CLASSIFY,
    "base": {"name": "safetensors", "params": {"dtype": "fp32"}},
    "quantized": "affine-int8",
    "latency": {"rounds": 6, "batches": [1]},
    "prompts": ["Who wrote Hamlet?"],
}


def pipeline(folder, on_event=None):
    config = PipelineConfig.model_validate(CONFIG)
    return CompleteTrainingPipeline(config, "four", folder, on_event)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    made = pipeline(folder)
    return made, made.run()


@pytest.mark.slow
def test_every_stage_is_a_run_that_was_measured(whole):
    made, found = whole
    assert list(found["stages"]) == STAGES
    for run in found["stages"].values():
        content = json.loads((made.runs_dir / run / "run.json").read_text())
        assert content["status"] == "complete"
        assert (made.runs_dir / run / "eval" / "test.json").is_file()
    records = {record["run"]: record for record in found["records"]}
    stages = {name: records[run] for name, run in found["stages"].items()}
    sizes = [stages[n]["bytes"]["measured"] for n in ("base", "base quantized")]
    assert sizes[1] < 0.75 * sizes[0]
    assert stages["LoRA quantized"]["kept"] > 0.9
    assert {pair["second"] for pair in found["paired"]} == set(records) - {
        found["stages"]["base"]
    }


@pytest.mark.slow
def test_it_is_told_on_a_page(whole):
    made, found = whole
    text = (made.path / "comparison.md").read_text()
    for stage in found["stages"]:
        assert stage in text
    for word in ("Size and quality", "Speed", "Load time and memory", "Answers"):
        assert word in text
    assert "<svg" in (made.path / "comparison.html").read_text()


@pytest.mark.slow
def test_again_takes_no_step(whole):
    made, found = whole
    told = []
    again = pipeline(made.runs_dir, told.append)
    assert again.run() == found
    assert {e["event"] for e in told} <= {"stage", "found", "complete"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_a_sigkill_in_a_stage_costs_that_stage_only(stage, whole, tmp_path):
    command = [sys.executable, "-m", "tests.integration.test_pipeline", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        now = 0
        for line in process.stdout:
            event, number = line.split()
            now = int(number) if event == "stage" else now
            if now == stage and event in ("storing", "step"):
                os.kill(process.pid, signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    told = []
    found = pipeline(tmp_path, told.append).run()
    kept = [event for event in told if event["event"] == "found"]
    assert len(kept) >= stage - 1
    for ours, theirs in zip(found["records"], whole[1]["records"], strict=True):
        assert ours["values"] == theirs["values"]


def test_every_preset_can_be_meant():
    assert len(presets("pipeline")) == 4
    for name in presets("pipeline"):
        config = read_pipeline(name.replace("-", "_"))
        CompleteTrainingPipeline(config, name)


def test_what_cannot_be_meant_is_told(tmp_path):
    with pytest.raises(ConfigError, match="nearest: smollm2_four_stage"):
        read_pipeline("smollm_four_stage")
    file = tmp_path / "own.yaml"
    file.write_text("experiment: trec-6\nquantised: nf4\n")
    told = loralab("pipeline", str(file))
    assert told.code == 2
    assert "quantised" in told.err and "quantized" in told.err


if __name__ == "__main__":  # the process that is killed
    pipeline(
        Path(sys.argv[1]),
        lambda event: print(event["event"], event.get("number", 0), flush=True),
    ).run()
