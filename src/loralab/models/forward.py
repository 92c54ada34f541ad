"""The forward passes that training, evaluation and inference share, one a head.

Logits only where a label is: for a token-level task the output layer sees the hidden
states of supervised positions only. With a vocabulary of 49,152 and a quarter of the
tokens supervised, that is a third of all the work of a small model.

Shape suffixes: B batch, T tokens, S labels of a row, N labels of the batch, C classes,
vocabulary or positions, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loralab.models.numerics import Numerics
from loralab.models.processors import ZERO_SHOT

if TYPE_CHECKING:
    import torch

    from loralab.models.loaded import LoadedModel

INPUTS = (
    "input_ids", "attention_mask", "position_ids", "token_type_ids", "pixel_values",
)  # fmt: skip

INTERPOLATING = ("vit", "deit", "clip_vision_model")
"""Architectures that take images of another size only under an option."""

Batch = Mapping[str, "torch.Tensor"]
Forward = Callable[[Any, Batch, Numerics], "torch.Tensor"]
"""From model and batch to logits, one row a label."""


def _inputs(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: batch[name] for name in INPUTS if name in batch}


def _base_of(model: Any) -> Any:
    """Return the transformers model inside a PEFT model, and inside DDP."""
    from torch.nn.parallel import DistributedDataParallel

    if isinstance(model, DistributedDataParallel):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def output_only_at(model: Any, places_N: torch.Tensor, length: int) -> Iterator[None]:
    """Let the output layer see only some positions.

    Args:
        model: A language model, without adapter.
        places_N: Positions in the flattened [B, T], int64. Within the context logits
            are [1, N, C].
        length: T.
    """
    layer = model.get_output_embeddings()

    def keep(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        own_BTD = args[0][:, args[0].shape[1] - length :]  # a learnt prompt goes before
        return (own_BTD.flatten(0, 1)[places_N].unsqueeze(0), *args[1:])

    handle = layer.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def _own(found_BTC: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Drop what stands before the sequence: the virtual tokens of a learnt prompt."""
    return found_BTC[:, -batch["input_ids"].shape[1] :]


def _classify(model: Any, batch: Batch, numerics: Numerics) -> torch.Tensor:
    with numerics.autocast():
        logits_BC: torch.Tensor = model(**_inputs(batch)).logits
    return logits_BC


def _see(model: Any, batch: Batch, numerics: Numerics) -> torch.Tensor:
    """Return the logits of images, of the model's own size or another."""
    with numerics.autocast():
        found = model(**_inputs(batch), **_options(model, batch))
    logits_BC: torch.Tensor = found.logits
    return logits_BC


def _options(model: Any, batch: Batch) -> dict[str, bool]:
    """Return what a model must be told beside the images."""
    odd = _interpolates(model, batch["pixel_values"].shape[-2:])
    return {"interpolate_pos_encoding": True} if odd else {}


def _interpolates(model: Any, size: Sequence[int]) -> bool:
    """Whether a model must be told to stretch its positions to images of a size.

    DINOv2 does so by itself; ViT, DeiT and CLIP refuse, unless asked.
    """
    config = getattr(_base_of(model), "config", None)  # an engine has none
    config = getattr(config, "vision_config", config)
    own = getattr(config, "image_size", None)
    if config is None or config.model_type not in INTERPOLATING:
        return False
    return list(size) != (list(own) if isinstance(own, (list, tuple)) else [own, own])


def _tag(model: Any, batch: Batch, numerics: Numerics) -> torch.Tensor:
    with numerics.autocast():
        logits_BTC = model(**_inputs(batch)).logits
    found: torch.Tensor = _own(logits_BTC, batch).flatten(0, 1)[batch["places"]]
    return found


def _span(model: Any, batch: Batch, numerics: Numerics) -> torch.Tensor:
    """Return start and end logits, [2B, T]; padding has −inf, and so no share."""
    import torch

    with numerics.autocast():
        out = model(**_inputs(batch))
    ends = [_own(logits_BT, batch) for logits_BT in (out.start_logits, out.end_logits)]
    logits_B2T = torch.stack(ends, 1).float()
    real_B1T = batch["attention_mask"][:, None].bool()
    return logits_B2T.masked_fill(~real_B1T, -torch.inf).flatten(0, 1)


