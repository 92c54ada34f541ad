"""`train`: from a configuration to a run with a trained, saved and measured adapter.

Rows, base and adapter are made before the run directory: what is wrong with them is
told with nothing left behind. From then on every file is written atomically, so a run
that is killed resumes from its last checkpoint and ends as if it had not been.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loralab.adapters.files import load_weights, save_adapter
from loralab.adapters.rewriting import rewriting
from loralab.config import ExperimentConfig
from loralab.config.arguments import to_training_arguments
from loralab.data.rows import near_lines
from loralab.errors import LoralabError, RunError, TrainingError
from loralab.evaluation.evaluate import evaluate_split
from loralab.inference.load import LoadedAdapter, load_adapter
from loralab.logs import run_log
from loralab.models.numerics import seed_everything
from loralab.models.quiet import quiet_libraries
from loralab.runs import Run
from loralab.runs.environment import environment
from loralab.runs.files import atomic_directory, remove_leftovers
from loralab.runs.run import create, move_aside, now
from loralab.training.callbacks._life import opened
from loralab.training.checkpoint import latest, read_state, step_of
from loralab.training.drivers import driver_of
from loralab.training.events import EventLog, OnEvent, SilentLog
from loralab.training.existing import (
    check_resumable,
    check_same_data,
    not_finished,
    refuse_begun,
)
from loralab.training.launch import launch
from loralab.training.optimizers import note_small_tensors
from loralab.training.parallel import APART, check_alike, part, same_for_all
from loralab.training.plan import is_out_of_memory, out_of_memory
from loralab.training.prepare import Prepared, plan_of, prepare

if TYPE_CHECKING:
    from loralab.training.trainer import PEFTTrainer
    from loralab.training.watch import ReportCallback

logger = logging.getLogger(__name__)


def train(
    config: ExperimentConfig,
    runs_dir: str | Path = "runs",
    *,
    resume: bool = False,
    force: bool = False,
    locks: dict[str, str] | None = None,
    on_event: OnEvent | None = None,
) -> Run:
    """Train, save and evaluate the adapter of an experiment.

    Args:
        config: The experiment, from `loralab.compose`.
        runs_dir: Where the run directory is made, or found.
        resume: Continue a run that was killed or failed.
        force: Train again; the old run is renamed, not deleted.
        locks: Which state of a changing source is read, as `Rows.locks` has it; by
            default the present one. A run that is resumed keeps its own.
        on_event: Told of everything that happens, as it is written to the log.

    Returns:
        The complete run, found if the configuration was trained before.

    Raises:
        LoralabError: configuration, rows, model, adapter or training are at fault.
    """
    run = Run(Path(runs_dir) / config.run_id)
    tell = on_event or (lambda _: None)
    status = run.standing
    if status == "running":
        raise RunError("another process is training this run", where=str(run.path))
    if status == "complete" and not force:
        check_same_data(run, config)
        tell({"event": "found", "run": str(run.path)})
        return run
    if status in ("interrupted", "failed") and not (resume or force):
        raise not_finished(run, status)
    if status != "absent" and not force:
        locks = run.read().get("data", {}).get("locks", locks)
    if config.training.parallel.processes > 1:
        launch(config, run, on_event=tell, locks=locks, force=force)
    else:
        train_here(config, run, force=force, locks=locks, on_event=on_event)
    return run


def train_here(
    config: ExperimentConfig,
    run: Run,
    *,
    force: bool,
    locks: dict[str, str] | None,
    on_event: OnEvent | None,
) -> None:
    """Train in this process, as the first or only one; arguments are `train`'s."""
    tell = on_event or (lambda _: None)
    status = run.standing
    began = time.time()
    resumed = status != "absent" and not force
    prepared = prepare(
        config,
        lambda what: tell({"event": "preparing", "what": what}),
        locks=locks,
    )
    if status != "absent" and force:
        aside = move_aside(run)
        tell({"event": "moved", "to": str(aside)})
    with run.locked():
        if not resumed:
            refuse_begun(run)
            create(config, run.path.parent, "adapter")
        log = EventLog(run, on_event)
        with run_log(run.path / "log.txt", since=began):
            for line in near_lines(prepared.rows):
                logger.warning(line)
            check_resumable(run, prepared)
            remove_leftovers(run.path)
            with opened(config.training.callbacks, run, log) as callbacks:
                _run_training(run, prepared, log, callbacks)


