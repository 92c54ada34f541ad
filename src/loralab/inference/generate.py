"""Answers that are written token by token, in batches of like length.

A language model's prompts are padded at the left, so that every answer begins where its
prompt ends; an encoder's sources at the right. Greedy answers do not depend on the
batch, but for the rounding of the dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Thread
from typing import Any

from loralab.data.examples import generates
from loralab.errors import DataError
from loralab.inference.greedy import decoding
from loralab.inference.load import Loaded

Progress = Callable[[int, int], None]
Row = Mapping[str, Any]

POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings")
"""transformers' names of learnt positions."""


def prompts_of(adapter: Loaded, rows: Sequence[Row]) -> list[str]:
    """Return what the model is fed for each row.

    Raises:
        DataError: the adapter's task does not generate.
    """
    task = adapter.task
    if not generates(task):
        raise DataError("this adapter does not generate; call the pipeline itself")
    return [task.prompt(row, adapter.base.processor) for row in rows]


def generate(
    adapter: Loaded,
    prompts: Sequence[str],
    batch_size: int,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    samples: int = 1,
    progress: Progress | None = None,
) -> list[list[str]]:
    """Return `samples` answers to each prompt.

    Args:
        adapter: The adapter on its base (or its base, under `disable_adapter()`).
        prompts: As `prompts_of` returns them.
        batch_size: Prompts at a time.
        max_new_tokens: Tokens of an answer at most.
        temperature: 0 is greedy; above, answers are sampled.
        samples: Answers to a prompt; more than one need a temperature.
        progress: Told of every batch.

    Raises:
        DataError: a prompt and its answer are more than the model has positions.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers: dict[int, list[str]] = {}
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        inputs = encode(adapter, [prompts[i] for i in chunk])
        _check_room(adapter, inputs["input_ids"].shape[1], max_new_tokens)
        out = _generate(
            adapter, inputs, max_new_tokens, temperature, num_return_sequences=samples
        )
        skip = 0 if _encoder_decoder(adapter) else inputs["input_ids"].shape[1]
        said = adapter.base.processor.batch_decode(
            out[:, skip:], skip_special_tokens=True
        )
        for k, i in enumerate(chunk):
            answers[i] = [t.strip() for t in said[k * samples : (k + 1) * samples]]
        if progress:
            progress(min(start + batch_size, len(order)), len(order))
    return [answers[i] for i in range(len(prompts))]


def stream(
    adapter: Loaded, prompt: str, *, max_new_tokens: int, temperature: float
) -> Iterator[str]:
    """Yield the pieces of one answer as they are written.

    Raises:
        DataError: the prompt and its answer are more than the model has positions.
    """
    from transformers import TextIteratorStreamer

    inputs = encode(adapter, [prompt])
    _check_room(adapter, inputs["input_ids"].shape[1], max_new_tokens)
    streamer = TextIteratorStreamer(
        adapter.base.processor, skip_prompt=True, skip_special_tokens=True
    )
    failed: list[BaseException] = []

    def work() -> None:
        try:
            _generate(adapter, inputs, max_new_tokens, temperature, streamer=streamer)
        except BaseException as error:
            failed.append(error)
            streamer.end()

    thread = Thread(target=work, daemon=True)
    thread.start()
    yield from streamer
    thread.join()
    if failed:
        raise failed[0]


def _encoder_decoder(adapter: Loaded) -> bool:
    return adapter.base.head == "seq2seq-lm"


def _positions(model: Any) -> int | None:
    """Return how many positions a model has vectors for; None where it needs none.

    Only a table of positions ends: rotary and relative ones can be told of any.
    """
    from torch.nn import Embedding

    return min(
        (
            # OPT and BART keep the first rows free, RoBERTa those up to the padding
            module.num_embeddings
            - getattr(module, "offset", 0)
            - (0 if module.padding_idx is None else module.padding_idx + 1)
            for name, module in model.named_modules()
            if isinstance(module, Embedding)
            and name.rpartition(".")[2] in POSITION_TABLES
        ),
        default=None,
    )


def _check_room(adapter: Loaded, tokens: int, new: int) -> None:
    """Refuse prompts of so many tokens where an answer could leave the positions."""
    if new < 1:
        raise DataError(
            f"max_new_tokens is {new}, and must be at least 1", where="max_new_tokens"
        )
    limit = _positions(adapter.model)
    if limit is None:
        return
    peft = getattr(adapter.model, "active_peft_config", None)
    virtual = peft.num_virtual_tokens if peft and peft.is_prompt_learning else 0
    # the last token is written, and not read; a decoder of its own begins at one
    read = max(tokens, new) if _encoder_decoder(adapter) else tokens + new - 1
    if virtual + read > limit:
        before = f" after {virtual} virtual ones" if virtual else ""
        raise DataError(
            f"a text of {tokens:,} tokens{before}, and {new:,} new ones, are too many: "
            f"the model has {limit:,} positions",
            where=adapter.base.path,
            fix="give a shorter text, or fewer new tokens (--max-new-tokens, "
            "evaluation.max_new_tokens)",
        )


def encode(adapter: Loaded, prompts: list[str]) -> Any:
    """Return the padded tensors of prompts, on the model's device."""
    processor = adapter.base.processor
    if _encoder_decoder(adapter):
        limit = adapter.task.params.max_source_length  # type: ignore[attr-defined]
        made = processor(
            prompts,
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=limit,
        )
    else:
        made = processor(
            prompts,
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=not processor.chat_template,
        )
    made.pop("token_type_ids", None)
    return made.to(adapter.base.numerics.device)


def _generate(
    adapter: Loaded,
    inputs: Any,
    max_new_tokens: int,
    temperature: float,
    **extra: Any,
) -> Any:
    import torch

    processor = adapter.base.processor
    with torch.inference_mode(), adapter.base.numerics.autocast():
        return adapter.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            use_cache=True,
            pad_token_id=processor.pad_token_id,
            eos_token_id=processor.eos_token_id,
            **decoding(temperature),
            **extra,
        )
