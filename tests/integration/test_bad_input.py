"""Bad input ends with one clear error, exit code 2, and nothing written."""

import json
import shutil

import pytest
import yaml

from loralab.models.embedded import embedded_folder
from tests.cli import loralab

GOOD_CSV = "text,label\n" + "".join(
    f"row number {i},{'ab'[i % 2]}\n" for i in range(40)
)
OWN = "text-classification"
CHAT = "instruction-tuning"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "good.csv").write_text(GOOD_CSV, encoding="utf-8")
    return tmp_path


def assert_refused(outcome, *fragments):
    assert outcome.code == 2, outcome.out + outcome.err
    assert "Traceback" not in outcome.err
    for fragment in fragments:
        assert fragment in outcome.err, outcome.err


BAD_CONFIGS = {
    "unknown experiment": (["sms-spm"], "sms-spam"),
    "unknown key": (["sms-spam", "training.learning_rat=1"], "learning_rate"),
    "unknown group": (["sms-spam", "modle=minilm"], "nearest: model"),
    "unknown option": (["sms-spam", "model=minlm"], "nearest: minilm"),
    "wrong type": (["sms-spam", "training.seed=often"], "training.seed"),
    "out of range": (["sms-spam", "training.learning_rate=-1"], "greater than 0"),
    "not key=value": (["sms-spam", "seed"], "not key=value"),
    "addition": (["sms-spam", "+training.seed=1"], "write training.seed=1"),
    "bad grammar": (["sms-spam", "training.seed=[1"], "training.seed=[1"),
    "unknown method": (["sms-spam", "peft.name=lorra"], "nearest: lora"),
    "unknown param": (["sms-spam", "peft.params.rnk=4"], "nearest: rank"),
    "unknown task": (["sms-spam", "task.name=classification"], "text-classification"),
    "unknown set": (["sms-spam", "data.source.params.set=sms"], "sms-spam"),
    "automatic dtype": (["sms-spam", "model.dtype=auto"], "model.dtype"),
    "no rows left": (["sms-spam", "data.test_fraction=0.95"], "less than 1"),
    "name with a path": (["sms-spam", "name=../up"], "name"),
    "path not set": ([OWN], "data.source.params.path"),
    "scale left open": (
        ["sms-spam", "peft.params.rank_pattern={query: 4}"],
        "alpha_pattern",
    ),
    "missing file": (["nowhere.yaml"], "nowhere.yaml"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_configuration(here, case):
    args, fragment = BAD_CONFIGS[case]
    assert_refused(loralab("train", *args), fragment)
    assert not (here / "runs").exists()


BAD_YAML = {
    "not YAML": ("defaults: [experiment/sms-spam\nname: x: y\n", "line"),
    "not a mapping": ("- 1\n- 2\n", "exp.yaml"),
    "unknown preset": ("defaults: [/experiment/sms-spm, _self_]\n", "sms-spm"),
    "reads a secret": (
        "defaults: [/experiment/sms-spam, _self_]\nname: ${oc.env:HF_TOKEN}\n",
        "may not read the environment",
    ),
    "dangling reference": (
        "defaults: [/experiment/sms-spam, _self_]\nname: ${nothing}\n",
        "nothing",
    ),
}


@pytest.mark.parametrize("case", BAD_YAML)
def test_bad_yaml(here, case):
    text, fragment = BAD_YAML[case]
    (here / "exp.yaml").write_text(text, encoding="utf-8")
    assert_refused(loralab("train", "exp.yaml"), fragment)
    assert not (here / "runs").exists()


NO_PRESETS = """
task: {name: text-classification}
data: {source: {name: file, params: {path: good.csv}}}
model: {path: embedded:minilm}
"""


def test_a_preset_for_an_experiment_that_has_none(here):
    (here / "exp.yaml").write_text(NO_PRESETS, encoding="utf-8")
    outcome = loralab("config", "show", "exp.yaml", "peft=ia3")
    assert_refused(outcome, "exp.yaml: peft=NAME chooses", "'- /peft: NAME'")
    named = "defaults: [/peft: ia3, _self_]\n" + NO_PRESETS
    (here / "exp.yaml").write_text(named, encoding="utf-8")
    assert "name: ia3" in loralab("config", "show", "exp.yaml").out


BAD_FILES = {
    "missing": ("gone.csv", None, "no such file"),
    "unknown format": ("rows.xlsx", b"x", ".parquet"),
    "ragged row": ("rows.csv", b"text,label\na,b\nc\n", "rows.csv:3"),
    "empty label": ("rows.csv", b"text,label\na,b\nc,\n", "rows.csv:3: label is empty"),
    "empty text": ("rows.csv", b"text,label\n ,b\n", "rows.csv:2: text is empty"),
    "no such column": ("rows.csv", b"txt,label\na,b\n", "data.columns.text"),
    "empty file": ("rows.csv", b"", "no usable row"),
    "header only": ("rows.csv", b"text,label\n", "no usable row"),
    "not UTF-8": ("rows.csv", b"text,label\n\xff\xfe,b\n", "not UTF-8"),
    "one class": ("rows.csv", b"text,label\na,x\nb,x\nc,x\n", "one class only"),
    "free text": ("rows.csv", b"text,label\na,q\nb,r\nc,s\nd,t\n", "free text"),
    "not JSON": ("rows.jsonl", b'{"text": "a", "label": 1}\n{oops\n', "rows.jsonl:2"),
    "not an object": ("rows.jsonl", b"[1]\n", "rows.jsonl:1"),
    "number as text": ("rows.jsonl", b'{"text": 1, "label": 1}\n', "not text"),
    "not Parquet": ("rows.parquet", b"PAR0", "not Parquet"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(here, case):
    name, content, fragment = BAD_FILES[case]
    if content is not None:
        (here / name).write_bytes(content)
    outcome = loralab("train", OWN, f"data.source.params.path={name}")
    assert_refused(outcome, fragment)
    assert not (here / "runs").exists()


BAD_CHATS = {
    "no shape": ({"question": "a"}, "fit no shape"),
    "no list": ({"messages": "hello"}, "not a list"),
    "no role": ({"messages": [{"content": "x"}]}, "messages[0]"),
    "odd role": ({"messages": [{"role": "robot", "content": "x"}]}, "robot"),
    "no answer": ({"messages": [{"role": "user", "content": "x"}]}, "assistant"),
    "empty answer": ({"instruction": "x", "output": " "}, "output is empty"),
}


@pytest.mark.parametrize("case", BAD_CHATS)
def test_bad_conversation(here, case):
    row, fragment = BAD_CHATS[case]
    (here / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    outcome = loralab("train", CHAT, "data.source.params.path=rows.jsonl")
    assert_refused(outcome, "rows.jsonl:1", fragment)


def test_duplicates_under_error(here):
    (here / "rows.csv").write_text(GOOD_CSV + "row number 0,a\n", encoding="utf-8")
    path = "data.source.params.path=rows.csv"
    assert_refused(loralab("train", OWN, path, "data.duplicates=error"), "rows.csv:42")


def copy_minilm(target, leave_out=()):
    shutil.copytree(embedded_folder("minilm"), target)
    for name in leave_out:
        (target / name).unlink()
    return target


def edit_config(folder, **changes):
    file = folder / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, **changes}), encoding="utf-8")


def pickle_only(here):
    folder = copy_minilm(here / "m", ["model.safetensors"])
    (folder / "pytorch_model.bin").write_bytes(b"x")


def remote_code(here):
    auto_map = {"AutoModel": "code.Model"}
    edit_config(copy_minilm(here / "m"), model_type="ours", auto_map=auto_map)


def unknown_architecture(here):
    edit_config(copy_minilm(here / "m"), model_type="bertt", architectures=["Bertt"])


def broken_config(here):
    (copy_minilm(here / "m") / "config.json").write_text("{", encoding="utf-8")


def broken_weights(here):
    (copy_minilm(here / "m") / "model.safetensors").write_bytes(b"\x10" * 64)


def other_width(here):
    edit_config(copy_minilm(here / "m"), hidden_size=192)


def missing_layers(here):
    edit_config(copy_minilm(here / "m"), num_hidden_layers=7)


def no_tokenizer(here):
    copy_minilm(here / "m", ["tokenizer.json", "vocab.txt", "tokenizer_config.json"])


def ambiguous(here):
    copy_minilm(here / "m")


def nothing(here):
    pass


BAD_MODELS = {
    "no folder": (nothing, "./gone", "no model in this folder"),
    "unknown embedded": (nothing, "embedded:minilmm", "nearest: minilm"),
    "not on the hub": (nothing, "nobody/nothing", "cannot get"),
    "folder or hub": (ambiguous, "m", "write ./m"),
    "pickle only": (pickle_only, "./m", "pickle"),
    "remote code": (remote_code, "./m", "never run"),
    "unknown architecture": (unknown_architecture, "./m", "cannot be loaded"),
    "broken config": (broken_config, "./m", "config.json"),
    "broken weights": (broken_weights, "./m", "cannot be loaded"),
    "other shapes": (other_width, "./m", "cannot be loaded"),
    "missing layers": (missing_layers, "./m", "would be random"),
    "no tokenizer": (no_tokenizer, "./m", "tokenizer"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_model(here, case):
    damage, path, fragment = BAD_MODELS[case]
    damage(here)
    data = "data.source.params.path=good.csv"
    assert_refused(loralab("train", OWN, data, f"model.path={path}"), fragment)
    assert not (here / "runs").exists()


BAD_COMBINATIONS = {
    "encoder that should write": (
        ["chatterbot", "model=minilm"],
        "weights are missing",
    ),
    "fp16 on a CPU": (["sms-spam", "model.dtype=fp16", "model.device=cpu"], "fp16"),
    "target that is not there": (
        ["sms-spam", "peft.params.target_modules=[query, valeu]"],
        "nearest: value",
    ),
    "unknown target preset": (
        ["sms-spam", "peft.params.target_modules=attn"],
        "attention",
    ),
    "template that is not there": (
        ["chatterbot", "task.params.chat_template=gone.jinja"],
        "gone.jinja",
    ),
    "rows longer than allowed": (
        ["chatterbot", "task.params.max_length=8"],
        "longer than 8 tokens",
    ),
    "stopping without rows": (
        ["sms-spam", "training.early_stopping={}", "data.validation_fraction=0"],
        "validation rows",
    ),
}


@pytest.mark.parametrize("case", BAD_COMBINATIONS)
def test_bad_combination(here, case):
    args, fragment = BAD_COMBINATIONS[case]
    assert_refused(loralab("train", *args), fragment)
    assert not (here / "runs").exists()


@pytest.fixture
def damaged(minilm_run, tmp_path):
    """A copy of a finished run, to be damaged."""
    target = tmp_path / "runs" / minilm_run.id
    shutil.copytree(minilm_run.path, target)
    return target


def test_columns_that_no_row_has_are_not_to_be_skipped(here):
    (here / "rows.csv").write_text("txt,label\na,b\nc,d\n", encoding="utf-8")
    outcome = loralab("train", OWN, "data.source.params.path=rows.csv")
    assert_refused(outcome, "2 of 2 rows", "name other columns in data.columns")
    assert "malformed=skip" not in outcome.err


@pytest.mark.parametrize("name", ["runs/typo", "typo", "./typo"])
def test_a_run_that_is_not_there_is_no_model_of_the_hub(here, name):
    outcome = loralab("quantize", name, "--to", "onnx-int8")
    assert_refused(outcome, f"no run '{name}'")


@pytest.mark.parametrize(
    ("verb", "told"),
    [
        ("train", "stopped; --resume continues the run"),
        ("sweep", "stopped; the same command goes on"),
        ("evaluate", "stopped"),
    ],
)
def test_a_verb_that_is_stopped_says_how_it_goes_on(monkeypatch, verb, told):
    def stopped(prog_name):
        raise KeyboardInterrupt

    monkeypatch.setattr("loralab.cli.main.app", stopped)
    outcome = loralab("--log-level", "info", verb, "sms-spam")
    assert outcome.code == 130 and outcome.err == f"{told}\n"


def test_no_such_run(here):
    assert_refused(loralab("infer", "nothing", "hello"), "no run 'nothing'")


def test_run_that_is_none(here):
    (here / "d").mkdir()
    assert_refused(loralab("infer", "d", "hello"), "not a run")


def test_broken_run_file(damaged):
    (damaged / "run.json").write_text("{", encoding="utf-8")
    assert_refused(loralab("infer", damaged, "hello"), "run.json cannot be read")


def test_run_of_a_later_format(damaged):
    (damaged / "run.json").write_text('{"format": 99}', encoding="utf-8")
    assert_refused(loralab("infer", damaged, "hello"), "update loralab")


def test_changed_config_of_a_run(damaged):
    content = yaml.safe_load((damaged / "config.yaml").read_text(encoding="utf-8"))
    content["training"]["seeed"] = 1
    (damaged / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert_refused(loralab("infer", damaged, "hello"), "nearest: seed")


def test_run_without_adapter(damaged):
    shutil.rmtree(damaged / "adapter")
    assert_refused(loralab("infer", damaged, "hello"), "no adapter yet")


def test_broken_adapter(damaged):
    (damaged / "adapter/adapter_model.safetensors").write_bytes(b"\x01" * 32)
    assert_refused(loralab("infer", damaged, "hello"), "not safetensors")


def test_adapter_without_note(damaged):
    (damaged / "adapter/loralab.json").unlink()
    assert_refused(loralab("infer", damaged, "hello"), "loralab.json cannot be read")


def test_adapter_of_another_base(damaged):
    file = damaged / "adapter/loralab.json"
    note = json.loads(file.read_text(encoding="utf-8"))
    note["base"]["fingerprint"] = "0" * 64
    file.write_text(json.dumps(note), encoding="utf-8")
    assert_refused(loralab("infer", damaged, "hello"), "trained on")


def test_no_text(damaged, monkeypatch):
    monkeypatch.setattr("sys.stdin", __import__("io").StringIO("\n"))
    assert_refused(loralab("infer", damaged), "no text")


def test_missing_text_file(damaged):
    assert_refused(loralab("infer", damaged, "--file", "gone.txt"), "no such file")


@pytest.mark.parametrize("args", ["--log-level loud runs", "runs --status loud"])
def test_a_choice_that_an_option_does_not_have(args):
    outcome = loralab(*args.split())
    assert_refused(outcome, "'loud' is not one of")
    assert "Value error" not in outcome.err


def test_unknown_split(damaged):
    assert_refused(
        loralab("evaluate", damaged, "--split", "dev"), "'dev' is not one of"
    )


def test_comparison_with_an_unfinished_run(damaged):
    shutil.rmtree(damaged / "eval")
    assert_refused(loralab("compare", damaged, damaged), "no finished evaluation")


def test_runs_filter_that_is_none(here):
    assert_refused(loralab("runs", "complete"), "not key=value")


def test_unknown_verb_and_option(here):
    assert_refused(loralab("trian", "sms-spam"))
    assert_refused(loralab("train", "sms-spam", "--resme"))
