"""`plan`: what a training will cost, before weights are loaded or anything is written.

Counts are exact: the adapter is attached to the base's shapes. Memory is rehearsed (see
`rehearsal`). Time is measured: real layers of the model, one and then three of them,
run real batches forward and backward here, and a layer more costs the difference.

    seconds(L layers) = seconds(1) + (L − 1) · (seconds(3) − seconds(1)) / 2
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from loralab.adapters.attach import own_path
from loralab.config import ExperimentConfig, StorageConfig
from loralab.data.batching import (
    epoch_order,
    evaluation_order,
    unit_lengths,
    units,
    width,
)
from loralab.data.examples import Examples
from loralab.errors import LoralabError, TrainingError
from loralab.models.source import resolve_source, weight_files
from loralab.models.stored import format_facts
from loralab.training.prepare import Prepared, plan_of, prepare
from loralab.training.rehearsal import Batches, Rehearsal, rehearse
from loralab.training.timing import Rates, measure_rates

Tell = Callable[[str], None]

KERNELS = 77_000_000
"""Bytes of the compiled kernels that a CPU keeps, 128 at about 0.6 MB: one a shape, and
evaluation meets many shapes. In training `SLACK` holds them."""


@dataclass(frozen=True)
class Memory:
    """Predicted peaks, in bytes; `process` and `loading` are zero on a GPU.

    Attributes:
        process: This process before the base is loaded: libraries, rows, tokens.
        loading: Its peak while weights are read.
        training: Its peak during training steps.
        evaluation: Its peak during evaluation batches.
        available: What there is, for this process.
    """

    process: int
    loading: int
    training: int
    evaluation: int
    available: int

    @property
    def peak(self) -> int:
        """The highest of the phases."""
        return max(self.loading, self.training, self.evaluation)

    @property
    def fits(self) -> bool:
        """Whether the peak is less than what there is."""
        return self.peak < self.available


@dataclass(frozen=True)
class Remedy:
    """A change that needs less memory.

    Attributes:
        change: As on the command line, or in words.
        peak: Its predicted peak in bytes.
        fits: Whether that is less than what there is.
    """

    change: str
    peak: int
    fits: bool


SIZES = (8, 16, 24, 96)
"""Memory of machines that are asked about, in GB: small and usual laptops and GPUs."""

SHARE = 0.9
"""Of a machine's memory that a training may take; the rest is the system's."""


@dataclass(frozen=True)
class Room:
    """Whether a training fits into a machine's memory.

    Attributes:
        gigabytes: What the machine has, in 10⁹ bytes.
        fits: As it is.
        change: The first remedy that makes it fit; None if none does, or none need.
        peak: With the change, or as it is; bytes.
    """

    gigabytes: int
    fits: bool
    change: str | None
    peak: int


def rooms(peak: int, remedies: Sequence[Remedy]) -> list[Room]:
    """Return what fits into machines of usual sizes.

    Args:
        peak: As configured, in bytes.
        remedies: From the mildest on.
    """
    found = []
    for size in SIZES:
        limit = SHARE * size * 1e9
        fitting = [r for r in remedies if r.peak < limit]
        if peak < limit or not fitting:
            found.append(Room(size, peak < limit, None, peak))
        else:
            found.append(Room(size, False, fitting[0].change, fitting[0].peak))
    return found


@dataclass(frozen=True)
class Plan:
    """What a training will cost.

    Attributes:
        counts: Steps, tokens, parameters, as a run writes them down.
        modules: By target pattern: modules, trained parameters.
        memory: Predicted peaks.
        rates: Measured seconds; None if not asked for.
        adapter_bytes: Size of the adapter on disk.
        checkpoint_bytes: Size of all checkpoints that are kept.
        remedies: What would fit, if it does not.
        rooms: What fits into machines of usual sizes, with which change.
    """

    counts: dict[str, Any]
    modules: dict[str, dict[str, int]]
    memory: Memory
    rates: Rates | None
    adapter_bytes: int
    checkpoint_bytes: int
    remedies: list[Remedy]
    rooms: list[Room]


def plan(
    config: ExperimentConfig, *, timed: bool = True, tell: Tell = lambda _: None
) -> Plan:
    """Return what the training of an experiment will cost.

    Args:
        config: The experiment.
        timed: Whether the rate of this machine is measured (some seconds).
        tell: Told what is being done.

    Raises:
        LoralabError: whatever is wrong with rows, model or adapter.
    """
    prepared = prepare(config, tell, weights=False)
    counts, modules = plan_of(prepared), by_pattern(prepared)
    trained = 4 * prepared.attached.trainable
    tell("rehearsing a step")
    memory, rehearsal = predict_memory(prepared)
    small = rooms(memory.peak, ())[0].fits
    changes = [] if memory.fits and small else remedies(config, tell)
    rates = None
    if timed and memory.fits:
        tell("measuring the rate of this machine")
        rates = measure_rates(prepared)
    kept = min(config.training.save_total_limit, max(1, counts["steps"]))
    return Plan(
        counts,
        modules,
        memory,
        rates,
        adapter_bytes=trained,
        checkpoint_bytes=kept * (trained + rehearsal.optimizer),
        remedies=[] if memory.fits else changes,
        rooms=rooms(memory.peak, changes),
    )


def by_pattern(prepared: Prepared) -> dict[str, dict[str, int]]:
    """Return, by target pattern and for a new head, modules and trained parameters."""
    attached = prepared.attached
    wanted = {pattern: set(names) for pattern, names in attached.modules.items()}
    wanted |= {f"{name} (new head)": {name} for name in prepared.base.new_modules}
    found = {name: {"modules": len(of), "trained": 0} for name, of in wanted.items()}
    for path, parameter in attached.model.named_parameters():
        if not parameter.requires_grad:
            continue
        own = own_path(path)
        for name, modules in wanted.items():
            if any(own.startswith(f"{module}.") for module in modules):
                found[name]["trained"] += parameter.numel()
                break
        else:
            rest = found.setdefault("(no module)", {"modules": 0, "trained": 0})
            rest["trained"] += parameter.numel()
    return found


def predict_memory(prepared: Prepared) -> tuple[Memory, Rehearsal]:
    """Return the predicted peaks; the prepared model is used up.

    The heaviest micro-batches are those with the most positions and the most labels.
    """
    import loralab.training.trainer  # noqa: F401  the training process imports it too

    base, examples = prepared.base, prepared.examples
    process = _process_bytes()
    batch = prepared.config.training.per_device_train_batch_size
    seed = prepared.config.training.seed
    train = examples["train"]
    training = _heaviest(
        train, epoch_order(unit_lengths(train, units(train)), batch, 1, seed, 0)
    )
    size = prepared.config.evaluation.per_device_eval_batch_size
    found = rehearse(
        prepared.attached.model,
        base,
        train,
        training,
        _heaviest(train, evaluation_order(unit_lengths(train, units(train)), size)),
        prepared.config.training,
    )
    if base.numerics.device == "cuda":
        return _on_gpu(found), found
    stored = _stored_bytes(prepared)
    several = prepared.config.training.parallel.processes  # in the same memory
    available = process + psutil.virtual_memory().available // several
    return Memory(
        process,
        process + stored + found.weights,
        process + found.training,
        process + found.evaluation + KERNELS,
        available,
    ), found


@functools.cache
def _process_bytes() -> int:
    """Return what this process held when it predicted first.

    Later it holds what earlier predictions left, which a training would not: of several
    experiments that are alike, each would be told more than the one before.
    """
    return psutil.Process().memory_info().rss


def _on_gpu(found: Rehearsal) -> Memory:
    import torch

    free, _ = torch.cuda.mem_get_info()
    return Memory(0, found.weights, found.training, found.evaluation, free)


def _stored_bytes(prepared: Prepared) -> int:
    """Return what is held beside the base while it is loaded.

    The weights' files, which are mapped while they are read; and a format that cannot
    quantize while it reads has the whole base in float first.
    """
    base = prepared.base
    folder = resolve_source(prepared.config.model, weights=False).folder
    files = sum(file.stat().st_size for file in weight_files(folder))
    if base.storage and "reading" not in format_facts(base.storage):
        files += base.facts.parameters * base.numerics.torch_dtype.itemsize
    return files


def _heaviest(examples: Examples, order: list[list[int]]) -> Batches:
    """Return the batches with the most positions, and with the most labels."""
    of = units(examples)
    lengths = unit_lengths(examples, of)
    labels = [sum(x != -100 for i in unit for x in _labels(examples, i)) for unit in of]

    def positions(batch: list[int]) -> int:
        return sum(width(lengths[u]) for u in batch)

    def supervised(batch: list[int]) -> int:
        return sum(labels[u] for u in batch)

    most = [max(order, key=key) for key in (positions, supervised)]
    chosen = most if most[0] != most[1] else most[:1]
    return [[of[u] for u in batch] for batch in chosen]


def _labels(examples: Examples, i: int) -> list[int]:
    found = examples.labels[i]
    return found if isinstance(found, list) else [found]


def _changed(config: ExperimentConfig, part: str, **values: Any) -> ExperimentConfig:
    own = getattr(config, part).model_copy(update=values)
    return config.model_copy(update={part: own})


def remedies(config: ExperimentConfig, tell: Tell = lambda _: None) -> list[Remedy]:
    """Return changes that need less memory, each with its predicted peak.

    Args:
        config: An experiment that does not fit, or has run out of memory.
        tell: Told what is being tried.
    """
    found = []
    for change, tried in _candidates(config):
        tell(f"trying {change}")
        try:
            memory, _ = predict_memory(prepare(tried, weights=False))
        except LoralabError:  # such a length leaves no row, or a library is missing
            continue
        found.append(Remedy(change, memory.peak, memory.fits))
    return found


def _candidates(
    config: ExperimentConfig,
) -> list[tuple[str, ExperimentConfig]]:
    """Return ways to need less: each alone, all of them, and those on a 4-bit base."""
    batch = config.training.per_device_train_batch_size
    steps = config.training.gradient_accumulation_steps
    found = []
    for size in dict.fromkeys((max(1, batch // 2), max(1, batch // 4), 1)):
        if size < batch:
            values = {
                "per_device_train_batch_size": size,
                "gradient_accumulation_steps": steps * -(-batch // size),
            }
            text = " ".join(f"training.{key}={value}" for key, value in values.items())
            found.append((text, _changed(config, "training", **values)))
    smallest = found[-1] if found else ("", config)
    if not config.training.gradient_checkpointing:
        text = "training.gradient_checkpointing=true"
        found.append((text, _changed(config, "training", gradient_checkpointing=True)))
        both = _changed(smallest[1], "training", gradient_checkpointing=True)
        smallest = (f"{smallest[0]} {text}".strip(), both)
    for name in ("max_length", "max_source_length"):
        length = config.task.params.get(name)
        if length and length >= 64:
            params = {**config.task.params, name: length // 2}
            text = f"task.params.{name}={length // 2}"
            found.append((text, _changed(config, "task", params=params)))
            last = _changed(smallest[1], "task", params=params)
            smallest = (f"{smallest[0]} {text}".strip(), last)
    if smallest[0] not in dict(found):
        found.append(smallest)
    if config.model.storage is None:
        stored = _changed(smallest[1], "model", storage=StorageConfig(name="nf4-dq"))
        found.append((f"{smallest[0]} model.storage=nf4-dq".strip(), stored))
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch or Python could not allocate."""
    import torch

    words = ("can't allocate memory", "out of memory", "not enough memory")
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)
    )


def out_of_memory(config: ExperimentConfig, where: str) -> TrainingError:
    """Return the error of a training that ran out of memory, with what would not."""
    try:
        found = remedies(config)
    except (MemoryError, RuntimeError):  # not even for that
        found = []
    lines = [
        f"{r.change}: {r.peak / 1e9:.2f} GB{'' if r.fits else ' (does not fit)'}"
        for r in found
    ]
    advice = "a smaller batch or length"
    if lines:
        advice = "one of these (predicted peak):\n    " + "\n    ".join(lines)
    return TrainingError(
        "training ran out of memory",
        where=where,
        fix=f"begin again with --force and {advice}",
    )
