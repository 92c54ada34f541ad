"""Two processes on a CPU train what one does: losses, adapter, resumed, refused.

The rows are of uneven length and unevenly supervised, and the last step of an epoch
has rows for one process only: a mean over processes of means would show.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from loralab import compose, train
from loralab.errors import LoralabError, TrainingError
from loralab.runs import Run
from tests.tiny import SENTENCES, tiny

DDP = "training.parallel={strategy: ddp, processes: 2}"
FSDP = "training.parallel={strategy: fsdp, processes: 2}"
HALF = "training.per_device_train_batch_size=2"
ROWS = 21  # steps of 8 rows, in two micro-batches of 4: two whole ones and one of 5
NEAR = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    tiny("llama", folder / "model")
    told = [
        {
            "instruction": SENTENCES[7 * i],
            "response": " ".join(SENTENCES[i : i + 1 + (5 * i) % 7]),
        }
        for i in range(ROWS + 8)
    ]
    text = "".join(json.dumps(row) + "\n" for row in told)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    return folder, [
        f"model.path={folder / 'model'}",
        "model.device=cpu",
        "model.dtype=fp32",
        f"data.source.params.path={folder / 'rows.jsonl'}",
        "data.max_rows={train: 21, validation: 4, test: 4}",
        "data.validation_fraction=0.14",
        "data.test_fraction=0.14",
        "task.params={max_length: 256, packing: false}",
        "peft.params.target_modules=all-linear",
        "evaluation.base=false",
        "evaluation.resamples=200",
        "training.per_device_train_batch_size=4",
        "training.gradient_accumulation_steps=2",
        "training.num_train_epochs=2",
        "training.max_steps=-1",
        "training.learning_rate=5e-3",
        "training.warmup_ratio=0",
        "training.logging_steps=1",
        "training.callbacks=[]",
    ]


def run_of(setup, *more, **how):
    folder, common = setup
    config = compose("instruction-tuning", [*common, *more])
    return train(config, folder / "runs", **how)


@pytest.fixture(scope="module")
def one(setup):
    return run_of(setup)


def told(run, name, *fields):
    events = [e for e in run.events() if e["event"] == name]
    return np.array([[e[field] for field in fields] for e in events])


def check_alike(several, one):
    assert several.status == "complete"
    assert several.read()["plan"]["steps"] == one.read()["plan"]["steps"] == 6
    for name, fields in (
        ("log", ("loss", "grad_norm", "learning_rate")),
        ("validation", ("eval_loss",)),
    ):
        ours, theirs = (told(run, name, "step", *fields) for run in (several, one))
        np.testing.assert_allclose(ours, theirs, **NEAR)
    counted = [run.read()["training"] for run in (several, one)]
    for key in ("tokens", "labels", "steps", "most_trainable", "trainable"):
        assert counted[0][key] == counted[1][key]
    ours, theirs = (
        load_file(run.adapter / "adapter_model.safetensors") for run in (several, one)
    )
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)
    values = [
        run.evaluations()["test"]["metrics"]["cross_entropy"]["adapter"]["value"]
        for run in (several, one)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_two_processes_train_what_one_does(setup, one):
    events = []
    two = run_of(setup, DDP, HALF, on_event=events.append)
    check_alike(two, one)
    assert two.id != one.id
    names = [event["event"] for event in events]
    assert names.count("step") == 6 and names[-1] == "complete"
    held = {file.name for file in two.path.rglob("*") if file.is_file()}
    assert held >= {"config.yaml", "run.json", "metrics.jsonl", "log.txt", "test.json"}
    assert not {n for n in held if n.endswith((".bin", ".pt", ".pth", ".pkl"))}
    found = []
    run_of(setup, DDP, HALF, on_event=found.append)
    assert [event["event"] for event in found] == ["found"]


class Stopped(Exception):
    pass


def stop_at(step):
    def listen(event):
        if event["event"] == "checkpoint" and event["step"] == step:
            raise Stopped

    return listen


def broken_off_and_resumed(setup, *more):
    """Return a run that was ended after the checkpoint of step 4, and resumed."""
    with pytest.raises(Stopped):
        run_of(setup, *more, on_event=stop_at(4))
    with pytest.raises(LoralabError, match="--resume"):
        run_of(setup, *more)
    again = run_of(setup, *more, resume=True)
    assert again.read()["resumes"][0]["step"] == 4
    return again


@pytest.mark.slow
def test_ddp_resumes_with_the_dropout_of_every_process(setup):
    more = [DDP, HALF, "training.save_steps=2", "peft.params.dropout=0.1"]
    run = run_of(setup, *more)
    whole = Run(run.path.rename(run.path.with_name("whole")))
    check_alike(broken_off_and_resumed(setup, *more), whole)


@pytest.mark.slow
def test_fsdp_trains_what_one_process_does_and_resumes(setup, one):
    two = broken_off_and_resumed(setup, FSDP, HALF, "training.save_steps=2")
    check_alike(two, one)
    for kept in two.checkpoints.glob("checkpoint-*"):
        assert len(list((kept / "shards").glob("*.safetensors"))) == 2
        assert not (kept / "trained.safetensors").exists()
    suffixes = {f.suffix for f in two.checkpoints.rglob("*") if f.is_file()}
    assert suffixes == {".safetensors", ".json"}


@pytest.mark.slow
def test_one_process_that_fails_ends_all_with_its_error(setup):
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf)"):
        run_of(setup, DDP, HALF, "training.learning_rate=1e30", "training.optim=sgd",
               "training.max_grad_norm=0")  # fmt: skip
