"""A base model without weights: shapes only, to count, to plan and to rehearse with.

It is built on torch's meta device from the configuration, so a model of any size takes
no memory, and `loralab.adapters.attach` works on it as on a loaded one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loralab.config import ModelConfig
from loralab.models.architecture import facts_of
from loralab.models.base import check_head
from loralab.models.loaded import LoadedModel
from loralab.models.numerics import Numerics, choose_numerics
from loralab.models.processors import processor_of
from loralab.models.shape import build_shape, new_modules_of
from loralab.models.source import Source, resolve_source
from loralab.models.stored import storage_of


def empty_base(
    config: ModelConfig,
    head: str,
    labels: Sequence[str] | Mapping[str, Sequence[str]] = (),
    *,
    layers: int | None = None,
) -> LoadedModel:
    """Return a base model on the meta device; its weights are not read.

    Args:
        config: Path, revision, dtype, device, storage.
        head: A key of `loralab.models.forward.HEADS`.
        labels: As `loralab.models.base.load_base` takes them.
        layers: Build only so many layers.

    Raises:
        ModelError: not found, unsafe, or not known to transformers.
    """
    source = resolve_source(config, weights=False)
    check_head(source, config.path, head)
    return shaped(
        config,
        source,
        processor_of(source, config.path, head),
        choose_numerics(config.device, config.dtype),
        head,
        labels,
        layers=layers,
    )


def shaped(
    config: ModelConfig,
    source: Source,
    processor: Any,
    numerics: Numerics,
    head: str,
    labels: Sequence[str] | Mapping[str, Sequence[str]] = (),
    *,
    layers: int | None = None,
) -> LoadedModel:
    """Return what `empty_base` does, of a source that need not have a tokenizer.

    Args:
        config: Of the base.
        source: A folder with its ``config.json``.
        processor: What it is given inputs by; None where nobody asks it.
        numerics: Device and dtype.
        head: A key of `loralab.models.forward.HEADS`.
        labels: As `loralab.models.base.load_base` takes them.
        layers: Build only so many layers.
    """
    load_from = source.load_from
    model = build_shape(config, load_from, numerics, head, labels, layers)
    new = new_modules_of(model, head, source.folder)
    storage = storage_of(
        config, source.folder, load_from, numerics, head, labels, layers
    )
    facts = storage.finish(model) if storage else facts_of(model, new)
    for name in new:
        model.get_submodule(name).float()
    model.config.use_cache = False
    model.config.pad_token_id = getattr(processor, "pad_token_id", None)
    return LoadedModel(
        model=model,
        processor=processor,
        head=head,
        facts=facts,
        numerics=numerics,
        new_modules=new,
        path=config.path,
        revision=source.revision,
        fingerprint="",
        storage=config.storage,
    )
