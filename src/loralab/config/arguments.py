"""From our training configuration to transformers' `TrainingArguments`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from loralab.config.schema import TrainingConfig

OURS: dict[str, Any] = {
    "logging_nan_inf_filter": False,
    "remove_unused_columns": False,
    "report_to": "none",
    "disable_tqdm": True,
    "restore_callback_states_from_checkpoint": True,
}
"""What our trainer does itself, or never silently."""

SAME = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "weight_decay",
    "lr_scheduler_type",
    "max_grad_norm",
    "optim",
    "seed",
    "logging_steps",
    "eval_steps",
    "save_total_limit",
)
"""Fields that transformers calls as we do."""


def to_training_arguments(
    config: TrainingConfig,
    output_dir: str,
    *,
    device: str = "best",
    validated: bool = True,
) -> TrainingArguments:
    """Return the arguments that `PEFTTrainer` runs on.

    Args:
        config: The training part of an experiment.
        output_dir: Where checkpoints are written.
        device: ``cpu`` keeps transformers from taking a GPU.
        validated: Whether there are validation rows.
    """
    from transformers import TrainingArguments

    stopping = config.early_stopping is not None
    own = config.eval_steps if stopping else config.save_steps
    save_steps = own or config.eval_steps  # the best step must have a checkpoint
    given: dict[str, Any] = {name: getattr(config, name) for name in SAME} | OURS
    if not validated:
        given["eval_strategy"] = "no"
    else:
        given["eval_strategy"] = "steps" if config.eval_steps else "epoch"
    if config.gradient_checkpointing:
        given["activation_checkpointing"] = True
        given["activation_checkpointing_kwargs"] = {"use_reentrant": False}
    if config.parallel.processes > 1:
        given["ddp_backend"] = "gloo" if device == "cpu" else None  # the GPU's own
        # every trained tensor has a gradient in every step, and no buffer changes
        given["ddp_find_unused_parameters"] = False
        given["ddp_broadcast_buffers"] = False
    if stopping:
        given |= {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
        given["greater_is_better"] = False
    arguments = TrainingArguments(
        output_dir=output_dir,
        warmup_steps=config.warmup_ratio,  # below 1 it is a share of all steps
        save_strategy="steps" if save_steps else "epoch",
        save_steps=save_steps or 500,
        use_cpu=device == "cpu",
        **given,
    )
    if arguments.n_gpu > 1:  # one process uses one GPU: never DataParallel
        arguments._n_gpu = 1
    return arguments
