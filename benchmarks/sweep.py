"""Two workers against one: eight runs of an encoder, the cores shared.

    python benchmarks/sweep.py

The same sweep twice, each in a directory of its own: one process with all threads, then
two with half of them each. Seconds are of the whole sweep, the start of workers too;
the runs' cross-entropy on test rows is compared, as threads change the last bits.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from loralab.experiments.sweep import Sweep, SweepConfig
from loralab.runs import Run

RESULTS = Path(__file__).parent / "results" / "sweep.json"
CONFIG = SweepConfig(
    "trec-6",
    (
        "training.max_steps=60",
        "training.callbacks=[]",
        "evaluation.base=false",
        "evaluation.resamples=200",
        "training.learning_rate=3e-4,1e-3",
        "seed=range(4)",
    ),
)


def timed(workers: int) -> dict[str, Any]:
    """Return the seconds of the sweep, and what its runs came to."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(CONFIG, folder)
        start = time.perf_counter()
        trials = sweep.run(workers=workers)
        seconds = time.perf_counter() - start
        values = [
            Run(Path(folder) / trial.run).evaluations()["test"]["metrics"]
            for trial in trials
        ]
    print(f"{workers} workers: {seconds:.1f} s for {len(trials)} runs", flush=True)
    return {
        "workers": workers,
        "runs": len(trials),
        "seconds": round(seconds, 2),
        "cross_entropy": [v["cross_entropy"]["adapter"]["value"] for v in values],
    }


def main() -> None:
    """Run both, and write the result."""
    from loralab.runs.environment import environment

    one, two = timed(1), timed(2)
    pairs = zip(one["cross_entropy"], two["cross_entropy"], strict=True)
    content = {
        "environment": environment(),
        "cores": os.cpu_count(),
        "one": one,
        "two": two,
        "ratio": round(one["seconds"] / two["seconds"], 2),
        "largest_difference": max(abs(a - b) for a, b in pairs),
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"two workers are {content['ratio']} times as fast; written: {RESULTS.name}")


if __name__ == "__main__":
    main()
