"""Training: found runs, seeds, gradients, packing, early stopping, evaluation."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from loralab import compose, train
from loralab.data.batching import collate, units
from loralab.errors import ModelError
from loralab.inference.predict import predict
from loralab.models.base import load_base
from loralab.models.forward import supervised_logits
from loralab.models.packing import check_packing
from loralab.training.checkpoint import read_trained
from loralab.training.prepare import prepare
from loralab.training.trainer import PEFTTrainer
from tests.conftest import CLASSIFY, GENERATE


def adapter_bytes(run):
    return (run.adapter / "adapter_model.safetensors").read_bytes()


class Stop(TrainerCallback):
    """Keeps the gradients of the first optimizer steps."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        self.steps.append(torch.cat([g.flatten() for g in grads]))


def gradients(config, folder):
    prepared = prepare(config)
    for module in prepared.attached.model.modules():  # dropout would differ by design
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    torch.manual_seed(0)
    for name, parameter in prepared.attached.model.named_parameters():
        if "lora_B" in name:  # zero at the start, and then A has no gradient
            torch.nn.init.normal_(parameter, std=0.02)
    args = config.training.to_training_arguments(str(folder))
    args.save_strategy, args.eval_strategy = "no", "no"
    keep = Stop()
    model, base = prepared.attached.model, prepared.base
    PEFTTrainer(model, args, base, prepared.examples["train"], None, [keep]).train()
    return keep.steps


EXACT = [
    "training.learning_rate=1e-30",
    "training.max_grad_norm=0",
    "training.warmup_ratio=0",
    "training.optim=sgd",
]


