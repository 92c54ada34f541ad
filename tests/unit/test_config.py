import shutil
import subprocess
import sys

import pytest
import yaml

from loralab.config import ExperimentConfig, compose, load_resolved, validate
from loralab.config.compose import PRESETS, presets
from loralab.errors import ConfigError, ConfigErrors

NEEDS_A_FILE = {
    "zero-shot-image-classification",
    "image-classification",
    "text-classification",
    "instruction-tuning",
    "question-answering",
    "token-classification",
    "seq2seq-lm",
    "feature-extraction",
}
FILE = "data.source.params.path=rows.csv"


def own(folder, text, name="mine.yaml"):
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("name", sorted(presets("experiment")))
def test_every_experiment_preset_composes(name):
    config = compose(name, [FILE] if name in NEEDS_A_FILE else [])
    assert config.name == name


@pytest.mark.parametrize("name", sorted(NEEDS_A_FILE))
def test_a_preset_that_needs_a_file_says_which_key_to_set(name):
    with pytest.raises(ConfigErrors) as caught:
        compose(name)
    (problem,) = caught.value.problems
    assert "must be set" in problem.what
    assert "data.source.params.path=VALUE" in problem.fix


WRITES = {"final-answer"}  # presets for tasks whose answers are texts


@pytest.mark.parametrize("group", ["model", "data", "peft", "training", "evaluation"])
def test_every_group_option_can_be_chosen(group):
    for option in presets(group):
        chosen = f"{group}={option}"
        given = [chosen, *([FILE] if chosen in ("data=file", "data=images") else [])]
        experiment = "chatterbot" if option in WRITES else "sms-spam"
        assert isinstance(compose(experiment, given), ExperimentConfig)


def test_three_misspelled_keys_are_three_errors_with_the_nearest_key():
    given = ["traning.seed=1", "training.learning_rat=1", "peft.params.rnk=2"]
    with pytest.raises(ConfigErrors) as caught:
        compose("sms-spam", given)
    text = {p.where.split()[-1]: p.what for p in caught.value.problems}
    assert len(caught.value.problems) == 3
    assert "nearest: training" in text["traning"]
    assert "nearest: learning_rate" in text["training.learning_rat"]
    assert "nearest: rank" in text["peft.params.rnk"]


def test_a_method_that_is_not_named_is_the_default_one():
    raw = compose("sms-spam").model_dump(mode="json")
    raw["peft"] = {"params": {"rnk": 2}}
    with pytest.raises(ConfigErrors, match="nearest: rank"):
        validate(raw)


def test_wrong_types_and_unknown_names_are_told_with_the_rest():
    given = ["training.seed=abc", "peft.name=lorra", "model.device=gpu", "evil=1"]
    with pytest.raises(ConfigErrors) as caught:
        compose("sms-spam", given)
    where = {p.where.split()[-1] for p in caught.value.problems}
    assert where == {"training.seed", "peft.name", "model.device", "evil"}
    assert "lora" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "says", "fix"),
    [
        (
            "data.max_rows=200",
            "a mapping with keys train, validation, test",
            "data.max_rows.train=200",
        ),
        (
            "training.early_stopping=true",
            "a mapping with keys patience, threshold",
            "training.early_stopping.patience=VALUE",
        ),
        ("peft.params=3", "a mapping with keys target_modules", "peft.params.rank=3"),
        ("data.columns=body", "a mapping", "'data.columns={text: COLUMN}'"),
        (
            "task=text-clasification",
            "{name, params}; nearest: text-classification",
            "task.name=text-classification",
        ),
        ("data.source=x.csv", "{name, params}; known:", "data.source.name=NAME"),
        (
            "training.callbacks=[tensorbord]",
            "{name, params}; nearest: tensorboard",
            "write {name: tensorboard}",
        ),
        ("evaluation.splits=test", "a list", "evaluation.splits=[test]"),
        ("training.seed=1.5", "a whole number", ""),
        ("training.gradient_checkpointing=perhaps", "true or false", ""),
        ("model.device=GPU", "'best', 'cpu', 'cuda' or 'mps'", ""),
        ("training.logging_steps=0", "greater than 0", ""),
    ],
)
def test_a_wrong_type_says_in_plain_words_what_is_expected(given, says, fix):
    with pytest.raises(ConfigErrors) as caught:
        compose("sms-spam", [given])
    (problem,) = caught.value.problems
    assert f": must be {says}" in problem.what
    assert problem.fix == fix


