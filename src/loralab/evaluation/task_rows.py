"""The tasks of merged adapters: one base in fp32, each task's head and its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from loralab.adapters.files import check_base, read_note
from loralab.config import ModelConfig
from loralab.data.batching import (
    collate,
    evaluation_order,
    length_groups,
    overhead_of,
    unit_lengths,
    units,
)
from loralab.data.examples import Classes, Examples, classes_of, get_preprocessor
from loralab.errors import AdapterError
from loralab.evaluation.evaluate import split_of
from loralab.inference.load import Loaded, check_template, load_processor
from loralab.lowrank.files import PREFIX, AdapterFolder
from loralab.models.base import load_base
from loralab.models.loaded import LoadedModel
from loralab.models.numerics import seed_everything
from loralab.models.source import resolve_source
from loralab.runs import Run

BATCH = 64
"""Rows of a batch at most; `evaluation_order` bounds its tokens too."""


@dataclass(frozen=True)
class Task:
    """A task, ready to be measured.

    Attributes:
        name: Unique among the tasks.
        source: Its adapter, as merging reads it.
        head: Parameter path in the base -> tensor, fp32.
        batches: Collated, on the device; longest first.
        rows: The row that each example belongs to, counted from 0, [examples].
        drawn: Row numbers in the split, ascending, [E].
        of: Rows of the split.
    """

    name: str
    source: AdapterFolder
    head: Mapping[str, Tensor]
    batches: Sequence[Mapping[str, Tensor]]
    rows: NDArray[np.int64]
    drawn: NDArray[np.int64]
    of: int


def names_of(runs: Sequence[Run]) -> list[str]:
    """Return the names of runs, or their ids where two are named alike."""
    names = [run.config.name for run in runs]
    return names if len(set(names)) == len(names) else [run.id for run in runs]


def base_of(run: Run) -> LoadedModel:
    """Return a run's base in fp32.

    Raises:
        AdapterError: the base is not one of floats.
    """
    note = read_note(run.require_adapter())
    config = run.config
    if config.model.storage is not None:
        raise AdapterError(
            f"trained on a base stored as {config.model.storage.name}",
            where=str(run.path),
            why="a merged update is added to float weights",
            fix="evaluate adapters of a float base",
        )
    changes = {"dtype": "fp32", "revision": note["base"]["revision"]}
    model = ModelConfig(**{**config.model.model_dump(), **changes})
    task = get_preprocessor(config.task)
    seed_everything(config.training.seed)
    return load_base(model, task.head, classes_of(note["task_state"]))


def load_task(
    name: str, run: Run, base: LoadedModel, rows: int, split: str, seed: int
) -> Task:
    """Return a run's task: its factors, its head, and its rows in batches."""
    folder = run.require_adapter()
    note = read_note(folder)
    check_base(note, base, folder)
    if rewritten := note["base"].get("rewritten"):
        raise AdapterError(
            f"trained on a base that {rewritten['name']} had rewritten",
            where=str(folder),
            why="a merged update is added to the float weights of before",
            fix="measure such adapters one by one: loralab evaluate",
        )
    task = get_preprocessor(run.config.task)
    task.restore(note["task_state"])
    if task.head != base.head:
        raise AdapterError(
            f"its task needs a base for {task.head}, and this one is for {base.head}",
            where=str(run.path),
            fix="evaluate tasks of one kind together",
        )
    processor = load_processor(folder, task.head)
    task.prepare(processor)
    check_template(note, processor, folder)
    source = AdapterFolder.open(folder, name)
    every = split_of(run, Loaded(base.model, base, task), split)
    drawn = _drawn(len(every), rows, seed)
    examples = task(list(every.select(drawn)), processor)
    batches = _batches(examples, base.pad_id, base.numerics.device)
    kept, which = np.unique(np.asarray(examples.row), return_inverse=True)
    head = _head(base, source) or _written(base, run, classes_of(note["task_state"]))
    return Task(name, source, head, batches, which, drawn[kept], len(every))


def _drawn(rows: int, count: int, seed: int) -> NDArray[np.int64]:
    """Return `count` row numbers of `rows`, ascending; all where there are less."""
    chosen = np.random.default_rng(seed).permutation(rows)[:count]
    return np.sort(chosen)


def _batches(examples: Examples, pad_id: int, device: str) -> list[dict[str, Tensor]]:
    """Return collated batches of like length, cut where padding costs more."""
    groups = units(examples)
    lengths, overhead = unit_lengths(examples, groups), overhead_of(device)
    found = []
    for batch in evaluation_order(lengths, BATCH):
        for part in length_groups([lengths[i] for i in batch], overhead):
            made = collate(examples, [groups[batch[k]] for k in part], pad_id)
            found.append({name: tensor.to(device) for name, tensor in made.items()})
    return found


def _written(base: LoadedModel, run: Run, classes: Classes) -> dict[str, Tensor]:
    """Return the head that the base itself writes for a task's classes, if it does."""
    if not isinstance(classes, Mapping):
        return {}
    from loralab.models.zero_shot import text_weights

    config = run.config.model.model_copy(update={"revision": base.revision})
    device = base.numerics.device
    found = text_weights(resolve_source(config), classes, config.path, device)
    return {"text_head.weight": found.to(device)}


def _head(base: LoadedModel, source: AdapterFolder) -> dict[str, Tensor]:
    """Return what an adapter saved in full, by parameter path in the base.

    Raises:
        AdapterError: it is not in the base, or a new module of the base is not in it.
    """
    head = {key.removeprefix(PREFIX): x.float() for key, x in source.rest().items()}
    known = dict(base.model.named_parameters())
    if odd := sorted(set(head) - set(known)):
        raise AdapterError(
            f"the adapter saved {odd[0]}, which the base does not have",
            where=str(source.path),
        )
    new = tuple(f"{module}." for module in base.new_modules)
    if random := sorted({name for name in known if name.startswith(new)} - set(head)):
        raise AdapterError(
            f"{random[0]} is new on the base, and the adapter did not save it",
            where=str(source.path),
            why="the head would be random",
        )
    return {name: tensor.to(known[name].device) for name, tensor in head.items()}