@pytest.mark.parametrize(
    ("experiment", "overrides"),
    [
        ("trec-6", [*CLASSIFY, "data=sms-spam", "data.max_rows.train=20"]),
        pytest.param(
            "chatterbot",
            [*GENERATE, "task.params.max_length=96"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_accumulation_does_not_change_the_gradient(experiment, overrides, tmp_path):
    # 20 rows, or some 14 packs, in steps of 8: the last step is a partial one
    if experiment == "trec-6":
        overrides = [*overrides, "task.params.max_length=64"]
    found = []
    for batch, accumulation in ((8, 1), (4, 2), (1, 8)):
        split = [
            f"training.per_device_train_batch_size={batch}",
            f"training.gradient_accumulation_steps={accumulation}",
            "training.max_steps=-1",
            "training.num_train_epochs=1",
        ]
        config = compose(experiment, [*overrides, *EXACT, *split])
        found.append(gradients(config, tmp_path))
    assert len(found[0]) >= 2
    for other in found[1:]:
        assert len(other) == len(found[0])
        for one, two in zip(found[0], other, strict=True):
            scale = one.abs().max()
            assert scale > 0
            assert (one - two).abs().max() < 1e-4 * scale


@pytest.mark.slow
def test_activation_checkpointing_does_not_change_the_gradient(tmp_path):
    small = [*GENERATE, *EXACT, "data.max_rows.train=6", "training.max_steps=1"]
    plain = gradients(compose("chatterbot", small), tmp_path)
    saved = compose("chatterbot", [*small, "training.gradient_checkpointing=true"])
    (one,), (two,) = plain, gradients(saved, tmp_path)
    assert (one - two).abs().max() < 1e-5 * one.abs().max()


def test_same_configuration_finds_its_run(minilm_run):
    before = (minilm_run.path / "run.json").read_bytes()
    events = []
    again = train(compose("trec-6", CLASSIFY), minilm_run.path.parent,
                  on_event=events.append)  # fmt: skip
    assert again.path == minilm_run.path
    assert [e["event"] for e in events] == ["found"]
    assert (minilm_run.path / "run.json").read_bytes() == before


@pytest.mark.slow
def test_force_keeps_the_old_run_and_the_seed_repeats_it(minilm_run, tmp_path):
    short = [*CLASSIFY, "training.max_steps=3"]
    first = train(compose("trec-6", short), tmp_path)
    weights = adapter_bytes(first)
    second = train(compose("trec-6", short), tmp_path, force=True)
    assert (tmp_path / f"{first.id}.1" / "adapter").is_dir()
    assert adapter_bytes(second) == weights
    other = train(compose("trec-6", [*short, "training.seed=1"]), tmp_path)
    assert adapter_bytes(other) != weights


def test_adapter_and_head_are_drawn_after_the_seed():
    def start(seed):
        prepared = prepare(compose("trec-6", [*CLASSIFY, f"training.seed={seed}"]))
        named = prepared.attached.model.named_parameters()
        return {n: p.detach().clone() for n, p in named if p.requires_grad}

    torch.manual_seed(123)  # what happened before must not matter
    first = start(0)
    torch.rand(7)
    again, other = start(0), start(1)
    assert all(torch.equal(first[n], again[n]) for n in first)
    drawn = [n for n in first if "lora_A" in n or ("classifier" in n and "weight" in n)]
    assert drawn
    assert not any(torch.equal(first[n], other[n]) for n in drawn)


def test_loss_is_what_transformers_computes_row_by_row(smollm2_run):
    """Packed, shifted, and only at labels: equal to the plain loss of each row."""
    prepared = prepare(smollm2_run.config)
    examples, base = prepared.examples["train"], prepared.base
    assert any(len(unit) > 1 for unit in units(examples))  # it really packs
    said = predict(prepared.attached.model, base, examples, 4)
    for i in range(len(examples)):
        ids = torch.tensor([examples.input_ids[i]])
        labels = torch.tensor([examples.labels[i]])
        with torch.no_grad():
            plain = prepared.attached.model(input_ids=ids, labels=labels).loss
        assert said.nll[i] / said.labels[i] == pytest.approx(float(plain), rel=1e-4)


@pytest.mark.slow
def test_packed_and_unpacked_losses_agree(smollm2_run):
    packed = prepare(smollm2_run.config)
    apart = prepare(compose("chatterbot", [*GENERATE, "task.params.packing=false"]))
    losses = [
        predict(p.attached.model, p.base, p.examples["train"], 4).nll
        for p in (packed, apart)
    ]
    assert packed.examples["train"].capacity and not apart.examples["train"].capacity
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_output_layer_sees_labels_only(smollm2_run):
    prepared = prepare(smollm2_run.config)
    examples, base = prepared.examples["train"], prepared.base
    batch = collate(examples, units(examples)[:2], base.processor.pad_token_id)
    sizes = []
    layer = prepared.base.model.get_output_embeddings()
    hook = layer.register_forward_hook(lambda m, a, out: sizes.append(out.shape))
    logits, labels, _ = supervised_logits(prepared.attached.model, batch, base)
    hook.remove()
    wanted = len(batch["labels"])
    assert sizes == [(1, wanted, base.facts.vocabulary)]
    with torch.no_grad():
        inputs = {k: batch[k] for k in ("input_ids", "position_ids")}
        every = prepared.attached.model(**inputs).logits.flatten(0, 1)
        full = every[batch["places"]]
    torch.testing.assert_close(logits, full, atol=1e-3, rtol=1e-4)
    assert len(labels) == wanted


def test_a_model_whose_packed_rows_see_each_other_is_refused():
    config = compose("chatterbot", GENERATE).model
    loaded = load_base(config, "causal-lm")
    assert check_packing(loaded) < 0.01
    whole = loaded.model.forward

    def blind(position_ids=None, **kwargs):  # takes no notice of where rows begin
        return whole(**kwargs)

    loaded.model.forward = blind
    with pytest.raises(ModelError, match="read each other"):
        check_packing(loaded)


def test_early_stopping_keeps_the_best_checkpoint(tmp_path):
    harmful = [
        "training.learning_rate=0.3",
        "training.max_steps=12",
        "training.eval_steps=2",
        "training.early_stopping={patience: 2}",
        "training.lr_scheduler_type=constant",
    ]
    run = train(compose("trec-6", [*CLASSIFY, *harmful]), tmp_path)
    losses = {
        e["step"]: e["eval_loss"] for e in run.events() if e["event"] == "validation"
    }
    best = min(losses, key=losses.get)
    training = run.read()["training"]
    assert training["best_step"] == best
    assert training["steps"] < 12 or best == 12
    kept = {
        name.replace(".default", "").replace(".modules_to_save", ""): tensor
        for name, tensor in read_trained(run.checkpoints / f"checkpoint-{best}").items()
    }
    saved = load_file(run.adapter / "adapter_model.safetensors")
    assert kept.keys() == saved.keys()
    assert all(torch.equal(kept[name], saved[name]) for name in saved)


def test_run_directory_is_whole(smollm2_run):
    content = smollm2_run.read()
    assert content["status"] == "complete"
    assert content["format"] == 1
    assert content["plan"]["supervised_share"] < 1
    assert content["training"]["tokens_per_second"] > 0
    assert content["base"]["fingerprint"]
    result = smollm2_run.evaluations()["test"]
    gap = result["metrics"]["cross_entropy"]
    expected = gap["adapter"]["value"] - gap["base"]["value"]
    assert gap["difference"]["value"] == pytest.approx(expected)
    text = json.dumps(content) + (smollm2_run.path / "config.yaml").read_text("utf-8")
    assert str(smollm2_run.path.parent) not in text
    held = {p.name for p in smollm2_run.path.rglob("*") if p.is_file()}
    assert not {n for n in held if n.endswith((".bin", ".pt", ".pth", ".pkl"))}
