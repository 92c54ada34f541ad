"""Images through the one trainer: each model class, its head, a resume, an answer."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from loralab import InferencePipeline, load_base, train
from loralab.adapters.attach import attach, check_adapted
from loralab.adapters.layers import keep_inputs, lora_layers
from loralab.adapters.site import Site
from loralab.config import ModelConfig, PEFTConfig
from loralab.data.batching import collate
from loralab.errors import AdapterError, DataError, ModelError
from loralab.models.empty import empty_base
from loralab.models.forward import supervised_logits
from loralab.publishing.card import model_card
from loralab.runs import Run
from loralab.training.prepare import prepare
from tests.cli import loralab
from tests.vision import KINDS, SIDE, WIDTH, experiment, fused_base, pictures, save

HEAD = "image-classification"
LABELS = ["blue", "green", "red"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    pictures(folder / "images")
    for kind in KINDS:
        save(kind, folder / kind)
    return folder


@pytest.fixture(scope="module")
def run(folder):
    config = experiment(folder / "vit", folder / "images", "training.max_steps=30")
    return train(config, folder / "runs")


def base_of(folder, kind):
    return load_base(ModelConfig(path=str(folder / kind), dtype="fp32"), HEAD, LABELS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_trains_with_its_head(kind, folder):
    new = KINDS[kind][2]
    done = train(experiment(folder / kind, folder / "images"), folder / "runs")
    record = done.read()
    assert record["status"] == "complete"
    body = 2 * 6 * 8 * WIDTH * 2  # layers, modules, rank, in and out, where square
    wide = 2 * 2 * 8 * ((128 if "dinov2" in kind else 48) - WIDTH)
    features = 2 * WIDTH if "dinov2" in kind else WIDTH
    head = len(new) * 3 * (features + 1)
    assert record["training"]["trainable"] == body + wide + head
    with safe_open(done.adapter / "adapter_model.safetensors", "pt") as file:
        stored = [name for name in file.keys() if "lora_" not in name]  # noqa: SIM118
    assert len(stored) == 2 * len(new)
    before = base_of(folder, kind)
    assert before.new_modules == new
    assert before.facts.layers == 2
    assert not before.facts.vocabulary
    shapes = empty_base(
        ModelConfig(path=str(folder / kind), dtype="fp32"), HEAD, LABELS
    )
    assert shapes.new_modules == new
    assert shapes.facts == before.facts


@pytest.mark.parametrize("kind", ["dinov2", "clip"])
@pytest.mark.parametrize("method", ["full", "bitfit"])
def test_no_gradient_is_missed_where_everything_is_trained(kind, method, folder):
    config = experiment(folder / kind, folder / "images", f"peft={method}")
    assert train(config, folder / "runs").status == "complete"


@pytest.mark.parametrize("kind", ["deit-distilled", "dinov2", "clip"])
def test_a_head_that_is_frozen_is_refused(kind, folder):
    base = base_of(folder, kind)
    model = attach(base, PEFTConfig(params={"target_modules": ["fc1"]})).model
    targets = [name for name in base.facts.linear if name.endswith("fc1")]
    site = Site(base, {"fc1": targets}, base.new_modules)
    check_adapted(model, site)
    last = base.new_modules[-1]
    for name, parameter in model.named_parameters():
        if f".{last}." in name:
            parameter.requires_grad = False
    with pytest.raises(AdapterError, match=f"{last}: newly initialised, yet frozen"):
        check_adapted(model, site)


def test_a_body_that_lacks_weights_is_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for kind, gone in {
        "vit": "position_embeddings",
        "clip": "vision_model.pre_layrnorm",
    }.items():
        target = shutil.copytree(folder / kind, tmp_path / kind)
        tensors = load_file(target / "model.safetensors")
        kept = {name: t for name, t in tensors.items() if gone not in name}
        assert len(kept) < len(tensors)
        save_file(kept, target / "model.safetensors", {"format": "pt"})
        with pytest.raises(ModelError, match="weights of the body are missing"):
            base_of(tmp_path, kind)


def test_what_was_learnt_is_what_answers(run, folder):
    result = json.loads((run.path / "eval" / "test.json").read_text())
    assert result["primary"] == "accuracy"
    assert set(result["metrics"]) == {"accuracy", "macro-f1", "ece", "cross_entropy"}
    assert result["metrics"]["accuracy"]["adapter"]["value"] == 1.0
    assert [one["label"] for one in result["per_class"]] == LABELS
    assert {true for true, said, _ in result["confusion"] if true == said} <= {*LABELS}
    assert sum(count for *_, count in result["confusion"]) == result["rows"]
    pipeline = InferencePipeline.from_run(run)
    shades = np.zeros((SIDE, SIDE, 3), np.uint8)
    shades[..., 2] = 200
    file = folder / "sky.png"
    Image.fromarray(shades).save(file)
    for given in (str(file), shades, file.read_bytes(), {"image": str(file)}):
        assert pipeline([given])[0]["label"] == "blue"
    (folder / "bad.png").write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match=r"bad\.png: image is broken"):
        pipeline([str(folder / "bad.png")])


def test_the_card_says_how_plain_peft_gives_the_same_answers(run, folder):
    from peft import PeftModel
    from transformers import AutoImageProcessor

    card = model_card(run)
    assert "pipeline_tag: image-classification" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    code = code.replace("FOLDER OF THE BASE", str(folder / "vit"))
    names: dict = {}
    exec(code.replace("FOLDER OR REPOSITORY", str(run.adapter)), names)
    assert isinstance(names["model"], PeftModel)
    processor = AutoImageProcessor.from_pretrained(run.adapter, backend="pil")
    file = folder / "images" / "green" / "3.png"
    given = processor(Image.open(file), return_tensors="pt")
    with torch.no_grad():
        theirs = names["model"].eval()(**given).logits.softmax(-1)[0]
    ours = InferencePipeline.from_run(run)([str(file)])[0]["probabilities"]
    assert list(ours) == LABELS
    assert torch.allclose(theirs, torch.tensor(list(ours.values())).float(), atol=1e-5)


def test_the_command_line_answers_an_image(run, folder):
    file = folder / "images" / "red" / "0.png"
    said = loralab("infer", run.path, file, "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["adapter"]["label"] == "red"
    said = loralab("infer", run.path, folder / "none.png")
    assert (said.code, "none.png" in said.err) == (2, True), said.err


def test_a_resumed_training_ends_as_if_it_had_not_stopped(folder):
    more = ("training.max_steps=9", "training.save_steps=3", "training.logging_steps=1")
    config = experiment(
        folder / "dinov2", folder / "images", *more, "task.params.augment.zoom=[0.5,1]"
    )
    whole = train(config, folder / "whole")

    def stop(event):
        if event["event"] == "step" and event["step"] == 7:  # in the second epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, folder / "parts", on_event=stop)
    resumed = train(config, folder / "parts", resume=True)
    assert resumed.read()["resumes"]
    name = "adapter_model.safetensors"
    assert (resumed.adapter / name).read_bytes() == (whole.adapter / name).read_bytes()


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_under_autocast_inputs_are_not_cast_there_and_back(method, folder):
    given = (f"peft={method}", "model.dtype=bf16")
    prepared = prepare(experiment(folder / "dinov2", folder / "images", *given))
    model, base = prepared.attached.model, prepared.base
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():  # or B is zero
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=draw)
    batch = collate(prepared.examples["train"], [[0], [1]], 0)
    before, *_ = supervised_logits(model.eval(), batch, base)
    keep_inputs(model, base.numerics)
    after, *_ = supervised_logits(model, batch, base)
    assert torch.equal(before, after)
    kept = {not one.cast_input_dtype_enabled for one in lora_layers(model).values()}
    assert kept == {method == "lora"}


def test_training_sees_augmented_images_and_evaluation_does_not(folder):
    one = experiment(folder / "vit", folder / "images")
    held = prepare(one).examples["train"].pixels
    assert held.augmentation.flip
    assert held.augmentation.shift == 0.1
    assert not torch.equal(held.batch([0], (0, 0)), held.batch([0], (0, 1)))


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_images_of_another_size_than_the_models_own(kind, folder):
    config = experiment(
        folder / kind, folder / "images", "task.params.size=24", "training.max_steps=2"
    )
    done = train(config, folder / "runs")
    plan = prepare(config)
    assert plan.examples["train"].pixels.tokens == 10
    shape = plan.examples["train"].pixels.batch([0], None).shape
    assert shape == (1, 3, 24, 24)
    assert Run(done.path).status == "complete"


def test_an_experiment_is_shown_and_planned(folder):
    given = [f"model.path={folder / 'vit'}", f"data.source.params.path={folder}/images"]
    shown = loralab("data", "show", HEAD, *given, "--samples", 1)
    assert shown.code == 0, shown.err
    assert "5 · 5 · 5" in shown.out
    assert "the model sees 16 x 16 pixels, patches of 8" in shown.out
    planned = loralab("plan", HEAD, *given)
    assert planned.code == 0, planned.err
    assert "56 images of 5 tokens" in planned.out
    assert "classifier (new head)" in planned.out


@pytest.mark.parametrize(
    "told",
    [
        {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"num_classes": 0}},
        {"model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224"},
    ],
)
def test_a_model_of_timm_is_refused_with_what_it_needs(told, folder, tmp_path):
    shutil.copytree(folder / "vit", tmp_path / "timm")
    (tmp_path / "timm" / "config.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match="torchvision") as caught:
        base_of(tmp_path, "timm")
    assert "model=deit-small" in caught.value.fix


def test_a_text_model_is_no_vision_model(folder):
    with pytest.raises(ModelError, match="image processor"):
        load_base(ModelConfig(path="embedded:minilm"), HEAD, LABELS)
    with pytest.raises(ModelError, match="no tokenizer"):
        load_base(
            ModelConfig(path=str(folder / "vit")), "sequence-classification", LABELS
        )


def test_a_fused_projection_counts_as_one_module_of_three():
    base = fused_base()
    facts = base.facts
    assert facts.fused == {"qkv": 3}
    assert [name.removeprefix("timm_model.blocks.0.") for name in facts.linear] == [
        "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2",
    ]  # fmt: skip
    with pytest.raises(AdapterError, match="cannot adapt query and value alone"):
        attach(base, PEFTConfig(params={"target_modules": "qv"}))
    params = {"target_modules": "attention", "rank": 4}
    made = attach(base, PEFTConfig(params=params))
    # one A for query, key and value: 4·(d + 3d), where three modules take 3·4·(d + d)
    head = 3 * (WIDTH + 1)
    assert made.trainable == 4 * 4 * WIDTH + 4 * 2 * WIDTH + head
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=draw)
    batch = {
        "pixel_values": pixels, "labels": torch.arange(2), "example": torch.arange(2),
    }  # fmt: skip
    logits, labels, _ = supervised_logits(made.model, batch, base)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    moved = [n for n, p in made.model.named_parameters() if p.grad is not None]
    assert len(moved) == 2 * 2 + 2
