"""A base whose linear modules are quantized while it is loaded (QLoRA's base).

What is quantized is every linear module of the body: never the embeddings, the output
layer or a head. The rest keeps the dtype of the base. Which formats there are, and how
they come about, `loralab.quantization.formats` says.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loralab import registry
from loralab.config import ModelConfig, StorageConfig
from loralab.errors import ModelError
from loralab.models.architecture import Facts, facts_of
from loralab.models.numerics import Numerics
from loralab.models.shape import build_shape, new_modules_of


@dataclass(frozen=True)
class Storage:
    """How a base is to be stored.

    Attributes:
        entry: The registered format.
        params: Its params.
        shape: The float model on the meta device.
        facts: Of the float model; what is quantized is `facts.linear`.
        device: Where the model is to run.
    """

    entry: registry.Entry
    params: Any
    shape: Any
    facts: Facts
    device: str

    def reading(self) -> dict[str, Any]:
        """Return what `from_pretrained` takes to quantize while it reads, if it can."""
        reading = self.entry.facts.get("reading")
        return reading(self.params, self.shape, self.facts.linear) if reading else {}

    def finish(self, model: Any) -> Facts:
        """Quantize what is not quantized yet, and see that all of it is.

        Returns:
            The facts of the base; a quantized module is never stored transposed.

        Raises:
            ModelError: a module is still float.
            QuantizationError: a module that the format cannot hold.
        """
        if "reading" not in self.entry.facts or next(model.parameters()).is_meta:
            self.entry.facts["replace"](self.params, model, self.facts.linear)
        if settle := self.entry.facts.get("settle"):
            settle(model, self.device)
        for name in self.facts.linear:
            if type(model.get_submodule(name)).__name__ in ("Linear", "Conv1D"):
                raise ModelError(
                    f"{name} is still float",
                    where="model.storage",
                    why=f"transformers did not quantize it to {self.entry.name}",
                )
        return replace(self.facts, conv1d=())


def check_device(name: str, ability: str, device: str) -> None:
    """Refuse a format that is not run on a device; nothing is asked of the machine.

    Args:
        name: Of the format.
        ability: ``nf4`` and ``int8`` are bitsandbytes', ``affine`` is ours.
        device: ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ModelError: bitsandbytes on a Mac's GPU.
    """
    if device == "mps" and ability in ("nf4", "int8"):
        other = "affine-int8" if ability == "int8" else "affine-int4"
        raise ModelError(
            f"{name} is not run on mps",
            where="model.storage",
            why="there bitsandbytes runs kernels that it downloads, or slow stand-ins",
            fix=f"set model.storage={other}, which is plain torch; or model.device=cpu",
        )


def format_facts(storage: StorageConfig) -> dict[str, Any]:
    """Return what the chosen format says of itself."""
    return registry.get(StorageConfig.kind, storage.name).facts


def storage_of(
    config: ModelConfig,
    folder: Path,
    load_from: str,
    numerics: Numerics,
    head: str,
    labels: Collection[str] = (),
    layers: int | None = None,
) -> Storage | None:
    """Return how the configured base is to be stored; None is float.

    Args:
        config: Of the base.
        folder: Where its files are.
        load_from: What `from_pretrained` takes.
        numerics: Device and dtype.
        head: A key of `loralab.models.forward.HEADS`.
        labels: Class names, for a classification head.
        layers: Build only so many layers.

    Raises:
        ModelError: transformers cannot build it.
    """
    if config.storage is None:
        return None
    entry = registry.get(StorageConfig.kind, config.storage.name)
    check_device(entry.name, entry.facts["ability"], numerics.device)
    shape = build_shape(config, load_from, numerics, head, labels, layers)
    facts = facts_of(shape, new_modules_of(shape, head, folder))
    params = entry.schema(**config.storage.params)
    return Storage(entry, params, shape, facts, numerics.device)
