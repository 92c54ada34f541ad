"""Two real runs that many tests read; nobody may change them (copy them first)."""

import pytest

from loralab import compose, train

CLASSIFY = [
    "data.max_rows={train: 96, validation: 32, test: 64}",
    "model.dtype=fp32",
    "training.max_steps=6",
    "evaluation.resamples=200",
]
GENERATE = [
    "data.max_rows={train: 24, validation: 8, test: 12}",
    "model.dtype=fp32",
    "peft.params.target_modules=qv",
    "training.per_device_train_batch_size=2",
    "training.max_steps=3",
    "training.warmup_ratio=0",
    "evaluation.resamples=200",
]


@pytest.fixture(scope="session")
def runs_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def minilm_run(runs_dir):
    return train(compose("trec-6", CLASSIFY), runs_dir)


@pytest.fixture(scope="session")
def smollm2_run(runs_dir):
    return train(compose("chatterbot", GENERATE), runs_dir)
