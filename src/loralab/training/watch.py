"""What watches a training: the teller of its progress, and a guard that it learns."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from loralab.errors import TrainingError
from loralab.runs.environment import peak_memory_bytes
from loralab.training.events import EventLog

if TYPE_CHECKING:
    import torch
    from transformers import TrainerControl, TrainerState, TrainingArguments

MOVES_CHECKED_AFTER = 3


class ReportCallback(TrainerCallback):
    """Emits an event for every log, evaluation and checkpoint, with rate and ETA."""

    def __init__(self, log: EventLog, counts: dict[str, int]) -> None:
        self._log = log
        self._counts = counts
        self._started = 0.0
        self._first_step = 0
        self.seconds = 0.0
        self.most_trained = 0
        self._peak_before = 0

    @property
    def peak_memory_bytes(self) -> int:
        """The highest resident size of this session and those before it."""
        return max(self._peak_before, peak_memory_bytes())

    def state(self) -> dict[str, Any]:
        """Return what a resumed training goes on counting from."""
        return {
            "seconds": self.seconds,
            "most_trained": self.most_trained,
            "peak_memory_bytes": self.peak_memory_bytes,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Set what `state` returned; an older one knows no peak."""
        self.seconds, self.most_trained = state["seconds"], state["most_trained"]
        self._peak_before = state.get("peak_memory_bytes", 0)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Note which step the clock counts from."""
        self._first_step = 0 if self.seconds else state.global_step

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Start the clock; evaluation and saving are not on it."""
        sizes = [p.numel() for p in model.parameters() if p.requires_grad]
        self.most_trained = max(self.most_trained, sum(sizes))
        self._started = time.perf_counter()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Stop the clock and tell how far we are."""
        self.seconds += time.perf_counter() - self._started
        done = state.global_step - self._first_step
        left = (state.max_steps - state.global_step) * self.seconds / done
        self._log.tell(
            "step",
            step=state.global_step,
            of=state.max_steps,
            eta_seconds=left,
            tokens_per_second=self._counts["tokens"] / self.seconds,
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Emit loss and learning rate."""
        if not logs or "loss" not in logs:
            return
        self._log.emit(
            "log",
            step=state.global_step,
            epoch=round(float(state.epoch or 0), 4),
            loss=logs["loss"],
            grad_norm=logs.get("grad_norm"),
            learning_rate=logs["learning_rate"],
            tokens_per_second=round(self._counts["tokens"] / self.seconds, 1),
            peak_memory_bytes=self.peak_memory_bytes,
        )

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Emit the validation metrics."""
        self._log.emit("validation", step=state.global_step, **(metrics or {}))

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Emit that a checkpoint stands."""
        self._log.emit("checkpoint", step=state.global_step)


class MovementGuard(TrainerCallback):
    """Asserts that every trained tensor has moved after three steps.

    LoRA's B moves at the first step, A at the second (its gradient is zero while B is);
    steps with a learning rate of zero (warm-up) do not count.
    """

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, float]] = {}
        self._steps = 0

    @staticmethod
    def _digest(tensor: torch.Tensor) -> tuple[float, float]:
        exact = getattr(tensor, "full_tensor", lambda: tensor)().detach().double()
        return float(exact.sum()), float(exact.square().sum())

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Remember every trained tensor by a digest."""
        self._before = {
            name: self._digest(p)
            for name, p in model.named_parameters()
            if p.requires_grad
        }

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        """Count the step, and compare after the third.

        Raises:
            TrainingError: tensors stand still; they are named.
        """
        if not self._before or max(lr_scheduler.get_last_lr()) == 0:
            return
        self._steps += 1
        if self._steps < MOVES_CHECKED_AFTER:
            return
        still = [
            name
            for name, p in model.named_parameters()
            if name in self._before and self._digest(p) == self._before[name]
        ]
        if still:
            raise TrainingError(
                f"{len(still)} of {len(self._before)} trained tensors have not moved "
                f"after {self._steps} steps",
                where=still[0],
                why="no gradient reaches them, or the learning rate is too small",
                fix="check target modules, gradient checkpointing and learning rate",
            )
        self._before = {}
