"""A base with merged adapters in its weights, ready to answer as one of its tasks.

`loralab merge … --bake BASE` writes a whole model, and beside it, in ``heads/``, what
each task brought of its own: a head, class names, the hash of its chat template.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loralab.adapters.files import read_note
from loralab.config import ModelConfig, TaskConfig, TrainingConfig
from loralab.data.examples import classes_of, get_preprocessor
from loralab.errors import AdapterError
from loralab.inference.load import Loaded, check_template
from loralab.lowrank.files import PREFIX
from loralab.merging.export.heads import head_index, head_of
from loralab.models.base import load_base
from loralab.models.numerics import seed_everything


def load_baked(folder: Path, task: str | None = None, **model_changes: str) -> Loaded:
    """Load a baked model, to answer as one of its tasks.

    Args:
        folder: The model's.
        task: The task's name; needed where there are several.
        model_changes: Fields of `ModelConfig` to load with (``dtype="fp32"``).

    Raises:
        AdapterError: no such task, or its head does not fit the model; a changed chat
            template.
        ModelError: the model cannot be loaded.
    """
    tasks = head_index(folder)
    if not tasks:
        raise AdapterError(
            "no task stands beside this model, so what it answers is not known",
            where=str(folder),
            why="no adapter that was merged into it was trained by loralab",
            fix="it is a model like its base: load it in transformers, or train on it "
            f"with model.path={folder}",
        )
    if task is None and len(tasks) == 1:
        (task,) = tasks
    head = head_of(folder, task)
    note = read_note(head.note)
    seed_everything(TrainingConfig().seed)
    preprocessor = get_preprocessor(TaskConfig(**note["task"]))
    preprocessor.restore(note["task_state"])
    config = ModelConfig(**{"path": str(folder.resolve()), **model_changes})
    base = load_base(config, preprocessor.head, classes_of(note["task_state"]))
    preprocessor.prepare(base.processor)
    check_template(note, base.processor, folder)
    _put(base.model, head.tensors, folder)
    return Loaded(base.model.eval(), base, preprocessor)


def _put(model: Any, tensors: dict[str, Any], folder: Path) -> None:
    """Give a model the head of a task."""
    own = model.state_dict()
    named = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    for name, tensor in named.items():
        if name not in own or own[name].shape != tensor.shape:
            raise AdapterError(f"the model has no place for {name}", where=str(folder))
    model.load_state_dict(named, strict=False)
