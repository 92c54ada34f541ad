"""Bad rows and choices of every task: one clear error, exit code 2, nothing written."""

import json

import pytest

from tests.cli import loralab
from tests.integration.test_bad_input import assert_refused


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def qa(**changes):
    answers = {"text": ["red"], "answer_start": [10]}
    row = {"context": "The car is red.", "question": "Which?", "answers": answers}
    row["answers"]["answer_start"] = [11]
    return {**row, **changes}


def ner(**changes):
    return {"tokens": ["Ada", "sings"], "tags": ["B-PER", "O"], **changes}


def pair(**changes):
    return {"source": "a b", "target": "c", **changes}


QA, NER, S2S = "question-answering", "token-classification", "seq2seq-lm"
TWICE = qa(context="red and red", answers={"text": ["red"]})
BAD_ROWS = {
    "no context": (QA, [{"question": "a", "answers": {}}], "no column 'context'"),
    "empty question": (QA, [qa(question=" ")], "question is empty"),
    "no answers": (QA, [{"context": "a", "question": "b"}], "no column 'answers'"),
    "answers of another shape": (QA, [qa(answers="red")], "not {text, answer_start}"),
    "a span elsewhere": (
        QA,
        [qa(answers={"text": ["red"], "answer_start": [3]})],
        "points at",
    ),
    "an answer that stands twice": (QA, [TWICE], "stands 2 times"),
    "an answer that stands nowhere": (
        QA,
        [qa(answers={"text": ["blue"]})],
        "stands 0 times",
    ),
    "more answers than places": (
        QA,
        [qa(answers={"text": ["red", "car"], "answer_start": [11]})],
        "2 answers and 1 answer_start",
    ),
    "nothing to answer": (
        QA,
        [qa(question=f"{i}?", answers={"text": []}) for i in range(9)],
        "no training row has an answer",
    ),
    "no tags": (NER, [{"tokens": ["a"]}], "no column 'tags'"),
    "tokens that are a text": (NER, [ner(tokens="Ada sings")], "not a list"),
    "an empty token": (NER, [ner(tokens=["Ada", " "])], "something empty"),
    "more tokens than tags": (NER, [ner(tags=["O"])], "2 tokens and 1 tags"),
    "one tag": (
        NER,
        [ner(tokens=[str(i), "a"], tags=["O", "O"]) for i in range(9)],
        "one tag only",
    ),
    "no target": (S2S, [{"source": "a"}], "no column 'target'"),
    "an empty source": (S2S, [pair(source="")], "source is empty"),
    "a number as target": (S2S, [pair(target=3)], "target is int, not text"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_row(here, case):
    task, rows, fragment = BAD_ROWS[case]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (here / "rows.jsonl").write_text(text, encoding="utf-8")
    outcome = loralab("train", task, "data.source.params.path=rows.jsonl")
    assert_refused(outcome, fragment)
    assert not (here / "runs").exists()


HUB = "{name: hub, params: {path: %s}}"
BAD_CHOICES = {
    "unknown metric": (["trec-6", "evaluation.metrics=[acuracy]"], "accuracy"),
    "a metric of texts": (["trec-6", "evaluation.metrics=[bleu]"], "bleu judges text"),
    "a metric of tags": (["facts-qa", "evaluation.metrics=[entity-f1]"], "entity-f1"),
    "a metric's param": (
        ["trec-6", "evaluation.metrics=[{name: top-k, params: {kk: 2}}]"],
        "nearest: k",
    ),
    "code that may not run": (
        ["chatterbot", "evaluation.metrics=[pass-at-k]"],
        "allow_execution",
    ),
    "equal samples": (["chatterbot", "evaluation.samples=4"], "temperature"),
    "unknown callback": (
        ["trec-6", "training.callbacks=[{name: tensorbord}]"],
        "tensorboard",
    ),
    "unknown optimizer": (["trec-6", "training.optim=adamw_4bit"], "training.optim"),
    "a paged optimizer on a CPU": (
        ["trec-6", "training.optim=paged_adamw_8bit", "model.device=cpu"],
        "paged",
    ),
    "two ways to place": (
        ["trec-6", "model.device=cpu", "model.device_map=auto"],
        "device_map",
    ),
    "windows that never advance": (
        ["facts-qa", "task.params.doc_stride=190"],
        "less than half",
    ),
    "windows of words that never advance": (
        ["facts-ner", "task.params.stride=100"],
        "less than half",
    ),
    "a stream without an end": (
        [
            "text-classification",
            "data.source={name: hub, params: {path: a/b, streaming: true}}",
        ],
        "take",
    ),
    "no hub id": (
        ["text-classification", f"data.source={HUB % 'agnews'}"],
        "path",
    ),
    "no hub": (
        ["text-classification", f"data.source={HUB % 'a/b'}"],
        "the hub cannot be reached",
    ),
    "a secret in a URL": (
        ["text-classification", "data.source.params.path=s3://key:secret@b/x.csv"],
        "may not hold credentials",
    ),
    "an unknown column to keep": (
        ["chatterbot", "task.params.keep=[tset]"],
        "no column 'tset'",
    ),
    "a decoder that should point": (
        ["facts-qa", "model=smollm2", "data.max_rows={train: 8, test: 4}"],
        "would be random",
    ),
    "an encoder as a translator": (
        ["seq2seq-lm", "model=minilm", "data.source.params.path=pairs.jsonl"],
        "cannot be loaded for seq2seq-lm",
    ),
    "an unknown task head": (["trec-6", "task.name=regression"], "task"),
    "a fused projection": (
        ["chatterbot", "model.path=./gpt2", "peft.params.target_modules=qv"],
        "c_attn",
    ),
}


@pytest.mark.parametrize("case", BAD_CHOICES)
def test_bad_choice(here, case):
    args, fragment = BAD_CHOICES[case]
    if "pairs.jsonl" in args[-1]:
        rows = [json.dumps(pair(source=f"s {i}")) for i in range(40)]
        (here / "pairs.jsonl").write_text("\n".join(rows), encoding="utf-8")
    if "model.path=./gpt2" in args:
        from tests.tiny import tiny

        tiny("gpt2", here / "gpt2")
    assert_refused(loralab("train", *args), fragment)
    assert not (here / "runs").exists()


BAD_QUESTIONS = {
    "two contexts": (["q", "--context", "a", "--context-file", "b"], "not both"),
    "no such context": (["q", "--context-file", "gone.txt"], "no such file"),
    "a broken line": (["--file", "rows.jsonl"], "rows.jsonl:1: not JSON"),
    "embeddings of a classifier": (
        ["q", "--embeddings", "x.npy"],
        "feature-extraction",
    ),
    "embeddings as a pickle": (["q", "--embeddings", "x.pkl"], ".npy"),
    "columns of another task": (["--file", "other.jsonl"], "input 1"),
}


@pytest.mark.parametrize("case", BAD_QUESTIONS)
def test_bad_question(here, minilm_run, case):
    args, fragment = BAD_QUESTIONS[case]
    (here / "rows.jsonl").write_text("{oops\n", encoding="utf-8")
    (here / "other.jsonl").write_text('{"txt": "a"}\n', encoding="utf-8")
    assert_refused(loralab("infer", minilm_run.path, *args), fragment)
    assert not (here / "x.npy").exists()


def test_no_such_experiment_to_plan(here):
    assert_refused(loralab("plan", "sms-spm"), "sms-spam")


def test_no_such_run_to_diagnose(here):
    assert_refused(loralab("doctor", "nothing"), "no run 'nothing'")
