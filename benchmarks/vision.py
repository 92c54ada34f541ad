"""Images per second of LoRA on a ViT, against plain `Trainer` + PEFT, on this machine.

The arms train the same adapter (r = 16 on every linear layer, and the head) on the same
base, in batches of 32 CIFAR-10 images at 112 px:

    loralab          `PEFTTrainer`: bf16 weights and products, attention written out,
                     images held as they are and resized in the batch
    trainer, bf16    transformers' Trainer with ``bf16=True``; its image processor
                     prepares each image when the row is read, as in its examples
    trainer          the same by default, in fp32

Wall time is that of `train()`, without loading the model; CPU seconds are of the
process, and say more on a machine that others use. The arms take turns.

    python benchmarks/vision.py                   # CIFAR-10 must be in the cache
    python benchmarks/vision.py data=mnist-5k     # or another set
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from PIL import Image

from loralab.config import ExperimentConfig, compose
from loralab.data.images import read
from loralab.models.embedded import embedded_folder
from loralab.models.numerics import seed_everything
from loralab.models.quiet import quiet_libraries
from loralab.runs.environment import environment
from loralab.training.prepare import Prepared, prepare
from loralab.training.trainer import PEFTTrainer

RESULTS = Path(__file__).parent / "results" / "vision.json"
ROUNDS, STEPS, BATCH, SIZE = 2, 5, 32, 112
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
ARMS = ("loralab", "trainer, bf16", "trainer")


def experiment(overrides: list[str]) -> ExperimentConfig:
    """Return the configuration that all arms share."""
    return compose(
        "vit-lora",
        [
            f"task.params.size={SIZE}",
            f"data.max_rows={{train: {STEPS * BATCH}, test: 32}}",
            "training.num_train_epochs=1",
            f"training.per_device_train_batch_size={BATCH}",
            *overrides,
        ],
    )


def ours(prepared: Prepared) -> Any:
    """Return loralab's trainer."""
    args = prepared.config.training.to_training_arguments("unused")
    args.save_strategy, args.eval_strategy = "no", "no"
    return PEFTTrainer(
        prepared.attached.model,
        args,
        prepared.base,
        prepared.examples["train"],
        None,
    )


def plain(prepared: Prepared, bf16: bool) -> Any:
    """Return transformers' trainer, with PEFT and the default image pipeline."""
    folder = embedded_folder("vit-s14")
    labels = prepared.task_state["labels"]
    seed_everything(0)
    model = transformers.AutoModelForImageClassification.from_pretrained(
        folder, num_labels=len(labels)
    )
    config = LoraConfig(
        r=16, lora_alpha=16, target_modules=TARGETS, modules_to_save=["classifier"]
    )
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    side = {"height": SIZE, "width": SIZE}
    pictures = [
        (Image.fromarray(read(row["image"]).squeeze()), labels.index(row["label"]))
        for row in prepared.rows.splits["train"]
    ]

    class Pictures(torch.utils.data.Dataset[Any]):
        """Rows that are prepared when they are read."""

        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, i: int) -> dict[str, Any]:
            image, label = pictures[i]
            made = processor(image.convert("RGB"), size=side, return_tensors="pt")
            return {"pixel_values": made["pixel_values"][0], "labels": label}

    trained = prepared.config.training
    return transformers.Trainer(
        get_peft_model(model, config),
        transformers.TrainingArguments(
            output_dir=tempfile.gettempdir(),  # made, and never written to
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            learning_rate=trained.learning_rate,
            bf16=bf16,
            use_cpu=prepared.base.numerics.device == "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            logging_steps=10**6,
        ),
        train_dataset=Pictures(),
    )


def measure(arm: str, overrides: list[str]) -> dict[str, float]:
    """Train one arm for some steps; return images per second, of wall and CPU time."""
    with quiet_libraries():
        prepared = prepare(experiment(overrides))
        trainer = ours(prepared) if arm == "loralab" else plain(prepared, "bf16" in arm)
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        images = STEPS * BATCH
        return {
            "images_per_second": images / (time.perf_counter() - wall),
            "images_per_cpu_second": images / (time.process_time() - cpu),
        }


def main() -> None:
    """Measure, print and write the results."""
    overrides = sys.argv[1:]
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for number in range(ROUNDS):
        for arm in ARMS:
            found[arm].append(measure(arm, overrides))
            print(number, arm, found[arm][-1], flush=True)
    arms = {
        arm: {
            name: round(statistics.median(one[name] for one in several), 2)
            for name in several[0]
        }
        for arm, several in found.items()
    }
    result = {
        "rounds": ROUNDS,
        "steps": STEPS,
        "batch": BATCH,
        "size": SIZE,
        "threads": torch.get_num_threads(),
        "overrides": overrides,
        "arms": arms,
        "times_faster": {
            arm: {
                name: round(arms["loralab"][name] / value, 2)
                for name, value in figures.items()
            }
            for arm, figures in arms.items()
            if arm != "loralab"
        },
        "environment": environment(),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["times_faster"], indent=1))


if __name__ == "__main__":
    main()