def assist(
    config: ExperimentConfig, run: Run, locks: dict[str, str] | None = None
) -> None:
    """Help the first process of several to train; write nothing.

    Args:
        config: The experiment.
        run: The first process' run.
        locks: Of the run's data, if it is resumed.
    """
    prepared = prepare(config, locks=locks)
    _fit(run, prepared, SilentLog(run), None, ())


def _run_training(
    run: Run, prepared: Prepared, log: EventLog, callbacks: Sequence[Any]
) -> None:
    plan = plan_of(prepared)
    start = latest(run.checkpoints)
    _describe(run, prepared, plan, resumed_from=start)
    log.rewind(step_of(start) if start else 0)
    log.emit("plan", **plan)
    try:
        _keep_features(prepared, plan, log)
        training, report = _fit(run, prepared, log, start, callbacks)
        log.tell("saving")
        _save(run, prepared)
        left = prepared.attached.model.parameters()
        training["trainable"] = sum(p.numel() for p in left if p.requires_grad)
        adapter = _saved(run, prepared)
        _evaluate(run, prepared, adapter, log)
    except LoralabError as error:
        run.update(status="failed", error=str(error), finished=now())
        raise
    except Exception as error:
        run.update(status="failed", error=f"{type(error).__name__}: {error}")
        whole = prepared.config.training.parallel.strategy != "fsdp"
        if whole and is_out_of_memory(error):  # else nothing predicts what would fit
            raise _out_of_memory(run, prepared, log) from None
        raise
    size = sum(f.stat().st_size for f in run.adapter.iterdir() if "adapter" in f.name)
    run.update(
        status="complete",
        finished=now(),
        error=None,
        training=training,
        adapter_bytes=size,
        peak_memory_bytes=report.peak_memory_bytes,
    )
    log.emit("complete", run=str(run.path))


def _keep_features(prepared: Prepared, plan: dict[str, Any], log: EventLog) -> None:
    """Compute what enters a linear probe once, or say why not."""
    from loralab.training.features import changes, with_features

    if prepared.config.peft.name != "linear-probe":
        return
    began, found = time.perf_counter(), None
    if not (why := changes(prepared, plan["steps"] / plan["steps_per_epoch"])):
        log.tell("preparing", what="reading what enters the probe, once")
        size = prepared.config.evaluation.per_device_eval_batch_size
        found = with_features(prepared, size)
        why = "" if found else "its output is not what the model answers"
    prepared.examples = found or prepared.examples
    seconds = round(time.perf_counter() - began, 3)
    log.emit("features", kept=found is not None, why=why, seconds=seconds)


def _evaluate(
    run: Run, prepared: Prepared, adapter: LoadedAdapter, log: EventLog
) -> None:
    """Measure the adapter on the configured splits that there are."""
    settings = prepared.config.evaluation
    for split in settings.splits:
        if split in prepared.rows.splits:
            rows = prepared.rows.splits[split]
            result = evaluate_split(
                run, adapter, split, rows, settings, on_event=log.on_event
            )
            log.emit("evaluated", split=split, metrics=result["metrics"])


def _out_of_memory(run: Run, prepared: Prepared, log: EventLog) -> TrainingError:
    """Return the error that lists what would need less memory."""
    prepared.attached.model.to("meta")  # its memory is needed for nothing any more
    log.tell("preparing", what="out of memory: looking for what would fit")
    error = out_of_memory(prepared.config, str(run.path))
    run.update(error=str(error), finished=now())
    return error


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
        base=base.record(),
        numerics=asdict(base.numerics),
        data=prepared.rows.record(),
        seeds={
            "training": prepared.config.training.seed,
            "data": prepared.config.data.seed,
        },
        plan=plan,
        calibration=prepared.attached.record,
        environment=here,
        resumes=resumes,
    )


def _build_trainer(
    run: Run, prepared: Prepared, log: EventLog, callbacks: Sequence[Any]
) -> tuple[PEFTTrainer, ReportCallback]:
    """Return the trainer with its callbacks, and the one that keeps the clock."""
    from transformers import EarlyStoppingCallback, TrainerCallback

    from loralab.training.watch import MovementGuard, ReportCallback

    config = prepared.config
    trainer = _new_trainer(run, prepared)
    report = ReportCallback(log, trainer.counts)
    trainer.add_callback(report)
    trainer.parts["report"] = (report.state, report.load)
    trainer.add_callback(MovementGuard())
    if stopping := config.training.early_stopping:
        found = EarlyStoppingCallback(stopping.patience, stopping.threshold)
        trainer.add_callback(found)
    trainer.rate_ratio = config.peft.params.get("learning_rate_ratio", 1.0)
    if driver := driver_of(config.peft):
        driver.drive(trainer, log, config.peft)
    for callback in filter(lambda c: isinstance(c, TrainerCallback), callbacks):
        trainer.add_callback(callback)  # the others hear events only
    note_small_tensors(config.training.optim, prepared.attached.model)
    return trainer, report


