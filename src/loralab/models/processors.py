"""What turns text, or images, into what a base model is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loralab.errors import ModelError
from loralab.models.quiet import quiet_libraries
from loralab.models.source import Source

ZERO_SHOT = "zero-shot-image-classification"
"""The key of `loralab.models.forward.HEADS` whose classes are named in sentences."""

IMAGE_HEADS = ("image-classification", ZERO_SHOT)
"""The keys of `loralab.models.forward.HEADS` whose inputs are images."""


def processor_of(source: Source, path: str, head: str) -> Any:
    """Return a base model's tokenizer, or its image processor where the head sees."""
    if head in IMAGE_HEADS:
        return load_image_processor(source, path)
    return load_tokenizer(source, path)


def load_image_processor(source: Source, path: str) -> Any:
    """Return the image processor of a base model, in its Pillow version.

    Its ``patch_size`` is that of the model: with it a batch knows its tokens. It is
    stored beside an adapter as the rest.

    Raises:
        ModelError: there is none, it does more than we can do to a batch, or the model
            has no patches.
    """
    from transformers import AutoImageProcessor
    from transformers.image_processing_backends import PilBackend

    _refuse_timm(source.folder, path)
    try:
        with quiet_libraries():
            found = AutoImageProcessor.from_pretrained(
                source.load_from, backend="pil", trust_remote_code=False
            )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            "the image processor cannot be loaded",
            where=path,
            why=str(error).split("\n")[0],
            fix="choose a vision model, with a preprocessor_config.json",
        ) from None
    own = getattr(type(found), "_preprocess", None)
    if own is not PilBackend._preprocess or found.do_pad:
        raise ModelError(
            f"{type(found).__name__} does more than resize, crop and normalise",
            where=path,
            fix="choose a model of the ViT, DeiT, DINOv2 or CLIP family",
        )
    if not getattr(found, "patch_size", None):
        found.patch_size = _patch_of(source.folder, path)
    return found


def _refuse_timm(folder: Path, path: str) -> None:
    """Refuse timm's models, whose configuration is timm's own or the wrapper's."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") == "timm_wrapper" or "pretrained_cfg" in config:
        raise ModelError(
            "a model of timm is not loaded",
            where=path,
            why="timm, and transformers' wrapper of it, do not run without torchvision",
            fix="choose one that transformers has itself: model=deit-small, vit-small, "
            "vit-s14, clip-vit-b32, or a DINOv2",
        )


def _patch_of(folder: Path, path: str) -> int:
    """Return the side of the model's patches, from its configuration."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    patch = (config.get("vision_config") or config).get("patch_size")
    if isinstance(patch, int):
        return patch
    raise ModelError(
        "the model has no patches of one size",
        where=path,
        why=f"patch_size is {patch!r} in its config.json",
        fix="choose a Vision Transformer, such as model=vit-s14",
    )


VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "spm.model",
    "vocab.txt",
    "vocab.json",
)


def load_tokenizer(source: Source, path: str) -> Any:
    """Return the fast tokenizer of a base model.

    Raises:
        ModelError: there is none, or only a slow one.
    """
    from transformers import AutoTokenizer

    # without one of these transformers makes a tokenizer that knows no word
    if not any((source.folder / name).is_file() for name in VOCABULARIES):
        raise ModelError(
            "no tokenizer", where=path, fix=f"add one of {', '.join(VOCABULARIES)}"
        )
    try:
        with quiet_libraries():
            tokenizer = AutoTokenizer.from_pretrained(
                source.load_from, use_fast=True, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            "the tokenizer cannot be loaded", where=path, why=str(error).split("\n")[0]
        ) from None
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token  # masked by place, never by id
    if not tokenizer.is_fast:
        raise ModelError(
            "the tokenizer has no fast version, which gives character offsets",
            where=path,
            fix="add a tokenizer.json",
        )
    return tokenizer
