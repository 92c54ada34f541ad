"""Several processes train one adapter: what they must agree on, and what cannot.

Each process prepares rows, base and adapter by itself, from the same seeds. They train
together; then the first goes on alone, saves and measures, as if it had been alone all
the time. The loss of a step is the mean over the labels of all processes,

    L = Σ_processes Σ_micro-batches Σ_labels −log p(label) / N,   N = its labels,

and DDP and FSDP take the mean of gradients over P processes, so each adds P times its
part of L.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from loralab import registry
from loralab.adapters.abilities import OTHERS, require
from loralab.adapters.calibration import calibrates
from loralab.config import ExperimentConfig
from loralab.errors import ConfigError, TrainingError
from loralab.models.numerics import choose_numerics

if TYPE_CHECKING:
    from loralab.training.prepare import Prepared
    from loralab.training.trainer import PEFTTrainer

WHERE = "training.parallel"
APART = 2**16
"""Between the seeds of two processes: their dropout differs, as their rows do."""
LEAST_TORCH = "2.9"
"""Of `HuggingFaceStorageWriter(save_distributed=True)`."""
LAUNCHED = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""How many processes a launcher has started, as Accelerate reads it."""
SHARDED_OPTIMIZERS = ("adamw_torch", "sgd")


def check_parallel(config: ExperimentConfig) -> None:
    """Refuse what several processes cannot train, before anything is read.

    Raises:
        ConfigError: the model's place, storage or the optimizer stand against it.
        AdapterError: the method does.
    """
    strategy, fix = config.training.parallel.strategy, f"leave {WHERE} out"
    if strategy == "none":
        _check_alone()
        return
    if config.model.device_map:
        raise ConfigError(
            "device_map=auto spreads one process over all GPUs",
            where="model.device_map",
            why=f"under {WHERE} each process has one",
            fix=f"set model.device_map=null, or {fix}",
        )
    device = choose_numerics(config.model.device, config.model.dtype).device
    if device == "mps":
        raise ConfigError("processes cannot share the device mps", where=WHERE, fix=fix)
    require(config.peft, strategy, WHERE, f"{fix}; {OTHERS}")
    if strategy == "fsdp":
        _check_fsdp(config)


def _check_alone() -> None:
    """Refuse a launcher's variables: Accelerate would wait for the others it names."""
    for name in LAUNCHED:
        if int(os.environ.get(name) or 1) > 1:
            raise ConfigError(
                f"{name}={os.environ[name]} is set, and one process is to train",
                where=WHERE,
                why="another launcher set it; each of its processes would train this",
                fix=f"unset {name}; loralab starts the processes that {WHERE} asks for",
            )


def check_torch(version: str) -> None:
    """Refuse a torch that cannot write what is sharded.

    Raises:
        ConfigError: it is older than `LEAST_TORCH`.
    """
    if Version(version).release < Version(LEAST_TORCH).release:
        raise ConfigError(
            f"fsdp needs torch {LEAST_TORCH} or later, and this is {version}",
            where=WHERE,
            why="earlier ones cannot write a process' shards as safetensors",
            fix=f"pip install 'torch>={LEAST_TORCH}', or set {WHERE}.strategy=ddp",
        )


def _check_fsdp(config: ExperimentConfig) -> None:
    import torch

    check_torch(torch.__version__)
    fix = "set training.parallel.strategy=ddp"
    if config.model.storage:
        raise ConfigError(
            f"a base stored as {config.model.storage.name} cannot be sharded",
            where="model.storage",
            why="its codes and scales are no rows of a weight",
            fix=f"set model.storage=null, or {fix}",
        )
    if config.training.optim not in SHARDED_OPTIMIZERS:
        raise ConfigError(
            f"{config.training.optim} cannot be sharded",
            where="training.optim",
            why="its state is more, or less, than a row for each row of a tensor",
            fix=f"choose from {', '.join(SHARDED_OPTIMIZERS)}, or {fix}",
        )
    params = registry.get("PEFT method", config.peft.name).schema(**config.peft.params)
    if calibrates(params):
        raise ConfigError(
            "ranks or an init that look at training rows cannot be sharded",
            where="peft.params",
            why="after training they would be found anew, and must come out the same",
            fix=f"allocate them before (`loralab ranks`), or {fix}",
        )


def check_alike(trainer: PEFTTrainer, prepared: Prepared) -> None:
    """Assert that all processes have prepared the same.

    Raises:
        TrainingError: rows, base or the adapter's shapes differ.
    """
    from accelerate.utils import gather_object

    model = prepared.attached.model
    mine = {
        "rows": prepared.rows.fingerprint,
        "base": prepared.base.fingerprint,
        "adapter": sorted(
            (name, list(tensor.shape), str(tensor.dtype))
            for name, tensor in model.named_parameters()
            if tensor.requires_grad
        ),
    }
    if trainer.args.world_size != prepared.config.training.parallel.processes:
        raise TrainingError(
            f"{trainer.args.world_size} processes found each other",
            why=f"{prepared.config.training.parallel.processes} were asked for",
        )
    for other in gather_object([mine]):
        if odd := [name for name in mine if mine[name] != other[name]]:
            raise TrainingError(
                f"the processes have not the same {odd[0]}",
                where=WHERE,
                why="files changed while they were read, or the GPUs round differently",
                fix="begin again; if it stays, leave out what looks at training rows",
            )


def same_for_all(value: Any) -> Any:
    """Return the first process' value; all must call."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def part(trainer: PEFTTrainer, prepared: Prepared) -> None:
    """End what the processes do together; the first has the whole trained model.

    A sharded model cannot be put together in its place. So the base is loaded again,
    the adapter attached as it was at first, and given the trained tensors.
    """
    from accelerate.state import AcceleratorState
    from torch import distributed

    tensors = None
    if prepared.config.training.parallel.strategy == "fsdp":
        from loralab.training.sharded import gathered

        tensors = gathered(prepared.attached.model)
    first = trainer.is_world_process_zero()
    trainer.accelerator.wait_for_everyone()
    distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)
    if tensors is not None and first:
        _put_together(prepared, tensors)


def _put_together(prepared: Prepared, tensors: dict[str, Any]) -> None:
    from loralab.training.checkpoint import put_trained
    from loralab.training.prepare import attached_anew

    prepared.base, prepared.attached = attached_anew(prepared)
    put_trained(prepared.attached.model, tensors, Path("checkpoints"))
