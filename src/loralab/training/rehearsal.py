"""A training step on tensors without content: what memory it takes, told beforehand.

The model stands on the meta device; within torch's `FakeTensorMode` every operation
runs for its shapes only, under the very autograd, autocast and optimizer of the real
step. A ledger adds a storage's bytes when an operation makes it and takes them off when
the last reference to it dies. So the peak is counted, not estimated from a formula, for
any architecture and method. What it does not see is the process before it holds any
tensor; what an allocator holds beyond live tensors is a measured share (`SLACK`).

    peak = process + weights + adapter, gradients, optimizer + what the step holds
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loralab.adapters.layers import keep_inputs
from loralab.config import TrainingConfig
from loralab.data.batching import collate, length_groups, overhead_of, unit_lengths
from loralab.data.examples import Examples
from loralab.models.forward import supervised_logits
from loralab.models.loaded import LoadedModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

EIGHT_BIT = 0.26
"""State of 8-bit AdamW as a share of AdamW's, measured: 1 byte and a scale a block."""

Batches = list[list[list[int]]]
"""Batches of units of examples."""


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal counted, in bytes.

    Attributes:
        weights: The base's weights and buffers.
        trained: The trained tensors.
        optimizer: The optimizer's state.
        training: What all tensors take of the allocator at most, in training steps.
        evaluation: The same in evaluation batches, with the optimizer's state.
    """

    weights: int
    trained: int
    optimizer: int
    training: int
    evaluation: int


MAPPED = 32 * 2**20
"""From this size on glibc maps every block apart and gives it back at once."""

SLACK = 1.7
"""How much more than live blocks below `MAPPED` glibc's heap holds at the peak, on a
CPU; measured by `benchmarks/plan.py` (1.45 to 1.75 over batch and length)."""


class _Ledger:
    """Counts the bytes that the storages that live take of an allocator."""

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0
        self.slack = 1.0
        self._known: dict[int, int] = {}

    def take(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = round(self.slack * size) if size < MAPPED else size
        self.now += self._known[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._known.pop(key)

    def peak_since(self) -> int:
        """Return the peak since the last call, and begin anew."""
        found, self.peak = self.peak, self.now
        return found


@contextmanager
def _counted(ledger: _Ledger) -> Iterator[Any]:
    """Within it tensors have no content, and the ledger knows all of them."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            made = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(made):
                if isinstance(tensor, torch.Tensor):
                    ledger.take(tensor)
            return made

    with FakeTensorMode(allow_non_fake_inputs=True) as fake, Counting():  # type: ignore[no-untyped-call]
        yield fake


def _give_shapes(model: Any, device: str) -> None:
    """Replace tensors on the meta device by ones that say they are on `device`."""
    import torch

    made: dict[int, torch.Tensor] = {}

    def twin(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = torch.empty(
                tensor.shape, dtype=tensor.dtype, device=device
            )
        return made[id(tensor)]

    parameters: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, held in module._parameters.items():
            if held is None:
                continue
            if id(held) not in parameters:
                parameters[id(held)] = torch.nn.Parameter(
                    twin(held), requires_grad=held.requires_grad
                )
            module._parameters[name] = parameters[id(held)]
        for name, held in module._buffers.items():
            if held is not None:
                module._buffers[name] = twin(held)


def _bytes(tensors: Any) -> int:
    return sum({id(t): t.numel() * t.element_size() for t in tensors}.values())


def rehearse(
    model: Any,
    base: LoadedModel,
    examples: Examples,
    training: Batches,
    evaluation: Batches,
    config: TrainingConfig,
) -> Rehearsal:
    """Run two optimizer steps and the evaluation batches without content.

    Args:
        model: A PEFT model on the meta device; it is used up.
        base: What it stands on.
        examples: Encoded rows.
        training: Micro-batches that need the most memory.
        evaluation: Evaluation batches that do.
        config: Optimizer, accumulation, activation checkpointing.
    """
    import torch

    ledger = _Ledger()
    device = base.numerics.device
    with _counted(ledger) as fake:
        _give_shapes(model, device)
        if config.gradient_checkpointing:
            _checkpoint_activations(model)
        ledger.slack = SLACK if device == "cpu" else 1.0
        trained = [p for p in model.parameters() if p.requires_grad]
        weights = _bytes([*model.parameters(), *model.buffers()]) - _bytes(trained)
        optimizer = _optimizer(trained, config)
        model.train()
        keep_inputs(model, base.numerics)
        ledger.peak_since()
        for _ in range(2):
            for batch in training * min(2, config.gradient_accumulation_steps):
                loss = _loss(model, base, examples, batch, fake)
                torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        highest = ledger.peak_since()
        model.eval()
        for batch in evaluation:
            _evaluate(model, base, examples, batch, fake)
        held, lowest = _state_bytes(optimizer), ledger.peak_since()
        saved = round(held * (1 - EIGHT_BIT)) if "8bit" in config.optim else 0
        peaks = (highest - saved, lowest - saved)
        return Rehearsal(weights, _bytes(trained), held - saved, *peaks)


def _state_bytes(optimizer: Any) -> int:
    state = [t for s in optimizer.state.values() for t in s.values()]
    return _bytes(t for t in state if hasattr(t, "numel"))


def _checkpoint_activations(model: Any) -> None:
    model.enable_input_require_grads()
    model.activation_checkpointing_enable({"use_reentrant": False})


def _optimizer(trained: Sequence[Any], config: TrainingConfig) -> Any:
    """Return the configured optimizer, as far as memory goes."""
    import torch
    from transformers.optimization import Adafactor

    if config.optim == "adafactor":
        return Adafactor(trained, lr=1e-3, relative_step=False, scale_parameter=False)
    if config.optim == "sgd":
        return torch.optim.SGD(trained, lr=1e-3)
    return torch.optim.AdamW(trained, lr=1e-3, foreach=False)


def _moved(made: Mapping[str, torch.Tensor], fake: Any) -> dict[str, torch.Tensor]:
    return {name: fake.from_tensor(tensor) for name, tensor in made.items()}


def _loss(
    model: Any, base: LoadedModel, examples: Examples, batch: Any, fake: Any
) -> torch.Tensor:
    """Return the loss of a micro-batch, in the groups that the trainer makes."""
    import torch
    from torch.nn.functional import cross_entropy

    sizes = unit_lengths(examples, batch)
    total = torch.zeros(())
    for group in length_groups(sizes, overhead_of(base.numerics.device)):
        made = _collated(examples, [batch[i] for i in group], base, fake)
        logits, labels, _ = supervised_logits(model, made, base)
        total = total + cross_entropy(logits, labels, reduction="sum")
    return total


def _collated(
    examples: Examples, batch: Any, base: LoadedModel, fake: Any
) -> dict[str, torch.Tensor]:
    from torch.utils._mode_utils import no_dispatch

    with no_dispatch():
        made = collate(examples, batch, base.pad_id)
    return _moved(made, fake)


def _evaluate(
    model: Any, base: LoadedModel, examples: Examples, batch: Any, fake: Any
) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    with torch.inference_mode():
        made = _collated(examples, batch, base, fake)
        logits, labels, _ = supervised_logits(model, made, base)
        cross_entropy(logits, labels, reduction="none").double()
