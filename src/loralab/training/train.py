"""`train`: from a configuration to a run with a trained, saved and measured adapter.

Rows, base and adapter are made before the run directory: what is wrong with them is
told with nothing left behind. From then on every file is written atomically, so a run
that is killed resumes from its last checkpoint and ends as if it had not been.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loralab.adapters.attach import Attached, attach
from loralab.adapters.files import load_weights, save_adapter
from loralab.config import ExperimentConfig
from loralab.config.arguments import to_training_arguments
from loralab.data.batching import (
    epoch_order,
    overhead_of,
    padded_share,
    unit_lengths,
    units,
)
from loralab.data.examples import DataPreprocessor, Examples, get_preprocessor
from loralab.data.rows import Rows, load_rows, report_lines
from loralab.errors import ConfigError, LoralabError, RunError
from loralab.evaluation.evaluate import evaluate_split
from loralab.inference.load import LoadedAdapter
from loralab.models.base import LoadedModel, load_base
from loralab.models.numerics import seed_everything
from loralab.models.packing import check_packing
from loralab.models.quiet import quiet_libraries
from loralab.runs import Run
from loralab.runs.environment import environment, peak_memory_bytes
from loralab.runs.files import atomic_directory, remove_leftovers
from loralab.runs.run import create, move_aside, now
from loralab.training.checkpoint import latest, read_state, step_of
from loralab.training.events import EventLog, OnEvent

if TYPE_CHECKING:
    from loralab.training.callbacks import ReportCallback
    from loralab.training.trainer import PEFTTrainer


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
    config: ExperimentConfig, tell: Callable[[str], None] = lambda _: None
) -> Prepared:
    """Load rows, base and adapter, and encode the rows; write nothing.

    Args:
        config: The experiment.
        tell: Told what is being done.

    Raises:
        LoralabError: whatever is wrong with rows, model or adapter.
    """
    task = get_preprocessor(config.task)
    tell("reading rows")
    rows = load_rows(config.data, task)
    listed = {name: list(split) for name, split in rows.splits.items()}
    state = task.fit(listed)
    if config.training.early_stopping and "validation" not in rows.splits:
        raise ConfigError(
            "early stopping needs validation rows, and there are none",
            where="training.early_stopping",
            fix="raise data.validation_fraction, or set early_stopping=null",
        )
    seed_everything(config.training.seed)
    tell(f"loading {config.model.path}")
    base = load_base(config.model, task.head, state.get("labels", ()))
    task.prepare(base.processor)
    tell("encoding rows")
    examples: dict[str, Examples] = {}
    for name in ("train", "validation"):
        if name in listed:
            examples[name] = task(listed[name], base.processor)
    if examples["train"].capacity is not None:
        check_packing(base)
    seed_everything(config.training.seed)
    attached = attach(base, config.peft, task.head)
    return Prepared(config, task, state, rows, base, attached, examples)


def plan_of(prepared: Prepared) -> dict[str, Any]:
    """Return what training will cost, in steps and tokens, and what it trains."""
    config, examples = prepared.config.training, prepared.examples["train"]
    of = unit_lengths(examples, units(examples))
    batch = config.per_device_train_batch_size
    accumulation = config.gradient_accumulation_steps
    batches = epoch_order(of, batch, accumulation, config.seed, 0)
    per_epoch = -(-len(batches) // accumulation)
    steps = int(-(-config.num_train_epochs * per_epoch // 1))
    if config.max_steps > 0:
        steps = config.max_steps
    attached, numerics = prepared.attached, prepared.base.numerics
    return {
        "steps": steps,
        "steps_per_epoch": per_epoch,
        "tokens": round(sum(of) * steps / per_epoch),
        "examples": len(examples),
        "packs": len(of) if examples.capacity is not None else None,
        "supervised_share": examples.supervised / examples.tokens,
        "padded_share": padded_share(of, batches, overhead_of(numerics.device)),
        "notes": examples.notes,
        "trainable": attached.trainable,
        "total": attached.total,
        "targets": attached.matched,
        "scales": {str(k): v for k, v in attached.scales.items()},
        "dtype": numerics.dtype,
        "device": numerics.device,
        "dtype_reason": numerics.reason,
        "rows": prepared.rows.sizes(),
        "rows_report": report_lines(
            prepared.rows.report, prepared.config.data.duplicates
        ),
    }


def train(
    config: ExperimentConfig,
    runs_dir: str | Path = "runs",
    *,
    resume: bool = False,
    force: bool = False,
    on_event: OnEvent | None = None,
) -> Run:
    """Train, save and evaluate the adapter of an experiment.

    Args:
        config: The experiment, from `loralab.compose`.
        runs_dir: Where the run directory is made, or found.
        resume: Continue a run that was killed or failed.
        force: Train again; the old run is renamed, not deleted.
        on_event: Told of everything that happens, as it is written to the log.

    Returns:
        The complete run, found if the configuration was trained before.

    Raises:
        LoralabError: configuration, rows, model, adapter or training are at fault.
    """
    run = Run(Path(runs_dir) / config.run_id)
    tell = on_event or (lambda _: None)
    status = run.status if (run.path / "run.json").is_file() else "absent"
    if status == "running":
        raise RunError("another process is training this run", where=str(run.path))
    if status == "complete" and not force:
        _check_same_data(run, config)
        tell({"event": "found", "run": str(run.path)})
        return run
    if status in ("interrupted", "failed") and not (resume or force):
        raise RunError(
            f"this run was {status}",
            where=str(run.path),
            why=str(run.read().get("error", "")),
            fix="continue it with --resume, or begin again with --force",
        )
    prepared = prepare(config, lambda what: tell({"event": "preparing", "what": what}))
    if status != "absent" and force:
        aside = move_aside(run)
        tell({"event": "moved", "to": str(aside)})
    if status == "absent" or force:
        run = create(config, Path(runs_dir), "adapter")
    with run.locked():
        _check_resumable(run, prepared)
        remove_leftovers(run.path)
        _run_training(run, prepared, EventLog(run, on_event))
    return run


def _check_same_data(run: Run, config: ExperimentConfig) -> None:
    rows = load_rows(config.data, get_preprocessor(config.task))
    if rows.fingerprint != run.read()["data"]["fingerprint"]:
        raise RunError(
            "this configuration was trained before, on other rows",
            where=str(run.path),
            why="the data behind the same path has changed",
            fix="train again with --force; the old run is kept under another name",
        )


def _check_resumable(run: Run, prepared: Prepared) -> None:
    """Refuse to continue on other rows or another base than the run began with."""
    before = run.read()
    for name, was, now_is in (
        ("data", before.get("data"), prepared.rows.fingerprint),
        ("base", before.get("base"), prepared.base.fingerprint),
    ):
        if was is not None and was["fingerprint"] != now_is:
            raise RunError(
                f"the {name} has changed since this run began",
                where=str(run.path),
                why="a resumed run would be trained on two of them",
                fix="begin again with --force; the old run is kept under another name",
            )


def _run_training(run: Run, prepared: Prepared, log: EventLog) -> None:
    plan = plan_of(prepared)
    start = latest(run.checkpoints)
    _describe(run, prepared, plan, resumed_from=start)
    log.rewind(step_of(start) if start else 0)
    log.emit("plan", **plan)
    try:
        training = _fit(run, prepared, log, start)
        log.tell("saving")
        _save(run, prepared)
        adapter = LoadedAdapter(
            prepared.attached.model.eval(), prepared.base, prepared.task
        )
        for split in prepared.config.evaluation.splits:
            if split in prepared.rows.splits:
                rows = prepared.rows.splits[split]
                settings = prepared.config.evaluation
                result = evaluate_split(
                    run, adapter, split, rows, settings, on_event=log.on_event
                )
                log.emit("evaluated", split=split, metrics=result["metrics"])
    except LoralabError as error:
        run.update(status="failed", error=str(error), finished=now())
        raise
    except Exception as error:
        run.update(status="failed", error=f"{type(error).__name__}: {error}")
        raise
    size = sum(f.stat().st_size for f in run.adapter.iterdir() if "adapter" in f.name)
    run.update(
        status="complete",
        finished=now(),
        error=None,
        training=training,
        adapter_bytes=size,
        peak_memory_bytes=peak_memory_bytes(),
    )
    log.emit("complete", run=str(run.path))


def _describe(
    run: Run, prepared: Prepared, plan: dict[str, Any], resumed_from: Path | None
) -> None:
    """Write down what is trained on what, before the first step."""
    before = run.read()
    here = environment()
    was = before.get("environment", here)
    drift = {k: [was[k], here[k]] for k in here if was.get(k) != here[k]}
    resumes = list(before.get("resumes", []))
    if resumed_from:
        resumes.append({"time": now(), "step": step_of(resumed_from), "drift": drift})
    base = prepared.base
    run.update(
        status="running",
        task=prepared.config.task.name,
        task_state=prepared.task_state,
        base={
            "path": base.path,
            "revision": base.revision,
            "fingerprint": base.fingerprint,
            **{k: v for k, v in asdict(base.facts).items() if k != "linear"},
        },
        numerics=asdict(base.numerics),
        data={
            "fingerprint": prepared.rows.fingerprint,
            "sizes": prepared.rows.sizes(),
            "report": asdict(prepared.rows.report),
        },
        seeds={
            "training": prepared.config.training.seed,
            "data": prepared.config.data.seed,
        },
        plan=plan,
        environment=here,
        resumes=resumes,
    )


def _build_trainer(
    run: Run, prepared: Prepared, log: EventLog
) -> tuple[PEFTTrainer, ReportCallback]:
    """Return the trainer with its callbacks, and the one that keeps the clock."""
    from transformers import EarlyStoppingCallback

    from loralab.training.callbacks import MovementGuard, ReportCallback
    from loralab.training.trainer import PEFTTrainer

    config, examples = prepared.config, prepared.examples
    args = to_training_arguments(
        config.training,
        str(run.checkpoints),
        device=prepared.base.numerics.device,
        validated="validation" in examples,
    )
    trainer = PEFTTrainer(
        prepared.attached.model,
        args,
        prepared.base,
        examples["train"],
        examples.get("validation"),
        eval_batch_size=config.evaluation.per_device_eval_batch_size,
    )
    report = ReportCallback(log, trainer.counts)
    trainer.add_callback(report)
    trainer.add_callback(MovementGuard())
    stopping = config.training.early_stopping
    if stopping:
        found = EarlyStoppingCallback(stopping.patience, stopping.threshold)
        trainer.add_callback(found)
    return trainer, report


def _fit(
    run: Run, prepared: Prepared, log: EventLog, start: Path | None
) -> dict[str, Any]:
    """Run the trainer, from a checkpoint if there is one; return timings and rates."""
    trainer, report = _build_trainer(run, prepared, log)
    seed_everything(prepared.config.training.seed)
    began = time.perf_counter()
    with quiet_libraries():
        if start and read_state(start)["finished"]:
            trainer.finish_from(start)
        else:
            trainer.train(resume_from_checkpoint=str(start) if start else None)
    spent, steps = report.seconds, trainer.state.global_step
    return {
        "steps": steps,
        "seconds": round(time.perf_counter() - began, 3),
        "step_seconds": round(spent, 3),
        **trainer.counts,
        "tokens_per_second": trainer.counts["tokens"] / spent if spent else None,
        "labels_per_second": trainer.counts["labels"] / spent if spent else None,
        "best_step": trainer.state.best_global_step or steps,
    }


def _save(run: Run, prepared: Prepared) -> None:
    """Write the adapter, and read it back: equal keys and tensors, or an error."""
    model = prepared.attached.model
    with atomic_directory(run.adapter) as temporary:
        save_adapter(
            temporary,
            model,
            prepared.base,
            prepared.config.task,
            prepared.task_state,
        )
    load_weights(model, run.adapter)
