"""One of the processes of a training; started by `loralab.training.launch`.

    python -m torch.distributed.run … -m loralab.training.worker FOLDER

FOLDER has ``order.json``: the configuration, the run's directory, how to begin. The
first process trains as `train` does in one, and tells its events on stdout; the others
prepare the same, help, and end. One that fails writes ``error-<rank>.json``.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

from loralab.errors import LoralabError


def _work(order: dict[str, Any], rank: int, out: TextIO) -> None:
    import torch

    from loralab.config.compose import validate
    from loralab.runs import Run
    from loralab.training.train import assist, train_here

    config, run = validate(order["config"]), Run(Path(order["run"]))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))

    def tell(event: dict[str, Any]) -> None:
        try:
            out.write(json.dumps(event) + "\n")
            out.flush()
        except BrokenPipeError:  # who started us is gone: interrupted, not failed
            os._exit(1)

    if rank == 0:
        force = order["force"]
        train_here(config, run, force=force, locks=order["locks"], on_event=tell)
    else:
        assist(config, run, order["locks"])


def told(error: BaseException, rank: int) -> dict[str, Any]:
    """Return what the parent makes the same error of."""
    lines = traceback.format_exc()
    if isinstance(error, LoralabError):
        rest = {"where": error.where, "why": error.why, "fix": error.fix}
        found: dict[str, Any] = {
            "kind": type(error).__name__,
            "what": error.what,
            "rest": rest,
        }
    else:
        found = {"kind": None, "what": f"{type(error).__name__}: {error}"}
    return {"rank": rank, "traceback": lines, **found}


def main() -> None:
    """Do what the order says; exit with 1 if it fails."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nobody's print may stand between our lines
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    try:
        order = json.loads((folder / "order.json").read_text(encoding="utf-8"))
        _work(order, rank, out)
    except Exception as error:
        text = json.dumps(told(error, rank))
        (folder / f"error-{rank}.json").write_text(text, encoding="utf-8")
        sys.stdout.flush()
        os._exit(1)  # at once: what it shares with the others may hang at a clean exit


if __name__ == "__main__":
    main()
