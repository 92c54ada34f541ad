"""The arms of an evaluation: what the adapter, and its base, said of the same rows.

Rows are encoded and measured in chunks, and of each row only its likelihood and answer
are kept: memory does not grow with the text of the rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loralab.adapters.attach import base_only
from loralab.config import EvaluationConfig
from loralab.data.examples import Answer, DataPreprocessor, Examples, generates
from loralab.evaluation.scores import Answers
from loralab.inference.generate import generate, prompts_of
from loralab.inference.load import Loaded
from loralab.inference.pipeline import CHUNK
from loralab.inference.predict import Predictions, predict
from loralab.models.numerics import seed_everything

if TYPE_CHECKING:
    from datasets import Dataset

Tell = Callable[[str, str, int, int], None]
"""Called with (arm, what is done, rows done, rows in all)."""


@dataclass
class Arm:
    """What one arm said of the measured rows.

    Attributes:
        rows: Row numbers, ascending, [E].
        nll: Negative log-likelihood of each row's labels, nats, [E] float64.
        labels: Number of labels of each row, [E] float64.
        answers: The answer to each row; empty where none was asked for.
        samples: Sampled texts of each row, where a metric needs several.
        seconds: Spent on this arm.
    """

    rows: list[int] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    samples: list[list[str]] = field(default_factory=list)
    seconds: float = 0.0

    def take(self, said: Predictions, first: int) -> None:
        """Take in the predictions of a chunk whose first row is number `first`."""
        self.rows += (said.rows + first).tolist()
        self.nll += said.nll.tolist()
        self.labels += said.labels.tolist()
        self.answers += said.answers or []


def measure(
    adapter: Loaded,
    rows: Dataset,
    config: EvaluationConfig,
    writes: bool,
    tell: Tell,
) -> tuple[dict[str, Arm], dict[str, int]]:
    """Return the arms (``adapter`` first, then ``base``), and the notes of encoding.

    Args:
        adapter: The adapter on its base.
        rows: Checked rows.
        config: Whether the base is measured, batch size, how answers are written.
        writes: Whether answers are written token by token, for metrics that need them.
        tell: Told of progress.
    """
    arms = {name: Arm() for name in ("adapter", "base")[: 1 + config.base]}
    notes: dict[str, int] = {}
    if writes:
        seed_everything(config.seed)
    for first in range(0, len(rows), CHUNK):
        chunk = list(rows.select(range(first, min(first + CHUNK, len(rows)))))
        examples = adapter.task(chunk, adapter.base.processor)
        for name, count in examples.notes.items():
            notes[name] = notes.get(name, 0) + count
        for name, arm in arms.items():
            start = time.perf_counter()
            base = base_only(adapter.model) if name == "base" else nullcontext()
            part = _rows_done(tell, name, first, len(chunk), len(rows))
            with base:
                said = _likelihood(adapter, chunk, examples, config, part("reading"))
                if writes:
                    asked = [chunk[i] for i in said.rows]
                    texts = _write(adapter, asked, config, part("writing"))
                    arm.answers += [Answer(text[0]) for text in texts]
                    arm.samples += texts
            arm.take(said, first)
            arm.seconds += time.perf_counter() - start
        del chunk, examples  # or they live on while the next are encoded
    return arms, notes


def _rows_done(
    tell: Tell, arm: str, first: int, size: int, rows: int
) -> Callable[[str], Callable[[int, int], None]]:
    """Return, for what is done, a teller of a chunk's batches as rows of all."""

    def part(what: str) -> Callable[[int, int], None]:
        return lambda done, of: tell(arm, what, first + size * done // of, rows)

    return part


def _likelihood(
    adapter: Loaded,
    chunk: Sequence[Mapping[str, Any]],
    examples: Examples,
    config: EvaluationConfig,
    progress: Callable[[int, int], None],
) -> Predictions:
    task: Any = adapter.task
    return predict(
        adapter.model,
        adapter.base,
        examples,
        config.per_device_eval_batch_size,
        task=None if generates(task) else task,
        finish=lambda i, readings: task.answer(chunk[i], readings),
        progress=progress,
    )


def _write(
    adapter: Loaded,
    rows: Sequence[Mapping[str, Any]],
    config: EvaluationConfig,
    progress: Callable[[int, int], None],
) -> list[list[str]]:
    return generate(
        adapter,
        prompts_of(adapter, rows),
        config.per_device_eval_batch_size,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        samples=config.samples,
        progress=progress,
    )


def answers_of(task: DataPreprocessor, arm: Arm, rows: Dataset) -> Answers:
    """Return an arm's answers and what is right, as metrics take them."""
    measured = rows.select(arm.rows)
    chances = [answer.probability for answer in arm.answers]
    known = all(chance is not None for chance in chances)
    return Answers(
        form=task.form,
        references=[task.reference(row) for row in measured],
        predictions=[answer.value for answer in arm.answers],
        rows=measured,
        classes=len(getattr(task, "labels", ())) if task.form == "class" else 0,
        probabilities=np.asarray(chances, dtype=np.float64) if known else None,
        ranked=[answer.ranked for answer in arm.answers],
        samples=arm.samples or None,
    )


def column(values: Sequence[float]) -> NDArray[np.float64]:
    """Return one number a row, [E] float64."""
    return np.asarray(values, dtype=np.float64)
