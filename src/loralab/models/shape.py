"""The shape of a base model: what can be known of it without reading its weights."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from loralab.config import ModelConfig
from loralab.errors import ModelError
from loralab.models.forward import HEADS
from loralab.models.numerics import Numerics
from loralab.models.processors import IMAGE_HEADS, ZERO_SHOT
from loralab.models.quiet import quiet_libraries
from loralab.models.source import weight_files


def attention_of(config: ModelConfig, head: str, numerics: Numerics) -> str | None:
    """Return what transformers takes: None is its rule for ``best``, but for images.

    An image is a short sequence without a mask. There, on a CPU, torch's fused
    attention has a slow backward pass: written out, a step of LoRA on ViT-S takes 0.64
    of its time with 65 tokens an image and 0.78 with 197 (bf16, one thread).
    """
    if config.attn_implementation != "best":
        return config.attn_implementation
    return "eager" if head in IMAGE_HEADS and numerics.device == "cpu" else None


OWN_HEADS = {"feature-extraction": "probe", ZERO_SHOT: "text_head"}
"""Heads that are put beside transformers' model, and their names."""


def head_settings(head: str, labels: Collection[str]) -> dict[str, Any]:
    """Return what a model's configuration must know of its classes."""
    if not labels or head in OWN_HEADS:  # the class has no head
        return {}
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
        "num_labels": len(labels),
    }


def put_head(model: Any, head: str, classes: int) -> str | None:
    """Add the head that transformers has no class with, and return its name.

    A linear layer ``probe``, and a pooler that nothing reads is taken off; or a
    ``text_head``, whose weight is to be written.
    """
    from torch import nn

    if head == "feature-extraction":
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
        model.probe = nn.Linear(model.config.get_text_config().hidden_size, classes)
    if head == ZERO_SHOT:
        from loralab.models.zero_shot import TextHead

        model.text_head = TextHead(classes, model.config.projection_dim)
    return OWN_HEADS.get(head)


def drop_unread(model: Any) -> None:
    """Take off what the class of an image does not depend on, so no gradient reaches.

    DINOv2's mask token stands for patches that are hidden, in its own training only;
    CLIP's last normalisation is of the class token, and its classifier reads patches.
    """
    from torch import nn

    for module in model.modules():
        if getattr(module, "mask_token", None) is not None:
            module.mask_token = None
            model.config.use_mask_token = False
    if type(model).__name__ == "CLIPForImageClassification":
        model.vision_model.post_layernorm = nn.Identity()


def build_shape(
    config: ModelConfig,
    load_from: str,
    numerics: Numerics,
    head: str,
    labels: Collection[str],
    layers: int | None = None,
) -> Any:
    """Return transformers' model on the meta device.

    Args:
        config: Of the base.
        load_from: What `from_pretrained` takes.
        numerics: The dtype.
        head: A key of `loralab.models.forward.HEADS`.
        labels: Class names, for a classification head.
        layers: Build only so many layers.

    Raises:
        ModelError: not known to transformers.
    """
    import torch
    import transformers

    try:
        with quiet_libraries():
            shape = transformers.AutoConfig.from_pretrained(
                load_from,
                trust_remote_code=False,
                **head_settings(head, labels),
            )
            if layers is not None:
                cut_layers(_seeing(shape) if head in IMAGE_HEADS else shape, layers)
            cls = getattr(transformers, HEADS[head].auto_class)
            make = cls._from_config if head == ZERO_SHOT else cls.from_config
            with torch.device("meta"):
                model = make(
                    _seeing(shape) if head == ZERO_SHOT else shape,
                    dtype=numerics.torch_dtype,
                    attn_implementation=attention_of(config, head, numerics),
                )
                put_head(model, head, len(labels))
                if head in IMAGE_HEADS:
                    drop_unread(model)
    except ValueError as error:
        raise ModelError(
            f"cannot be built for {head}",
            where=config.path,
            why=str(error).strip().split("\n")[0],
        ) from None
    return model


def _seeing(shape: Any) -> Any:
    """Return the configuration of what sees: CLIP's is one of two."""
    return getattr(shape, "vision_config", shape)


def cut_layers(shape: Any, layers: int) -> None:
    """Let a transformers configuration have only so many layers."""
    shape.num_hidden_layers = layers
    if getattr(shape, "num_decoder_layers", None):
        shape.num_decoder_layers = layers
    for name in ("layer_types", "mlp_layer_types"):
        if getattr(shape, name, None):
            setattr(shape, name, getattr(shape, name)[:layers])


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a folder's safetensors files, from their headers."""
    found: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder):
        with file.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(size))
        header.pop("__metadata__", None)
        found |= {name: tuple(told["shape"]) for name, told in header.items()}
    return found


def new_modules_of(model: Any, head: str, folder: Path) -> tuple[str, ...]:
    """Return the modules of the head whose weights are in no file."""
    if not HEADS[head].may_be_new:
        return ()
    if head in OWN_HEADS:
        return (OWN_HEADS[head],)
    stored = weight_shapes(folder)
    prefix = f"{model.base_model_prefix}."
    whole = model.base_model is model  # the body is no module of its own
    new = {
        name
        for name, parameter in model.named_parameters()
        if (whole and name.count(".") < 2)
        or (not whole and not name.startswith(prefix))
        or (stored and ".pooler." in f".{name}")
        if tuple(parameter.shape)
        not in (stored.get(name), stored.get(name.removeprefix(prefix)))
    }
    return tuple(sorted({name.rpartition(".")[0] for name in new}))
