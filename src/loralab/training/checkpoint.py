"""Checkpoints: everything that the next step depends on, without a pickle.

    checkpoint-<step>/
      trained.safetensors         every trained tensor, by its name in the model
      state.safetensors           tensors of optimizer and random generators
      state.json                  the rest of optimizer, scheduler and generators
      trainer_state.json          transformers' own: step, log, best metric, callbacks

A checkpoint is written into a temporary directory and renamed, so it is whole or not
there. Floats in JSON are exact: Python writes the shortest text that reads back equal.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from loralab.errors import RunError

FORMAT_VERSION = 2


def _split(tree: Any, name: str, tensors: dict[str, Any]) -> Any:
    """Move tensors out of nested containers into `tensors`; return what JSON holds."""
    import torch

    if isinstance(tree, torch.Tensor):
        tensors[name] = tree.detach().cpu().contiguous().clone()
        return {"__tensor__": name}
    if isinstance(tree, dict):
        items = [
            [key, _split(value, f"{name}.{key}", tensors)]
            for key, value in tree.items()
        ]
        return {"__items__": items}
    if isinstance(tree, (list, tuple)):
        return [_split(value, f"{name}.{i}", tensors) for i, value in enumerate(tree)]
    return tree


def _join(tree: Any, tensors: dict[str, Any]) -> Any:
    """Undo `_split`; tuples come back as lists."""
    if isinstance(tree, dict):
        if "__tensor__" in tree:
            return tensors[tree["__tensor__"]]
        return {key: _join(value, tensors) for key, value in tree["__items__"]}
    if isinstance(tree, list):
        return [_join(value, tensors) for value in tree]
    return tree


def generators() -> dict[str, Any]:
    """Return the state of every random generator that training draws from."""
    import numpy as np
    import torch

    name, keys, *rest = np.random.get_state()
    found = {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.random.get_rng_state(),
    }
    if torch.distributed.is_initialized() and torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()  # the other GPUs have processes
    elif torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def set_generators(state: dict[str, Any]) -> None:
    """Set every random generator to what `generators` returned."""
    import numpy as np
    import torch

    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, tensor, *rest = state["numpy"]
    np.random.set_state((name, tensor.numpy().astype(np.uint32), *rest))
    torch.random.set_rng_state(state["torch"])
    if torch.distributed.is_initialized() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
    elif "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def write_state(folder: Path, **parts: Any) -> None:
    """Write named state trees (optimizer, scheduler, …) into a checkpoint folder."""
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    trees = {name: _split(tree, name, tensors) for name, tree in parts.items()}
    save_file(tensors, folder / "state.safetensors")
    content = json.dumps({"format": FORMAT_VERSION, **trees})
    (folder / "state.json").write_text(content, encoding="utf-8")


def read_state(folder: Path) -> dict[str, Any]:
    """Return the state trees of a checkpoint.

    Raises:
        RunError: a file is missing or broken, or of a later format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        version = content.pop("format")
        tensors = load_file(folder / "state.safetensors")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RunError(
            "the checkpoint cannot be read", where=str(folder), why=str(error)
        ) from None
    if version != FORMAT_VERSION:
        raise RunError(
            f"the checkpoint has format {version}, and this is {FORMAT_VERSION}",
            where=str(folder),
            fix="continue with the loralab that began the run, or use --force",
        )
    return {name: _join(tree, tensors) for name, tree in content.items()}


TRAINED = "trained.safetensors"


def write_trained(folder: Path, model: Any) -> None:
    """Write every trained tensor as it is.

    Not as an adapter is saved: several methods save another form than they train.
    """
    from safetensors.torch import save_file

    tensors = {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    save_file(tensors, folder / TRAINED)


def read_trained(folder: Path) -> dict[str, Any]:
    """Return the trained tensors of a checkpoint.

    Raises:
        RunError: the file is missing or broken.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(folder / TRAINED))
    except (OSError, SafetensorError) as error:
        raise RunError(
            "the checkpoint cannot be read", where=str(folder), why=str(error)
        ) from None


def put_trained(model: Any, tensors: dict[str, Any], folder: Path) -> None:
    """Set every trained tensor.

    Raises:
        RunError: the model trains other tensors than the checkpoint holds.
    """
    import torch

    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    odd = set(own) ^ set(tensors)
    odd |= {n for n in set(own) & set(tensors) if own[n].shape != tensors[n].shape}
    if odd:
        raise RunError(
            f"the checkpoint is of another model: {sorted(odd)[0]} differs",
            where=str(folder),
            fix="begin again with --force",
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def latest(checkpoints: Path) -> Path | None:
    """Return the checkpoint of the highest step, or None."""
    found = [p for p in checkpoints.glob("checkpoint-*") if p.is_dir()]
    return max(found, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(checkpoint.name.rpartition("-")[2])
