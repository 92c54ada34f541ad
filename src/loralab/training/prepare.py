"""`prepare`: the rows, base and adapter of an experiment; and what is counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loralab import registry
from loralab.adapters.abilities import OTHERS, require
from loralab.adapters.attach import Attached, attach
from loralab.adapters.calibration import calibrates, calibration_batches
from loralab.config import ExperimentConfig
from loralab.data.batching import (
    epoch_order,
    overhead_of,
    padded_share,
    unit_lengths,
    units,
)
from loralab.data.examples import (
    DataPreprocessor,
    Examples,
    classes_of,
    get_preprocessor,
)
from loralab.data.rows import Rows, load_rows, report_lines
from loralab.errors import ConfigError
from loralab.models.base import load_base
from loralab.models.empty import empty_base
from loralab.models.loaded import LoadedModel
from loralab.models.numerics import check_trains, choose_numerics, seed_everything
from loralab.models.packing import check_packing
from loralab.models.stored import format_facts
from loralab.training.callbacks._life import check_callbacks
from loralab.training.drivers import driver_of
from loralab.training.optimizers import check_optimizer
from loralab.training.parallel import check_parallel


@dataclass
class Prepared:
    """All that training needs, before anything is written."""

    config: ExperimentConfig
    task: DataPreprocessor
    task_state: dict[str, Any]
    rows: Rows
    base: LoadedModel
    attached: Attached
    examples: dict[str, Examples]


def prepare(
    config: ExperimentConfig,
    tell: Callable[[str], None] = lambda _: None,
    *,
    weights: bool = True,
    locks: dict[str, str] | None = None,
) -> Prepared:
    """Load rows, base and adapter, and encode the rows; write nothing.

    Args:
        config: The experiment.
        tell: Told what is being done.
        weights: Whether the base is loaded, or only its shapes.
        locks: Of the run's data, if it is resumed.

    Raises:
        LoralabError: whatever is wrong with rows, model or adapter.
    """
    _check(config, weights)
    task = get_preprocessor(config.task)
    tell("reading rows")
    rows = load_rows(config.data, task, locks)
    listed = {name: list(split) for name, split in rows.splits.items()}
    state = task.fit(listed)
    if config.training.early_stopping and "validation" not in rows.splits:
        raise ConfigError(
            "early stopping needs validation rows, and there are none",
            where="training.early_stopping",
            fix="raise data.validation_fraction, or set early_stopping=null",
        )
    seed_everything(config.training.seed)
    classes = classes_of(state)
    if weights:
        tell(f"loading {config.model.path}")
        place = config.training.parallel.strategy != "fsdp"
        base = load_base(config.model, task.head, classes, place)
    else:
        base = empty_base(config.model, task.head, classes)
    task.prepare(base.processor)
    tell("encoding rows")
    read: list[str] = [name for name in ("train", "validation") if name in listed]
    examples = {name: task(listed[name], base.processor) for name in read}
    if weights and examples["train"].capacity is not None:
        check_packing(base)
    seed_everything(config.training.seed)
    attached = _attach(config, base, examples["train"], tell if weights else None)
    prepared = Prepared(config, task, state, rows, base, attached, examples)
    if driver := driver_of(config.peft):
        driver.begin(attached.model, config.peft, plan_of(prepared)["steps"])
    return prepared


def attached_anew(prepared: Prepared) -> tuple[LoadedModel, Attached]:
    """Return base and adapter as `prepare` made them, the base on its device."""
    config, task = prepared.config, prepared.task
    seed_everything(config.training.seed)
    base = load_base(config.model, task.head, classes_of(prepared.task_state))
    task.prepare(base.processor)
    seed_everything(config.training.seed)
    return base, _attach(config, base, prepared.examples["train"], lambda _: None)


def _attach(
    config: ExperimentConfig,
    base: LoadedModel,
    examples: Examples,
    tell: Callable[[str], None] | None,
) -> Attached:
    """Attach the adapter; calibrate it on training rows where it asks for that."""
    if examples.capacity is not None:
        key = "task.params.packing"
        require(config.peft, "packing", key, f"set {key}=false")
    params = registry.get("PEFT method", config.peft.name).schema(**config.peft.params)
    _check_length(base, examples, getattr(params, "tokens", 0))
    settings = getattr(params, "calibration", None)
    if tell is None or settings is None or not calibrates(params):
        return attach(base, config.peft)
    tell(f"calibrating on {settings.batches} batches of {settings.rows} training rows")
    return attach(base, config.peft, calibration_batches(examples, base, settings))


def _check_length(base: LoadedModel, examples: Examples, virtual: int) -> None:
    """Refuse rows that a learnt prompt makes longer than the base can read."""
    limit = getattr(base.model.config, "max_position_embeddings", None)
    longest = max(examples.lengths) + virtual
    if virtual and limit and longest > limit:
        raise ConfigError(
            f"rows of up to {longest - virtual} tokens and {virtual} virtual ones are "
            f"more than the {limit} positions of the base",
            where="peft.params.tokens",
            fix=f"set task.params.max_length={limit - virtual}, or fewer tokens",
        )


def _check(config: ExperimentConfig, weights: bool) -> None:
    """Refuse what can be seen to be wrong before anything is read."""
    check_trains(choose_numerics(config.model.device, config.model.dtype))
    check_optimizer(config)
    check_parallel(config)
    if config.training.gradient_checkpointing:
        key = "training.gradient_checkpointing"
        require(config.peft, "checkpointing", key, f"set {key}=false")
    if stored := config.model.storage:
        able = format_facts(stored)["ability"]
        fix = f"set model.storage=null; {OTHERS}"
        require(config.peft, able, "model.storage", fix)
    if driver := driver_of(config.peft):
        driver.check(config)
    if weights:  # a plan needs no tracker
        check_callbacks(config.training.callbacks)


def _adapter_lines(attached: Attached) -> list[str]:
    """Return what is to be told of ranks and of the initialisation."""
    found = []
    if ranks := attached.record.get("ranks"):
        of = "" if ranks["known"] else " (known after calibration; counted as uniform)"
        low, high = min(ranks["ranks"].values()), max(ranks["ranks"].values())
        asked = f" of {ranks['budget']:,}" if ranks["budget"] else ""
        found.append(
            f"ranks by {ranks['strategy']}: {low} to {high}, {ranks['met']:,}{asked} "
            f"{ranks['unit']}{of}"
        )
    if init := attached.record.get("init"):
        found.append(
            f"init {init['init']}: {init['seconds']:.1f} s, A and B "
            f"{init['hash_before']} -> {init['hash_after']}"
        )
    return found


def _storage_line(base: LoadedModel) -> str | None:
    """Return what is to be told of a quantized base."""
    if base.storage is None:
        return None
    line = f"{base.storage.name}: {len(base.facts.linear)} linear modules quantized"
    if base.numerics.device == "cpu":
        line += (
            "; trains slower than float on a CPU, which makes the weights anew in the "
            "forward and in the backward pass"
        )
    return line


def plan_of(prepared: Prepared) -> dict[str, Any]:
    """Return what training will cost, in steps and tokens, and what it trains."""
    config, examples = prepared.config.training, prepared.examples["train"]
    of = unit_lengths(examples, units(examples))
    batch, processes = config.per_device_train_batch_size, config.parallel.processes
    accumulation = config.gradient_accumulation_steps * processes
    batches = epoch_order(of, batch, accumulation, config.seed, 0)
    per_epoch = -(-len(batches) // accumulation)
    steps = int(-(-config.num_train_epochs * per_epoch // 1))
    if config.max_steps > 0:
        steps = config.max_steps
    attached, numerics = prepared.attached, prepared.base.numerics
    image = examples.pixels.tokens if examples.pixels is not None else None
    overhead = overhead_of(numerics.device) if processes == 1 else 2**40
    padded = padded_share(of, batches, overhead)
    return {
        "steps": steps,
        "steps_per_epoch": per_epoch,
        "tokens": round(sum(of) * steps / per_epoch),
        "examples": len(examples),
        "packs": len(of) if examples.capacity is not None else None,
        "supervised_share": examples.supervised / examples.tokens,
        "padded_share": 0.0 if image else padded,
        "image_tokens": image,
        "notes": examples.notes,
        "adapter": _adapter_lines(attached),
        "trainable": attached.trainable,
        "total": attached.total,
        "targets": attached.matched,
        "scales": {str(k): v for k, v in attached.scales.items()},
        "dtype": numerics.dtype,
        "device": numerics.device,
        "dtype_reason": numerics.reason,
        "storage": _storage_line(prepared.base),
        "rows": prepared.rows.sizes(),
        "rows_report": report_lines(prepared.rows, prepared.config.data.duplicates),
    }
