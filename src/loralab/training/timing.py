"""The rate of this machine: a few real layers run real batches, and are timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from loralab.data.batching import (
    collate,
    epoch_order,
    evaluation_order,
    length_groups,
    overhead_of,
    unit_lengths,
    units,
)
from loralab.data.examples import Examples, classes_of
from loralab.models.forward import supervised_logits
from loralab.training.prepare import Prepared, plan_of

if TYPE_CHECKING:
    import torch

    from loralab.models.loaded import LoadedModel

FEW, MORE = 1, 3
"""Layers of the two models that are timed."""

SAMPLES = 3
"""Batches that are timed, spread over the lengths that occur."""


@dataclass(frozen=True)
class Rates:
    """Measured seconds.

    Attributes:
        tokens_per_second: Of training.
        training: Seconds of all training steps.
        evaluation: Seconds of measuring validation rows during, and test rows after.
    """

    tokens_per_second: float
    training: float
    evaluation: float


def measure_rates(prepared: Prepared) -> Rates:
    """Return what training and evaluation will take on this machine.

    Args:
        prepared: Rows and shapes; its model is not used.
    """
    config, train = prepared.config, prepared.examples["train"]
    of = units(train)
    sizes = unit_lengths(train, of)
    batch = config.training.per_device_train_batch_size
    order = epoch_order(sizes, batch, 1, config.training.seed, 0)
    steps = _spread([[of[u] for u in one] for one in order], train)
    size = config.evaluation.per_device_eval_batch_size
    readings = _spread(
        [[of[u] for u in one] for one in evaluation_order(sizes, size)], train
    )
    few, more = (_time_layers(prepared, n, steps, readings) for n in (FEW, MORE))
    layers = prepared.base.facts.layers
    share = (layers - few[2]) / max(1, more[2] - few[2])
    forward_backward = few[0] + share * max(0.0, more[0] - few[0])
    forward = few[1] + share * max(0.0, more[1] - few[1])
    tokens = plan_of(prepared)["tokens"]
    rows = prepared.rows.sizes()
    arms = 2 if config.evaluation.base else 1
    measured = sum(rows.get(s, 0) for s in config.evaluation.splits) * arms
    epochs = tokens / max(1, train.tokens)
    measured += round(rows.get("validation", 0) * max(1.0, epochs))
    mean = train.tokens / max(1, len(train))
    return Rates(
        tokens_per_second=1 / forward_backward,
        training=tokens * forward_backward,
        evaluation=measured * mean * forward,
    )


def _spread(
    batches: list[list[list[int]]], examples: Examples
) -> list[list[list[int]]]:
    """Return some of the batches, from the shortest to the longest."""
    lengths = examples.lengths
    ranked = sorted(batches, key=lambda b: sum(lengths[i] for unit in b for i in unit))
    places = [round((k + 0.5) / SAMPLES * len(ranked) - 0.5) for k in range(SAMPLES)]
    return [ranked[place] for place in sorted(set(places))]


def _time_layers(
    prepared: Prepared,
    layers: int,
    steps: Sequence[Any],
    readings: Sequence[Any],
) -> tuple[float, float, int]:
    """Return seconds a token of training, of reading, and the layers there were."""
    from loralab.adapters.attach import attach
    from loralab.models.empty import empty_base

    config, classes = prepared.config, classes_of(prepared.task_state)
    layers = min(layers, prepared.base.facts.layers)
    base = empty_base(config.model, prepared.task.head, classes, layers=layers)
    base = replace(base, processor=prepared.base.processor)
    model = _filled(attach(base, config.peft).model, base.numerics.device)
    train = prepared.examples["train"]
    model.train()
    forward_backward = _seconds_a_token(model, base, train, steps, learn=True)
    model.eval()
    forward = _seconds_a_token(model, base, train, readings, learn=False)
    return forward_backward, forward, base.facts.layers


def _filled(model: Any, device: str) -> Any:
    """Return the model with small random weights on its device."""
    import torch

    model.to_empty(device=device)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.normal_(0, 0.02)
            else:
                tensor.zero_()
    return model


def _seconds_a_token(
    model: Any, base: LoadedModel, examples: Examples, batches: Any, learn: bool
) -> float:
    """Return the time of the second run of each batch, by its tokens."""
    spent, tokens = 0.0, 0
    for batch in batches:
        for attempt in range(2):  # the first one builds and caches kernels
            start = time.perf_counter()
            _run(model, base, examples, batch, learn)
            if attempt:
                spent += time.perf_counter() - start
        tokens += sum(unit_lengths(examples, batch))
    return spent / max(1, tokens)


def _run(
    model: Any, base: LoadedModel, examples: Examples, batch: Any, learn: bool
) -> None:
    import torch

    device = base.numerics.device
    sizes = unit_lengths(examples, batch)
    groups = length_groups(sizes, overhead_of(device)) if learn else [range(len(batch))]
    with torch.set_grad_enabled(learn):
        total: torch.Tensor = torch.zeros((), device=device)
        for group in groups:
            chosen = [batch[i] for i in group]
            made = collate(examples, chosen, base.pad_id)
            moved = {name: tensor.to(device) for name, tensor in made.items()}
            logits, labels, _ = supervised_logits(model, moved, base)
            total = total + torch.nn.functional.cross_entropy(
                logits, labels, reduction="sum"
            )
    if learn:
        torch.autograd.backward(total)
        model.zero_grad()
    if device == "cuda":
        torch.cuda.synchronize()
