"""Every task trains, evaluates, saves, reloads and answers, by Python and by CLI."""

import json

import numpy as np
import pytest

from loralab import InferencePipeline, compose, get_preprocessor, registry, train
from loralab.config import ModelConfig, TaskConfig
from loralab.inference.load import load_adapter
from loralab.models.base import load_processor
from tests.cli import loralab
from tests.tiny import SENTENCES, tiny
from tests.vision import pictures, save

FEW = [
    "data.max_rows={train: 64, validation: 16, test: 32}",
    "model.dtype=fp32",
    "training.per_device_train_batch_size=16",
    "training.max_steps=4",
    "evaluation.resamples=200",
]
QUESTION = ("Who plays the drum?", "Ada Smith plays the drum. Bo Li sings.")
SETUPS = {
    "text-classification": ("trec-6", [], ["Who wrote Hamlet?", "How far is it?"]),
    "feature-extraction": ("trec-6-features", [], ["Who wrote it?", "How far is it?"]),
    "token-classification": ("facts-ner", [], ["Ada lives in Oslo.", "No one knows"]),
    "question-answering": ("facts-qa", [], [QUESTION, QUESTION]),
    "causal-lm": (
        "chatterbot",
        ["evaluation.metrics=[token-f1, chrf]", "evaluation.max_new_tokens=4"],
        ["What is AI?", "Tell me a joke."],
    ),
    "image-classification": (
        "image-classification",
        ["model.path=./vit", "data.source.params.path=images"],
        ["images/red/0.png", "images/blue/1.png"],
    ),
    "zero-shot-image-classification": (
        "zero-shot-image-classification",
        ["model.path=./vit", "data.source.params.path=images"],
        ["images/red/0.png", "images/blue/1.png"],
    ),
    "seq2seq-lm": (
        "seq2seq-lm",
        ["evaluation.metrics=[chrf, rouge]", "evaluation.max_new_tokens=8"],
        ["The old cat sees snow today.", "My sister likes good bread."],
    ),
}


def configured(task, folder):
    experiment, extra, _ = SETUPS[task]
    if task == "causal-lm":
        tiny("qwen2", folder / "lm")
        extra = [*extra, "model.path=./lm", "peft.params.target_modules=qv"]
    if task.endswith("image-classification"):
        save("clip" if "zero-shot" in task else "dinov2", folder / "vit")
        pictures(folder / "images", 40)
    if task == "seq2seq-lm":
        tiny("t5", folder / "lm")
        rows = [{"source": s, "target": " ".join(s.split()[:3])} for s in SENTENCES]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "rows.jsonl").write_text(text, encoding="utf-8")
        extra = [*extra, "model.path=./lm", "data.source.params.path=rows.jsonl"]
    return experiment, [*FEW, *extra]


