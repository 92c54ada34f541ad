"""Training throughput against plain `Trainer` + PEFT, in one run on this machine.

Four arms see the same rows once, on the same base, in the same dtype, with the same
adapter, learning rate and (within one) number of optimizer steps:

    loralab       length-grouped or packed batches, logits only where a label is
    loralab, seed 1   the same with another seed: what "within noise" is
    max_length    transformers' Trainer, every row padded to 256 tokens
    dynamic       transformers' Trainer, every batch padded to its longest row

The figure is labels (supervised tokens, or rows of a classifier) per second of training
steps; compared are ratios. Held-out cross-entropy is measured by one and the same code.

    python benchmarks/training.py            # all four sets
    python benchmarks/training.py chatterbot
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from loralab.config import ExperimentConfig, compose
from loralab.data.batching import units
from loralab.data.examples import IGNORE, Examples
from loralab.evaluation.intervals import score_intervals
from loralab.evaluation.scores import ratio_of
from loralab.inference.predict import Predictions, predict
from loralab.models.quiet import quiet_libraries
from loralab.runs.environment import environment
from loralab.training.prepare import Prepared, prepare
from loralab.training.trainer import PEFTTrainer

LENGTH = 256
RESULTS = Path(__file__).parent / "results" / "training.json"


@dataclass(frozen=True)
class Case:
    """A set, how many rows of it, and the rows (packs) of a step."""

    experiment: str
    overrides: tuple[str, ...]
    rows: int
    batch: int


CASES = {
    "sms-spam": Case("sms-spam", ("data=sms-spam",), 512, 16),
    "reuters-r8": Case("sms-spam", ("data=reuters-r8",), 512, 16),
    "chatterbot": Case("chatterbot", (), 160, 2),
    "gsm8k": Case("gsm8k", (), 96, 4),
}


class Clock(TrainerCallback):  # type: ignore[misc]
    """Adds up the seconds of all optimizer steps, the first one included."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.steps = 0
        self._start = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self._start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        self.steps += 1
        self.seconds += time.perf_counter() - self._start


def experiment(case: Case, seed: int) -> ExperimentConfig:
    """Return the configuration that all arms share."""
    return compose(
        case.experiment,
        [
            *case.overrides,
            f"task.params.max_length={LENGTH}",
            f"data.max_rows.train={case.rows}",
            "data.max_rows.test=200",
            "data.validation_fraction=0",
            "training.num_train_epochs=1",
            "training.warmup_ratio=0",
            f"training.per_device_train_batch_size={case.batch}",
            f"training.seed={seed}",
        ],
    )


def pad(examples: Examples, batch: list[int], width: int, pad_id: int) -> Any:
    """Return the tensors that transformers' own collators would: padded right."""
    shape = (len(batch), width)
    ids, mask = torch.full(shape, pad_id), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORE)
    for b, i in enumerate(batch):
        size = len(examples.input_ids[i])
        ids[b, :size] = torch.tensor(examples.input_ids[i])
        mask[b, :size] = 1
        if examples.supervision == "next-token":
            labels[b, :size] = torch.tensor(examples.labels[i])
    if examples.supervision == "example":
        labels = torch.tensor([examples.labels[i] for i in batch])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def run_plain(prepared: Prepared, arm: str, steps: int) -> Clock:
    """Train with transformers' Trainer, padded to 256 or to the batch's longest."""
    examples, config = prepared.examples["train"], prepared.config.training
    pad_id = prepared.base.processor.pad_token_id

    def collate(batch: list[int]) -> Any:
        longest = max(len(examples.input_ids[i]) for i in batch)
        return pad(examples, batch, LENGTH if arm == "max_length" else longest, pad_id)

    clock = Clock()
    args = TrainingArguments(
        output_dir=tempfile.gettempdir(),  # made, and never written to
        num_train_epochs=1,
        per_device_train_batch_size=-(-len(examples) // steps),
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        bf16=prepared.base.numerics.dtype == "bf16",
        use_cpu=prepared.base.numerics.device == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        logging_steps=10**6,
    )
    trainer = Trainer(
        prepared.attached.model,
        args,
        train_dataset=list(range(len(examples))),
        data_collator=collate,
        callbacks=[clock],
    )
    trainer.train()
    return clock


def run_ours(prepared: Prepared) -> Clock:
    """Train with `PEFTTrainer`."""
    clock = Clock()
    args = prepared.config.training.to_training_arguments("unused")
    args.save_strategy, args.eval_strategy = "no", "no"
    trainer = PEFTTrainer(
        prepared.attached.model,
        args,
        prepared.base,
        prepared.examples["train"],
        None,
        [clock],
    )
    trainer.train()
    return clock


def measure(case: Case, arm: str, steps: int) -> tuple[dict[str, Any], Predictions]:
    """Train one arm and return its figures, and its held-out predictions."""
    config = experiment(case, seed=1 if arm.endswith("seed 1") else 0)
    with quiet_libraries():
        prepared = prepare(config)
        prepared.attached.model.train()
        ours = arm.startswith("loralab")
        clock = run_ours(prepared) if ours else run_plain(prepared, arm, steps)
    held_out = prepared.task(
        list(prepared.rows.splits["test"]), prepared.base.processor
    )
    said = predict(prepared.attached.model, prepared.base, held_out, 32)
    train = prepared.examples["train"]
    figures = {
        "steps": clock.steps,
        "rows": len(train),
        "tokens": train.tokens,
        "labels": train.supervised,
        "seconds": round(clock.seconds, 2),
        "labels_per_second": round(train.supervised / clock.seconds, 2),
        "held_out_cross_entropy": round(said.cross_entropy, 4),
    }
    return figures, said


def run_case(name: str) -> dict[str, Any]:
    """Run all arms of a set and print them with their ratios."""
    case = CASES[name]
    prepared = prepare(experiment(case, 0))
    steps = -(-len(units(prepared.examples["train"])) // case.batch)
    found: dict[str, Any] = {}
    said: dict[str, Predictions] = {}
    print(f"\n{name}: {case.rows} rows", flush=True)
    for arm in ("loralab", "loralab, seed 1", "max_length", "dynamic"):
        found[arm], said[arm] = measure(case, arm, steps)
        both = [
            {"cross_entropy": ratio_of(said[one].nll, said[one].labels)}
            for one in (arm, "loralab")
        ]
        gap = score_intervals(both, 0.95, 2000, 0)["cross_entropy"][-1]
        found[arm]["cross_entropy_minus_loralab"] = gap.as_dict()
        ours = found["loralab"]["labels_per_second"]
        found[arm]["loralab_is_faster_by"] = round(
            ours / found[arm]["labels_per_second"], 2
        )
        print(f"  {arm:16}", json.dumps(found[arm]), flush=True)
    return found


def main() -> None:
    """Run the named sets, or all, and write the result."""
    chosen = sys.argv[1:] or list(CASES)
    results = {name: run_case(name) for name in chosen}
    if chosen == list(CASES):
        RESULTS.parent.mkdir(exist_ok=True)
        content = {"environment": environment(), "results": results}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"written: {RESULTS.name}")


if __name__ == "__main__":
    main()
