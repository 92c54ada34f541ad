"""Classes by their names: the head that CLIP's text tower writes, and its adapters."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, CLIPModel

from loralab import InferencePipeline, load_base, train
from loralab.config import ModelConfig, RouteConfig, StorageConfig
from loralab.config.compose import presets
from loralab.errors import AdapterError, ConfigError, DataError, ModelError
from loralab.evaluation.multitask import MultiTaskEvaluator
from loralab.export.artefact import quantize
from loralab.models.empty import empty_base
from loralab.models.forward import supervised_logits
from loralab.training.prepare import attached_anew, prepare
from tests.cli import loralab
from tests.vision import experiment, pictures, save

HEAD = "zero-shot-image-classification"
PROMPTS = {
    "blue": ["a photo of a blue.", "the blue."],
    "green": ["a photo of a green.", "the green."],
    "red": ["a photo of a red.", "the red."],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero-shot")
    pictures(folder / "images")
    save("clip", folder / "clip")
    # the same images by other names: another task
    (folder / "renamed").mkdir()
    for old, new in {"blue": "sea_water", "green": "grass", "red": "fire"}.items():
        shutil.copytree(folder / "images" / old, folder / "renamed" / new)
    return folder


def asked(folder, images="images", *more):
    given = ("training.learning_rate=1e-3", *more)
    return experiment(folder / "clip", folder / images, *given, name=HEAD)


@pytest.fixture(scope="module")
def runs(folder):
    first = train(asked(folder, "images", "name=colours"), folder / "runs")
    second = train(
        asked(folder, "renamed", "name=things", "training.seed=1"), folder / "runs"
    )
    return [first, second]


def transformers_says(folder, pixels, prompts):
    """What CLIPModel gives for one prompt a class."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "clip")
    given = tokenizer(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        model = CLIPModel.from_pretrained(folder / "clip").eval()
        return model(pixel_values=pixels, **given).logits_per_image


def ours(base, pixels):
    batch = {"pixel_values": pixels, "labels": torch.zeros(len(pixels), dtype=int)}
    with torch.no_grad():
        found, *_ = supervised_logits(base.model, {**batch, "example": None}, base)
    return found


def test_logits_are_those_of_clip(folder):
    config = ModelConfig(path=str(folder / "clip"), dtype="fp32", device="cpu")
    pixels = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    one = {name: prompts[:1] for name, prompts in PROMPTS.items()}
    theirs = transformers_says(folder, pixels, [own[0] for own in one.values()])
    found = ours(load_base(config, HEAD, one), pixels)
    assert theirs.std() > 0.1
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5)
    # of several templates the features' mean, each of length 1 before and after
    each = [
        transformers_says(folder, pixels, [own[k] for own in PROMPTS.values()])
        for k in range(2)
    ]
    both = ours(load_base(config, HEAD, PROMPTS), pixels)
    single = [
        load_base(config, HEAD, {n: own[k : k + 1] for n, own in PROMPTS.items()})
        for k in range(2)
    ]
    unit = [base.model.text_head.weight for base in single]
    length = unit[0].norm(dim=-1)
    mean = (unit[0] + unit[1]) / 2
    expected = sum(each) / 2 * (length / mean.norm(dim=-1))
    torch.testing.assert_close(both, expected, rtol=1e-5, atol=1e-5)