@pytest.fixture(scope="module", params=registry.names("task"))
def trained(request, tmp_path_factory):
    """The name of a task, and a run of it; its folder is the working directory."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experiment, overrides = configured(request.param, folder)
        yield request.param, train(compose(experiment, overrides))


def test_it_is_measured_against_its_base_on_its_own_metrics(trained):
    _, run = trained
    result = run.evaluations()["test"]
    assert run.status == "complete"
    assert 0 < result["measured_rows"] <= 32
    declared = [m.name for m in run.config.evaluation.metrics]
    declared = declared or list(load_adapter(run).task.metrics)
    assert list(result["metrics"])[: len(declared)] == declared
    assert result["primary"] == declared[0]
    for arms in result["metrics"].values():
        assert {"base", "adapter"} <= set(arms)


def test_its_losses_are_logged_and_finite(trained):
    _, run = trained
    kinds = [event["event"] for event in run.events()]
    assert {"plan", "validation", "evaluated", "complete"} <= set(kinds)
    losses = [e["eval_loss"] for e in run.events() if e["event"] == "validation"]
    assert losses
    assert np.isfinite(losses).all()


def test_a_reloaded_adapter_answers_as_the_stored_predictions_say(trained):
    import pyarrow.parquet as pq

    _, run = trained
    before = pq.read_table(run.path / "eval/predictions-test.parquet").to_pydict()
    outcome = loralab("evaluate", run.path)
    assert outcome.code == 0, outcome.err
    after = pq.read_table(run.path / "eval/predictions-test.parquet").to_pydict()
    assert after["key"] == before["key"]
    assert after["adapter_answer"] == before["adapter_answer"]
    assert np.allclose(after["adapter_nll"], before["adapter_nll"], atol=1e-4)


def test_python_and_command_line_answer_alike(trained):
    task, run = trained
    inputs = SETUPS[task][2]
    pipeline = InferencePipeline.from_run(run)
    options = {"max_new_tokens": 8} if pipeline.generates else {}
    expected = pipeline(inputs, **options)
    args = ["--max-new-tokens", 8, "--json"]
    if task == "question-answering":
        args += ["--context", inputs[0][1]]
        inputs = [question for question, _ in inputs]
    outcome = loralab("infer", run.path, *inputs, *args)
    assert outcome.code == 0, outcome.err
    said = [json.loads(line)["adapter"] for line in outcome.out.splitlines()]
    assert len(said) == 2
    for one, two in zip(said, expected, strict=True):
        if isinstance(one, str):
            assert one == two
            continue
        assert one.keys() == two.keys()
        assert next(iter(one.values())) == next(iter(two.values()))


def test_answers_do_not_depend_on_the_batch_nor_on_the_order(trained):
    task, run = trained
    if task == "causal-lm":
        rows = [f"{s} Why?" for s in SENTENCES[:7]]
    elif task == "question-answering":
        rows = [("Who?", s) for s in SENTENCES[:7]]
    elif task.endswith("image-classification"):
        rows = [
            f"images/{label}/{i}.png" for i in range(3) for label in ("red", "blue")
        ]
    else:
        rows = SENTENCES[:7]
    pipeline = InferencePipeline.from_run(run, batch_size=3)
    options = {"max_new_tokens": 4} if pipeline.generates else {}
    together = pipeline(rows, **options)
    backwards = pipeline(rows[::-1], **options)[::-1]
    alone = [pipeline([row], **options)[0] for row in rows]
    for one, two, three in zip(together, backwards, alone, strict=True):
        if isinstance(one, str):
            assert one == two == three
        else:
            assert (
                next(iter(one.values()))
                == next(iter(two.values()))
                == next(iter(three.values()))
            )


@pytest.mark.parametrize("path", ["embedded:minilm", "roberta"])
def test_the_tokens_of_a_text_do_not_depend_on_pairs_beside_it(path, tmp_path):
    typed = path == "embedded:minilm"  # the other's tokenizer tells no token types
    path = path if typed else str(tiny(path, tmp_path))
    task = get_preprocessor(TaskConfig(name="text-classification"))
    processor = load_processor(ModelConfig(path=path, device="cpu"), task.head)
    one, two, three = SENTENCES[:3]
    rows = [task.row_of(x) for x in [one, (two, three), three, (one, two)]]
    together = task(rows, processor)
    assert (together.token_type_ids is not None) == typed
    for i, row in enumerate(rows):
        alone = task([row], processor)
        assert together.input_ids[i] == alone.input_ids[0]
        if alone.token_type_ids:
            assert together.token_type_ids[i] == alone.token_type_ids[0]
    assert task(rows[::2], processor).token_type_ids is None


def test_data_show_marks_what_is_supervised(trained):
    _, run = trained
    outcome = loralab("data", "show", run.path / "config.yaml", "--samples", 2)
    assert outcome.code == 0, outcome.err
    assert "⟦" in outcome.out


def test_features_are_unit_vectors_and_written_whole(trained, tmp_path):
    task, run = trained
    file = tmp_path / "features.npy"
    outcome = loralab("infer", run.path, "one text", "two", "--embeddings", file)
    if task != "feature-extraction":
        assert outcome.code == 2
        assert "feature-extraction" in outcome.err
        assert not file.exists()
        return
    found = np.load(file, allow_pickle=False)
    assert found.shape == (2, 384)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    swapped = InferencePipeline.from_run(run).embed(["two", "one text"])
    assert np.allclose(swapped[::-1], found, atol=1e-5)
