"""The engine ``torch``: transformers' model, on weights as a format holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loralab import registry
from loralab.models.forward import HEADS
from loralab.models.numerics import Numerics
from loralab.models.quiet import quiet_libraries
from loralab.models.shape import put_probe
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
    if head == "feature-extraction":  # transformers knows of no probe
        _give_probe(model, folder, numerics)
    return model


def _give_probe(model: Any, folder: Path, numerics: Numerics) -> None:
    from safetensors import safe_open

    (written,) = folder.glob("*.safetensors")
    with safe_open(written, framework="pt") as file:
        state = {name: file.get_tensor(f"probe.{name}") for name in ("weight", "bias")}
    put_probe(model, len(state["bias"]))
    model.probe.load_state_dict(state)
    model.probe.to(numerics.device).eval()
