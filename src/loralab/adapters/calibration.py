"""Statistics of a base on training batches: what data-driven inits and ranks look at.

With G the gradient of the mean loss of a batch with respect to a weight W, and X the
inputs of a module at real tokens:

    gradient   mean |W ⊙ Ḡ|, Ḡ the mean of G over batches     (GoRA, arXiv:2502.12171)
    fisher     mean of G² over entries and batches   (empirical Fisher, a batch a draw)
    eva        explained-variance ratios of the principal components of X
                                                               (EVA, arXiv:2410.07170)

Modules with the same input (query, key, value) have the same components. Everything is
accumulated in fp32.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from loralab.adapters.allocation import needs_of
from loralab.adapters.ranks_config import CalibrationConfig
from loralab.config.schema import RankStrategyConfig
from loralab.data.batching import collate, units
from loralab.data.examples import IGNORE, Examples
from loralab.errors import AdapterError
from loralab.models.architecture import reads_source
from loralab.models.forward import Batch, supervised_logits
from loralab.models.loaded import LoadedModel

if TYPE_CHECKING:
    import torch

Batches = Callable[[], Iterator[Batch]]
"""Yields the same training batches at each call, on the model's device."""

Statistics = dict[str, Any]
"""Module -> a number, or for ``eva`` the ratios of its components, descending."""

READS_ROWS = ("eva", "corda", "lora-ga")
"""The inits that look at training rows."""


def measure(
    kind: str,
    loaded: LoadedModel,
    names: Sequence[str],
    batches: Batches,
    components: int,
) -> Statistics:
    """Return a statistic of the base's modules.

    Args:
        kind: ``gradient``, ``fisher`` or ``eva``.
        loaded: The base, without adapter; it is left as it was.
        names: The modules.
        batches: Training batches.
        components: For ``eva``: how many components a module has at most.
    """
    if kind == "eva":
        return explained_variance(loaded, names, batches, components)
    weights = {name: loaded.model.get_submodule(name).weight for name in names}
    if kind == "fisher":
        squares = weight_gradients(loaded.model, weights, loaded, batches, power=2)
        return {name: float(square.mean()) for name, square in squares.items()}
    mean = weight_gradients(loaded.model, weights, loaded, batches)
    return {
        name: float((weights[name].detach().float() * mean[name]).abs().mean())
        for name in names
    }


def calibrates(params: Any) -> bool:
    """Return whether a method with these params looks at training rows first."""
    ranks = getattr(params, "ranks", None)
    return getattr(params, "init", "") in READS_ROWS or bool(
        ranks and needs_of(RankStrategyConfig(name=ranks.name, params=ranks.params))
    )


def calibration_batches(
    examples: Examples, base: LoadedModel, settings: CalibrationConfig
) -> Batches:
    """Return training batches to calibrate on: rows drawn by the settings' seed."""
    of = units(examples)
    wanted = min(len(of), settings.batches * settings.rows)
    chosen = random.Random(settings.seed).sample(range(len(of)), wanted)
    batches = [
        [of[i] for i in chosen[start : start + settings.rows]]
        for start in range(0, wanted, settings.rows)
    ]

    def again() -> Iterator[Any]:
        for batch in batches:
            made = collate(examples, batch, base.pad_id)
            yield {name: t.to(base.numerics.device) for name, t in made.items()}

    return again


@contextmanager
def _only(model: Any, weights: Sequence[torch.Tensor]) -> Iterator[None]:
    """Within it gradients go to these weights only, and dropout is off."""
    held = [(p, p.requires_grad) for p in model.parameters()]
    training = model.training
    for parameter, _ in held:
        parameter.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    model.eval()
    try:
        yield
    finally:
        for parameter, wanted in held:
            parameter.requires_grad_(wanted)
        model.train(training)


def weight_gradients(
    model: Any,
    weights: Mapping[str, torch.Tensor],
    loaded: LoadedModel,
    batches: Batches,
    power: int = 1,
) -> dict[str, torch.Tensor]:
    """Return the mean over batches of each weight's gradient, or of its square.

    Args:
        model: The base, or a PEFT model on it.
        weights: Name -> the base's own weight.
        loaded: The base, for its head and numerics.
        batches: Training batches.
        power: 1 for the gradient, 2 for its square.

    Returns:
        Name -> fp32 tensor of the weight's shape.

    Raises:
        AdapterError: a gradient is NaN or infinite, or none arrives.
    """
    import torch
    from torch.nn.functional import cross_entropy

    mean = {n: torch.zeros_like(w, dtype=torch.float32) for n, w in weights.items()}
    count = 0
    with _only(model, list(weights.values())), torch.enable_grad():
        for batch in batches():
            logits, labels, _ = supervised_logits(model, batch, loaded)
            torch.autograd.backward(cross_entropy(logits, labels))
            count += 1
            for name, weight in weights.items():
                if weight.grad is None:
                    raise AdapterError("no gradient reaches this module", where=name)
                mean[name] += weight.grad.float() ** power
                weight.grad = None
    for name in weights:
        mean[name] /= count
        if not torch.isfinite(mean[name]).all():
            raise AdapterError(
                "the gradient is not finite",
                where=name,
                fix="set model.dtype=fp32, or calibrate on other rows",
            )
    return mean