def _new_trainer(run: Run, prepared: Prepared) -> PEFTTrainer:
    """Return the trainer of the configured strategy."""
    from loralab.training.trainer import PEFTTrainer, Validation

    config, examples = prepared.config, prepared.examples
    kind = PEFTTrainer
    if config.training.parallel.strategy == "fsdp":
        from loralab.training.sharded import ShardedTrainer

        kind = ShardedTrainer
    validation = None
    if encoded := examples.get("validation"):
        rows = list(prepared.rows.splits["validation"])
        validation = Validation(encoded, prepared.task, rows)
    return kind(
        prepared.attached.model,
        to_training_arguments(
            config.training,
            str(run.checkpoints),
            device=prepared.base.numerics.device,
            validated=validation is not None,
        ),
        prepared.base,
        examples["train"],
        validation,
        eval_batch_size=config.evaluation.per_device_eval_batch_size,
    )


def _fit(
    run: Run,
    prepared: Prepared,
    log: EventLog,
    start: Path | None,
    callbacks: Sequence[Any],
) -> tuple[dict[str, Any], ReportCallback]:
    """Run the trainer, maybe from a checkpoint; return times, rates and who watched."""
    trainer, report = _build_trainer(run, prepared, log, callbacks)
    several = prepared.config.training.parallel.processes > 1
    if several:
        check_alike(trainer, prepared)
        start = same_for_all(start)
    rank = trainer.args.process_index
    seed_everything(prepared.config.training.seed + rank * APART)
    how = f"resumes at step {step_of(start)}" if start else "begins"
    logger.info("training %s: %s", how, run.id)
    began = time.perf_counter()
    with quiet_libraries():
        if start and read_state(start)["finished"]:
            trainer.finish_from(start)
        else:
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        if several:
            part(trainer, prepared)
    spent, steps = report.seconds, trainer.state.global_step
    told = {
        "steps": steps,
        "seconds": round(time.perf_counter() - began, 3),  # of this session
        "step_seconds": round(spent, 3),
        **trainer.counts,
        "tokens_per_second": trainer.counts["tokens"] / spent if spent else None,
        "labels_per_second": trainer.counts["labels"] / spent if spent else None,
        "best_step": trainer.state.best_global_step or steps,
        "most_trainable": report.most_trained,
        "flops": _flops(trainer),
    }
    return told, report


def _flops(trainer: PEFTTrainer) -> float | None:
    """Return the floating-point operations of matrix products.

    Those of the training's first micro-batch, forward and backward, by position.
    """
    if trainer.flops is None:
        return None
    first, positions = trainer.flops
    return first * trainer.counts["positions"] / positions


def _save(run: Run, prepared: Prepared) -> None:
    """Write the adapter, as a plain LoRA wherever it can be one."""
    if driver := driver_of(prepared.config.peft):
        found = driver.result(prepared.attached.model)
        prepared.attached = replace(prepared.attached, model=found)
    model = prepared.attached.model
    with atomic_directory(run.adapter) as temporary:
        save_adapter(
            temporary,
            model,
            prepared.base,
            prepared.config.task,
            prepared.task_state,
            prepared.config.peft.name,
            prepared.attached.plain,
            rewriting(prepared.config.peft, prepared.attached.modules),
        )


def _saved(run: Run, prepared: Prepared) -> LoadedAdapter:
    """Return the adapter that was saved: what is measured is what a user will load.

    Where the saved form is another than the trained one, it is put on a fresh base.
    """
    model = prepared.attached.model
    if prepared.attached.plain is None:
        load_weights(model, run.adapter)
        return LoadedAdapter(
            model.eval(),
            prepared.base,
            prepared.task,
            prepared.config.peft,
            run.adapter,
        )
    prepared.attached.model.to("meta")  # its memory is needed for nothing any more
    return load_adapter(run)
