"""Two real runs that many tests read; nobody may change them (copy them first)."""

import os

import pytest

# Before torch is imported: processes that test side by side share the cores, whatever
# the environment says. Two that each start a thread a core wait for one another, and
# are many times slower.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _workers > 1:
    _threads = max(1, (os.cpu_count() or 1) // _workers)
    os.environ["OMP_NUM_THREADS"] = str(_threads)

from loralab import compose, train  # noqa: E402

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
