"""Several processes: whose rows, which abilities, what is refused, what is sharded."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import tiny
from tests.unit.test_abilities import ABLE, CELLS, LLAMA, adapted, llama, logits
from torch import distributed
from torch.distributed.checkpoint import HuggingFaceStorageWriter, save
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from loralab import compose, errors, registry
from loralab.config import PEFTConfig
from loralab.data.batching import EpochBatches
from loralab.errors import ConfigErrors, LoralabError, TrainingError
from loralab.runs import Run
from loralab.training import estimate, worker
from loralab.training.checkpoint import read_state
from loralab.training.launch import _error, launch
from loralab.training.parallel import LAUNCHED, check_parallel, check_torch
from loralab.training.prepare import plan_of, prepare
from loralab.training.sharded import (
    ShardedTrainer,
    check_sharded,
    gathered,
    read_shards,
    shard,
)

DDP = "training.parallel={strategy: ddp, processes: 2}"
FSDP = "training.parallel={strategy: fsdp, processes: 2}"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A group of one process: what wraps and shards works, with nobody to wait for."""
    store = tmp_path_factory.mktemp("group") / "store"
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=0, world_size=1
    )
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


# ---- rows


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=60),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_processes_see_the_rows_of_one_process(lengths, batch, steps, processes, epoch):
    def of(size, accumulation, several=1, process=0):
        made = EpochBatches(
            lengths, size, accumulation, 7, epoch, processes=several, process=process
        )
        found = list(made)
        assert len(found) == len(made)
        return [found[k : k + accumulation] for k in range(0, len(found), accumulation)]

    one = of(batch * processes, steps)
    shares = [of(batch, steps, processes, p) for p in range(processes)]
    assert len({len(share) for share in shares}) == 1  # nobody waits in vain
    for k, step in enumerate(one):
        together = [i for share in shares for micro in share[k] for i in micro]
        assert sorted(together) == sorted(i for micro in step for i in micro)


# ---- identity


def test_one_process_is_the_run_it_was_and_two_are_another():
    plain = compose("trec-6")
    said = compose("trec-6", ["training.parallel={strategy: none, processes: 1}"])
    assert said.hash == plain.hash
    assert len({plain.hash, compose("trec-6", [DDP]).hash,
                compose("trec-6", [FSDP]).hash}) == 3  # fmt: skip


@pytest.mark.parametrize(
    "wrong", ["{strategy: ddp, processes: 1}", "{strategy: none, processes: 2}"]
)
def test_strategy_and_processes_go_together(wrong):
    with pytest.raises(ConfigErrors, match="contradict"):
        compose("trec-6", [f"training.parallel={wrong}"])


def test_the_plan_counts_the_global_batch():
    small = ["data.max_rows={train: 40, validation: 8, test: 8}", "model.dtype=fp32"]
    of = [
        prepare(compose("trec-6", [*small, *more]), weights=False)
        for more in (
            ["training.per_device_train_batch_size=8"],
            ["training.per_device_train_batch_size=4", DDP],
        )
    ]
    one, two = map(plan_of, of)
    assert one["steps"] == two["steps"]


# ---- abilities


def gradients(wrap, label):
    base = llama()
    net = adapted(label, base).model.train()
    forward = wrap(net)
    for _ in range(2):  # DDP tells of a tensor without gradient in the second pass
        net.zero_grad()
        logits(forward).square().mean().backward()
    return {
        n: getattr(p.grad, "full_tensor", lambda p=p: p.grad)()
        for n, p in net.named_parameters()
        if p.requires_grad
    }


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("label", LLAMA)
def test_every_cell_of_the_table(label, strategy, alone):
    reason = getattr(ABLE[label], strategy)
    if reason:
        method, params = CELLS[label]
        schema = registry.get("PEFT method", method).schema
        chosen = PEFTConfig(name=method, params=schema(**params).model_dump())
        config = compose("chatterbot", [DDP if strategy == "ddp" else FSDP])
        with pytest.raises(LoralabError, match=re.escape(reason)):
            check_parallel(config.model_copy(update={"peft": chosen}))
        return

    def sharded(net):
        shard(net, alone)
        check_sharded(net, 1)
        return net

    wrap = DistributedDataParallel if strategy == "ddp" else sharded
    plain = gradients(lambda net: net, label)
    found = gradients(wrap, label)
    assert found.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient)


# ---- what is refused


REFUSED = [
    (FSDP, "model.storage=nf4", "cannot be sharded"),
    (FSDP, "training.optim=adafactor", "cannot be sharded"),
    (FSDP, "peft.params.ranks=gradient", "look at training rows"),
    (FSDP, "peft.params.init=pissa", "rewrites the base"),
    (DDP, "peft.params.schedule=[{at: 0.5, rank: 4}]", "schedule replaces"),
    (DDP, "model.device_map=auto", "device_map"),
    (DDP, "peft=adalora", "driven after each step"),
]


