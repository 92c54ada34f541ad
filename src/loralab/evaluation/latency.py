"""How fast models answer, side by side: A B A B …, in one process, the same ids.

For a language model three things, never one "latency":

    first token    from the call to the first new token, s
    prefill        prompt tokens of the batch / first token, tokens/s
    decode         batch · (new tokens − 1) / (last token − first token), tokens/s

for the others the time of one batch. Each round asks every model once, so what else
the machine does hits all of them. Reported is the median over rounds with a
distribution-free interval: order statistics, whose coverage is binomial, so it needs at
least six rounds for 95 %.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binom

from loralab.data.batching import collate
from loralab.data.examples import Examples, generates
from loralab.errors import EvidenceError
from loralab.inference.greedy import greedy
from loralab.inference.load import Loaded
from loralab.models.forward import supervised_logits
from loralab.units import percent

REST = 0.05
"""Seconds between two measurements: worker threads of an engine spin for a while."""

Tell = Callable[[str, int, int], None]
"""Called with (what is timed, rounds done, rounds in all)."""


@dataclass(frozen=True)
class Load:
    """What every model is asked to do.

    Attributes:
        batch: Prompts, or rows, at a time.
        prompt_tokens: Tokens of each prompt.
        new_tokens: Tokens that are written to each.
    """

    batch: int
    prompt_tokens: int = 128
    new_tokens: int = 32

    @property
    def name(self) -> str:
        """Such as ``batch 8``."""
        return f"batch {self.batch}"


def median_interval(
    values: Sequence[float], confidence: float = 0.95
) -> dict[str, float]:
    """Return the median with the interval of order statistics that covers it.

    The interval is [x_(k), x_(n+1−k)] with the largest k for which
    P(k ≤ Binomial(n, 1/2) ≤ n − k) is at least `confidence`.

    Args:
        values: Independent measurements.
        confidence: For example 0.95.

    Raises:
        EvidenceError: too few for this confidence.
    """
    ordered, n = sorted(values), len(values)
    lowest = next(
        (
            k
            for k in range(n // 2, 0, -1)
            if 1 - 2 * binom.cdf(k - 1, n, 0.5) >= confidence
        ),
        None,
    )
    if lowest is None:
        raise EvidenceError(
            f"{n} measurements give no {percent(confidence, None)} interval "
            "for a median",
            fix="repeat at least 6 times for 95 %",
        )
    return {
        "value": float(np.median(ordered)),
        "low": ordered[lowest - 1],
        "high": ordered[n - lowest],
    }


def time_writing(
    models: Mapping[str, Loaded],
    text: Sequence[int],
    load: Load,
    *,
    rounds: int = 10,
    warm_up: int = 2,
    tell: Tell = lambda *_: None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Time language models that write.

    Args:
        models: By the name they are reported under; of one tokenizer.
        text: Token ids to cut prompts from, each prompt of the batch another part.
        load: Batch and lengths.
        rounds: Measurements of each model.
        warm_up: Rounds before, which do not count.
        tell: Told of every round.

    Returns:
        name -> ``first_token_seconds``, ``prefill_tokens_per_second``,
        ``decode_tokens_per_second`` -> ``value``, ``low``, ``high``.
    """
    size = load.prompt_tokens
    needed = load.batch * size
    long = list(text) * -(-needed // len(text))
    prompts = [long[i * size : (i + 1) * size] for i in range(load.batch)]

    def once(model: Loaded) -> dict[str, float]:
        times: list[float] = []
        start = time.perf_counter()
        greedy(
            model,
            prompts,
            load.new_tokens,
            stop=False,
            on_token=lambda: times.append(time.perf_counter()),
        )
        first, spent = times[0] - start, times[-1] - times[0]
        return {
            "first_token_seconds": first,
            "prefill_tokens_per_second": needed / first,
            "decode_tokens_per_second": load.batch * (len(times) - 1) / spent,
        }

    return _interleaved(models, once, load.name, rounds, warm_up, tell)


def time_reading(
    models: Mapping[str, Loaded],
    examples: Examples,
    load: Load,
    *,
    rounds: int = 10,
    warm_up: int = 2,
    tell: Tell = lambda *_: None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Time models that classify, tag or find: one batch of real rows.

    Args:
        models: By the name they are reported under; of one tokenizer.
        examples: Encoded rows; the first of them are the batch.
        load: The batch.
        rounds: Measurements of each model.
        warm_up: Rounds before, which do not count.
        tell: Told of every round.

    Returns:
        name -> ``batch_seconds``, ``rows_per_second`` -> ``value``, ``low``, ``high``.
    """
    import torch

    units = [[i] for i in range(min(load.batch, len(examples)))]

    def once(model: Loaded) -> dict[str, float]:
        base = model.base
        made = collate(examples, units, base.pad_id)
        moved = {name: t.to(base.numerics.device) for name, t in made.items()}
        start = time.perf_counter()
        with torch.inference_mode():
            logits, _, _ = supervised_logits(model.model, moved, base)
        float(logits.sum())  # waits for a device
        spent = time.perf_counter() - start
        return {"batch_seconds": spent, "rows_per_second": len(units) / spent}

    return _interleaved(models, once, load.name, rounds, warm_up, tell)


def _interleaved(
    models: Mapping[str, Loaded],
    once: Callable[[Loaded], dict[str, float]],
    what: str,
    rounds: int,
    warm_up: int,
    tell: Tell,
) -> dict[str, dict[str, dict[str, float]]]:
    """Ask every model in turn, `rounds` times; return medians with intervals."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    gc.collect()
    for number in range(-warm_up, rounds):
        for name, model in models.items():
            time.sleep(REST)
            measured = once(model)
            if number >= 0:
                seen[name].append(measured)
        if number >= 0:
            tell(what, number + 1, rounds)
    return {
        name: {key: median_interval([one[key] for one in found]) for key in found[0]}
        for name, found in seen.items()
    }


def engine_of(model: Loaded) -> dict[str, Any]:
    """Return the engine, its version, kernel and threads."""
    if hasattr(model.model, "describe"):
        return dict(model.model.describe())
    import torch

    numerics = model.base.numerics
    return {
        "engine": "torch",
        "version": torch.__version__,
        "kernel": f"{numerics.dtype} on {numerics.device}",
        "threads": torch.get_num_threads(),
    }


def writes(model: Loaded) -> bool:
    """Whether a model is timed by what it writes."""
    return generates(model.task) and model.base.head == "causal-lm"
