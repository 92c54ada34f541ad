"""FSDP2: each process holds its rows of every tensor, the frozen base's too.

    W (n × m)  =  [W_0; W_1; …; W_P−1],   process p holds W_p, n/P rows

Before a block of the model computes, its tensors are gathered; after it, they are
dropped again. Gradients are summed and scattered, so optimizer state is sharded too.
Tensors keep the dtypes that they have in one process (the base that of the run, what is
trained fp32), and autocast casts as there, so the mathematics is that of one process.

torch's `fully_shard` is called here and not by Accelerate, which on a CPU makes DDP of
FSDP and says nothing. A checkpoint is one of `loralab.training.checkpoint` but for

    shards/shard-….safetensors  of each process, by torch.distributed.checkpoint:
                                its rows of what is trained, and of optimizer state

Nothing that is read back is a pickle: safetensors, whose header says where rows belong,
and JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from loralab.errors import RunError, TrainingError
from loralab.runs.files import TEMPORARY, publish_directory
from loralab.training.checkpoint import read_state, write_state
from loralab.training.trainer import PEFTTrainer

SHARDS = "shards"


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a transformer's blocks: what stands in its outermost lists of modules."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a model in place, block by block, and move it to the mesh's devices."""
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def check_sharded(model: nn.Module, processes: int) -> None:
    """Assert that every parameter is sharded over all processes.

    Raises:
        TrainingError: one is not.
    """
    whole = [
        name
        for name, tensor in model.named_parameters()
        if not isinstance(tensor, DTensor)
        or tensor.device_mesh.size() != processes
        or not tensor.placements[0].is_shard()
    ]
    if whole:
        raise TrainingError(
            f"{len(whole)} parameters are not sharded over {processes} processes",
            where=whole[0],
            why="what was asked for as FSDP would be trained as DDP, or not together",
            fix="set training.parallel.strategy=ddp, and tell us of this model",
        )


def gathered(model: Any) -> dict[str, torch.Tensor]:
    """Return every trained tensor, whole and on the CPU; all processes must call."""
    return {
        name: tensor.full_tensor().detach().cpu()
        for name, tensor in model.named_parameters()
        if tensor.requires_grad
    }


def _pull(tree: Any, name: str, shards: dict[str, torch.Tensor]) -> Any:
    """Move sharded tensors out of nested containers; leave their names in place."""
    if isinstance(tree, DTensor):
        shards[name] = tree
        return {"sharded": name}
    if isinstance(tree, dict):
        return {key: _pull(part, f"{name}.{key}", shards) for key, part in tree.items()}
    return tree


class ShardedTrainer(PEFTTrainer):
    """Trains a model that is sharded over the processes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # to the Trainer: the model has its place, and sums its gradients itself
        self.is_distributed_loading_by_transformers = True

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        shard(model, init_device_mesh(device.type, (self.args.world_size,)))

    def _prepare_for_training(self, *args: Any) -> Any:
        prepared = super()._prepare_for_training(*args)
        check_sharded(self.model, self.args.world_size)
        return prepared

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Sum over the processes with a step's last batch; what is trained is small."""
        self.model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.model.set_requires_gradient_sync(True)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the validation figures of the present adapter."""
        metrics = super().evaluate(*args, **kwargs)
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # the outermost waits for a backward pass
        return metrics

    def _write(self, folder: Path, **state: Any) -> None:
        check_sharded(self.model, self.args.world_size)
        shards: dict[str, torch.Tensor] = dict(self._trained())
        state["optimizer"] = _pull(state["optimizer"], "optimizer", shards)
        temporary = folder.with_name(f"{TEMPORARY}{folder.name}")  # one for all
        writer = HuggingFaceStorageWriter(
            str(temporary / SHARDS), save_distributed=True
        )
        save(shards, storage_writer=writer)
        if self.is_world_process_zero():
            write_state(temporary, **state)
            self.state.save_to_json(str(temporary / "trainer_state.json"))
            publish_directory(temporary, folder)
            self._rotate(folder)

    def _trained(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.model.named_parameters():
            if tensor.requires_grad:
                yield f"trained.{name}", tensor

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        for name, part in read_state(Path(checkpoint))["parts"].items():
            self.parts[name][1](part)
        read_shards(dict(self._trained()), Path(checkpoint))

    def _load_best_model(self) -> None:
        name = Path(self.state.best_model_checkpoint).name
        read_shards(dict(self._trained()), Path(self.args.output_dir) / name)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = read_state(Path(checkpoint))
        groups = self.optimizer.param_groups
        tensors = [tensor for group in groups for tensor in group["params"]]
        shards = {}
        for index, kept in state["optimizer"]["state"].items():
            for key, part in kept.items():
                if isinstance(part, dict):
                    kept[key] = torch.zeros_like(tensors[index])
                    shards[part["sharded"]] = kept[key]
        read_shards(shards, Path(checkpoint))
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["scheduler"])


def read_shards(shards: dict[str, Any], folder: Path) -> None:
    """Fill sharded tensors, in place, with what a checkpoint has of them.

    Raises:
        RunError: its files are broken, or of another model.
    """
    local = {name: tensor.detach() for name, tensor in shards.items()}
    try:
        load(local, storage_reader=HuggingFaceStorageReader(str(folder / SHARDS)))
    except CheckpointException as error:  # what each process met, one after the other
        raise RunError(
            "the checkpoint cannot be read",
            where=str(folder),
            why=str(error).strip().split("\n")[-1],
            fix="begin again with --force",
        ) from None
