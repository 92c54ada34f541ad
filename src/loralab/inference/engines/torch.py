"""The engine ``torch``: transformers' model, on weights as a format holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loralab import registry
from loralab.models.forward import HEADS
from loralab.models.numerics import Numerics
from loralab.models.quiet import quiet_libraries
from loralab.models.shape import OWN_HEADS, put_head
from loralab.registry import register


@register("engine", "torch")
def open_model(folder: Path, note: dict[str, Any], numerics: Numerics) -> Any:
    """Open a stored model.

    Args:
        folder: What a storage format of this engine wrote.
        note: ``storage`` (the format's name and params) and ``head``, a key of
            `loralab.models.forward.HEADS`.
        numerics: Device, and the dtype of all that is not quantized.

    Returns:
        A transformers model in evaluation mode, quantized as stored.

    Raises:
        QuantizationError: files are missing or broken, or a library is.
    """
    stored, head = note["storage"], note["head"]
    entry = registry.get("storage format", stored["name"])
    params = entry.schema(**stored["params"])
    auto_class = HEADS[head].auto_class
    with quiet_libraries():
        model = entry.facts["open"](
            params, folder, auto_class, numerics.device, numerics.torch_dtype
        )
    if own := OWN_HEADS.get(head):  # transformers does not know of it
        _give_head(model, head, own, folder, numerics)
    return model


def _give_head(
    model: Any, head: str, own: str, folder: Path, numerics: Numerics
) -> None:
    from safetensors import safe_open

    (written,) = folder.glob("*.safetensors")
    with safe_open(written, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(f"{own}.")]  # noqa: SIM118
        state = {name.removeprefix(f"{own}."): file.get_tensor(name) for name in names}
    put_head(model, head, len(state["weight"]))
    module = model.get_submodule(own)
    module.load_state_dict(state)
    module.to(numerics.device).eval()
