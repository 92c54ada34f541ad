"""`PEFTTrainer`: `Trainer` with our batches, loss, evaluation and checkpoints.

The loss of an optimizer step is the mean over all labels of the step,

    L = Σ_micro-batches Σ_labels −log p(label) / N,   N = labels of the whole step,

so its gradient does not depend on how the step is split into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import broadcast_object_list, gather_object
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from loralab.adapters.layers import keep_inputs
from loralab.data.batching import (
    EpochBatches,
    collate,
    length_groups,
    overhead_of,
    positions,
    unit_lengths,
    units,
)
from loralab.data.examples import Examples, generates
from loralab.errors import TrainingError
from loralab.evaluation.calculator import get_metrics_calculator
from loralab.evaluation.scores import Answers
from loralab.inference.predict import predict
from loralab.models.forward import supervised_logits
from loralab.models.loaded import LoadedModel
from loralab.runs.files import atomic_directory, remove_directory
from loralab.training.checkpoint import (
    generators,
    put_trained,
    read_state,
    read_trained,
    set_generators,
    step_of,
    write_state,
    write_trained,
)

Part = tuple[Callable[[], Any], Callable[[Any], None]]
"""A part of a training's state: what reads it (a state tree), and what sets it."""


@dataclass(frozen=True)
class Validation:
    """What the adapter is validated on during training.

    Attributes:
        examples: The encoded rows.
        task: The task they are of.
        rows: The rows themselves.
    """

    examples: Examples
    task: Any
    rows: Sequence[Mapping[str, Any]]

    def measure(self, model: Any, base: LoadedModel, batch: int) -> dict[str, float]:
        """Return the cross-entropy, and the primary metric of a task that reads."""
        task, form = self.task, self.task.form
        writes = generates(task)
        said = predict(
            model,
            base,
            self.examples,
            batch,
            task=None if writes else task,
            finish=lambda i, readings: task.answer(self.rows[i], readings).value,
        )
        found = {"eval_loss": said.cross_entropy}
        if writes or said.answers is None:
            return found
        calculator = get_metrics_calculator(task.metrics[:1], form)
        references = [task.reference(self.rows[i]) for i in said.rows]
        classes = len(task.labels) if form == "class" else 0
        answers = Answers(form, references, said.answers, classes=classes)
        for name, scores in calculator.scores(answers).items():
            found[f"eval_{name}"] = scores.total()
        return found


def _sampler(lengths: Sequence[int], args: TrainingArguments) -> EpochBatches:
    """Return the order of units, which seed and epoch alone decide."""
    batch, accumulation = (
        args.per_device_train_batch_size,
        args.gradient_accumulation_steps,
    )
    return EpochBatches(
        lengths,
        batch,
        accumulation,
        args.seed,
        processes=args.world_size,
        process=args.process_index,
    )


