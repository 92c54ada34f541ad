"""Batched answers against one by one, and evaluation's memory against its rows.

    python benchmarks/inference.py

1. 1,000 text messages of mixed length (a few to over a hundred tokens), 1,000 news
   articles cut at 128 tokens, and 60 prompts of a language model, each through a
   trained adapter: the same calls in batches and one by one, in one process, with the
   share of equal answers; in the dtype that is best on this machine, and in fp32.
   Where one row keeps all cores busy, batches gain less. In bf16 a token that is
   nearly as likely as another may change with the batch, and the text after it.
2. The rise of the resident peak (VmHWM) while 1,000 and while 10,000 rows are
   evaluated, in processes of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "inference.json"
SETTINGS = ["evaluation.resamples=200", "training.callbacks=[]"]
CLASSIFIER = [
    "task.params.max_length=128",
    "data.max_rows={train: 800, validation: 50, test: 1000}",
    "training.num_train_epochs=1",
    *SETTINGS,
]
TEXTS = {
    "messages": ["data.test_fraction=0.25", *CLASSIFIER],
    "messages, fp32": ["model.dtype=fp32", "data.test_fraction=0.25", *CLASSIFIER],
    "articles": ["data=reuters-r8", *CLASSIFIER],
}
WRITER = ["data.max_rows={test: 60}", "training.max_steps=8", *SETTINGS]
WRITERS = {
    "language model": WRITER,
    "language model, fp32": ["model.dtype=fp32", *WRITER],
}


def first(answer: Any) -> Any:
    """Return what is compared of an answer."""
    return next(iter(answer.values())) if isinstance(answer, dict) else answer


def compare(pipeline: Any, inputs: list[Any], **options: Any) -> dict[str, Any]:
    """Return seconds in batches and one by one, and the share of equal answers."""
    pipeline(inputs[:32], **options)  # kernels are built once
    start = time.perf_counter()
    together = pipeline(inputs, **options)
    batched = time.perf_counter() - start
    start = time.perf_counter()
    alone = [pipeline([one], **options)[0] for one in inputs]
    single = time.perf_counter() - start
    equal = sum(first(a) == first(b) for a, b in zip(together, alone, strict=True))
    return {
        "inputs": len(inputs),
        "batched_seconds": round(batched, 3),
        "one_by_one_seconds": round(single, 3),
        "ratio": round(single / batched, 2),
        "equal_answers": equal / len(inputs),
    }


def speed(folder: str) -> dict[str, Any]:
    """Return the comparison of the classifier and of the language model."""
    from loralab import InferencePipeline, compose, train
    from loralab.data.examples import get_preprocessor
    from loralab.data.rows import load_rows

    found = {}
    for name, given in TEXTS.items():
        config = compose("sms-spam", given)
        run = train(config, folder)
        rows = load_rows(config.data, get_preprocessor(config.task)).splits["test"]
        texts = [row["text"] for row in rows]
        found[name] = compare(InferencePipeline.from_run(run), texts)
        print(name, found[name], flush=True)
    for name, given in WRITERS.items():
        config = compose("chatterbot", given)
        run = train(config, folder)
        rows = load_rows(config.data, get_preprocessor(config.task)).splits["test"]
        asked = [row["messages"][:-1] for row in rows]
        pipeline = InferencePipeline.from_run(run)
        found[name] = compare(pipeline, asked, max_new_tokens=24)
        print(name, found[name], flush=True)
    return found


def rise(count: int, folder: str) -> int:
    """Return by how many bytes the peak rises while `count` rows are evaluated."""
    from datasets import Dataset

    from loralab import compose, train
    from loralab.evaluation.evaluate import evaluate_split
    from loralab.inference.load import load_adapter

    run = train(compose("sms-spam", TEXTS["articles"]), folder)
    adapter = load_adapter(run)
    words = [
        "grain",
        "oil",
        "trade",
        "profit",
        "bank",
        "ship",
        "wheat",
        "crude",
        "rate",
        "share",
    ]
    rows = [
        {
            "text": " ".join(words[(i * k) % 8] for k in range(1, 10 + i % 90)),
            "text_pair": None,
            "label": adapter.task.labels[i % 8],  # type: ignore[attr-defined]
            "origin": f"made:{i}",
            "key": str(i),
        }
        for i in range(10_000)
    ]
    made = Dataset.from_list(rows)  # the same 10,000 in memory in both cases
    settings = run.config.evaluation
    warm = made.select(range(9_000, 9_200))
    evaluate_split(run, adapter, "warm", warm, settings)
    before = _peak(reset=True)
    evaluate_split(run, adapter, "made", made.select(range(count)), settings)
    return _peak() - before


def _peak(reset: bool = False) -> int:
    if reset:  # the high-water mark falls to the present size
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Run all, and write the result."""
    if sys.argv[1:2] == ["--rise"]:
        print(rise(int(sys.argv[2]), sys.argv[3]))
        return
    from loralab.runs.environment import environment

    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = speed(folder)
        found["evaluation_peak_rise_bytes"] = {}
        for count in (1_000, 10_000):
            command = [sys.executable, __file__, "--rise", str(count), folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            risen = int(done.stdout.splitlines()[-1])
            found["evaluation_peak_rise_bytes"][str(count)] = risen
            print(f"{count} rows: peak rises by {risen / 1e6:.1f} MB", flush=True)
    content = {"environment": environment(), **found}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written: {RESULTS.name}")


if __name__ == "__main__":
    main()
