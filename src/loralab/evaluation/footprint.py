"""What a run costs to hold: seconds to load it and the memory it takes, measured alone.

Each run is loaded in a process of its own, since memory that another model has taken
and given back would count for it. The process answers once, so that what is only
mapped from a file is read. ::

    python -m loralab.evaluation.footprint RUN
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from loralab.errors import RunError
from loralab.runs import Run

TOKENS = 16
"""Written by a model that writes."""

SIDE = 32
"""Pixels of the image that a model that sees is asked; it is stretched to its size."""


def footprint(run: Run) -> dict[str, Any]:
    """Return ``load_seconds``, ``peak_bytes`` and ``before_bytes`` of a run.

    ``before_bytes`` is what Python and the libraries took before the model was loaded.

    Raises:
        RunError: it cannot be loaded; what was said is shown.
    """
    command = [sys.executable, "-m", "loralab.evaluation.footprint", str(run.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise RunError(
            "cannot be loaded in a process of its own",
            where=str(run.path),
            why=last[0] if last else f"exit code {done.returncode}",
        )
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def _measure(path: str) -> dict[str, Any]:
    from pathlib import Path

    # imported first, so that they count for neither the time nor the memory
    import numpy as np
    import peft  # noqa: F401
    import transformers  # noqa: F401

    from loralab.errors import DataError
    from loralab.inference.pipeline import InferencePipeline
    from loralab.runs.environment import peak_memory_bytes

    before, start = peak_memory_bytes(), time.perf_counter()
    pipeline = InferencePipeline.from_run(Run(Path(path)))
    loaded = time.perf_counter() - start
    options: dict[str, Any] = {"max_new_tokens": TOKENS} if pipeline.generates else {}
    pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    # a text, a question and a context, or an image
    for given in ("Hello", ("Hello?", "Hello."), pixels):
        try:
            pipeline([given], **options)
        except DataError:
            continue
        break
    return {
        "load_seconds": loaded,
        "before_bytes": before,
        "peak_bytes": peak_memory_bytes(),
    }


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1])))  # noqa: T201 - read by `footprint`