class PEFTTrainer(Trainer):
    """Trains a PEFT model on `Examples`.

    Attributes:
        base: What the adapter stands on.
        rate_ratio: LoRA+: the learning rate of B's over that of all others.
        flops: Of matrix products in the first micro-batch, and its positions.
        counts: Tokens, positions (with padding) and labels seen.
        parts: Named parts of the state that checkpoints hold beside weights, optimizer,
            scheduler and generators.
        penalty: What is added to the gradient of each optimizer step, once, before
            clipping: that of a scalar of the model. It is in no loss that is told.
        fit: Given a checkpoint's tensors, lets the model have their shapes.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        base: LoadedModel,
        train: Examples,
        validation: Validation | None,
        callbacks: Sequence[TrainerCallback] = (),
        eval_batch_size: int = 32,
    ) -> None:
        keep_inputs(model, base.numerics)
        self.base = base
        self._train = train
        self._validation = validation
        self._eval_batch_size = eval_batch_size
        self._units = units(train)
        self._overhead = overhead_of(base.numerics.device)
        self.counts = {"tokens": 0, "positions": 0, "labels": 0}
        self.rate_ratio = 1.0
        lengths = unit_lengths(train, self._units)
        self._sampler = _sampler(lengths, args)
        self._shortest = self._units[lengths.index(min(lengths))]
        self.flops: tuple[int, int] | None = None
        self.parts: dict[str, Part] = {
            "counts": (lambda: dict(self.counts), self.counts.update),
            "flops": (lambda: self.flops, self._keep_flops),
        }
        self.penalty: Callable[[Any], torch.Tensor] | None = None
        self.fit: Callable[[dict[str, torch.Tensor]], None] = lambda _: None
        super().__init__(
            model=model,
            args=args,
            train_dataset=self._units,
            eval_dataset=validation.examples if validation else None,
            data_collator=self._collate,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)
        self.loss_is_scaled_for_ga = True

    def _collate(self, batch: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Return a micro-batch as groups of like length, each padded apart.

        Of none, a process that has no rows left in a step, it is a short one that does
        not count: gradients are summed over all processes, so all must take part.
        """
        idle = not batch
        batch = batch or [self._shortest]
        draw = (self.args.seed, self._sampler.epoch)
        sizes = unit_lengths(self._train, batch)
        several = self.accelerator.num_processes > 1  # DDP wants one forward a step
        groups = length_groups(sizes, 2**40 if several else self._overhead)
        made = [
            collate(self._train, [batch[i] for i in group], self.base.pad_id, draw)
            for group in groups
        ]
        held = [positions(self._train, group) for group in made]
        tokens = 0 if idle else sum(sizes)
        return {
            "groups": made,
            "tokens": tokens,
            "positions": sum(held),
            "labels": 0 if idle else sum(len(group["labels"]) for group in made),
        }

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return batches in an order that seed and epoch alone decide."""
        loader: DataLoader[Any] = DataLoader(
            self._units,  # type: ignore[arg-type]
            batch_sampler=self._sampler,
            collate_fn=self._collate,
        )
        # the sampler gives each process its rows; Accelerate would repeat some of them
        device = self.accelerator.device
        prepared: DataLoader[Any] = prepare_data_loader(
            loader, device, num_processes=1, process_index=0, put_on_device=True
        )
        return prepared

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """Return the micro-batches of a step, and the number of labels in all."""
        batches = [b for _, b in zip(range(num_batches), epoch_iterator, strict=False)]
        seen = [sum(batch[name] for batch in batches) for name in self.counts]
        if self.accelerator.num_processes > 1:
            mine = torch.tensor([seen], device=device)
            seen = self.accelerator.gather(mine).sum(0).tolist()
        for name, count in zip(self.counts, seen, strict=True):
            self.counts[name] += count
        return batches, seen[-1]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> torch.Tensor:
        """Return the micro-batch's share of the step's mean cross-entropy, a scalar.

        Raises:
            TrainingError: it is NaN or infinite.
        """
        total = torch.zeros((), device=self.args.device)
        labels = 0
        for group in inputs["groups"]:
            logits_NC, labels_N, _ = supervised_logits(model, group, self.base)
            total = total + cross_entropy(logits_NC, labels_N, reduction="sum")
            labels += len(labels_N)
        total = total if inputs["labels"] else 0 * total
        loss = total / (num_items_in_batch or labels)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}",
                why="the learning rate is too high, or the base's weights are broken",
                fix="lower training.learning_rate, or set model.dtype=fp32",
            )
        processes: int = self.accelerator.num_processes
        return loss * processes  # DDP averages over them

    def training_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        num_items_in_batch: int | None = None,
    ) -> torch.Tensor:
        """Add a micro-batch's gradient, and with the last one the penalty's."""
        if self.flops is None:
            with FlopCounterMode(display=False) as counter:
                loss: torch.Tensor = super().training_step(
                    model, inputs, num_items_in_batch
                )
            self.flops = counter.get_total_flops(), inputs["positions"]
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
        if self.penalty is not None and self.accelerator.sync_gradients:
            torch.autograd.backward(self.penalty(self.model))
        return loss

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Return the optimizer; with LoRA+ every B learns by a rate of its own."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.rate_ratio != 1:
            named = self.model.named_parameters()
            faster = {id(p) for name, p in named if ".lora_B." in name}
            for group in list(optimizer.param_groups):
                held = group["params"]
                group["params"] = [p for p in held if id(p) not in faster]
                rest = [p for p in held if id(p) in faster]
                rate = group["lr"] * self.rate_ratio
                if rest:
                    optimizer.add_param_group({**group, "params": rest, "lr": rate})
        return optimizer

    def _keep_flops(self, found: Sequence[int] | None) -> None:
        if found is not None:
            flops, positions = found
            self.flops = flops, positions

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: the estimate is of no use here, and knows one batch shape only."""
        return 0

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the validation figures of the present adapter."""
        if self._validation is None:
            raise TrainingError("there are no validation rows")
        metrics = self._validation.measure(self.model, self.base, self._eval_batch_size)
        if self.accelerator.num_processes > 1:  # all must decide alike when to stop
            (metrics,) = broadcast_object_list([metrics])
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    # ---- checkpoints: ours, atomic and without pickle ----

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.state.best_global_step:
            best = folder.with_name(f"checkpoint-{self.state.best_global_step}")
            self.state.best_model_checkpoint = str(best)
        everyone = [*self.callback_handler.callbacks, self.control]
        for callback in everyone:
            if isinstance(callback, ExportableState):
                name = type(callback).__name__
                self.state.stateful_callbacks[name] = callback.state()
        over = self.state.global_step >= self.state.max_steps
        several = self.accelerator.num_processes > 1
        self._write(
            folder,
            parts={name: read() for name, (read, _) in self.parts.items()},
            optimizer=self.optimizer.state_dict(),
            scheduler=self.lr_scheduler.state_dict(),
            generators=gather_object([generators()]) if several else generators(),
            finished=over or self.control.should_training_stop,
        )
        self.accelerator.wait_for_everyone()

    def _write(self, folder: Path, **state: Any) -> None:
        """Write a checkpoint, and drop old ones; the first process does it."""
        if not self.is_world_process_zero():
            return
        with atomic_directory(folder) as temporary:
            write_trained(temporary, self.model)
            write_state(temporary, **state)
            self.state.save_to_json(str(temporary / "trainer_state.json"))
        self._rotate(folder)

    def _rotate(self, newest: Path) -> None:
        """Keep the newest checkpoints and the best one."""
        kept = {newest.name, Path(self.state.best_model_checkpoint or ".").name}
        found = sorted(newest.parent.glob("checkpoint-*"), key=step_of)
        others = [p for p in found if p.name not in kept]
        excess = max(0, len(found) - (self.args.save_total_limit or len(found)))
        for old in others[:excess]:
            remove_directory(old)

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        folder = Path(checkpoint)
        tensors = self._shaped(folder)
        for name, part in read_state(folder)["parts"].items():
            self.parts[name][1](part)
        put_trained(self.model, tensors, folder)

    def _shaped(self, folder: Path) -> dict[str, torch.Tensor]:
        """Return a checkpoint's tensors, and let the model have their shapes."""
        tensors = read_trained(folder)
        self.fit(tensors)
        return tensors

    def _load_best_model(self) -> None:
        # the run may have been moved since: only the name of the folder counts
        name = Path(self.state.best_model_checkpoint).name
        folder = Path(self.args.output_dir) / name
        put_trained(self.model, self._shaped(folder), folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state = read_state(Path(checkpoint))
            self.optimizer.load_state_dict(state["optimizer"])
            self.lr_scheduler.load_state_dict(state["scheduler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            held = read_state(Path(checkpoint))["generators"]
            several = isinstance(held, list)
            set_generators(held[self.args.process_index] if several else held)

    def finish_from(self, checkpoint: Path) -> None:
        """Take the adapter of a training that had ended when it was killed."""
        from transformers import TrainerState

        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self._load_from_checkpoint(str(checkpoint))
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._load_best_model()
