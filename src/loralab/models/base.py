"""`load_base`: a base model with its tokenizer, facts and fingerprint.

Safe by construction: safetensors only, no remote code, and every missing weight is
either the new head that the task asks for or an error.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from loralab.config import ModelConfig
from loralab.errors import ModelError
from loralab.models.architecture import facts_of
from loralab.models.forward import HEADS
from loralab.models.loaded import LoadedModel
from loralab.models.numerics import Numerics, choose_numerics, use_tf32
from loralab.models.processors import IMAGE_HEADS, ZERO_SHOT, processor_of
from loralab.models.quiet import quiet_libraries
from loralab.models.shape import (
    OWN_HEADS,
    attention_of,
    drop_unread,
    head_settings,
    new_modules_of,
    put_head,
)
from loralab.models.source import Source, check_contents, fingerprint_of, resolve_source
from loralab.models.stored import Storage, storage_of


def load_base(
    config: ModelConfig,
    head: str,
    labels: Sequence[str] | Mapping[str, Sequence[str]] = (),
    place: bool = True,
) -> LoadedModel:
    """Load a base model for a task.

    Args:
        config: Path, revision, dtype, device, storage.
        head: A key of `loralab.models.forward.HEADS`.
        labels: Class names, for a classification head; of a head that is written, each
            with its prompts.
        place: Whether it is put on its device; else it stays in the CPU's memory, to be
            sharded from there.

    Returns:
        The model in evaluation mode; base weights in the chosen dtype or quantized, a
        new head in fp32, initialised from torch's present seed.

    Raises:
        ModelError: not found, unsafe, broken, or without weights that the task needs.
        QuantizationError: it cannot be quantized so.
    """
    numerics = choose_numerics(config.device, config.dtype)
    source = resolve_source(config)
    check_contents(source.folder, config.path)
    check_head(source, config.path, head)
    processor = processor_of(source, config.path, head)
    load_from = source.load_from
    storage = storage_of(config, source.folder, load_from, numerics, head, labels)
    model, new = _load_model(config, source, numerics, head, labels, storage, place)
    if isinstance(labels, Mapping):
        _write_head(model, source, labels, config.path, numerics)
    facts = storage.finish(model) if storage else facts_of(model, new)
    if head == "sequence-classification":
        # a decoder is read at the last token that is no padding
        model.config.pad_token_id = processor.pad_token_id
    if facts.vocabulary and len(processor) > facts.vocabulary:
        raise ModelError(
            f"the tokenizer has {len(processor):,} tokens, the model embeds "
            f"{facts.vocabulary:,}",
            where=config.path,
            fix="use the tokenizer that belongs to the model",
        )
    return LoadedModel(
        model=model,
        processor=processor,
        head=head,
        facts=facts,
        numerics=numerics,
        new_modules=new,
        path=config.path,
        revision=source.revision,
        fingerprint=fingerprint_of(source.folder),
        storage=config.storage,
    )


def _write_head(
    model: Any,
    source: Source,
    classes: Mapping[str, Sequence[str]],
    path: str,
    numerics: Numerics,
) -> None:
    from loralab.models.zero_shot import text_weights

    found = text_weights(source, classes, path, numerics.device)
    model.text_head.weight.copy_(found)


def check_head(source: Source, path: str, head: str) -> None:
    """Refuse a model that cannot have a head, before its weights are read.

    Raises:
        ModelError: its classes are to be named in sentences, which it cannot read.
    """
    if head == ZERO_SHOT:
        from loralab.models.zero_shot import check_towers

        check_towers(source.folder, path)


def load_processor(config: ModelConfig, head: str) -> Any:
    """Return a base model's tokenizer or image processor, without its weights."""
    return processor_of(resolve_source(config, weights=False), config.path, head)


def _load_model(
    config: ModelConfig,
    source: Source,
    numerics: Numerics,
    head: str,
    labels: Collection[str],
    storage: Storage | None,
    place: bool,
) -> tuple[Any, tuple[str, ...]]:
    """Return the model with the head of a task, and the modules that are new."""
    if numerics.device == "cuda":
        use_tf32()
    settings: dict[str, Any] = {
        "dtype": numerics.torch_dtype,
        "attn_implementation": attention_of(config, head, numerics),
        "device_map": config.device_map,
        **head_settings(head, labels),
    }
    reading = storage.reading() if storage else {}
    if reading:  # without a map it would take the first GPU there is
        settings |= {"device_map": config.device_map or {"": numerics.device}}
    model, missing = _read(source, head, settings | reading, config.path)
    new = _new_modules(model, missing, head, config.path)
    if added := put_head(model, head, len(labels)):
        model.get_submodule(added).to(model.device)
    if head in IMAGE_HEADS:
        drop_unread(model)
    for name in new:
        model.get_submodule(name).float()
    model.config.use_cache = False
    if place and settings["device_map"] is None:  # else it has its place
        model.to(numerics.device)
    return model.eval(), new


def _read(
    source: Source, head: str, settings: dict[str, Any], path: str
) -> tuple[Any, Sequence[str]]:
    """Return transformers' model, and the names of the weights that no file has."""
    import transformers

    try:
        with quiet_libraries():
            model, info = getattr(transformers, HEADS[head].auto_class).from_pretrained(
                source.load_from,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                # a head for other classes: it is made anew, as one that is missing
                ignore_mismatched_sizes=HEADS[head].may_be_new,
                **settings,
            )
    except Exception as error:  # corrupt files surface as many unrelated kinds
        first = str(error).strip().split("\n")[0]
        raise ModelError(
            f"cannot be loaded for {head}", where=path, why=first
        ) from None
    other = [name for name, *_ in info["mismatched_keys"]]
    if odd := _in_body(model, [name.rpartition(".")[0] for name in other]):
        raise ModelError(
            f"cannot be loaded for {head}",
            where=path,
            why=f"weights have other shapes than config.json says: {odd[0]}",
            fix="the files do not belong together",
        )
    return model, [*info["missing_keys"], *other]


def _new_modules(
    model: Any, missing: Sequence[str], head: str, path: str
) -> tuple[str, ...]:
    """Return the modules that are new; a language model, or a body, may miss none."""
    if head in OWN_HEADS:
        if body := [key for key in missing if not key.startswith("pooler.")]:
            raise _random_body(body, path)
        return new_modules_of(model, head, Path())
    if missing and not HEADS[head].may_be_new:
        raise ModelError(
            f"{len(missing)} weights are missing, such as {sorted(missing)[0]}",
            where=path,
            why="they would be random",
            fix="choose a model that was trained for generation",
        )
    new = tuple(sorted({key.rpartition(".")[0] for key in missing}))
    if inside := _in_body(model, new):
        raise _random_body(inside, path)
    return new


def _in_body(model: Any, names: Sequence[str]) -> list[str]:
    """Return which of some modules are no part of the head."""
    if model.base_model is model:  # no module for the body: the head stands at the top
        return [name for name in names if "." in name]
    # a pooler may be new: many encoders ship without one; it trains with the head
    body = f"{model.base_model_prefix}."
    return [n for n in names if n.startswith(body) and "pooler" not in n]


def _random_body(names: Sequence[str], path: str) -> ModelError:
    return ModelError(
        f"weights of the body are missing: {', '.join(names[:3])}",
        where=path,
        why="they would be random",
        fix="the files are broken or of another architecture",
    )
