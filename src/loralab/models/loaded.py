"""A base model once it is loaded, with all that is known of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from loralab.config import StorageConfig
from loralab.models.architecture import Facts
from loralab.models.numerics import Numerics


@dataclass
class LoadedModel:
    """A base model, ready for an adapter.

    Attributes:
        model: The transformers model, on its device.
        processor: Its tokenizer, or its image processor.
        head: What it was loaded for: a key of `loralab.models.forward.HEADS`.
        facts: Architecture, sizes, linear modules.
        numerics: Device and dtype, with the reason.
        new_modules: Top modules with newly initialised weights (a task's head).
        path: As configured: ``embedded:minilm``, ``./folder`` or ``org/name``.
        revision: The hub's commit, or None.
        fingerprint: sha256 over the weights' files and the configuration.
        storage: How its linear modules are quantized; None is float.
    """

    model: Any
    processor: Any
    head: str
    facts: Facts
    numerics: Numerics
    new_modules: tuple[str, ...]
    path: str
    revision: str | None
    fingerprint: str
    storage: StorageConfig | None = None

    def record(self) -> dict[str, Any]:
        """Return what ``run.json`` says of the base."""
        return {
            "path": self.path,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "storage": self.storage and self.storage.model_dump(mode="json"),
            "new_modules": list(self.new_modules),
            **{k: v for k, v in asdict(self.facts).items() if k != "linear"},
        }

    @property
    def pad_id(self) -> int:
        """The token that padding is written with; 0 of images, which have none."""
        return int(getattr(self.processor, "pad_token_id", 0))
