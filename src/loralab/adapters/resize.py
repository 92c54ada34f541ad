"""Ranks of a live PEFT LoRA model that shrink and grow; the scale s stays the same.

Growth leaves the function as it is: A gets new rows, drawn as PEFT draws them
(Kaiming-uniform, a = √5: U(−1/√in, 1/√in)), B gets new columns of zeros,

    s·[B 0][A; A_new] = s·B·A.

Shrinking keeps the best approximation of s·B·A (`loralab.lowrank.factors.truncate`).
Alpha follows the rank, so that alpha / rank (alpha / √rank with rsLoRA) is what it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter

from loralab.adapters.layers import lora_layers
from loralab.errors import AdapterError
from loralab.lowrank.factors import Factors, truncate
from loralab.lowrank.files import PREFIX
from loralab.lowrank.settings import alpha_of, rank_settings

if TYPE_CHECKING:
    from torch.optim import Optimizer


@dataclass(frozen=True)
class Resized:
    """What happened to one module.

    Attributes:
        before: Its rank.
        after: Its rank now.
        relative_error: ‖ΔW − ΔW_new‖ / ‖ΔW‖; 0 for growth.
    """

    before: int
    after: int
    relative_error: float


def _adapter_name(model: Any) -> str:
    return str(model.active_adapter)


def plain_layers(model: Any) -> dict[str, Any]:
    """Return the plain LoRA layers of a PEFT model, by module path in the base.

    Raises:
        AdapterError: there are none, or one is no plain s·B·A of a linear layer.
    """
    adapter, found = _adapter_name(model), lora_layers(model)
    if not found:
        raise AdapterError(
            "the model has no LoRA layers", why="only their ranks can change"
        )
    for path, layer in found.items():
        variant = layer.lora_variant.get(adapter)
        if variant is not None:
            raise AdapterError(
                f"the layer is no plain LoRA ({type(variant).__name__})",
                where=path,
                why="its update is more than s·B·A, so no smaller rank is nearest",
            )
        if adapter not in layer.lora_A or layer.lora_A[adapter].weight.ndim != 2:
            raise AdapterError("not a linear LoRA layer", where=path)
        if layer.lora_B[adapter].bias is not None:
            raise AdapterError("lora_bias is on: more than s·B·A", where=path)
    return found


def ranks_of(model: Any) -> dict[str, int]:
    """Return the rank of each LoRA layer, by module path in the base."""
    adapter = _adapter_name(model)
    return {path: layer.r[adapter] for path, layer in plain_layers(model).items()}


def factors_of(model: Any) -> dict[str, Factors]:
    """Return the updates of a PEFT model, by module path; the tensors are the model's.

    Raises:
        AdapterError: a layer is no plain LoRA.
    """
    adapter = _adapter_name(model)
    return {path: _factors(x, adapter) for path, x in plain_layers(model).items()}


def _factors(layer: Any, adapter: str) -> Factors:
    return Factors(
        layer.lora_A[adapter].weight.detach(),
        layer.lora_B[adapter].weight.detach(),
        float(layer.scaling[adapter]),
    )


def lora_parameters(model: Any) -> dict[str, Parameter]:
    """Return the parameters A and B of every layer: ``<path>.A`` and ``<path>.B``."""
    adapter = _adapter_name(model)
    return {
        f"{path}.{kind}": getattr(layer, f"lora_{kind}")[adapter].weight
        for path, layer in plain_layers(model).items()
        for kind in "AB"
    }


def _grown(factors: Factors, rank: int, generator: torch.Generator) -> Factors:
    """Return the same update with more directions: random rows of A, zeros in B."""
    A, B, more = factors.A, factors.B, rank - factors.rank
    bound = 1 / math.sqrt(A.shape[1])
    # drawn on the CPU in float32, so that device and dtype do not change the draw
    drawn = torch.empty(more, A.shape[1]).uniform_(-bound, bound, generator=generator)
    return Factors(
        torch.cat([A, drawn.to(A)]),
        torch.cat([B, B.new_zeros(B.shape[0], more)], dim=1),
        factors.scale,
    )


def _fitted(
    factors: Factors, rank: int, generator: torch.Generator
) -> tuple[Factors, float]:
    """Return the update with another rank, and the relative error."""
    cut = truncate(factors, rank)
    found = cut.factors
    if found.rank < rank:
        found = _grown(found, rank, generator)
    return found, cut.relative_error


def _put(layer: Any, adapter: str, factors: Factors) -> None:
    """Give a layer new factors; dtype, device, dropout and requires_grad stay."""
    for linear, tensor in (
        (layer.lora_A[adapter], factors.A),
        (layer.lora_B[adapter], factors.B),
    ):
        old = linear.weight
        if group := getattr(linear, "group", 0):  # QA-LoRA's A, constant in groups
            tensor = tensor[:, ::group]
        linear.weight = Parameter(tensor.to(old), requires_grad=old.requires_grad)
        linear.out_features, linear.in_features = tensor.shape
    layer.r[adapter] = factors.rank
    layer.scaling[adapter] = factors.scale
    root = math.sqrt(factors.rank) if layer.use_rslora[adapter] else None
    alpha = factors.scale * root if root else alpha_of(factors.scale, factors.rank)
    layer.lora_alpha[adapter] = alpha


def _note_ranks(model: Any, layers: Mapping[str, Any]) -> None:
    """Write ranks and alphas into PEFT's configuration, from which it is loaded."""
    adapter = _adapter_name(model)
    config = model.peft_config[adapter]
    given = {
        path: (layer.r[adapter], float(layer.lora_alpha[adapter]))
        for path, layer in layers.items()
    }
    for key, value in rank_settings(given).items():
        setattr(config, key, value)