@pytest.mark.parametrize("key", ["model.path", "model.dtype", "task.params.max_length"])
def test_a_value_left_open_is_refused_whatever_its_type(key):
    with pytest.raises(ConfigErrors, match="must be set"):
        compose("sms-spam", [f"{key}=???"])


@pytest.mark.parametrize(
    "start",
    [
        "experiment/sms-spam",
        "/experiment/sms-spam",
        "experiment: sms-spam",
        "/experiment: sms-spam",
    ],
)
def test_a_users_file_begins_from_a_preset_and_changes_it(tmp_path, start):
    text = f"defaults: [{start}, _self_]\nname: mine\ntraining: {{seed: 3}}\n"
    mine, preset = compose(own(tmp_path, text)), compose("sms-spam")
    assert mine.training.seed == 3
    training = mine.training.model_copy(update={"seed": preset.training.seed})
    assert mine.model_copy(update={"training": training}).hash == preset.hash


def test_an_override_beats_the_users_file(tmp_path):
    text = "defaults: [/experiment/sms-spam, _self_]\ntraining: {seed: 3}\n"
    config = compose(own(tmp_path, text), ["training.seed=5", "model=smollm2"])
    assert config.training.seed == 5
    assert config.model.path == compose("gsm8k").model.path


def test_a_complete_file_needs_no_preset_and_is_called_by_its_name(tmp_path):
    raw = compose("sms-spam").model_dump(mode="json", exclude={"name"})
    config = compose(own(tmp_path, yaml.safe_dump(raw), "my-own.yaml"))
    assert config.name == "my-own"
    assert config.hash == compose("sms-spam").hash


@pytest.mark.parametrize("folder", ["with space", "a (x86), b=c", "it's"])
def test_files_and_presets_may_stand_in_oddly_named_folders(
    tmp_path, monkeypatch, folder
):
    text = "defaults: [/experiment/sms-spam, _self_]\ntraining: {seed: 3}\n"
    copied = tmp_path / folder / "presets"
    shutil.copytree(PRESETS, copied)
    monkeypatch.setattr(sys.modules["loralab.config.compose"], "PRESETS", copied)
    assert compose(own(copied.parent, text)).training.seed == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("defaults: [/experiment/sms-spm, _self_]\n", "sms-spm"),
        ("a: [\n", "mine.yaml"),
        ("[1, 2]\n", "mine.yaml"),
        ("", "task"),
    ],
)
def test_a_file_that_is_no_experiment_is_refused(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says):
        compose(own(tmp_path, text))


