"""Several runs in one process, on the same inputs: how fast, how heavy, what they say.

Runs may be adapters on their base or stored models in any engine; each answers in its
own engine. Quality is not measured here: it was, row by row, by `evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loralab.errors import EvidenceError, RunError
from loralab.evaluation.evaluate import split_of
from loralab.evaluation.footprint import footprint
from loralab.evaluation.latency import (
    Load,
    engine_of,
    time_reading,
    time_writing,
    writes,
)
from loralab.inference.load import Loaded
from loralab.inference.open import open_run
from loralab.inference.pipeline import InferencePipeline
from loralab.models.processors import IMAGE_HEADS
from loralab.runs import Run

BATCHES = (1, 8)
Tell = Callable[[str, int, int], None]


def open_all(runs: Sequence[Run]) -> dict[str, Loaded]:
    """Load runs, by their id.

    Raises:
        RunError: they do not take the same tokens, or pixels, so nothing of them is
            comparable.
    """
    models = {run.id: open_run(run) for run in runs}
    first = next(iter(models.values()))
    for name, model in models.items():
        same = read_by(model) == read_by(first)
        if not same or model.base.head != first.base.head:
            raise RunError(
                "takes other inputs than the first run, or answers another question",
                where=name,
                fix="compare runs of one base and one task",
            )
    return models


def read_by(model: Loaded) -> dict[str, Any]:
    """Return how a model reads: a vocabulary, or how images are prepared."""
    processor = model.base.processor
    if model.base.head in IMAGE_HEADS:
        return dict(processor.to_dict())
    return dict(processor.get_vocab())


def latency(
    models: Mapping[str, Loaded],
    run: Run,
    split: str = "test",
    *,
    rounds: int = 10,
    batches: Sequence[int] = BATCHES,
    prompt_tokens: int = 128,
    new_tokens: int = 32,
    tell: Tell = lambda *_: None,
) -> dict[str, Any]:
    """Time models on rows of a run's data, interleaved.

    Args:
        models: As `open_all` returns them.
        run: Whose rows are read.
        split: Which of them.
        rounds: Measurements of each model and batch.
        batches: Rows, or prompts, at a time.
        prompt_tokens: Of a language model's prompt.
        new_tokens: Written to each prompt.
        tell: Told of every round.

    Returns:
        ``engines``: name -> engine, version, kernel, threads. ``batches``: ``batch 1``
        … -> name -> quantity -> median and interval. And what was asked.

    Raises:
        EvidenceError: models of this kind are not timed.
    """
    first = next(iter(models.values()))
    rows = split_of(run, first, split)
    examples = first.task(
        list(rows.select(range(min(64, len(rows))))), first.base.processor
    )
    found: dict[str, Any] = {}
    for size in batches:
        load = Load(size, prompt_tokens, new_tokens)
        if writes(first):
            text = [token for ids in examples.input_ids for token in ids]
            found[load.name] = time_writing(
                models, text, load, rounds=rounds, tell=tell
            )
        elif first.base.head == "seq2seq-lm":
            raise EvidenceError("encoder-decoder models are not timed yet")
        else:
            found[load.name] = time_reading(
                models, examples, load, rounds=rounds, tell=tell
            )
    return {
        "engines": {name: engine_of(model) for name, model in models.items()},
        "rounds": rounds,
        **(
            {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
            if writes(first)
            else {}
        ),
        "batches": found,
    }


def footprints(
    runs: Sequence[Run], tell: Tell = lambda *_: None
) -> dict[str, dict[str, Any]]:
    """Return load time and peak memory of each run, each in a process of its own.

    Raises:
        RunError: one cannot be loaded.
    """
    found = {}
    for number, run in enumerate(runs, 1):
        found[run.id] = footprint(run)
        tell("loading alone", number, len(runs))
    return found


def answers(
    models: Mapping[str, Loaded], inputs: Sequence[Any], **options: Any
) -> list[dict[str, Any]]:
    """Return what each model says to each input: ``input``, ``answers`` by name.

    Args:
        models: As `open_all` returns them.
        inputs: As `InferencePipeline` takes them.
        options: Of `InferencePipeline.generate`, where the task generates.

    Raises:
        DataError: an input cannot be used.
    """
    said: dict[str, list[Any]] = {}
    for name, model in models.items():
        pipeline = InferencePipeline(model)
        said[name] = pipeline(inputs, **(options if pipeline.generates else {}))
    return [
        {"input": given, "answers": {name: found[i] for name, found in said.items()}}
        for i, given in enumerate(inputs)
    ]
