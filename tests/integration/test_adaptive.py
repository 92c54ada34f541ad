"""AdaLoRA in the trainer: losses, gradients, a killed run, and the guards."""

import json

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, TrainerCallback

from loralab import compose, train
from loralab.adapters.adalora import config_of, orthogonality
from loralab.errors import ConfigError, TrainingError
from loralab.runs import Run
from loralab.training.adaptive import AdaLoraCallback, drive, result
from loralab.training.events import EventLog
from loralab.training.prepare import prepare
from loralab.training.trainer import PEFTTrainer, Validation
from tests.killing import killed_and_resumed
from tests.tiny import tiny

STEPS = 12
SMALL = [
    "peft=adalora",
    "peft.params.init_rank=3",
    "peft.params.target_rank=2",
    "peft.params.alpha=6",
    "data.max_rows={train: 48, validation: 16, test: 16}",
    "model.dtype=fp32",
    "model.device=cpu",
    "training.callbacks=[]",
    "training.logging_steps=1",
    "training.learning_rate=0.02",
    "training.warmup_ratio=0",
    "training.per_device_train_batch_size=8",
    "evaluation.base=false",
    "evaluation.resamples=200",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tiny("bert", tmp_path_factory.mktemp("model"))
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        file = folder / "config.json"
        said = json.loads(file.read_text("utf-8")) | {name: 0.0}
        file.write_text(json.dumps(said), encoding="utf-8")
    return folder


def configured(base, *more, steps=STEPS):
    paths = [f"model.path={base}", f"training.max_steps={steps}"]
    return compose("trec-6", [*SMALL, *paths, *more])


def trainer_of(config, folder, callbacks=()):
    prepared = prepare(config)
    args = config.training.to_training_arguments(str(folder))
    args.save_strategy = "no"
    rows = list(prepared.rows.splits["validation"])
    validation = Validation(prepared.examples["validation"], prepared.task, rows)
    made = PEFTTrainer(
        prepared.attached.model,
        args,
        prepared.base,
        prepared.examples["train"],
        validation,
        list(callbacks),
    )
    folder.mkdir(exist_ok=True)
    drive(made, EventLog(Run(folder)), config.peft)
    return made, prepared


class Gradients(TrainerCallback):
    """Keeps the gradient of the first optimizer step, and all logs."""

    def __init__(self):
        self.first = None
        self.logs = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.first is None:
            named = model.named_parameters()
            self.first = {n: p.grad.clone() for n, p in named if p.grad is not None}

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def cross_entropy_of(model, prepared, split):
    """Mean over all rows, each alone and without padding; and PEFT's own loss."""
    examples = prepared.examples[split]
    losses, pefts = [], []
    for i in range(len(examples)):
        ids = torch.tensor([examples.input_ids[i]])
        label = torch.tensor(examples.labels[i]).flatten()
        out = model(input_ids=ids, labels=label)
        losses.append(cross_entropy(out.logits, label))
        pefts.append(out.loss)
    return torch.stack(losses).mean(), torch.stack(pefts).mean()


STILL = ["training.learning_rate=1e-30", "training.max_grad_norm=0"]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_losses_are_cross_entropy_and_the_penalty_is_in_the_gradient_once(
    base, accumulation, tmp_path
):
    split = [
        f"training.per_device_train_batch_size={48 // accumulation}",
        f"training.gradient_accumulation_steps={accumulation}",
        "training.eval_steps=1",
        "peft.params.warmup_share=0.5",  # nothing is masked at the first step
    ]
    keep = Gradients()
    trainer, prepared = trainer_of(
        configured(base, *STILL, *split, steps=6), tmp_path, [keep]
    )
    model = trainer.model
    for name, parameter in model.named_parameters():
        if "lora_E" in name:  # zero at the start, and then P and Q have no gradient
            torch.nn.init.normal_(parameter)
    entropy, pefts = cross_entropy_of(model.eval(), prepared, "train")
    held, _ = cross_entropy_of(model, prepared, "validation")
    weight = config_of(model).orth_reg_weight
    penalty = weight * orthogonality(model)
    # what PEFT would have told, here and in evaluation
    torch.testing.assert_close(pefts - entropy, penalty)
    assert penalty > 0.2
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    both = torch.autograd.grad(entropy + penalty, list(trained.values()))
    trainer.train()
    told = next(log["loss"] for log in keep.logs if "loss" in log)
    assert told == pytest.approx(float(entropy.detach()), rel=1e-5)
    measured = next(log["eval_loss"] for log in keep.logs if "eval_loss" in log)
    assert measured == pytest.approx(float(held.detach()), rel=1e-5)
    for (name, _), wanted in zip(trained.items(), both, strict=True):
        torch.testing.assert_close(keep.first[name], wanted, atol=1e-6, rtol=1e-4)


def test_the_penalty_is_clipped_with_the_rest(base, tmp_path):
    keep = Gradients()
    clipped = ["training.learning_rate=1e-30", "training.max_grad_norm=0.01"]
    trainer, _ = trainer_of(configured(base, *clipped, steps=3), tmp_path, [keep])
    trainer.train()
    norm = torch.stack([g.norm() for g in keep.first.values()]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    return train(
        configured(base, "training.save_steps=1"), tmp_path_factory.mktemp("r")
    )


def adapter_files(run):
    names = ("adapter_model.safetensors", "adapter_config.json")
    return [(run.adapter / name).read_bytes() for name in names]


def ranks_of(run):
    kept = ("step", "budget", "total", "ranks")
    return [{k: e[k] for k in kept} for e in run.events() if e["event"] == "ranks"]


def test_a_run_ends_as_plain_lora_of_the_target(base, whole):
    said = json.loads((whole.adapter / "adapter_config.json").read_text("utf-8"))
    assert said["peft_type"] == "LORA"
    told = ranks_of(whole)
    modules = len(told[0]["ranks"])
    assert [e["total"] for e in told] == [e["budget"] for e in told]
    budgets = [e["budget"] for e in told]
    assert budgets == sorted(budgets, reverse=True)
    assert (told[0]["step"], budgets[0]) == (1, 3 * modules)
    final = told[-1]["ranks"]
    assert sum(final.values()) == budgets[-1] == 2 * modules
    assert len(set(final.values())) > 1
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=6)
    loaded = PeftModel.from_pretrained(model, whole.adapter)
    layers = {n: m for n, m in loaded.named_modules() if hasattr(m, "lora_A")}
    found = {n.removeprefix("base_model.model."): m.r for n, m in layers.items()}
    assert found == {n: {"default": r} for n, r in final.items() if r}
    scale = 6 / (3 + 1e-5)  # PEFT's, with its epsilon; pruning does not change it
    for module in layers.values():
        assert module.scaling["default"] == pytest.approx(scale, rel=1e-15)
    assert whole.read()["plan"]["scales"] == {f"{scale:.6g}": modules}


def test_a_killed_run_ends_with_the_same_tensors(base, whole, tmp_path, monkeypatch):
    # before the budget falls, while it does, and after
    run = killed_and_resumed(whole.config, tmp_path, monkeypatch, (1, 4, 10))
    assert len(run.read()["resumes"]) == 3
    assert adapter_files(run) == adapter_files(whole)
    assert ranks_of(run) == ranks_of(whole)
    losses = [
        [(e["step"], e["loss"]) for e in r.events() if e["event"] == "log"]
        for r in (run, whole)
    ]
    assert losses[0] == losses[1]


def test_a_run_that_does_not_drive_it_fails(base, tmp_path, monkeypatch):
    undriven = TrainerCallback.on_optimizer_step
    monkeypatch.setattr(AdaLoraCallback, "on_optimizer_step", undriven)
    config = configured(base)
    with pytest.raises(TrainingError, match="never driven"):
        train(config, tmp_path)
    run = Run(tmp_path / config.run_id)
    assert run.status == "failed"
    assert not run.adapter.exists()


def test_a_trainer_without_the_callback_ends_in_an_error(base, tmp_path):
    trainer, _ = trainer_of(configured(base, steps=4), tmp_path)
    trainer.remove_callback(AdaLoraCallback)
    trainer.train()
    with pytest.raises(TrainingError, match="never driven"):
        result(trainer.model)


def test_another_number_of_steps_than_scheduled_is_refused(base, tmp_path):
    trainer, _ = trainer_of(configured(base, steps=8), tmp_path)
    trainer.args.max_steps = 7
    with pytest.raises(TrainingError, match="scheduled for 8 steps"):
        trainer.train()


def test_early_stopping_is_refused_before_anything_loads(base, tmp_path):
    config = configured(base, "training.early_stopping={patience: 2}")
    with pytest.raises(ConfigError, match="cannot be stopped early"):
        train(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_too_few_steps_are_refused_before_anything_is_written(base, tmp_path):
    with pytest.raises(ConfigError, match="of 1 steps"):
        train(configured(base, steps=1), tmp_path)
    assert not list(tmp_path.iterdir())
