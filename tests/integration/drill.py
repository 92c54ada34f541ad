"""A training that kills itself: run as a program by `test_resume`.

    python drill.py RUNS_DIR WHERE [COUNT]

WHERE is a point in the code; at its COUNT-th passing the process sends itself SIGKILL:

    step        after an optimizer step
    write       before a file or directory that is being written is fsynced
    rename      before a finished temporary takes its place
    half-line   in the middle of a line of the event log
    never       it runs to its end
"""

import os
import signal
import sys
from pathlib import Path

from loralab import compose, train
from loralab.runs import files
from loralab.training import checkpoint
from loralab.training.events import EventLog
from loralab.training.trainer import PEFTTrainer

EXPERIMENT = [
    "data.max_rows={train: 96, validation: 16, test: 32}",
    "peft.params.dropout=0.1",
    "model.dtype=fp32",
    "training.per_device_train_batch_size=8",
    "training.gradient_accumulation_steps=2",
    "training.num_train_epochs=3",
    "training.save_steps=2",
    "training.save_total_limit=2",
    "training.logging_steps=1",
    "evaluation.resamples=200",
]


def config():
    return compose("trec-6", EXPERIMENT)


def arm(where, count, checkpoints):
    """Make the process kill itself at the count-th passing after a checkpoint."""
    left = [count]

    def pass_by():
        if checkpoint.latest(checkpoints) is None:
            return
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(owner, name):
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            pass_by()
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)

    if where == "step":
        before(PEFTTrainer, "training_step")
    elif where == "write":
        before(files, "_fsync")
    elif where == "rename":
        before(files, "rename")
    elif where == "half-line":
        whole = EventLog.emit

        def half(self, event, **fields):
            if checkpoint.latest(checkpoints) is not None and left[0] == 1:
                with self._file.open("a", encoding="utf-8") as handle:
                    handle.write('{"event": "lo')
            pass_by()
            whole(self, event, **fields)

        EventLog.emit = half


def main():
    runs_dir, where = Path(sys.argv[1]), sys.argv[2]
    found = config()
    if where != "never":
        checkpoints = runs_dir / found.run_id / "checkpoints"
        arm(where, int(sys.argv[3]), checkpoints)
    train(found, runs_dir, resume=True)


if __name__ == "__main__":
    main()