def test_nothing_of_the_text_tower_is_trained_counted_or_saved(folder, runs):
    record = runs[0].read()
    vision = CLIPModel.from_pretrained(folder / "clip").vision_model
    projection = 8 * 32
    count = sum(p.numel() for p in vision.parameters()) + projection
    assert record["base"]["parameters"] == count
    assert record["base"]["new_modules"] == []
    body = 2 * 8 * (4 * (32 + 32) + 2 * (32 + 48))  # layers, rank, in and out
    assert record["training"]["trainable"] == body
    with safe_open(runs[0].adapter / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert all("vision_model" in n and "lora_" in n for n in names)
    shapes = empty_base(
        ModelConfig(path=str(folder / "clip"), dtype="fp32"), HEAD, PROMPTS
    )
    assert shapes.facts.parameters == count
    planned = loralab(
        "plan", HEAD, f"model.path={folder / 'clip'}", "--timed",
        f"data.source.params.path={folder / 'images'}",
    )  # fmt: skip
    assert planned.code == 0, planned.err
    assert "new head" not in planned.out


def test_attached_anew_after_sharding_the_head_is_written_again(folder):
    prepared = prepare(asked(folder))
    base, attached = attached_anew(prepared)
    before = prepared.base.model.text_head.weight
    assert torch.equal(base.model.text_head.weight, before)
    given = {n: p for n, p in attached.model.named_parameters() if p.requires_grad}
    for name, tensor in prepared.attached.model.named_parameters():
        assert not tensor.requires_grad or torch.equal(given[name], tensor)


def test_the_base_is_the_zero_shot_model(folder, runs):
    result = json.loads((runs[0].path / "eval" / "test.json").read_text())
    files = sorted((folder / "images").glob("*/*.png"))
    pipeline = InferencePipeline.from_run(runs[0])
    with pipeline.without_adapter():
        said = [row["probabilities"] for row in pipeline([str(f) for f in files])]
    base = load_base(
        ModelConfig(path=str(folder / "clip"), dtype="fp32"),
        HEAD,
        {name: prompts[:1] for name, prompts in PROMPTS.items()},
    )
    task = pipeline.task
    rows = [task.row_of(str(f)) for f in files]
    pixels = task(rows, base.processor).pixels.batch(range(len(files)), None)
    theirs = transformers_says(
        folder, pixels, [prompts[0] for prompts in PROMPTS.values()]
    ).softmax(-1)
    mine = torch.tensor([list(row.values()) for row in said])
    torch.testing.assert_close(mine.float(), theirs, rtol=1e-4, atol=1e-5)
    assert "base" in result["metrics"]["accuracy"]
    compared = loralab("compare", runs[0].path)
    assert compared.code == 0, compared.err
    assert "untrained" not in compared.out


def test_a_merged_adapter_answers_with_each_task_s_words(folder, runs, tmp_path):
    out = tmp_path / "both"
    done = loralab("merge", *[r.path for r in runs], "--out", out, "--method", "cat")
    assert done.code == 0, done.out + done.err
    assert not list((out / "heads").glob("*.safetensors"))
    file = str(folder / "images" / "red" / "0.png")
    evaluator = MultiTaskEvaluator(runs, rows=99)
    sources = evaluator.sources()
    update = {
        module: sources[0].factors(module).update() for module in sources[0].shapes
    }
    assert all(
        np.isfinite(said.nll).all() for said in evaluator.measure(update).values()
    )
    for run, labels in zip(
        runs, (["blue", "green", "red"], ["fire", "grass", "sea_water"]), strict=True
    ):
        name = run.config.name
        pipeline = InferencePipeline.from_run(str(out), head=name, dtype="fp32")
        (said,) = pipeline([file])
        assert list(said["probabilities"]) == labels
        # its own head: without the adapter it is the zero-shot base of that task
        own = InferencePipeline.from_run(run)
        with own.without_adapter(), pipeline.without_adapter():
            assert own([file]) == pipeline([file])
        # and the evaluator of several tasks wears it, too
        alone = evaluator.alone([name])[name]
        told = json.loads((run.path / "eval" / "test.json").read_text())
        value = told["metrics"]["cross_entropy"]["adapter"]["value"]
        assert alone.cross_entropy == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "params"), [("affine-int8", {"group": 16}), ("safetensors", {})]
)
def test_a_stored_model_keeps_its_words(name, params, folder, runs):
    storage = StorageConfig(name=name, params=params)
    route = RouteConfig(name="merge-then-quantize")
    stored = quantize(runs[0], storage, route, folder / "runs", rows=0)
    note = stored.read()["artefact"]
    assert note["bytes"]["measured"] == note["bytes"]["predicted"]
    file = str(folder / "images" / "red" / "0.png")
    (before,) = InferencePipeline.from_run(runs[0])([file])
    (after,) = InferencePipeline.from_run(stored)([file])
    for label, chance in before["probabilities"].items():
        assert after["probabilities"][label] == pytest.approx(chance, abs=0.05)


def test_what_cannot_be_named_is_refused(folder):
    save("vit", folder / "vit")
    with pytest.raises(ModelError, match="no text tower") as caught:
        train(experiment(folder / "vit", folder / "images", name=HEAD), folder / "x")
    assert "task.name=image-classification" in caught.value.fix
    with pytest.raises(DataError, match="no class 'bleu'; nearest: blue"):
        train(asked(folder, "images", "task.params.names.bleu=sea"), folder / "x")
    with pytest.raises(DataError, match="several classes are called 'green'"):
        train(asked(folder, "images", "task.params.names.blue=green"), folder / "x")
    with pytest.raises(ConfigError, match=r"needs one \{\}"):
        asked(folder, "images", "task.params.templates=[a photo]")
    long = "x" * 90
    with pytest.raises(DataError, match=r"a prompt has 10\d tokens"):
        train(asked(folder, "images", f"task.params.names.blue={long}"), folder / "x")
    with pytest.raises(AdapterError, match="no new head that a linear probe"):
        train(asked(folder, "images", "peft=linear-probe"), folder / "x")
    assert not (folder / "x").exists()


@pytest.mark.parametrize("option", presets("prompts"))
def test_every_set_of_prompts_is_sentences_with_a_place(option, folder):
    config = asked(folder, "images", f"prompts={option}")
    assert config.task.params["templates"]
    assert all(t.count("{}") == 1 for t in config.task.params["templates"])