def explained_variance(
    loaded: LoadedModel, names: Sequence[str], batches: Batches, components: int
) -> Statistics:
    """Return each module's explained-variance ratios, descending.

    Args:
        loaded: The base, without adapter.
        names: The modules.
        batches: Training batches.
        components: How many ratios a module has at most.
    """
    import torch

    heard = _Heard(components)
    modules = {name: loaded.model.get_submodule(name) for name in names}
    with torch.no_grad(), hearing(loaded.model, modules, heard.take):
        for batch in batches():
            heard.batch = batch
            supervised_logits(loaded.model, batch, loaded)
    return {name: heard.ratios(name) for name in names}


def _real_tokens(name: str, batch: Batch) -> torch.Tensor | None:
    """Return where what a module reads is no padding, bool [B, T]; None for images."""
    if "targets" in batch and not reads_source(name):
        return batch["targets"] != IGNORE
    return batch["attention_mask"].bool() if "attention_mask" in batch else None


def at_real_tokens(name: str, inputs_BTI: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return a module's inputs without those at padding, [N, in].

    One that reads other than the sequence (a pooler, a patch embedding) has none.

    Args:
        name: The module's path: an encoder reads the source, a decoder the target.
        inputs_BTI: What it reads.
        batch: What the model reads.
    """
    mask_BT = _real_tokens(name, batch)
    if mask_BT is None or inputs_BTI.shape[:-1] != mask_BT.shape:
        return inputs_BTI.flatten(0, -2)
    return inputs_BTI[mask_BT]


@contextmanager
def hearing(
    model: Any, modules: Mapping[str, Any], take: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    """Within it `take` is told each module's name and inputs; dropout is off."""
    handles = []
    for name, module in modules.items():

        def keep(_: Any, args: tuple[Any, ...], name: str = name) -> None:
            take(name, args[0])

        handles.append(module.register_forward_pre_hook(keep))
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)
        for handle in handles:
            handle.remove()


def input_covariance(
    model: Any, modules: Mapping[str, Any], loaded: LoadedModel, batches: Batches
) -> dict[str, torch.Tensor]:
    """Return the mean of x xᵀ over real tokens, fp32 [in, in], by module.

    Args:
        model: The base, or a PEFT model on it.
        modules: Name -> the module.
        loaded: The base, for its head and numerics.
        batches: Training batches.
    """
    import torch

    found: dict[str, torch.Tensor] = {}
    counts = dict.fromkeys(modules, 0)
    read: list[Batch] = []

    def take(name: str, inputs_BTI: torch.Tensor) -> None:
        real_NI = at_real_tokens(name, inputs_BTI, read[0]).float()
        found[name] = found.get(name, 0) + real_NI.T @ real_NI
        counts[name] += len(real_NI)

    with torch.no_grad(), hearing(model, modules, take):
        for batch in batches():
            read[:] = [batch]
            supervised_logits(model, batch, loaded)
    return {name: total / counts[name] for name, total in found.items()}


def input_counts(
    model: Any, modules: Mapping[str, Any], loaded: LoadedModel, batches: Batches
) -> dict[str, int]:
    """Return, by module, how many inputs at real tokens the smallest batch has."""
    import torch

    found: dict[str, int] = {}
    read: list[Batch] = []

    def take(name: str, inputs_BTI: torch.Tensor) -> None:
        count = len(at_real_tokens(name, inputs_BTI, read[0]))
        found[name] = min(count, found.get(name, count))

    with torch.no_grad(), hearing(model, modules, take):
        for batch in batches():
            read[:] = [batch]
            supervised_logits(model, batch, loaded)
    return found


class _Heard:
    """The principal components of modules' inputs; equal inputs are kept once."""

    def __init__(self, components: int) -> None:
        self.batch: Batch = {}
        self._components = components
        self._kept: dict[str, Any] = {}
        self._leader: dict[str, str] = {}
        self._last: tuple[Any, str] | None = None

    def take(self, name: str, inputs_BTI: torch.Tensor) -> None:
        """Add a module's inputs at real tokens."""
        from peft.utils.incremental_pca import IncrementalPCA

        if self._last is not None and self._last[0] is inputs_BTI:
            self._leader[name] = self._last[1]  # query, key and value read the same
            return
        self._last = (inputs_BTI, name)
        self._leader[name] = name
        real_NI = at_real_tokens(name, inputs_BTI, self.batch)
        if name not in self._kept:
            most = min(self._components, real_NI.shape[1], real_NI.shape[0])
            self._kept[name] = IncrementalPCA(n_components=most, copy=True)
        if len(real_NI) >= self._kept[name].n_components:
            self._kept[name].partial_fit(real_NI.float())

    def ratios(self, name: str) -> list[float]:
        """Return the explained-variance ratios of a module."""
        found = self._kept[self._leader[name]].explained_variance_ratio_
        return [float(x) for x in found]
