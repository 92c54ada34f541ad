"""Causes that the course of a training and its evaluation show.

The thresholds are rules of thumb: a finding says what to try first, it is no proof.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from statistics import NormalDist, median

from loralab.evaluation.diagnose_case import Case, Finding

USUAL_HIGH_RATE, USUAL_LOW_RATE = 1e-3, 2e-4
ODD_RATE = 5e-3
POWER = 0.8
FEWEST_DRAWN_FROM = 30  # a bootstrap over fewer rows covers less than it says
LITTLE_TRAVEL = 5e-3
"""What a weight must at least be able to move for answers to change."""


def _status(case: Case) -> Iterator[Finding]:
    if case.status == "failed":
        lines = str(case.record.get("error")).split("\n")
        told = [x.strip().removeprefix("fix: ") for x in lines if "fix: " in x]
        fix = told[0] if told else "mend it, then train again with --resume"
        if "out of memory" in lines[0].lower():
            fix = (
                "a smaller training.per_device_train_batch_size with more "
                "gradient_accumulation_steps, or training.gradient_checkpointing=true"
            )
        if "have not moved" in lines[0] and case.training["optim"] == "sgd":
            fix = "training.optim=adamw_torch; SGD's steps shrink with the gradient"
        why = [x.strip().removeprefix("why: ") for x in lines if "why: " in x]
        seen = "; ".join([f"training failed: {lines[0]}", *why])
        yield Finding("failed", "failure", seen, fix)
    elif case.status == "interrupted":
        at = max((log["step"] for log in case.logs), default=0)
        seen = f"killed; last logged step {at} of {case.plan.get('steps', '?')}"
        fix = "continue with the same command and --resume"
        yield Finding("interrupted", "failure", seen, fix)
    elif case.status == "running":
        fix = "wait for its end; what follows is of the steps so far"
        yield Finding("running", "note", "another process is training it", fix)


def _measured(case: Case) -> Iterator[Finding]:
    if case.status != "complete":
        return
    evaluate = "loralab evaluate RUN --split test"
    if case.result.get("split") != "test":
        rows = case.plan.get("rows", {}).get("test", 0)
        seen = f"no test row was evaluated (the data has {rows:,})"
        fix = evaluate if rows else "raise data.test_fraction and train again"
        yield Finding("no_test_evaluation", "cause", seen, fix)
    elif case.gain(case.result["primary"]) is None:
        seen = "the base was not measured on the test rows: nothing to compare with"
        yield Finding("no_base", "cause", seen, evaluate)


def _rate_high(case: Case) -> Iterator[Finding]:
    seen = ["the loss became NaN or infinite"] if case.diverged else []
    thirds, losses = case.thirds(), case.losses
    if thirds:
        first, _, last, noise = thirds
        if last - first > max(0.05 * first, 2 * noise):
            seen.append(f"the loss rises: {case.fall()}")
        pairs = pairwise(losses)
        jump = max(pairs, key=lambda pair: pair[1] - pair[0])
        if jump[1] - jump[0] > 0.5 * first:
            seen.append(f"it jumps from {jump[0]:.4g} to {jump[1]:.4g}")
    base = case.arm("cross_entropy", "base")
    highest = max(filter(math.isfinite, losses), default=0.0)
    if base and highest > 1.5 * base["value"] + 0.2:
        seen.append(
            f"a logged loss of {highest:.4g}, where the untrained base has a "
            f"cross-entropy of {base['value']:.4g}"
        )
    norms, spikes = case.norms, ""
    if len(norms) >= 5 and max(norms) > 10 * median(norms):
        spikes = f"gradient norm up to {max(norms):.3g}, median {median(norms):.3g}"
    rate = case.training["learning_rate"]
    fix = f"training.learning_rate={min(rate / 10, USUAL_HIGH_RATE):g}"
    if seen:
        evidence = "; ".join([*seen, spikes] if spikes else seen)
        evidence += f"; learning rate {rate:g}"
        yield Finding("learning_rate_high", "cause", evidence, fix)
    elif rate > ODD_RATE and case.training["optim"] != "sgd":
        evidence = f"learning rate {rate:g}; adapters take 1e-4 to 1e-3; {case.fall()}"
        yield Finding("learning_rate_odd", "cause", evidence, fix)
    elif spikes:
        yield Finding("gradient_spikes", "suspect", spikes, fix)


def _travel(case: Case) -> float:
    """Return how far a weight can have moved in all steps.

    AdamW and Adafactor move a weight by about the learning rate at each step, whatever
    the gradient; SGD by rate × gradient (root mean square over the trained weights).
    """
    training = case.training
    if not case.logs:
        return float(training["learning_rate"] * case.steps / 2)
    total, before = 0.0, 0
    for log in case.logs:
        size = 1.0
        if training["optim"] == "sgd":
            norm = log.get("grad_norm") or 0.0
            norm = min(norm, training["max_grad_norm"] or norm)
            size = norm / math.sqrt(case.plan["trainable"])
        total += log["learning_rate"] * size * (log["step"] - before)
        before = log["step"]
    return total


def _not_falling(case: Case) -> Iterator[Finding]:
    base, gap = (case.arm("cross_entropy", x) for x in ("base", "difference"))
    moved = not (base and gap) or abs(gap["value"]) > 0.005 * base["value"]
    if (moved and not case.flat) or any(_rate_high(case)):
        return
    rate, travel = case.training["learning_rate"], _travel(case)
    seen = case.fall()
    if base and gap:
        seen += (
            f"; cross-entropy of the base {base['value']:.4g}, of the adapter "
            f"{base['value'] + gap['value']:.4g}"
        )
    if 0 < travel < LITTLE_TRAVEL:
        seen += f"; {case.steps} steps move a weight by {travel:.1g} at most"
        better = f"{max(10 * rate, USUAL_LOW_RATE):g}"
        if case.training["optim"] == "sgd":
            better = f"{100 * rate:g}, or training.optim=adamw_torch"
        fix = f"training.learning_rate={better}; more steps"
        yield Finding("learning_rate_low", "cause", seen, fix)
    else:
        fix = (
            f"training.learning_rate={3 * rate:g}; look at what is supervised: "
            "loralab data show EXPERIMENT"
        )
        yield Finding("loss_not_falling", "cause", seen, fix)


def _overfit(case: Case) -> Iterator[Finding]:
    found = [v for v in case.validations if "eval_loss" in v]
    if len(found) < 3 or case.training["early_stopping"]:
        return
    best, last = min(found, key=lambda v: v["eval_loss"]), found[-1]
    before = [log["loss"] for log in case.logs if log["step"] <= best["step"]]
    falls = not before or case.losses[-1] < before[-1]
    if last["eval_loss"] > 1.05 * best["eval_loss"] and falls:
        seen = (
            f"validation cross-entropy {best['eval_loss']:.4g} at step {best['step']}, "
            f"{last['eval_loss']:.4g} at the last ({last['step']}); training loss "
            f"{before[-1] if before else math.nan:.4g} → {case.losses[-1]:.4g}"
        )
        fix = "training.early_stopping={patience: 2}; peft.params.dropout=0.1"
        yield Finding("overfit", "cause", seen, fix)


def _still_falling(case: Case) -> Iterator[Finding]:
    thirds = case.thirds()
    if thirds is None or len(case.logs) < 6 or any(_overfit(case)):
        return
    first, middle, last, noise = thirds
    late = middle - last
    if late > max(0.4 * (first - middle), 0.05 * last, 2 * noise):
        seen = f"the loss still falls: {middle:.4g} in the middle third, {last:.4g} in "
        seen += f"the last ({case.steps} steps)"
        key, value = "num_train_epochs", case.training["num_train_epochs"]
        if case.training["max_steps"] > 0:
            key, value = "max_steps", case.training["max_steps"]
        yield Finding("still_falling", "suspect", seen, f"training.{key}={2 * value:g}")


def _test_rows(case: Case) -> Iterator[Finding]:
    gain = case.gain(case.result.get("primary", ""))
    if gain is None or case.verdict != "not shown":
        return
    rows, half = case.result["measured_rows"], (gain[2] - gain[1]) / 2
    z = NormalDist().inv_cdf((1 + case.result["confidence"]) / 2)
    factor = (1 + NormalDist().inv_cdf(POWER) / z) ** 2
    needed = math.ceil(factor * rows * (half / gain[0]) ** 2) if gain[0] > 0 else 0
    if half == 0 or (not 0 < needed <= 100 * rows and rows >= 100):
        return
    seen = (
        f"{rows:,} {case.result['split']} rows: the interval's half width is "
        f"{half:.3g}, the difference {gain[0]:+.3g}"
    )
    if 0 < needed <= 100 * rows:
        seen += f"; to show one of this size four times in five takes {needed:,} rows"
    limit = case.config["data"]["max_rows"]["test"]
    fix = "raise data.test_fraction, or bring more rows"
    if limit is not None and limit <= rows:
        fix = f"raise data.max_rows.test (now {limit:,})"
    yield Finding("few_test_rows", "cause", seen, fix)


def _interval(case: Case) -> Iterator[Finding]:
    rows = case.result.get("measured_rows", FEWEST_DRAWN_FROM)
    metric = case.result.get("primary", "")
    if rows < FEWEST_DRAWN_FROM and metric not in case.result.get("shares", ()):
        seen = f"{rows} {case.result['split']} rows: the interval of {metric} is drawn "
        seen += "by bootstrap, and from so few rows too narrow"
        fix = "more test rows: data.max_rows.test, data.test_fraction"
        yield Finding("interval_unsure", "suspect", seen, fix)


def _majority(case: Case) -> Iterator[Finding]:
    if "majority" not in case.result:
        return
    classes, majority = case.result["per_class"], case.result["majority"]
    right = [c["support"] * (c["recall"] or 0) for c in classes]
    accuracy = sum(right) / sum(c["support"] for c in classes)
    said = [c["label"] for c in classes if c["precision"] is not None]
    if accuracy > majority and len(said) > 1:
        return
    seen = (
        f"accuracy {accuracy:.3f}; always the most frequent class has {majority:.3f}; "
        f"the adapter says {len(said)} of {len(classes)} classes"
    )
    seen += f" ({said[0]})" if len(said) == 1 else ""
    fix = "more steps or a higher training.learning_rate"
    if any(_rate_high(case)):
        fix = "mend the learning rate first"
    if majority > 0.6:
        fix += "; classes of like size in the train rows; evaluation.metrics=[macro-f1]"
    yield Finding("only_frequent_class", "cause", seen, fix)


def _ceiling(case: Case) -> Iterator[Finding]:
    metric = case.result.get("primary", "")
    base = case.arm(metric, "base")
    if base is None or case.result["better"][metric] != "higher":
        return
    value = base["value"]
    top = 100 if metric in ("bleu", "chrf") else 1
    if value >= 0.95 * top:
        seen = f"the base already has {metric} {value:.3f}: {top - value:.3f} to gain"
        fix = "harder test rows, or a metric that sees more"
        yield Finding("ceiling", "cause", seen, fix)


def _learns(case: Case) -> Iterator[Finding]:
    metric = case.result.get("primary", "")
    gain = case.gain("cross_entropy")
    if metric == "cross_entropy" or gain is None or gain[1] <= 0:
        return
    base = case.arm("cross_entropy", "base")
    if base and gain[0] > 0.005 * base["value"]:
        seen = f"cross-entropy is {gain[0]:.3g} lower than the base's, {metric} is not"
        fix = "train longer: it learns, but too little to change answers yet"
        yield Finding("learns_too_little", "suspect", f"{seen} shown better", fix)


CHECKS = (
    _status,
    _measured,
    _rate_high,
    _not_falling,
    _overfit,
    _majority,
    _ceiling,
)
"""The most telling first."""

LATER = (_test_rows, _interval, _learns, _still_falling)
"""Told after what the set-up shows."""
