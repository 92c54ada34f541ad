"""From our training configuration to transformers' `TrainingArguments`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loralab.config import TrainingConfig

if TYPE_CHECKING:
    from transformers import TrainingArguments


def to_training_arguments(
    config: TrainingConfig,
    output_dir: str,
    *,
    device: str = "best",
    validated: bool = True,
) -> TrainingArguments:
    """Return the arguments that our trainer runs on.

    What the trainer does itself (batches, loss, evaluation, checkpoints, printing,
    dtype) is switched off here.

    Args:
        config: The training part of an experiment.
        output_dir: Where checkpoints are written.
        device: ``cpu`` keeps transformers from taking a GPU.
        validated: Whether there are validation rows.
    """
    from transformers import TrainingArguments

    stopping = config.early_stopping is not None
    evaluate = ("steps" if config.eval_steps else "epoch") if validated else "no"
    save_steps = config.eval_steps if stopping else config.save_steps or config.eval_steps
    return TrainingArguments(
        output_dir=output_dir,
        num_train_epochs=config.num_train_epochs,
        max_steps=config.max_steps if config.max_steps > 0 else -1,
        per_device_train_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_ratio,
        lr_scheduler_type=config.lr_scheduler_type,
        max_grad_norm=config.max_grad_norm,
        optim=config.optim,
        seed=config.seed,
        activation_checkpointing=config.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False}
        if config.gradient_checkpointing
        else None,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy=evaluate,
        eval_steps=config.eval_steps,
        save_strategy="steps" if save_steps else "epoch",
        save_steps=save_steps or 500,
        save_total_limit=config.save_total_limit,
        load_best_model_at_end=stopping,
        metric_for_best_model="loss" if stopping else None,
        greater_is_better=False if stopping else None,
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=device == "cpu",
    )