def resize(
    model: Any, ranks: Mapping[str, int], generator: torch.Generator
) -> dict[str, Resized]:
    """Change the ranks of a live PEFT LoRA model, and its configuration with them.

    New parameters replace the old ones: an optimizer that holds those is carried over
    by `carry_optimizer`.

    Args:
        model: A PEFT model of plain LoRA, not merged; changed in place.
        ranks: Module path in the base -> its new rank, at least 1. Modules that are
            not named, or have their rank already, are not touched.
        generator: On the CPU; draws the new rows of A, module after module in the
            order of the model.

    Returns:
        What happened to each module that was changed.

    Raises:
        AdapterError: DoRA or another variant, an unknown module, a rank below 1 or
            above what the weight's shape allows.
    """
    layers, adapter = plain_layers(model), _adapter_name(model)
    for path, rank in ranks.items():
        _check(layers, adapter, path, rank)
    report = {}
    for path, layer in layers.items():
        before = layer.r[adapter]
        rank = ranks.get(path, before)
        if rank != before:
            made, error = _fitted(_factors(layer, adapter), rank, generator)
            _put(layer, adapter, made)
            report[path] = Resized(before, rank, error)
    _note_ranks(model, layers)
    return report


def _check(layers: Mapping[str, Any], adapter: str, path: str, rank: int) -> None:
    if path not in layers:
        raise AdapterError(
            "no LoRA layer has this path",
            where=path,
            fix=f"such as {next(iter(layers))}",
        )
    now = _factors(layers[path], adapter)
    most = max(min(now.shape), now.rank)
    if not 1 <= rank <= most:
        raise AdapterError(
            f"rank {rank} is not between 1 and {most}",
            where=path,
            why="PEFT knows no rank 0, and beyond the weight's sides there is nothing",
        )


