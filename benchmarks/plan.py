"""The memory that `loralab plan` predicts, against the peak that a training reaches.

Each case runs in two fresh processes, `plan` and a short real training with evaluation.
The peak of a phase is the kernel's (VmHWM), reset where a phase begins.

    python benchmarks/plan.py            # all cases, some minutes
    python benchmarks/plan.py --only minilm
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "plan.json"
STEPS = 6
COMMON = [
    f"training.max_steps={STEPS}",
    "training.callbacks=[]",
    "evaluation.resamples=200",
    "evaluation.base=false",
]
MINILM = ["newsgroups-20", "data.max_rows={train: 256, validation: 32, test: 128}"]
SMOLLM2 = ["gsm8k", "data.max_rows={validation: 32, test: 24}"]
CASES = [
    (name, given, batch, length)
    for name, given, batches, lengths in (
        ("minilm", MINILM, (8, 16, 32), (64, 128, 256)),
        ("smollm2", SMOLLM2, (1, 2, 4), (192, 256, 384)),
    )
    for batch in batches
    for length in lengths
]


def overrides(given: list[str], batch: int, length: int) -> list[str]:
    """Return the overrides of a case."""
    return [
        *given[1:],
        *COMMON,
        f"task.params.max_length={length}",
        f"training.per_device_train_batch_size={batch}",
        f"evaluation.per_device_eval_batch_size={4 * batch}",
    ]


def high_water() -> int:
    """Return the highest resident size since the last reset, in bytes; and reset it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            found = int(line.split()[1]) * 1024
    Path("/proc/self/clear_refs").write_text("5")
    return found


def predict(experiment: str, given: list[str]) -> dict[str, Any]:
    """Print what is predicted, in this process."""
    from loralab import compose
    from loralab.training.plan import plan

    memory = plan(compose(experiment, given), timed=False).memory
    return {**asdict(memory), "peak": memory.peak}


def measure(experiment: str, given: list[str]) -> dict[str, Any]:
    """Train, and return the peak of each phase."""
    from loralab import compose, train

    peaks: dict[str, int] = {}

    def watch(event: dict[str, Any]) -> None:
        if event["event"] == "plan":
            peaks["loading"] = high_water()
        elif event["event"] == "step":
            peaks["training"] = max(peaks.get("training", 0), high_water())

    folder, *given = given
    run = train(compose(experiment, given), folder, on_event=watch)
    seconds = run.read()["training"]["step_seconds"]
    return {**peaks, "peak": max(peaks.values()), "step_seconds": seconds}


def measure_evaluation(experiment: str, given: list[str]) -> dict[str, Any]:
    """Evaluate the run that `measure` left, in a process that did not train it."""
    from loralab import compose, load_rows
    from loralab.evaluation.evaluate import evaluate_split
    from loralab.inference.load import load_adapter
    from loralab.runs import Run

    folder, *given = given
    config = compose(experiment, given)
    run = Run(Path(folder) / config.run_id)
    adapter = load_adapter(run)
    rows = load_rows(config.data, adapter.task)
    high_water()
    evaluate_split(run, adapter, "train", rows.splits["train"], config.evaluation)
    return {"evaluation": high_water()}


CHILDREN = {
    "predict": predict,
    "measure": measure,
    "measure-evaluation": measure_evaluation,
}


def child(what: str, *arguments: str) -> dict[str, Any]:
    """Run one of `CHILDREN` in a process of its own."""
    command = [sys.executable, __file__, "--child", what, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_case(name: str, given: list[str], batch: int, length: int) -> dict[str, Any]:
    """Run the processes of a case; return the row of the table."""
    changed = overrides(given, batch, length)
    with tempfile.TemporaryDirectory() as folder:
        predicted = child("predict", given[0], *changed)
        measured = child("measure", given[0], folder, *changed)
        measured |= child("measure-evaluation", given[0], folder, *changed)
    phases = ("loading", "training", "evaluation", "peak")
    return {
        "model": name,
        "batch": batch,
        "length": length,
        "predicted": predicted,
        "measured": measured,
        "ratio": {name: predicted[name] / measured[name] for name in phases},
    }


def name_of(row: dict[str, Any]) -> str:
    """Return what a case is called."""
    return f"{row['model']:8} batch {row['batch']:2} length {row['length']:3}"


def main() -> None:
    """Run the cases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", choices=list(CHILDREN))
    parser.add_argument("--only", help="only cases of this model")
    arguments, rest = parser.parse_known_args()
    if arguments.child:
        print(json.dumps(CHILDREN[arguments.child](rest[0], rest[1:])))
        return
    from loralab.runs.environment import environment

    rows = []
    for case in CASES:
        if arguments.only in (None, case[0]):
            row = run_case(*case)
            rows.append(row)
            cells = [
                f"{phase} {row['predicted'][phase] / 1e9:.2f} for "
                f"{row['measured'][phase] / 1e9:.2f} GB ({ratio:.2f})"
                for phase, ratio in row["ratio"].items()
            ]
            print(f"{name_of(row)}: {', '.join(cells)}", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    content = {"environment": environment(), "steps": STEPS, "rows": rows}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for phase in rows[0]["ratio"]:
        worst = max(abs(row["ratio"][phase] - 1) for row in rows)
        print(f"{phase}: {100 * worst:.0f} % off at worst")
    print(f"written: {RESULTS.name}")


if __name__ == "__main__":
    main()
