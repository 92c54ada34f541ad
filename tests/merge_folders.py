"""Adapter folders drawn at random, and a continual method that any state can hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from loralab.lowrank.factors import Factors
from loralab.lowrank.update import Update, inner, total
from loralab.merging.method import Normed, Step
from loralab.registry import register
from tests.merging import drawn

SHAPES = {"model.q": (6, 5), "model.v": (4, 5)}


def adapter(
    folder: Path,
    seed: int = 0,
    rank: int = 2,
    shapes: Mapping[str, tuple[int, int]] = SHAPES,
    base: str = "org/base",
) -> Path:
    """Write a plain LoRA of Gaussian factors as PEFT does, with a file beside it."""
    folder.mkdir(parents=True)
    held = drawn(rank, shapes, seed)
    tensors = {}
    for name, factors in held.held.items():
        stem = f"base_model.model.{name}.lora"
        tensors[f"{stem}_A.weight"] = factors.A.float().contiguous()
        tensors[f"{stem}_B.weight"] = factors.B.float().contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank / 2,
        "target_modules": [name.rpartition(".")[2] for name in shapes],
        "task_type": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.txt").write_text(f"of {seed}", encoding="utf-8")
    return folder


@register("merge method", "apart", Normed, continual=True)
def apart(params: Normed, merged: Update | None, new: Factors, step: Step) -> Update:
    """Add what a task does not share with the sum; the order of tasks matters."""
    update = new.update(step.dtype)
    if merged is None:
        return update
    along = inner(merged, merged)
    share = inner(update, merged) / along if along else 0.0
    return total([merged, update, merged * -share])


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return ΔW of each module of a plain LoRA, as a matrix."""
    from loralab.lowrank.files import AdapterFolder

    source = AdapterFolder.open(folder)
    found = {name: source.factors(name) for name in source.shapes}
    return {n: f.scale * f.B.double() @ f.A.double() for n, f in found.items()}
