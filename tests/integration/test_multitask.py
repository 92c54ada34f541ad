"""Merged updates on real adapters: each task's own head, the base untouched."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from loralab import compose, evaluate, train
from loralab.errors import AdapterError
from loralab.evaluation.evaluate import split_of
from loralab.evaluation.multitask import MultiTaskEvaluator
from loralab.inference.load import load_adapter
from loralab.inference.pipeline import InferencePipeline
from loralab.lowrank.files import AdapterFolder
from loralab.merging.merge import merge
from loralab.merging.method import method
from loralab.merging.sequential import merge_to_adapter
from loralab.runs import Run

WEIGHTS = "adapter_model.safetensors"
ROWS = 16
SPAM = [
    "data.max_rows={train: 32, validation: 16, test: 12}",
    "model.dtype=fp32",
    "training.max_steps=2",
    "training.learning_rate=1e-3",
    "peft.params.rank=4",
    "task.params.max_length=32",
    "evaluation.base=false",
    "evaluation.resamples=200",
]


@pytest.fixture(scope="module")
def runs(minilm_run, runs_dir):
    return [minilm_run, train(compose("sms-spam", SPAM), runs_dir)]


@pytest.fixture(scope="module")
def evaluator(runs):
    return MultiTaskEvaluator(runs, rows=ROWS, seed=3)


def state(evaluator):
    return {k: v.clone() for k, v in evaluator.base.model.state_dict().items()}


def bodies(found):
    return {k: v for k, v in found.items() if not k.startswith("classifier.")}


def predictions(run):
    if "test" not in run.evaluations():
        evaluate(run, "test")
    return pq.read_table(run.path / "eval" / "predictions-test.parquet").to_pydict()


def test_an_adapter_alone_is_what_evaluate_said_of_the_same_rows(evaluator, runs):
    alone = evaluator.alone()
    assert list(alone) == [run.config.name for run in runs]
    for run, (name, said) in zip(runs, alone.items(), strict=True):
        told = predictions(run)
        drawn = evaluator.tasks[name].drawn
        assert len(drawn) == min(ROWS, len(told["key"]))
        assert said.of == len(told["key"])
        answers = zip(told["adapter_answer"], told["reference"], strict=True)
        right = np.array([a == b for a, b in answers])
        np.testing.assert_array_equal(said.right, right[drawn])
        nll = np.array(told["adapter_nll"])[drawn]
        np.testing.assert_allclose(said.nll, nll, rtol=1e-4, atol=1e-5)
        assert said.accuracy == pytest.approx(right[drawn].mean())
        assert said.cross_entropy == pytest.approx(nll.mean(), rel=1e-4)


def test_the_subsample_s_error_is_known(evaluator):
    said = evaluator.measure({})
    trec, spam = said.values()
    assert trec.standard_error == pytest.approx(trec.right.std(ddof=1) / ROWS**0.5)
    assert trec.subsample_error == pytest.approx(
        trec.standard_error * (1 - ROWS / 64) ** 0.5
    )
    assert spam.subsample_error == 0  # all of its rows


def test_the_base_is_the_same_to_the_bit_after_measuring(evaluator):
    before = state(evaluator)
    updates = merge(method("average"), evaluator.sources())
    evaluator.measure(updates)
    after = state(evaluator)
    assert all(torch.equal(x, after[name]) for name, x in bodies(before).items())
    with pytest.raises(KeyError), evaluator._applied(updates):
        moved = state(evaluator)
        raise KeyError
    changed = {n for n, x in bodies(before).items() if not torch.equal(x, moved[n])}
    assert changed == {f"{module}.weight" for module in updates}
    after = state(evaluator)
    assert all(torch.equal(x, after[name]) for name, x in bodies(before).items())


def test_a_merge_is_its_update_on_the_base_under_each_task_s_head(evaluator, runs):
    updates = merge(method("average"), evaluator.sources())
    said = evaluator.measure(updates)
    for run, name in zip(runs, said, strict=True):
        adapter = load_adapter(run)
        plain = adapter.model.unload()
        stored = load_file(run.adapter / WEIGHTS)
        plain.classifier.weight.data = stored["base_model.model.classifier.weight"]
        plain.classifier.bias.data = stored["base_model.model.classifier.bias"]
        for module, update in updates.items():
            ΔW = (update.L @ update.C @ update.R.T).float()
            plain.get_submodule(module).weight.data += ΔW
        for batch in evaluator.tasks[name].batches[:1]:
            given = {k: batch[k] for k in ("input_ids", "attention_mask")}
            with torch.no_grad():
                logits = plain(**given).logits
            nll = cross_entropy(logits, batch["labels"], reduction="none")
            rows = evaluator.tasks[name].rows[batch["example"].numpy()]
            np.testing.assert_allclose(said[name].nll[rows], nll, rtol=1e-4, atol=1e-5)


def test_the_matrix_of_an_order(evaluator):
    names = list(evaluator.tasks)
    order = names[::-1]
    chosen = method("average")
    seen = evaluator.continual(chosen, order)
    ends = evaluator.continual(chosen, order, "ends")
    every = evaluator.continual(chosen, order, "all")
    last = evaluator.continual(chosen, order, "last")
    assert set(last.cells) == {(1, 0), (1, 1)}
    np.testing.assert_array_equal(last.cross_entropy[1], seen.cross_entropy[1])
    assert set(seen.cells) == set(ends.cells) == {(0, 0), (1, 0), (1, 1)}
    assert len(every.cells) == 4
    assert np.isnan(seen.accuracy[0, 1])
    alone = evaluator.alone([order[0]])[order[0]]
    np.testing.assert_allclose(seen.cells[0, 0].nll, alone.nll, rtol=1e-5)
    joint = evaluator.measure(merge(chosen, evaluator.sources(order)))
    for name, said in seen.last.items():
        np.testing.assert_array_equal(said.nll, joint[name].nll)
    np.testing.assert_array_equal(every.cross_entropy[1], seen.cross_entropy[1])


def test_a_scale_is_of_what_is_measured(evaluator):
    order = list(evaluator.tasks)
    nothing = evaluator.continual(method("average"), order, "last", scale=0.0)
    for name, said in evaluator.measure({}).items():
        np.testing.assert_array_equal(nothing.last[name].nll, said.nll)


def copied(run, folder):
    shutil.copytree(run.path, folder / run.id)
    return Run(folder / run.id)


def test_an_adapter_of_another_base_is_refused(runs, tmp_path):
    other = copied(runs[1], tmp_path)
    file = other.adapter / "loralab.json"
    note = json.loads(file.read_text())
    note["base"]["fingerprint"] = "0" * 64
    file.write_text(json.dumps(note))
    with pytest.raises(AdapterError, match="trained on embedded:minilm"):
        MultiTaskEvaluator([runs[0], other], rows=8)


def test_a_head_that_is_not_there_is_refused(runs, tmp_path):
    other = copied(runs[1], tmp_path)
    file = other.adapter / WEIGHTS
    tensors = {k: v for k, v in load_file(file).items() if "classifier" not in k}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"classifier\.bias is new on the base"):
        MultiTaskEvaluator([other], rows=8)


def test_an_update_of_another_module_is_refused(evaluator):
    update = next(iter(merge(method("average"), evaluator.sources()).values()))
    with pytest.raises(AdapterError, match="none of the adapters updates"):
        evaluator.measure({"bert.encoder.layer.77": update})


@pytest.fixture(scope="module")
def merged(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("merged") / "both"
    sources = [AdapterFolder.open(run.path) for run in runs]
    merge_to_adapter(folder, sources, method("average"))
    return folder


def test_a_merged_adapter_is_measured_on_a_run_s_rows_with_its_head(
    evaluator, runs, merged
):
    said = evaluator.measure(merge(method("average"), evaluator.sources()))
    for run, name in zip(runs, said, strict=True):
        before = predictions(run)
        evaluate(run, "test", merged=merged)
        file = merged / "eval" / run.id / "predictions-test.parquet"
        told = pq.read_table(file).to_pydict()
        nll = np.array(told["adapter_nll"])[evaluator.tasks[name].drawn]
        np.testing.assert_allclose(said[name].nll, nll, rtol=1e-4, atol=1e-5)
        assert predictions(run) == before != told


def test_a_merged_adapter_answers_as_each_of_its_tasks(runs, merged):
    for run in runs:
        told = evaluate(run, "test", merged=merged)
        file = merged / "eval" / run.id / "predictions-test.parquet"
        rows = pq.read_table(file).to_pydict()
        asked = split_of(run, load_adapter(run), "test")["text"][:5]
        for head in (run.id, run.config.name):
            answers = InferencePipeline.from_run(merged, head=head)(asked)
            assert [a["label"] for a in answers] == rows["adapter_answer"][:5]
        assert told["measured_rows"] == len(rows["key"])
    for head, said in ((None, "one of several tasks"), ("x", "none of its tasks")):
        with pytest.raises(AdapterError, match=said):
            InferencePipeline.from_run(merged, head=head)
    with pytest.raises(AdapterError, match="no merged adapter"):
        InferencePipeline.from_run(str(runs[0].path), head="x")


def test_what_is_merged_on_another_base_is_not_measured(runs, merged, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(merged, other)
    record = json.loads((other / "merge.json").read_text())
    record["adapters"][1]["base"]["fingerprint"] = "0" * 64
    (other / "merge.json").write_text(json.dumps(record))
    with pytest.raises(AdapterError, match="of another base"):
        evaluate(runs[0], "test", merged=other)
    with pytest.raises(AdapterError, match="no merged adapter"):
        evaluate(runs[0], "test", merged=tmp_path)
    index = other / "heads" / "index.json"
    note = other / "heads" / json.loads(index.read_text())["tasks"][runs[0].id]["note"]
    told = json.loads(note.read_text())
    told["base"]["fingerprint"] = "0" * 64
    note.write_text(json.dumps(told))
    with pytest.raises(AdapterError, match="trained on embedded:minilm"):
        InferencePipeline.from_run(other, head=runs[0].id)


def test_without_a_tokenizer_that_all_have_it_is_the_base_s(runs, merged, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(merged, other)
    for file in other.glob("tokenizer*"):
        file.unlink()
    asked = ["How far is it from Denver to Aspen?"]
    name = runs[0].id
    first, second = (
        InferencePipeline.from_run(folder, head=name)(asked)
        for folder in (merged, other)
    )
    assert first == second


@pytest.mark.slow
def test_merged_language_models_answer_by_the_task_s_prompt(smollm2_run, tmp_path):
    twin = copied(smollm2_run, tmp_path)
    file = twin.adapter / "loralab.json"
    note = json.loads(file.read_text())
    note["task"]["params"]["max_length"] = 7
    file.write_text(json.dumps(note))
    sources = [
        AdapterFolder.open(smollm2_run.path, "one"),
        AdapterFolder.open(twin.path, "two"),
    ]
    folder = tmp_path / "merged"
    made = merge_to_adapter(folder, sources, method("average"))
    assert made.heads == ("one", "two") and not list(folder.glob("heads/*.safetensors"))
    asked = ["What is a computer?"]
    own = InferencePipeline.from_run(smollm2_run).generate(asked, max_new_tokens=8)
    merged = InferencePipeline.from_run(folder, head="one")
    assert merged.generate(asked, max_new_tokens=8) == own  # of one and the same
    alike = tmp_path / "alike"
    merge_to_adapter(alike, sources[:1], method("average"))
    assert InferencePipeline.from_run(alike).generate(asked, max_new_tokens=8) == own
