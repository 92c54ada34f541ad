"""A linear probe reads its frozen base once, and ends as if it had not."""

import json

import pytest
import torch
from safetensors.torch import load_file

from loralab import compose, train
from loralab.training import train as training
from tests.tiny import tiny
from tests.vision import experiment, pictures, save

MORE = (
    "peft=linear-probe",
    "task.params.augment={flip: false, shift: 0.0}",
    "training.max_steps=40",
    "training.logging_steps=1",
    "training.callbacks=[]",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    pictures(folder / "images")
    for kind in ("vit", "deit-distilled"):
        save(kind, folder / kind)
    still = tiny("bert", folder / "still")
    config = json.loads((still / "config.json").read_text())
    drops = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps(config | drops))
    tiny("bert", folder / "dropping")
    words = {"red": "a fire", "blue": "the sea", "green": "old grass"}
    rows = [
        f"{words[label]} {i},{label}" for label in words for i in range(12)
    ]  # of unlike lengths
    (folder / "rows.csv").write_text("\n".join(["text,label", *rows]))
    return folder


def seeing(folder, kind="vit", *more):
    return experiment(folder / kind, folder / "images", *MORE, *more)


def reading(folder, kind="still", task="feature-extraction"):
    given = [text for text in MORE if "augment" not in text]
    return compose(
        task,
        [
            *given,
            f"model.path={folder / kind}",
            "model.dtype=fp32",
            f"data.source.params.path={folder / 'rows.csv'}",
            "training.per_device_train_batch_size=6",
            "training.learning_rate=1e-2",
            "evaluation.resamples=200",
        ],
    )


def said(run, event):
    return [one for one in run.events() if one["event"] == event]


@pytest.mark.parametrize("make", [seeing, reading], ids=["images", "text"])
def test_it_ends_as_if_each_pass_had_read_the_base(make, folder, monkeypatch):
    quick = train(make(folder), folder / "quick")
    (told,) = said(quick, "features")
    assert told["kept"] and not told["why"]
    monkeypatch.setattr(training, "_keep_features", lambda *_: None)
    slow = train(make(folder), folder / "slow")
    assert not said(slow, "features")
    assert quick.id == slow.id
    losses = [[one["loss"] for one in said(run, "log")] for run in (quick, slow)]
    assert losses[0][-1] < losses[0][0] - 0.1
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    checked = [
        [x["eval_loss"] for x in said(run, "validation")] for run in (quick, slow)
    ]
    assert len(checked[0]) > 1
    assert checked[0] == pytest.approx(checked[1], abs=1e-5)
    heads = [load_file(r.adapter / "adapter_model.safetensors") for r in (quick, slow)]
    assert heads[0].keys() == heads[1].keys()
    for name, tensor in heads[0].items():
        torch.testing.assert_close(tensor, heads[1][name], rtol=1e-4, atol=1e-5)
    flops = [run.read()["training"]["flops"] for run in (quick, slow)]
    assert flops[0] < flops[1] / 50


def test_where_features_change_they_are_read_anew_and_it_is_said(folder):
    cases = {
        "images are augmented": seeing(folder, "vit", "task.params.augment.flip=true"),
        "more than one linear layer": seeing(folder, "deit-distilled"),
        "no second pass": seeing(folder, "vit", "training.max_steps=2"),
        "hidden_dropout_prob is 0.1|attention_probs_dropout_prob is 0.1": reading(
            folder, "dropping"
        ),
    }
    for why, config in cases.items():
        (told,) = said(train(config, folder / "anew"), "features")
        assert not told["kept"]
        assert any(word in told["why"] for word in why.split("|"))


def test_what_trains_more_than_a_head_says_nothing_of_features(folder):
    run = train(
        seeing(folder, "vit", "peft=lora", "training.max_steps=2"), folder / "x"
    )
    assert not said(run, "features")