@pytest.mark.parametrize(("strategy", "other", "words"), REFUSED)
def test_refused_when_planned(strategy, other, words):
    config = compose("trec-6", [strategy, other])
    with pytest.raises(LoralabError, match=words):
        prepare(config, weights=False)


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_foreign_launcher_s_processes_are_refused(name, monkeypatch):
    config = compose("trec-6")
    check_parallel(config)
    monkeypatch.setenv(name, "2")
    with pytest.raises(errors.ConfigError, match=f"{name}=2"):
        check_parallel(config)
    check_parallel(compose("trec-6", [DDP]))  # it starts its own, without it


def test_fsdp_needs_a_torch_that_writes_shards():
    check_torch(torch.__version__)
    with pytest.raises(errors.ConfigError, match=r"needs torch 2\.9"):
        check_torch("2.8.0+cu128")


def test_an_offline_plan_counts_the_rows_of_all_processes():
    sizes = ["data.max_rows={train: 64, validation: 8, test: 8}",
             "training.max_steps=-1", "training.num_train_epochs=1",
             "training.per_device_train_batch_size=8"]  # fmt: skip
    assert estimate._steps(compose("trec-6", sizes)) == 8
    assert estimate._steps(compose("trec-6", [*sizes, DDP])) == 4


def test_more_processes_than_gpus_are_refused(tmp_path):
    # a machine without a GPU refuses the device; one with GPUs, so many of them
    many = "training.parallel={strategy: ddp, processes: 99}"
    config = compose("trec-6", [many, "model.device=cuda"])
    with pytest.raises(LoralabError, match=r"no cuda|99 processes"):
        launch(config, Run(tmp_path / "run"), on_event=lambda _: None, force=False)
    assert not list(tmp_path.iterdir())


# ---- FSDP


def test_fsdp_by_accelerate_on_a_cpu_shards_nothing_and_is_caught(monkeypatch):
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState

    # the plugin sets it for the whole process
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    AcceleratorState._reset_state(reset_partial_state=True)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    net = adapted("lora", llama()).model
    net = accelerator.prepare(net, torch.optim.SGD(net.parameters()))[0]
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(TrainingError, match="not sharded over 2 processes"):
        check_sharded(net, 2)


def test_shards_are_read_back_without_a_pickle(alone, tmp_path):
    net = adapted("lora", llama()).model
    shard(net, alone)
    before = gathered(net)
    held = {n: p for n, p in net.named_parameters() if p.requires_grad}
    folder = tmp_path / "shards"
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    save(held, storage_writer=writer)
    assert {file.suffix for file in folder.iterdir()} == {".safetensors"}
    with torch.no_grad():
        for tensor in held.values():
            tensor.zero_()
    read_shards(held, tmp_path)
    after = gathered(net)
    assert before.keys() == after.keys() == held.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    (folder / next(folder.iterdir()).name).write_bytes(b"broken")
    with pytest.raises(errors.RunError, match="cannot be read"):
        read_shards(held, tmp_path)


def sharded_training(folder, config, resume=None):
    """Train sharded, in a group of one; return what was trained."""
    prepared = prepare(config)
    args = config.training.to_training_arguments(str(folder))
    args.eval_strategy = "no"
    trainer = ShardedTrainer(
        prepared.attached.model, args, prepared.base, prepared.examples["train"], None
    )
    trainer.train(resume_from_checkpoint=resume and str(resume))
    return gathered(trainer.model)


def test_a_sharded_training_resumes_where_it_was(alone, tmp_path):
    rows = "".join(f"{'a b c ' * (1 + i % 5)}{i},{i % 2}\n" for i in range(30))
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    config = compose(
        "text-classification",
        [
            f"model.path={tiny('llama', tmp_path / 'model')}",
            "model.device=cpu",
            "model.dtype=fp32",
            f"data.source.params.path={tmp_path / 'rows.csv'}",
            "data.columns={text: text, label: label}",
            "data.duplicates=keep",
            "peft.params.dropout=0.2",
            "training.max_steps=5",
            "training.save_steps=2",
            "training.save_total_limit=3",
            "training.learning_rate=1e-2",
        ],
    )
    whole = sharded_training(tmp_path / "whole", config)
    kept = tmp_path / "whole" / "checkpoint-2"
    assert {f.suffix for f in kept.rglob("*.*")} == {".safetensors", ".json"}
    assert not (kept / "trained.safetensors").exists()
    again = sharded_training(tmp_path / "again", config, kept)
    assert whole.keys() == again.keys()
    for name, tensor in whole.items():  # rounding, no more
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=1e-6)


# ---- errors


def test_several_errors_of_a_configuration_are_told_as_one(tmp_path):
    try:
        raise ConfigErrors([errors.ConfigError("one"), errors.ConfigError("two")])
    except ConfigErrors as error:
        text = json.dumps(worker.told(error, 0))
    (tmp_path / "error-0.json").write_text(text, encoding="utf-8")
    found = _error(tmp_path, Run(tmp_path))
    assert isinstance(found, errors.ConfigError)
    assert "one" in str(found) and "two" in str(found)


def test_an_error_of_a_process_is_told_as_one_of_this_one():
    try:
        read_state(Path("nowhere"))
    except LoralabError as error:
        told = json.loads(json.dumps(worker.told(error, 1)))
        again = getattr(errors, told["kind"])(told["what"], **told["rest"])
        assert type(again) is type(error)
        assert str(again) == str(error)