def _next_token(model: Any, batch: Batch, numerics: Numerics) -> torch.Tensor:
    length = batch["input_ids"].shape[1]
    with numerics.autocast(), output_only_at(_base_of(model), batch["places"], length):
        logits_1NC = model(**_inputs(batch), use_cache=False).logits
    found: torch.Tensor = logits_1NC[0]
    return found


def _sequence(model: Any, batch: Batch, numerics: Numerics) -> torch.Tensor:
    base = _base_of(model)
    written_BS = base.prepare_decoder_input_ids_from_labels(labels=batch["targets"])
    length = written_BS.shape[1]
    with numerics.autocast(), output_only_at(base, batch["places"], length):
        logits_1NC = model(
            **_inputs(batch), decoder_input_ids=written_BS, use_cache=False
        ).logits
    found: torch.Tensor = logits_1NC[0]
    return found


def pooled(model: Any, batch: Batch, numerics: Numerics) -> torch.Tensor:
    """Return the mean of the last hidden states over real tokens, [B, D] fp32."""
    with numerics.autocast():
        hidden_BTD = _own(model(**_inputs(batch)).last_hidden_state, batch)
    mask_BT1 = batch["attention_mask"][..., None]
    total_BD: torch.Tensor = (hidden_BTD.float() * mask_BT1).sum(1)
    return total_BD / mask_BT1.sum(1)


def _probe(model: Any, batch: Batch, numerics: Numerics) -> torch.Tensor:
    """Return the logits of the linear probe on pooled features, [B, C], in fp32."""
    found: torch.Tensor = _base_of(model).probe(pooled(model, batch, numerics))
    return found


def _match(model: Any, batch: Batch, numerics: Numerics) -> torch.Tensor:
    """Return the likeness of images to the sentences of the classes, [B, C] fp32."""
    with numerics.autocast():
        features_BP = model(**_inputs(batch), **_options(model, batch)).image_embeds
    found: torch.Tensor = _base_of(model).text_head(features_BP)
    return found


@dataclass(frozen=True)
class Head:
    """What a task asks of a model.

    Attributes:
        auto_class: transformers' class that loads it.
        task_type: PEFT's name of it; it has none for images.
        forward: Its forward pass.
        may_be_new: Whether it may be newly initialised, to be trained with the adapter.
    """

    auto_class: str
    task_type: str | None
    forward: Forward
    may_be_new: bool


HEADS = {
    "sequence-classification": Head(
        "AutoModelForSequenceClassification", "SEQ_CLS", _classify, True
    ),
    "token-classification": Head(
        "AutoModelForTokenClassification", "TOKEN_CLS", _tag, True
    ),
    "question-answering": Head(
        "AutoModelForQuestionAnswering", "QUESTION_ANS", _span, True
    ),
    "image-classification": Head("AutoModelForImageClassification", None, _see, True),
    ZERO_SHOT: Head("CLIPVisionModelWithProjection", None, _match, False),
    "causal-lm": Head("AutoModelForCausalLM", "CAUSAL_LM", _next_token, False),
    "seq2seq-lm": Head("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM", _sequence, False),
    "feature-extraction": Head("AutoModel", "FEATURE_EXTRACTION", _probe, True),
}


def _head_alone(
    model: Any, features_BD: torch.Tensor, base: LoadedModel
) -> torch.Tensor:
    """Return the logits of a base's one new head, [B, C], on what would enter it."""
    (name,) = base.new_modules
    head = _base_of(model).get_submodule(name)
    found: torch.Tensor
    if HEADS[base.head].forward is _probe:
        found = head(features_BD)
    else:
        with base.numerics.autocast():
            found = head(features_BD)
    return found


def supervised_logits(
    model: Any, batch: Batch, base: LoadedModel
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits, labels and the examples they belong to, where there is a label.

    Args:
        model: A transformers or PEFT model.
        batch: What `loralab.data.batching.collate` returns, on the model's device.
        base: The base, for its head and numerics.

    Returns:
        ``logits`` [N, C] fp32, ``labels`` [N] int64, ``example`` [N] int64; by example
        in the order of its labels.
    """
    if "features" in batch:
        logits_NC = _head_alone(model, batch["features"], base)
    else:
        logits_NC = HEADS[base.head].forward(model, batch, base.numerics)
    return logits_NC.float(), batch["labels"], batch["example"]
