"""A sweep of seconds: a tiny model, rows in two classes, and what its runs come to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from loralab.runs import Run
from tests.tiny import SENTENCES, tiny

EXPERIMENT = "text-classification"
LR = "training.learning_rate"
BASE = [
    "model.path=./m",
    "model.dtype=fp32",
    "data.source.params.path=rows.csv",
    "data.max_rows={train: 64, validation: 16, test: 16}",
    "training.max_steps=6",
    "training.per_device_train_batch_size=8",
    "training.callbacks=[]",
    "evaluation.resamples=200",
]


def prepare(folder: Path) -> Path:
    """Write a tiny model and rows in two classes into a working directory."""
    tiny("bert", folder / "m")
    rows = "".join(f'"{s}",{"ab"[i % 2]}\n' for i, s in enumerate(SENTENCES[:150]))
    (folder / "rows.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    return folder


def record(folder: Path) -> list[dict]:
    """Return the trials of the one sweep below a working directory."""
    files = list(folder.glob("runs/*-sweep-*/sweep.json"))
    if not files:
        return []
    (file,) = files
    return json.loads(file.read_text(encoding="utf-8"))["trials"]


def made(runs_dir: Path, name: str) -> dict:
    """Return what a run came to: the bytes of its adapter, losses, test metrics."""
    run = Run(runs_dir / name)
    losses = [
        (event["step"], event.get("eval_loss"))
        for event in run.events()
        if event["event"] == "validation"
    ]
    return {
        "hash": run.read()["hash"],
        "status": run.status,
        "adapter": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(run.adapter.iterdir())
            if file.suffix == ".safetensors"
        },
        "validation": losses,
        "test": run.evaluations()["test"]["metrics"],
    }
