"""The forward pass that training, evaluation and their guards share.

Logits only where a label is: for a token-level task the output layer sees the hidden
states of supervised positions only. With a vocabulary of 49,152 and a quarter of the
tokens supervised, that is a third of all the work of a small model.

Shape suffixes: B batch, T tokens, N supervised positions, C classes or vocabulary,
D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from loralab.models.numerics import Numerics

if TYPE_CHECKING:
    import torch

INPUTS = ("input_ids", "attention_mask", "position_ids", "token_type_ids")


@contextmanager
def output_only_at(model: Any, mask_BT: torch.Tensor) -> Iterator[None]:
    """Let the output layer see only the positions of a mask.

    Args:
        model: A causal language model, with or without adapter.
        mask_BT: bool [B, T]. Within the context logits are [1, N, C].
    """
    layer = model.get_output_embeddings()

    def keep(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][mask_BT].unsqueeze(0), *args[1:])

    handle = layer.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def supervised_logits(
    model: Any,
    batch: Mapping[str, torch.Tensor],
    numerics: Numerics,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits, labels and the examples they belong to, where there is a label.

    Args:
        model: A transformers or PEFT model.
        batch: What `loralab.data.batching.collate` returns, on the model's device.
        numerics: The context to compute in.

    Returns:
        ``logits`` [N, C] fp32, ``labels`` [N] int64, ``example`` [N] int64. For a
        classifier N is B.
    """
    from loralab.data.examples import IGNORE

    inputs = {name: batch[name] for name in INPUTS if name in batch}
    labels = batch["labels"]
    if labels.dim() == 1:
        with numerics.autocast():
            logits_BC = model(**inputs).logits
        return logits_BC.float(), labels, batch["example"]
    mask_BT = labels != IGNORE
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    with numerics.autocast(), output_only_at(base, mask_BT):
        logits_NC = model(**inputs, use_cache=False).logits[0]
    return logits_NC.float(), labels[mask_BT], batch["example"][mask_BT]