def test_only_what_hydra_can_read_is_taken_as_a_file(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        compose(str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="rename"):
        compose(own(tmp_path, "name: x\n", "mine.yml"))


def test_unknown_experiments_and_options_show_the_nearest():
    with pytest.raises(ConfigError, match="nearest: sms-spam"):
        compose("sms-spm")
    with pytest.raises(ConfigError, match="nearest: minilm"):
        compose("sms-spam", ["model=minilmm"])


@pytest.mark.parametrize(
    "text", ["training.seed", "+training.seed=1", "~training.seed", "=1", ""]
)
def test_an_override_is_key_equals_value(text):
    with pytest.raises(ConfigError):
        compose("sms-spam", [text])


def test_group_overrides_choose_an_option_and_keys_set_a_value():
    config = compose("sms-spam", ["data=trec-6", "training.learning_rate=5e-5"])
    assert config.data.source.params == {"set": "trec-6"}
    assert config.training.learning_rate == 5e-5
    assert config.training.per_device_train_batch_size == 32


@pytest.mark.parametrize(
    "value", ["${oc.env:HOME}", "${ oc.env:HOME}", "${oc.decode:${oc.env:HOME}}"]
)
def test_the_environment_is_not_read(tmp_path, monkeypatch, value):
    monkeypatch.setenv("HOME", "a-secret")
    text = "defaults: [/experiment/sms-spam, _self_]\n"
    text += f'data: {{columns: {{text: "{value}"}}}}\n'
    with pytest.raises(ConfigError, match="environment") as caught:
        compose(own(tmp_path, text))
    assert "a-secret" not in str(caught.value)


def test_the_environment_is_not_read_from_an_override():
    with pytest.raises(ConfigError, match="environment"):
        compose("sms-spam", ["data.columns.text=${oc.env:HOME}"])


def test_the_hash_is_stable_and_not_of_the_name():
    first = compose("sms-spam")
    assert first.hash == compose("sms-spam").hash
    assert first.hash == compose("sms-spam", ["name=other"]).hash
    assert compose("sms-spam", ["name=other"]).run_id == f"other-{first.hash}"


def test_the_hash_is_of_the_meaning_and_not_of_the_spelling():
    written_out = ["training.seed=0", "training.warmup_ratio=0.06", "peft.name=lora"]
    other_type = ["peft.params.alpha=16.0", "training.learning_rate=1e-3"]
    given = [*written_out, *other_type]
    assert compose("sms-spam", given).hash == compose("sms-spam").hash


@pytest.mark.parametrize(
    "change",
    [
        "model=smollm2",
        "model.dtype=fp32",
        "data.seed=1",
        "data.columns.text=body",
        "peft.params.rank=9",
        "task.params.max_length=64",
        "training.seed=1",
        "evaluation.resamples=500",
    ],
)
def test_the_hash_changes_with_whatever_changes_the_run(change):
    assert compose("sms-spam", [change]).hash != compose("sms-spam").hash


def test_a_resolved_file_reads_back_as_the_same_run(tmp_path):
    config = compose("gsm8k", ["training.learning_rate=1e-5", "data.max_rows.train=7"])
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    assert load_resolved(file) == config
    assert load_resolved(file).run_id == config.run_id
    assert compose(str(file)) == config


@pytest.mark.parametrize("text", ["a: [", "[1]", "name: x\n"])
def test_a_broken_resolved_file_is_refused_by_its_path(tmp_path, text):
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_resolved(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_resolved(tmp_path / "config.yaml")


def test_a_configuration_is_frozen():
    config = compose("sms-spam")
    with pytest.raises(ValueError, match="frozen"):
        config.training.seed = 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"test_fraction": 0.6, "validation_fraction": 0.4}, "nothing is left"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
    ],
)
def test_fractions_that_leave_no_training_row_are_refused(given, says):
    raw = compose("sms-spam").model_dump(mode="json")
    raw["data"] |= given
    with pytest.raises(ConfigErrors, match=says):
        validate(raw)


def test_a_training_of_no_steps_is_refused():
    with pytest.raises(ConfigErrors, match="-1 for num_train_epochs, or at least 1"):
        compose("sms-spam", ["training.max_steps=0"])
    assert compose("sms-spam", ["training.max_steps=-1"]).training.max_steps == -1


def test_early_stopping_needs_validation_rows():
    given = ["training.early_stopping.patience=2", "data.validation_fraction=0"]
    with pytest.raises(ConfigErrors, match="validation rows"):
        compose("sms-spam", given)
    assert compose("sms-spam", given[:1]).training.early_stopping.patience == 2


def test_composing_imports_no_deep_learning_library():
    code = (
        "import sys, loralab\n"
        "from loralab.config import compose\n"
        "compose('sms-spam', ['model=smollm2'])\n"
        "heavy = ('torch', 'transformers', 'peft', 'datasets', 'numpy')\n"
        "sys.exit(' '.join(m for m in heavy if m in sys.modules) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
