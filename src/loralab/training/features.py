"""A linear probe's features: what a frozen base says of a row is computed once.

    logits = W h(row) + b,   only W and b are trained

h never changes, so after one pass over the rows a step costs a product with W. The
result is the same but for rounding (a row's h may differ in its last bits with the rows
it is batched with), so it is no part of a run's configuration. Wherever h would change
from pass to pass, it is computed anew, and the run says why. Checkpoints, the adapter
and the evaluation at the end know nothing of it: that one reads the whole model.

Shape suffixes: E examples, B of a batch, D hidden, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from loralab.data.batching import collate, evaluation_order
from loralab.data.examples import Examples
from loralab.data.pixels import Augmentation
from loralab.models.forward import supervised_logits
from loralab.models.loaded import LoadedModel
from loralab.training.prepare import Prepared


def changes(prepared: Prepared, passes: float) -> str:
    """Return why features differ from pass to pass, or are not worth keeping.

    Args:
        prepared: A linear probe: its head is all that is trained.
        passes: Over the training rows.

    Returns:
        A reason, or an empty text.
    """
    train = prepared.examples["train"]
    if train.pixels is not None and train.pixels.augmentation != Augmentation():
        return "images are augmented anew in every pass"
    if dropped := _dropped(prepared.base.model.config.to_dict()):
        return f"the base drops at random ({dropped})"
    new = [prepared.base.model.get_submodule(x) for x in prepared.base.new_modules]
    if len(new) != 1 or not isinstance(new[0], nn.Linear):
        return "the head is more than one linear layer"
    if passes <= 1:
        return "there is no second pass over the rows"
    if prepared.config.training.parallel.processes > 1:
        return "several processes train"
    if train.supervision != "example":
        return "a row has several labels"
    return ""


def _dropped(config: Mapping[str, Any]) -> str:
    """Return a share that a configuration, or one inside it, drops; or nothing."""
    for name, value in config.items():
        if isinstance(value, Mapping) and (found := _dropped(value)):
            return found
        if isinstance(value, float) and value > 0 and "drop" in name:
            return f"{name} is {value:g}"
    return ""


def with_features(prepared: Prepared, batch: int) -> dict[str, Examples] | None:
    """Return the examples of every split with what enters the head.

    Args:
        prepared: What is trained.
        batch: Rows at a time at most.

    Returns:
        None where the head's output is not what the model answers.
    """
    model, base = prepared.attached.model.eval(), prepared.base
    found = {}
    for split, examples in prepared.examples.items():
        features_ED: Tensor | None = None
        for chosen in evaluation_order(examples.lengths, batch):
            read_BD = _read(model, base, examples, chosen)
            if read_BD is None:
                return None
            if features_ED is None:
                features_ED = read_BD.new_empty(len(examples), read_BD.shape[1])
            features_ED[chosen] = read_BD
        found[split] = replace(examples, features=features_ED)
    return found


def _read(
    model: Any, base: LoadedModel, examples: Examples, chosen: list[int]
) -> Tensor | None:
    """Return what enters the head, [B, D] on the CPU; None if it does not answer."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        seen.extend((given[0], made))

    (name,) = base.new_modules
    handle = base.model.get_submodule(name).register_forward_hook(keep)
    try:
        made = collate(examples, [[i] for i in chosen], base.pad_id)
        moved = {name: t.to(base.numerics.device) for name, t in made.items()}
        with torch.no_grad():
            logits, *_ = supervised_logits(model, moved, base)
    finally:
        handle.remove()
    answers = len(seen) == 2 and torch.equal(seen[1].float(), logits)
    return seen[0].cpu() if answers else None
