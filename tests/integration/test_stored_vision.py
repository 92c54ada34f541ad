"""A ViT through every route and format that takes one, compared side by side."""

import pytest

from loralab import train
from loralab.config import RouteConfig, StorageConfig
from loralab.errors import RunError
from loralab.evaluation.footprint import footprint
from loralab.evaluation.side_by_side import latency, open_all
from loralab.experiments.evaluator import ModelEvaluator
from loralab.experiments.pipeline import (
    CompleteTrainingPipeline,
    PipelineConfig,
    read_pipeline,
)
from loralab.export.artefact import quantize
from tests.vision import experiment, pictures, save

WIDE = {"hidden_size": 64, "intermediate_size": 128}
"""NF4 wants rows of 64 values."""
WAYS = {
    "int4": ("affine-int4", "merge-then-quantize", True),
    "nf4": ("nf4", "merge-then-quantize", True),
    "nf4 on its grid": ("nf4", "merge-into-nf4", False),
    "nf4 beside": ("nf4", "side-path", True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    pictures(folder / "images")
    save("vit", folder / "vit", **WIDE)
    return folder


@pytest.fixture(scope="module")
def run(folder):
    return train(experiment(folder / "vit", folder / "images"), folder / "runs")


def stored(run, folder, name, route):
    made = StorageConfig(name=name), RouteConfig(name=route)
    return quantize(run, *made, folder / "runs", rows=8)


@pytest.mark.parametrize("way", WAYS)
def test_an_adapter_goes_every_way_and_answers(way, run, folder):
    name, route, whole = WAYS[way]
    made = stored(run, folder, name, route)
    about = made.read()["artefact"]
    assert about["quantized"] == about["linear"] == 12
    assert (about["survival"]["kept"] > 0.9) == whole
    found = ModelEvaluator()
    assert found.evaluate_model(made)["measured_rows"]
    (pair,) = found.compare([run, made])["paired"]
    assert pair["second"] == made.id


def test_they_are_timed_and_asked_side_by_side(run, folder):
    runs = [run, stored(run, folder, "affine-int4", "merge-then-quantize")]
    picture = str(next((folder / "images" / "red").glob("*.png")))
    evaluator = ModelEvaluator()
    evaluator.evaluate_model(runs[1])
    found = evaluator.compare(runs, inputs=[picture])
    answers = found["answers"][0]["answers"]
    assert {said["label"] for said in answers.values()} <= {"blue", "green", "red"}
    models = open_all(runs)
    timed = latency(models, run, rounds=6, batches=[2])["batches"]["batch 2"]
    assert set(timed) == {one.id for one in runs}
    assert all(told["rows_per_second"]["value"] > 0 for told in timed.values())


def test_models_that_prepare_images_otherwise_are_not_compared(run, folder):
    save("vit", folder / "other", image_size=24, patch_size=8)
    file = folder / "other" / "preprocessor_config.json"
    text = file.read_text(encoding="utf-8")
    assert "0.5" in text
    file.write_text(text.replace("0.5", "0.25"), encoding="utf-8")
    other = train(experiment(folder / "other", folder / "images"), folder / "runs")
    with pytest.raises(RunError, match="other inputs"):
        open_all([run, other])


@pytest.mark.slow
def test_a_model_that_sees_is_asked_before_its_memory_is_told(run):
    told = footprint(run)
    assert told["load_seconds"] > 0
    assert told["peak_bytes"] > told["before_bytes"]


@pytest.mark.slow
def test_four_stages_of_the_embedded_vit(folder):
    preset = read_pipeline("vit_four_stage").model_dump()
    given = [
        "model=vit-s14",  # of a tiny one a graph's nodes are more than a hundredth
        "task.params.size=28",
        "model.dtype=fp32",
        f"data.source.params.path={folder / 'images'}",
        "training.max_steps=4",
        "evaluation.resamples=200",
    ]
    preset |= {
        "experiment": "image-classification",
        "overrides": given,
        "latency": {"rounds": 6, "batches": [1]},
    }
    config = PipelineConfig.model_validate(preset)
    found = CompleteTrainingPipeline(config, "vit", folder / "four").run()
    assert list(found["stages"]) == [
        *("base", "base quantized", "LoRA", "LoRA quantized", "base as onnx-fp32")
    ]
    assert set(found["latency"]["batches"]) == {"batch 1"}
    assert len(found["footprint"]) == len(found["stages"])
