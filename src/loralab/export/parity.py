"""The parity certificate: how far an artefact is from what it was made of.

Both answer the same rows. Over every label (a token, or a row's class)

    KL(p ‖ q) = Σ_v p(v) (ln p(v) − ln q(v))      p predecessor, q artefact, nats
    top-1 agreement                               share of equal most likely labels

then cross-entropy and the task's metrics of both, paired, and the greedy texts. Every
number has an interval over rows. What must hold is a `Tolerance`; it passes where the
interval's worse end is inside, so a certificate on few rows does not pass by luck.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from loralab.config import EvaluationConfig
from loralab.data.batching import collate, evaluation_order, unit_lengths
from loralab.data.batching import units as units_of
from loralab.data.examples import Examples, generates
from loralab.evaluation.arms import answers_of, column, measure
from loralab.evaluation.calculator import get_metrics_calculator
from loralab.evaluation.evaluate import metrics_of
from loralab.evaluation.intervals import score_intervals
from loralab.evaluation.scores import Scores, ratio_of
from loralab.inference.generate import prompts_of
from loralab.inference.greedy import greedy
from loralab.inference.load import Loaded
from loralab.models.forward import supervised_logits
from loralab.registry import Strict

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT_VERSION = 1
PROMPTS, NEW_TOKENS = 8, 32
BATCH = 8

Tell = Callable[[str, int, int], None]


class Tolerance(Strict):
    """How far an artefact may be from its predecessor."""

    kl: float = Field(
        0.1, ge=0, description="mean KL divergence a label, nats, at most"
    )
    top1: float = Field(
        0.85, ge=0, le=1, description="share of equal most likely labels, at least"
    )
    loss: float = Field(
        0.05, ge=0, description="rise of cross-entropy, nats a label, at most"
    )


def certify(
    artefact: Loaded,
    predecessor: Loaded,
    rows: Dataset,
    config: EvaluationConfig,
    tolerance: Tolerance,
    tell: Tell = lambda *_: None,
) -> dict[str, Any]:
    """Compare an artefact with its predecessor on the same rows.

    Args:
        artefact: What is certified.
        predecessor: What it was made of, as it was used: an adapter beside its base.
        rows: Checked rows, of the predecessor's task.
        config: Batch size, metrics, confidence, resamples.
        tolerance: What must hold.
        tell: Told of progress.

    Returns:
        ``rows``, ``labels``, ``metrics`` (name -> ``artefact``, ``predecessor``,
        ``difference``), ``kl`` and ``top1`` (intervals), ``greedy``, ``tolerance``,
        ``checks``, ``passed``.
    """
    examples = predecessor.task(list(rows), predecessor.base.processor)
    gaps = _gaps(artefact, predecessor, examples, lambda i, n: tell("logits", i, n))
    found = score_intervals([gaps], config.confidence, config.resamples, config.seed)
    kl, top1 = (found[name][0].as_dict() for name in ("kl", "top1"))
    metrics = _metrics(artefact, predecessor, rows, config, tell)
    rise = metrics["cross_entropy"]["difference"]
    checks = [
        _check("KL divergence", kl["high"], "at most", tolerance.kl),
        _check("top-1 agreement", top1["low"], "at least", tolerance.top1),
        _check("rise of cross-entropy", rise["high"], "at most", tolerance.loss),
    ]
    return {
        "format": FORMAT_VERSION,
        "rows": len(rows),
        "labels": int(gaps["kl"].sums[:, 1].sum()),
        "confidence": config.confidence,
        "kl": kl,
        "top1": top1,
        "metrics": metrics,
        "greedy": _texts(artefact, predecessor, rows),
        "tolerance": tolerance.model_dump(),
        "checks": checks,
        "passed": all(check["passed"] for check in checks),
    }


def _check(name: str, worst: float, way: str, limit: float) -> dict[str, Any]:
    passed = worst <= limit if way == "at most" else worst >= limit
    return {"name": name, "worst": worst, way: limit, "passed": passed}


def _gaps(
    artefact: Loaded,
    predecessor: Loaded,
    examples: Examples,
    progress: Callable[[int, int], None],
) -> dict[str, Scores]:
    """Return KL and top-1 agreement of each row, from both models' logits.

    Logits live for one batch: [N, C] each, N the labels of the batch.
    """
    import torch

    groups = units_of(examples)
    order = evaluation_order(unit_lengths(examples, groups), BATCH)
    sums = np.zeros((3, len(examples)))  # KL, agreements, labels
    for done, batch in enumerate(order, 1):
        chosen = [groups[i] for i in batch]
        made = collate(examples, chosen, predecessor.base.pad_id)
        with torch.inference_mode():
            p_NC, q_NC = (
                _log_probabilities(model, made) for model in (predecessor, artefact)
            )
            kl_N = torch.where(p_NC.isfinite(), p_NC.exp() * (p_NC - q_NC), 0.0).sum(-1)
            same_N = p_NC.argmax(-1) == q_NC.argmax(-1)
        where = made["example"].numpy()
        for i, values in enumerate((kl_N, same_N, torch.ones_like(kl_N))):
            np.add.at(sums[i], where, values.double().numpy())
        progress(done, len(order))
    rows = np.unique(np.asarray(examples.row), return_inverse=True)[1]
    kl_E, same_E, labels_E = (np.bincount(rows, one).astype(np.float64) for one in sums)
    one_a_row = bool((labels_E == 1).all())  # a class, not tokens: right or wrong
    top1 = replace(ratio_of(same_E, labels_E), proportion=one_a_row)
    return {"kl": ratio_of(kl_E, labels_E), "top1": top1}


def _log_probabilities(model: Loaded, made: dict[str, Any]) -> Any:
    """Return log-probabilities [N, C] float32 on the CPU."""
    moved = {name: t.to(model.base.numerics.device) for name, t in made.items()}
    logits_NC, _, _ = supervised_logits(model.model, moved, model.base)
    return logits_NC.float().log_softmax(-1).cpu()


def _metrics(
    artefact: Loaded,
    predecessor: Loaded,
    rows: Dataset,
    config: EvaluationConfig,
    tell: Tell,
) -> dict[str, Any]:
    """Return cross-entropy and the task's metrics of both, and their difference."""
    task = predecessor.task
    calculator = get_metrics_calculator(metrics_of(task, config), task.form)
    alone = config.model_copy(update={"base": False})
    writes = generates(task) and bool(calculator.metrics)
    given: list[dict[str, Scores]] = []
    for name, model in (("artefact", artefact), ("predecessor", predecessor)):
        told = partial(_told, tell, name)
        arm = measure(model, rows, alone, writes, told)[0]["adapter"]
        own = calculator.scores(answers_of(task, arm, rows)) if arm.answers else {}
        entropy = ratio_of(column(arm.nll), column(arm.labels))
        given.append({**own, "cross_entropy": entropy})
    found = score_intervals(given, config.confidence, config.resamples, config.seed)
    names = ("artefact", "predecessor", "difference")
    return {
        metric: {n: x.as_dict() for n, x in zip(names, intervals, strict=True)}
        for metric, intervals in found.items()
    }


def _told(tell: Tell, name: str, arm: str, what: str, done: int, of: int) -> None:
    tell(name, done, of)


def _texts(
    artefact: Loaded, predecessor: Loaded, rows: Dataset
) -> dict[str, Any] | None:
    """Return how long greedy answers to the first prompts are the same."""
    if predecessor.base.head != "causal-lm":
        return None
    chosen = list(rows.select(range(min(PROMPTS, len(rows)))))
    processor = predecessor.base.processor
    plain = not processor.chat_template
    prompts = [
        processor(text, add_special_tokens=plain)["input_ids"]
        for text in prompts_of(predecessor, chosen)
    ]
    pairs = [
        [greedy(m, [ids], NEW_TOKENS)[0] for m in (artefact, predecessor)]
        for ids in prompts
    ]
    common = [_common(ours, theirs) for ours, theirs in pairs]
    return {
        "prompts": len(pairs),
        "new_tokens": NEW_TOKENS,
        "equal": sum(ours == theirs for ours, theirs in pairs),
        "common_tokens": sum(common) / len(common),
        "answers": [
            {"artefact": processor.decode(a), "predecessor": processor.decode(b)}
            for a, b in pairs
        ],
    }


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two answers have in common before they part."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
