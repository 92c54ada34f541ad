"""Does this model keep packed examples apart? Measured, not assumed.

transformers derives a block mask from `position_ids` that restart; a model whose
attention does not take part in that would let one row read another, and nothing would
tell. So a model is tried once, on two short sequences, before it is trained on packs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loralab.errors import ModelError

if TYPE_CHECKING:
    from loralab.models.loaded import LoadedModel


def check_packing(loaded: LoadedModel) -> float:
    """Return the largest difference between packed and separate logits.

    Raises:
        ModelError: it is more than rounding: examples of a pack see each other.
    """
    import torch

    device = loaded.model.device  # to be sharded, it is not in its place yet
    top = min(loaded.facts.vocabulary, 1000)
    first, second = [i % top for i in range(5, 16)], [i % top for i in range(50, 57)]
    packed = torch.tensor([first + second], device=device)
    where = [*range(len(first)), *range(len(second))]
    positions = torch.tensor([where], device=device)

    def logits(ids: torch.Tensor, **extra: Any) -> torch.Tensor:
        with torch.no_grad(), loaded.numerics.autocast():
            out = loaded.model(input_ids=ids, use_cache=False, **extra).logits
        last: torch.Tensor = out.float()[0, -len(second) :]
        return last

    together = logits(packed, position_ids=positions)
    alone = logits(torch.tensor([second], device=device))
    mixed = logits(packed)  # one long sequence: what a leak would look like
    error = float((together - alone).abs().max())
    leak = float((mixed - alone).abs().max())
    if not error < 0.25 * leak:
        raise ModelError(
            f"{loaded.facts.model_type} lets packed rows read each other "
            f"(logits differ by {error:.2g})",
            where="task.params.packing",
            fix="set it to false",
        )
    return error