def put_factors(model: Any, factors: Mapping[str, Factors]) -> None:
    """Give a live PEFT model the updates of a (truncated) adapter.

    A layer whose update has rank 0 gets a direction of zeros, which PEFT needs.

    Args:
        model: A PEFT model of plain LoRA; changed in place.
        factors: Module path -> update, for every layer, with its own scale.

    Raises:
        AdapterError: the modules are not those of the model.
    """
    layers, adapter = plain_layers(model), _adapter_name(model)
    if set(layers) != set(factors):
        odd = sorted(set(layers) ^ set(factors))[0]
        raise AdapterError("in only one of model and adapter", where=odd)
    for path, layer in layers.items():
        given = factors[path]
        if not given.rank:
            out, into = given.shape
            given = Factors(torch.zeros(1, into), torch.zeros(out, 1), given.scale)
        _put(layer, adapter, given)
    _note_ranks(model, layers)


def fit_shapes(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Give a live model the ranks of a stored adapter, before that is loaded into it.

    A training whose ranks have changed is resumed so: the shapes in the checkpoint
    decide. The values are of no meaning until the checkpoint is loaded.

    Args:
        model: A PEFT model of plain LoRA; changed in place.
        tensors: The model's name (``base_model.model.<path>.lora_A.default.weight``) ->
            tensor.

    Raises:
        AdapterError: a layer is not plain, or its stored rank is not possible.
    """
    ranks, adapter = {}, _adapter_name(model)
    for path in plain_layers(model):
        stored = tensors.get(f"{PREFIX}{path}.lora_A.{adapter}.weight")
        if stored is not None:  # what is missing is told by whoever loads
            ranks[path] = stored.shape[0]
    resize(model, ranks, torch.Generator().manual_seed(0))


def carry_optimizer(
    optimizer: Optimizer,
    before: Mapping[str, Parameter],
    after: Mapping[str, Parameter],
) -> list[str]:
    """Put the new parameters into an optimizer in place of the old, with their state.

    Where a tensor has grown, what is known of its old entries holds, and the moments of
    the new ones begin at zero, as Adam's do. Its step count goes on, so Adam's
    correction for that beginning is over: the first step of a new entry is up to
    (1 − β1)/√(1 − β2) learning rates long, 3.2 with the usual betas.

    Where it has shrunk, its state begins anew. Truncation turns the basis (the new
    columns of B are mixtures of all old ones), and a moment of each entry of the old
    factors says nothing of an entry of the new: the square of a gradient does not
    turn with it. State in another shape than the tensor's (factored, quantized)
    begins anew too.

    Args:
        optimizer: It, or accelerate's wrapper.
        before: `lora_parameters` before `resize`.
        after: The same after it.

    Returns:
        The names of the tensors whose state began anew.
    """
    swaps = {
        id(old): (name, after[name])
        for name, old in before.items()
        if after[name] is not old
    }
    anew = []
    for group in optimizer.param_groups:
        for place, old in enumerate(group["params"]):
            if id(old) not in swaps:
                continue
            name, new = swaps[id(old)]
            group["params"][place] = new
            state = optimizer.state.pop(old, None)
            if state is None:
                continue
            if _can_pad(state, old, new):
                optimizer.state[new] = dict(_padded(state, old, new))
            else:
                anew.append(name)
    return anew


def _can_pad(state: Mapping[str, Any], old: Tensor, new: Tensor) -> bool:
    grown = all(n >= o for n, o in zip(new.shape, old.shape, strict=True))
    known = all(
        value.shape == old.shape or value.numel() == 1
        for value in state.values()
        if isinstance(value, Tensor)
    )
    return grown and known


def _padded(
    state: Mapping[str, Any], old: Tensor, new: Tensor
) -> Iterator[tuple[str, Any]]:
    """Yield the state with zeros for what is new: rows below, columns to the right."""
    rows, columns = (n - o for n, o in zip(new.shape, old.shape, strict=True))
    for name, value in state.items():
        if isinstance(value, Tensor) and value.shape == old.shape:
            yield name, torch.nn.functional.pad(value, (0, columns, 0, rows))
        else:
            yield name, value
