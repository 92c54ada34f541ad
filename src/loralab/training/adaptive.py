"""What drives AdaLoRA in a training; `loralab.adapters.adalora` has the numerics.

Nothing in transformers' trainer calls PEFT's allocator, and without it AdaLoRA is a
factorization of constant rank, without a word. Here it is called after each optimizer
step, while gradients stand. The regulariser is added to the gradient, once a step, so
each loss that is told is cross-entropy. Ranks that are not final are refused.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from loralab import registry
from loralab.adapters.adalora import (
    allocator_state,
    as_plain_lora,
    config_of,
    layers_of,
    load_allocator_state,
    orthogonality,
    realised_ranks,
    set_schedule,
    update,
)
from loralab.config import ExperimentConfig, PEFTConfig
from loralab.errors import ConfigError, TrainingError
from loralab.training.events import EventLog
from loralab.units import percent

if TYPE_CHECKING:
    import torch
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from loralab.training.trainer import PEFTTrainer

logger = logging.getLogger(__name__)

TIES = 0.02
"""Share of the target that may be missing: triplets that tie with the last one cut."""


def check(config: ExperimentConfig) -> None:
    """Refuse early stopping.

    Raises:
        ConfigError: it is on.
    """
    if config.training.early_stopping:
        raise ConfigError(
            f"{config.peft.name} cannot be stopped early",
            where="training.early_stopping",
            why="its ranks meet the budget near the end only: an earlier checkpoint "
            "has more of them than was asked for",
            fix="set training.early_stopping=null, and choose training.max_steps",
        )


def begin(model: Any, config: PEFTConfig, steps: int) -> None:
    """Fit the phases of the budget into the training's steps.

    Raises:
        ConfigError: there are too few.
    """
    entry = registry.get("PEFT method", config.name)
    params: Any = entry.schema(**config.params)
    set_schedule(model, steps, params.warmup_share, params.final_share)


class AdaLoraCallback(TrainerCallback):
    """Allocates ranks after each optimizer step, and writes them down.

    An event ``ranks`` (step, budget, total, ranks by module) is emitted where ranks
    have changed: with the first step, logging steps, and the final allocation.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._budget = 0
        self._told: dict[str, int] = {}

    def state(self) -> dict[str, Any]:
        """Return what was told last, for a checkpoint."""
        return {"budget": self._budget, "told": self._told}

    def load(self, state: dict[str, Any]) -> None:
        """Set what `state` returned."""
        self._budget, self._told = state["budget"], dict(state["told"])

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Assert that the schedule is that of this training.

        Raises:
            TrainingError: it has another number of steps.
        """
        planned = config_of(model).total_step
        if planned != state.max_steps:
            raise TrainingError(
                f"the ranks are scheduled for {planned} steps, and training has "
                f"{state.max_steps}",
                why="the final allocation would be missed, or come too early",
                fix="call set_schedule with the number of optimizer steps",
            )

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Allocate; the step that was just taken is not yet counted."""
        step = state.global_step + 1
        done = update(model, step)
        if done.masked or step == 1:
            self._budget = done.budget
        if step == 1 or done.final or step % args.logging_steps == 0:
            self._tell(step, realised_ranks(model))

    def _tell(self, step: int, ranks: dict[str, int]) -> None:
        if ranks == self._told:
            return
        self._told = ranks
        total = sum(ranks.values())
        self._log.emit(
            "ranks", step=step, budget=self._budget, total=total, ranks=ranks
        )


def drive(trainer: PEFTTrainer, log: EventLog, config: PEFTConfig) -> None:
    """Put the callback, the allocator's state and the regulariser on a trainer."""
    model = trainer.model
    weight = config_of(model).orth_reg_weight
    callback = AdaLoraCallback(log)
    trainer.add_callback(callback)
    trainer.parts["allocator"] = (
        lambda: allocator_state(model),
        lambda state: load_allocator_state(model, state),
    )
    trainer.parts["ranks"] = (callback.state, callback.load)

    def penalty(trained: Any) -> torch.Tensor:
        return weight * orthogonality(trained)

    if weight:
        trainer.penalty = penalty


def check_final(model: Any) -> None:
    """Assert that the ranks are final and meet the budget.

    Raises:
        TrainingError: the model was never driven, or its total rank is not the target.
    """
    config = config_of(model)
    if config.rank_pattern is None:
        raise TrainingError(
            "AdaLoRA was never driven: no rank was ever allocated",
            why="its allocator was not called after the optimizer's steps, so this is "
            f"a factorization of constant rank {config.init_r}",
            fix="keep AdaLoraCallback on the trainer (loralab.training.adaptive.drive)",
        )
    ranks = realised_ranks(model)
    total, target = sum(ranks.values()), config.target_r * len(ranks)
    if not (1 - TIES) * target <= total <= target or total == 0:
        raise TrainingError(
            f"the ranks add up to {total}, and the target is {target}",
            why="more: training ended before the final allocation; over "
            f"{percent(TIES, 0)} fewer: so many triplets tie in importance, as where "
            "no gradient comes",
            fix="train to the last step, on modules that the loss depends on",
        )
    if total < target:
        logger.warning("%d triplets tied and went too: %d of %d remain",
                       target - total, total, target)  # fmt: skip
    for name, layer in layers_of(model).items():
        (values,) = layer.lora_E.values()
        if int(values.count_nonzero()) > ranks[name]:
            raise TrainingError(
                "triplets that were cut are not zero: they trained on", where=name
            )


def result(model: Any) -> Any:
    """Return the plain LoRA of the final ranks on the same base.

    Raises:
        TrainingError: the ranks are not final.
    """
    check_final(model)
    return as_plain_lora(model)
