"""Each guard, against the mistake that it is there for."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from loralab import compose, evaluate, train
from loralab.adapters.attach import attach, check_adapted
from loralab.adapters.site import Site
from loralab.config import PEFTConfig
from loralab.data.tasks.causal_lm import encode_messages
from loralab.errors import (
    AdapterError,
    ConfigError,
    DataError,
    ModelError,
    RunError,
    TrainingError,
)
from loralab.inference.load import load_adapter
from loralab.models.architecture import match_targets
from loralab.models.base import load_base, load_processor
from loralab.runs import Run
from loralab.training.prepare import prepare
from loralab.training.trainer import PEFTTrainer
from loralab.training.watch import MovementGuard
from tests.conftest import CLASSIFY, GENERATE

TURNS = [
    {"role": "user", "content": "What is AI?"},
    {"role": "assistant", "content": "A field of study."},
]


@pytest.fixture
def processor():
    return load_processor(compose("chatterbot").model, "causal-lm")


@pytest.fixture
def damaged(minilm_run, tmp_path):
    target = tmp_path / minilm_run.id
    shutil.copytree(minilm_run.path, target)
    return Run(target)


def test_the_end_token_is_learnt_although_padding_is_the_same_token(processor):
    assert processor.pad_token_id == processor.eos_token_id
    ids, labels = encode_messages(TURNS, processor, {})
    assert processor.eos_token_id in labels
    # the end tokens of the prompt are not labels: masked by place, not by id
    assert ids.count(processor.eos_token_id) > labels.count(processor.eos_token_id)


def test_a_template_that_does_not_end_responses_is_refused(processor):
    processor.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(ModelError, match="does not end in"):
        encode_messages(TURNS, processor, {"origin": "rows.jsonl:1"})


def test_a_template_that_rewrites_what_was_said_is_refused(processor):
    processor.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}"
        "{{ eos_token }}{% endfor %}"
    )
    with pytest.raises(ModelError, match="differently"):
        encode_messages(TURNS, processor, {})


def test_a_missing_template_is_refused(processor):
    processor.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        encode_messages(TURNS, processor, {})


def test_a_row_with_every_token_supervised_is_refused(processor):
    processor.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}"
        "{{ eos_token }}{% endif %}{% endfor %}"
    )
    with pytest.raises(DataError, match="every token is supervised"):
        encode_messages(TURNS, processor, {})


def test_a_row_with_no_token_supervised_is_refused(processor):
    with pytest.raises(DataError, match="no token is supervised"):
        encode_messages(TURNS[:1], processor, {})


def test_a_template_changed_after_training_is_refused(smollm2_run, tmp_path):
    target = tmp_path / smollm2_run.id
    shutil.copytree(smollm2_run.path, target)
    file = target / "adapter" / "chat_template.jinja"
    text = file.read_text(encoding="utf-8").replace("helpful", "grumpy")
    file.write_text(text, encoding="utf-8")
    with pytest.raises(AdapterError, match="chat template is not the one"):
        load_adapter(Run(target))


def test_a_pattern_that_matches_nothing_is_refused_though_another_matches():
    config = compose("trec-6", CLASSIFY)
    base = load_base(config.model, "sequence-classification", ["a", "b"])
    with pytest.raises(AdapterError, match="nearest: value"):
        match_targets(["query", "valeu"], base.facts)


@pytest.mark.parametrize("frozen", ["", "weight", "bias"])
def test_a_new_head_that_is_frozen_is_refused(frozen):
    config = compose("trec-6", CLASSIFY)
    base = load_base(config.model, "sequence-classification", ["a", "b"])
    assert base.new_modules == ("classifier",)
    targets = PEFTConfig(params={"target_modules": ["query"]})
    model = attach(base, targets).model
    queries = [name for name in base.facts.linear if name.endswith("query")]
    site = Site(base, {"query": queries}, base.new_modules)
    check_adapted(model, site)
    for name, parameter in model.named_parameters():
        if "classifier" in name and name.endswith(frozen):
            parameter.requires_grad = False
    with pytest.raises(AdapterError, match="classifier: newly initialised, yet frozen"):
        check_adapted(model, site)


def test_an_adapter_on_other_modules_than_configured_is_refused():
    config = compose("trec-6", CLASSIFY)
    base = load_base(config.model, "sequence-classification", ["a", "b"])
    made = attach(base, PEFTConfig())
    with pytest.raises(AdapterError, match="adapted 37 modules where 1"):
        check_adapted(made.model, Site(base, {"x": ["bert.pooler.dense"]}, ()))


def test_a_trained_tensor_that_no_gradient_reaches_is_refused(tmp_path):
    config = compose("trec-6", CLASSIFY)
    prepared = prepare(config)
    model = prepared.attached.model
    model.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    args = config.training.to_training_arguments(str(tmp_path))
    args.save_strategy, args.eval_strategy = "no", "no"
    train_rows, guard = prepared.examples["train"], MovementGuard()
    trainer = PEFTTrainer(model, args, prepared.base, train_rows, None, [guard])
    with pytest.raises(TrainingError, match=r"^unused: 1 of .*have not moved after 3"):
        trainer.train()


def test_a_tensor_that_does_not_move_is_refused(tmp_path):
    still = ["training.learning_rate=1e-30", "training.optim=sgd"]
    with pytest.raises(TrainingError, match="have not moved"):
        train(compose("trec-6", [*CLASSIFY, *still]), tmp_path)
    (run,) = tmp_path.glob("trec-6-*")
    assert Run(run).status == "failed"
    assert "not moved" in Run(run).read()["error"]


def test_a_loss_that_is_not_finite_ends_training(tmp_path):
    wild = ["training.learning_rate=1e30", "training.optim=sgd"]
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step"):
        train(compose("trec-6", [*CLASSIFY, *wild]), tmp_path)


def test_rank_pattern_without_alpha_pattern_is_refused():
    with pytest.raises(ConfigError, match="change its scale"):
        compose("trec-6", ["peft.params.rank_pattern={query: 4}"])
    both = "peft.params.alpha_pattern={query: 8}"
    compose("trec-6", ["peft.params.rank_pattern={query: 4}", both])


def test_a_rank_pattern_that_hits_nothing_is_refused():
    both = ["peft.params.rank_pattern={qery: 4}", "peft.params.alpha_pattern={qery: 8}"]
    with pytest.raises(AdapterError, match="qery"):
        prepare(compose("trec-6", [*CLASSIFY, *both]))


def test_effective_scale_is_told_for_every_module():
    both = [
        "peft.params.rank_pattern={query: 4}",
        "peft.params.alpha_pattern={query: 4}",
    ]
    prepared = prepare(compose("trec-6", [*CLASSIFY, *both]))
    assert prepared.attached.scales == {1.0: 6, 2.0: 31}


def edit_weights(run, change):
    file = run.adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def drop_one(tensors):
    del tensors[sorted(tensors)[0]]


def add_one(tensors):
    tensors["base_model.model.stranger.lora_A.weight"] = torch.zeros(2, 2)


def reshape_one(tensors):
    name = sorted(tensors)[-1]
    tensors[name] = torch.zeros(*tensors[name].shape, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [(drop_one, "misses 1"), (add_one, "unexpected 1"), (reshape_one, "expected")],
)
def test_adapter_files_that_do_not_fit_are_refused(damaged, change, message):
    edit_weights(damaged, change)
    with pytest.raises(AdapterError, match=message):
        load_adapter(damaged)


def test_a_pickle_in_the_place_of_the_adapter_is_not_loaded(damaged):
    file = damaged.adapter / "adapter_model.safetensors"
    torch.save(load_file(file), damaged.adapter / "adapter_model.bin")
    file.unlink()
    with pytest.raises(AdapterError, match="only safetensors"):
        load_adapter(damaged)


def test_another_base_is_refused(damaged):
    file = damaged.adapter / "loralab.json"
    note = json.loads(file.read_text(encoding="utf-8"))
    note["base"]["fingerprint"] = "f" * 64
    file.write_text(json.dumps(note), encoding="utf-8")
    with pytest.raises(AdapterError, match="trained on"):
        load_adapter(damaged)


def test_a_cached_model_that_was_changed_is_refused(tmp_path, monkeypatch):
    from loralab.models.embedded import check_folder, embedded_folder

    copy = tmp_path / "minilm"
    shutil.copytree(embedded_folder("minilm"), copy)
    check_folder(copy)
    (copy / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="not the one"):
        check_folder(copy)


def test_rows_that_changed_under_a_run_are_noticed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"number {i},{'ab'[i % 2]}" for i in range(40)]
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    config = compose(
        "text-classification",
        ["data.source.params.path=rows.csv", "training.max_steps=3"],
    )
    run = train(config, tmp_path / "runs")
    file.write_text("text,label\n" + "\n".join(rows[:-1]) + "\n", encoding="utf-8")
    with pytest.raises(RunError, match="on other rows"):
        train(config, tmp_path / "runs")
    with pytest.raises(RunError, match="data has changed since this run was trained"):
        evaluate(run)
    run.update(status="running")  # as if it had been killed
    with pytest.raises(RunError, match="data has changed since this run began"):
        train(config, tmp_path / "runs", resume=True)


def test_resuming_on_another_base_is_refused(damaged):
    base = damaged.read()["base"]
    damaged.update(status="running", base={**base, "fingerprint": "0" * 64})
    with pytest.raises(RunError, match="base has changed since this run began"):
        train(damaged.config, damaged.path.parent, resume=True)


def test_rows_that_leak_from_test_into_train_are_dropped_or_refused(tmp_path):
    lines = [json.dumps({"text": f"row {i}", "label": i % 2}) for i in range(20)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "test.jsonl").write_text("\n".join(lines[:3]), encoding="utf-8")
    paths = [
        f"data.source.params.path={tmp_path / 'train.jsonl'}",
        f"data.source.params.test_path={tmp_path / 'test.jsonl'}",
        "model.dtype=fp32",
    ]
    prepared = prepare(compose("text-classification", paths))
    assert prepared.rows.report.leaks == 3
    train_texts = set(prepared.rows.splits["train"]["text"])
    assert not train_texts & set(prepared.rows.splits["test"]["text"])
    with pytest.raises(DataError, match="later split"):
        prepare(compose("text-classification", [*paths, "data.duplicates=error"]))


def test_training_warns_of_test_rows_that_are_nearly_train_rows(tmp_path, caplog):
    lines = [json.dumps({"text": f"row {i}", "label": i % 2}) for i in range(20)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    near = [line.replace("row", "Row ") for line in lines[:2]]
    (tmp_path / "test.jsonl").write_text("\n".join(near), encoding="utf-8")
    config = compose(
        "text-classification",
        [
            f"data.source.params.path={tmp_path / 'train.jsonl'}",
            f"data.source.params.test_path={tmp_path / 'test.jsonl'}",
            "data.validation_fraction=0",
            "training.max_steps=1",
            "evaluation.resamples=200",
        ],
    )
    run = train(config, tmp_path / "runs")
    said = "2 of 2 test rows differ from a train row in case or spaces only"
    assert sum(said in record.getMessage() for record in caplog.records) == 1
    assert said in (run.path / "log.txt").read_text(encoding="utf-8")
    assert run.read()["data"]["report"]["near"] == {"test": 2}


def test_dtype_is_explicit_and_its_reason_told():
    with pytest.raises(ConfigError, match=r"model\.dtype"):
        compose("trec-6", ["model.dtype=auto"])
    prepared = prepare(compose("trec-6", CLASSIFY))
    assert prepared.base.numerics.reason == "as configured"
    trained = [p for p in prepared.attached.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}


def test_trained_weights_are_fp32_on_a_bf16_base():
    prepared = prepare(compose("chatterbot", [*GENERATE, "model.dtype=bf16"]))
    kinds = {p.requires_grad: p.dtype for p in prepared.attached.model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
