"""Greedy token ids, told one by one: what engines are compared and timed by.

Tokens go in and come out as the ids of the model's own tokenizer, so every engine is
asked the very same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from loralab.inference.load import Loaded
from loralab.models.quiet import quiet_libraries

NEVER = -1
"""No token's id: generation then runs to its full length."""

PLAIN: dict[str, Any] = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
    "min_length": 0,
    "min_new_tokens": None,
    "exponential_decay_length_penalty": None,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "guidance_scale": None,
    "stop_strings": None,
    "top_p": 1.0,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
"""Nothing between a model's probabilities and its answers: what a base's own
``generation_config.json`` says of this (a penalty, a nucleus) would otherwise hold."""

OnToken = Callable[[], None]
"""Called each time that every prompt of the batch has one more token."""


def decoding(temperature: float) -> dict[str, Any]:
    """Return how transformers shall write: the likeliest token, or by temperature."""
    if temperature == 0:
        return {**PLAIN, "do_sample": False, "temperature": 1.0, "top_k": None}
    return {**PLAIN, "do_sample": True, "temperature": temperature, "top_k": 0}


def greedy(
    adapter: Loaded,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    stop: bool = True,
    on_token: OnToken | None = None,
) -> list[list[int]]:
    """Return the most likely next tokens of prompts, answered as one batch.

    Args:
        adapter: A language model in any engine.
        prompts: Token ids.
        new_tokens: At most so many.
        stop: Whether an answer ends at the end-of-sequence token, which is left out;
            or runs on, so that all engines do the same work.
        on_token: Told of every token.
    """
    given = [list(ids) for ids in prompts]
    if hasattr(adapter.model, "greedy"):  # an engine with a loop of its own
        said = adapter.model.greedy(given, new_tokens, on_token, stop)
    else:
        said = _in_torch(adapter, given, new_tokens, stop, on_token)
    eos = adapter.base.processor.eos_token_id
    # some engines keep the end in the answer
    return [ids[: ids.index(eos)] if stop and eos in ids else ids for ids in said]


def _in_torch(
    adapter: Loaded,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    stop: bool,
    on_token: OnToken | None,
) -> list[list[int]]:
    import torch

    processor, numerics = adapter.base.processor, adapter.base.numerics
    width = max(len(ids) for ids in prompts)
    ids_BT = torch.full((len(prompts), width), processor.pad_token_id)
    mask_BT = torch.zeros_like(ids_BT)
    for row, ids in enumerate(prompts):
        ids_BT[row, width - len(ids) :] = torch.tensor(ids)
        mask_BT[row, width - len(ids) :] = 1

    def told(ids: Any, *_: Any, **__: Any) -> Any:
        if on_token:
            on_token()
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    # transformers warns of an end that never comes, which is what is meant
    with torch.inference_mode(), numerics.autocast(), quiet_libraries():
        out_BT = adapter.model.generate(
            input_ids=ids_BT.to(numerics.device),
            attention_mask=mask_BT.to(numerics.device),
            max_new_tokens=new_tokens,
            **decoding(0.0),
            use_cache=True,
            pad_token_id=processor.pad_token_id,
            eos_token_id=processor.eos_token_id if stop else NEVER,
            stopping_criteria=[told],
        )
    written: list[list[int]] = out_BT[:, width:].tolist()
    return written
