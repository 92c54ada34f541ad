"""The base that an adapter is a difference to, as far as the adapter's folder says.

The weights alone do not tell it: a base may have been stored in codes while the adapter
was trained, and LoftQ and QA-LoRA make another of it for good. The update belongs to
what training saw.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loralab.errors import AdapterError
from loralab.lowrank.settings import MERGED, NOTE


@dataclass(frozen=True)
class Base:
    """The base that an adapter was trained on.

    Attributes:
        name: ``base_model_name_or_path``; None where nothing is said.
        revision: Of the hub.
        fingerprint: Of the base's weights, where loralab wrote the adapter.
        storage: How they were stored in training, ``{name, params}``; None for float.
        rewritten: The method that made another base of it, and the params that decide
            what it made; None where none did.
    """

    name: str | None
    revision: str | None
    fingerprint: str | None
    storage: Mapping[str, Any] | None = None
    rewritten: Mapping[str, Any] | None = None

    @property
    def form(self) -> str:
        """What training saw instead of the float weights; empty where it saw those."""
        forms = (("stored as", self.storage), ("rewritten by", self.rewritten))
        return " and ".join(
            f"{how} {told.get('name')} {_flat(told.get('params') or {})}".rstrip()
            for how, told in forms
            if told
        )


def _flat(params: Mapping[str, Any]) -> str:
    return " ".join(
        f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in params.items()
    )


def read_base(folder: Path, config: Mapping[str, Any]) -> Base:
    """Return the base of an adapter: what its note says, or the record of its merge.

    Args:
        folder: The adapter's.
        config: PEFT's, which may name the base.

    Raises:
        AdapterError: the note or the record cannot be read.
    """
    file = next((folder / n for n in (NOTE, MERGED) if (folder / n).exists()), None)
    told: dict[str, Any] = {}
    if file:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            told = _common(content) if file.name == MERGED else content.get("base")
            told = dict(told or {})
        except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
            raise AdapterError(
                f"{file.name} cannot be read", where=str(folder), why=str(error)
            ) from None
    return Base(
        name=config.get("base_model_name_or_path") or told.get("path"),
        revision=config.get("revision") or told.get("revision"),
        fingerprint=told.get("fingerprint"),
        storage=told.get("storage"),
        rewritten=told.get("rewritten"),
    )


def _common(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base that all adapters of a merge have; nothing if they differ."""
    first, *others = (dict(adapter["base"]) for adapter in record["adapters"])
    keys = ("fingerprint", "storage", "rewritten")
    same = all(first.get(k) == other.get(k) for other in others for k in keys)
    return first if same else {}
