import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch
from tests.conftest import CLASSIFY

from loralab import compose, train
from loralab.errors import ConfigError
from loralab.runs import Run
from loralab.training.checkpoint import read_state, write_state
from loralab.training.optimizers import (
    SMALLEST,
    check_optimizer,
    eight_bit_share,
    note_small_tensors,
)
from loralab.training.prepare import prepare

bnb = pytest.importorskip("bitsandbytes")
EIGHT = [
    *CLASSIFY,
    "training.optim=adamw_8bit",
    "training.callbacks=[]",
    "training.logging_steps=1",
]
WIDE = "peft.params.rank=32"  # 32 x 384 values: large enough for 8 bits


def regression(kind, steps=100):
    """Losses, parameters and optimizer of a small network's training."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 64)
    model = torch.nn.Sequential(*layers)
    x = torch.randn(256, 64)
    y = torch.tanh(x @ torch.randn(64, 64) * 0.1)
    extra = {"optim_bits": 8} if kind is bnb.optim.AdamW else {}
    optimizer = kind(model.parameters(), lr=1e-3, weight_decay=0.0, **extra)

    def step():
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return [step() for _ in range(steps)], model, optimizer, step


def state_bytes(optimizer, smallest=0):
    """Bytes of m and v (codes and scales) of parameters above a size."""
    return sum(
        tensor.numel() * tensor.element_size()
        for parameter, state in optimizer.state.items()
        for name, tensor in state.items()
        if name not in ("step", "qmap1", "qmap2") and parameter.numel() >= smallest
    )


def test_8_bit_adamw_follows_adamw():
    exact, *_ = regression(torch.optim.AdamW)
    quantized, *_ = regression(bnb.optim.AdamW)
    assert quantized[0] == exact[0]
    assert exact[-1] < 0.3 * exact[0]
    # a first update is ±lr whatever the state, so it is the same to rounding
    assert quantized[1] == pytest.approx(exact[1], rel=1e-5)
    for one, two in zip(exact, quantized, strict=True):
        assert two == pytest.approx(one, rel=0.1)


def test_large_tensors_take_a_quarter_of_the_state_and_small_ones_all():
    exact, quantized = (
        regression(kind, 1)[2] for kind in (torch.optim.AdamW, bnb.optim.AdamW)
    )
    share = state_bytes(quantized, SMALLEST) / state_bytes(exact, SMALLEST)
    assert 0.25 < share < 0.26  # two scales of 4 bytes to 256 values
    kinds = {
        parameter.numel() >= SMALLEST: state["state1"].dtype
        for parameter, state in quantized.state.items()
    }
    assert kinds == {True: torch.uint8, False: torch.float32}


def test_a_checkpoint_continues_bit_for_bit(tmp_path):
    whole, model, _, step = regression(bnb.optim.AdamW, 10)
    rest = [step() for _ in range(10)]
    first, copy, optimizer, step = regression(bnb.optim.AdamW, 10)
    assert first == whole
    write_state(tmp_path, optimizer=optimizer.state_dict())
    before = {k: v.clone() for k, v in copy.state_dict().items()}
    for _ in range(5):  # what comes after the checkpoint is forgotten
        step()
    copy.load_state_dict(before)
    optimizer.load_state_dict(read_state(tmp_path)["optimizer"])
    states = [s["state1"].dtype for s in optimizer.state.values()]
    assert torch.uint8 in states
    assert [step() for _ in range(10)] == rest
    for one, two in zip(copy.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.slow
def test_a_resumed_training_ends_as_if_it_had_not_been_killed(tmp_path):
    config = compose("trec-6", [*EIGHT, WIDE, "training.save_steps=2"])
    whole = train(config, tmp_path / "whole")
    copy = Run(tmp_path / "again" / whole.id)
    shutil.copytree(whole.path, copy.path)
    shutil.rmtree(copy.adapter)
    shutil.rmtree(copy.checkpoints / "checkpoint-6")
    copy.update(status="running")
    train(config, tmp_path / "again", resume=True)
    assert copy.read()["resumes"][0]["step"] == 4
    name = "adapter_model.safetensors"
    assert (copy.adapter / name).read_bytes() == (whole.adapter / name).read_bytes()


@pytest.mark.slow
def test_8_bit_is_not_32_bit_in_a_training(tmp_path):
    config = compose("trec-6", [*EIGHT, WIDE])
    other = compose("trec-6", [*EIGHT, WIDE, "training.optim=adamw_torch"])
    eight, full = train(config, tmp_path), train(other, tmp_path)
    sizes = []
    for run in (eight, full):
        (file, *_) = sorted(run.checkpoints.glob("*/state.safetensors"))
        sizes.append(file.stat().st_size)
    assert sizes[0] < 0.45 * sizes[1]  # each tensor has its own two maps of 1 KB
    last = [
        [e["loss"] for e in r.events() if e["event"] == "log"] for r in (eight, full)
    ]
    assert last[0] == pytest.approx(last[1], rel=0.02)


def test_paged_state_on_a_cpu_is_refused_before_anything_is_loaded(tmp_path):
    paged = ["training.optim=paged_adamw_8bit", "model.device=cpu"]
    with pytest.raises(ConfigError, match="does not work on the device cpu") as caught:
        train(compose("trec-6", [*EIGHT, *paged]), tmp_path)
    assert caught.value.where == "training.optim"
    assert caught.value.fix == "set training.optim=adamw_8bit"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("version", "message"), [(None, "which is not here"), ("0.49.2", "0.49.2 is")]
)
def test_a_missing_or_old_bitsandbytes_is_told(tmp_path, version, message):
    """In a process whose import path has another bitsandbytes, or none."""
    code = (
        "import sys\nfrom importlib.metadata import MetadataPathFinder\n"
        "find = MetadataPathFinder.find_distributions\n"
        "from importlib.metadata import DistributionFinder\n"
        "def here(context=DistributionFinder.Context()):\n"
        "    found = list(find(context))\n"
        "    if context.name != 'bitsandbytes': return found\n"
        "    return [d for d in found if sys.argv[1] in str(d._path)]\n"
        "MetadataPathFinder.find_distributions = staticmethod(here)\n"
        "from loralab import compose, train\n"
        "train(compose('trec-6', ['training.optim=adamw_8bit']), sys.argv[1])\n"
    )
    if version:
        info = tmp_path / f"bitsandbytes-{version}.dist-info"
        info.mkdir()
        text = f"Metadata-Version: 2.1\nName: bitsandbytes\nVersion: {version}\n"
        (info / "METADATA").write_text(text, "utf-8")
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "ConfigError: training.optim" in done.stderr
    assert message in done.stderr
    assert "loralab[bitsandbytes]" in done.stderr


def test_small_tensors_that_keep_32_bits_are_told(caplog):
    said = []
    for rank in (8, 32):
        config = compose("trec-6", [*EIGHT, f"peft.params.rank={rank}"])
        model = prepare(config).attached.model
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="loralab"):
            note_small_tensors("adamw_8bit", model)
            note_small_tensors("adamw_torch", model)
        (record,) = (r for r in caplog.records if "8-bit state" in r.message)
        said.append((record.levelno, eight_bit_share(model)))
    assert said[0][0] == logging.WARNING and said[0][1] < 0.5
    assert said[1][0] == logging.INFO and said[1][1] > 0.99


def test_models_of_earlier_runs_are_let_go():
    manager = bnb.optim.GlobalOptimManager.get_instance()
    manager.register_module_override(torch.nn.Embedding(2, 2), "weight", {})
    check_optimizer(compose("trec-6", EIGHT))
    assert manager.module_weight_config_triple == []


def test_the_other_optimizers_need_nothing():
    for name in ("adamw_torch", "adafactor", "sgd"):
        check_optimizer(compose("trec-6", [f"training.optim={name}"]))
