"""A base model without weights: shapes only, to count, to plan and to rehearse with.

It is built on torch's meta device from the configuration, so a model of any size takes
no memory, and `loralab.adapters.attach` works on it as on a loaded one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loralab.config import ModelConfig
from loralab.errors import ModelError
from loralab.models.architecture import facts_of
from loralab.models.base import (
    LoadedModel,
    Source,
    attention_of,
    head_settings,
    load_tokenizer,
    put_probe,
    resolve_source,
    weight_files,
)
from loralab.models.forward import HEADS
from loralab.models.numerics import Numerics, choose_numerics
from loralab.models.quiet import quiet_libraries


def empty_base(
    config: ModelConfig,
    head: str,
    labels: Sequence[str] = (),
    *,
    layers: int | None = None,
) -> LoadedModel:
    """Return a base model on the meta device; its weights are not read.

    Args:
        config: Path, revision, dtype, device.
        head: A key of `loralab.models.forward.HEADS`.
        labels: Class names, for a classification head.
        layers: Build only so many layers.

    Raises:
        ModelError: not found, unsafe, or not known to transformers.
    """
    numerics = choose_numerics(config.device, config.dtype)
    source = resolve_source(config, weights=False)
    processor = load_tokenizer(source, config.path)
    model = _build(config, source, numerics, head, labels, layers)
    new = _new_modules(model, head, source.folder)
    for name in new:
        model.get_submodule(name).float()
    model.config.use_cache = False
    model.config.pad_token_id = processor.pad_token_id
    return LoadedModel(
        model=model,
        processor=processor,
        head=head,
        facts=facts_of(model, new),
        numerics=numerics,
        new_modules=new,
        path=config.path,
        revision=source.revision,
        fingerprint="",
    )


def _build(
    config: ModelConfig,
    source: Source,
    numerics: Numerics,
    head: str,
    labels: Sequence[str],
    layers: int | None,
) -> Any:
    """Return transformers' model on the meta device."""
    import torch
    import transformers

    try:
        with quiet_libraries():
            shape = transformers.AutoConfig.from_pretrained(
                source.load_from,
                trust_remote_code=False,
                **head_settings(head, labels),
            )
            if layers is not None:
                cut_layers(shape, layers)
            with torch.device("meta"):
                model = getattr(transformers, HEADS[head].auto_class).from_config(
                    shape,
                    dtype=numerics.torch_dtype,
                    attn_implementation=attention_of(config),
                )
                if head == "feature-extraction":
                    put_probe(model, len(labels))
    except ValueError as error:
        raise ModelError(
            f"cannot be built for {head}",
            where=config.path,
            why=str(error).strip().split("\n")[0],
        ) from None
    return model


def cut_layers(shape: Any, layers: int) -> None:
    """Let a transformers configuration have only so many layers."""
    shape.num_hidden_layers = layers
    if getattr(shape, "num_decoder_layers", None):
        shape.num_decoder_layers = layers
    for name in ("layer_types", "mlp_layer_types"):
        if getattr(shape, name, None):
            setattr(shape, name, getattr(shape, name)[:layers])


def weight_names(folder: Path) -> set[str]:
    """Return the tensors' names of a folder's safetensors files, from their headers."""
    found: set[str] = set()
    for file in weight_files(folder):
        with file.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            found |= set(json.loads(handle.read(size)))
    return found - {"__metadata__"}


def _new_modules(model: Any, head: str, folder: Path) -> tuple[str, ...]:
    """Return the modules of the head whose weights are in no file."""
    if head == "feature-extraction":
        return ("probe",)
    if not HEADS[head].may_be_new:
        return ()
    stored = weight_names(folder)
    prefix = f"{model.base_model_prefix}."
    outside = [
        name
        for name, _ in model.named_parameters()
        if not name.startswith(prefix) or (stored and ".pooler." in f".{name}")
    ]
    new = {n for n in outside if not {n, n.removeprefix(prefix)} & stored}
    return tuple(sorted({name.rpartition(".")[0] for name in new}))
