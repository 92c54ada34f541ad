"""A training that is stopped in the middle of a process, and goes on."""

import pytest

from loralab import train
from loralab.training.trainer import PEFTTrainer


class Killed(BaseException):
    """Nothing catches it."""


def killed(config, folder, monkeypatch, after):
    """Begin or continue a training, and stop it after so many steps."""
    steps = PEFTTrainer.training_step
    with monkeypatch.context() as patch:

        def step(self, *args):
            if self.state.global_step == after:
                raise Killed
            return steps(self, *args)

        patch.setattr(PEFTTrainer, "training_step", step)
        with pytest.raises(Killed):
            train(config, folder, resume=True)


def killed_and_resumed(config, folder, monkeypatch, at):
    """Return the run of a training that was stopped after each of some steps."""
    for after in at:
        killed(config, folder, monkeypatch, after)
    return train(config, folder, resume=True)
