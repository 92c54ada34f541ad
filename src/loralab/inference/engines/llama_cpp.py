"""``llama-cpp``: a GGUF file behind the interface of a transformers language model.

Token ids come from the transformers tokenizer and go in as they are, so a prompt is the
same here as in every engine. It has no gradient and takes no adapter.

Shape suffixes: B batch, T tokens, N positions asked for, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loralab.errors import ModelError
from loralab.inference.engines._llama_cpp import (
    BATCH,
    Session,
    Weights,
    kernel,
    library,
)
from loralab.models.numerics import Numerics
from loralab.quantization.formats.gguf import FILE
from loralab.registry import register


class _Output(nn.Module):
    """The output layer: from places in the batch to the logits there.

    A hook before it (`loralab.models.forward.output_only_at`) that keeps some places
    saves the rest of the work, as with a real output layer: 49,152 logits a token.
    """

    def __init__(self, weights: Weights, open_session: Callable[..., Session]) -> None:
        super().__init__()
        self._weights, self._open = weights, open_session
        self.ids = torch.empty(0, dtype=torch.long)
        self.texts: list[torch.Tensor] = []

    def forward(self, places: torch.Tensor) -> torch.Tensor:
        """Return the logits [..., V] at places [..., 1] of the flattened [B, T]."""
        asked, back = torch.unique(places.flatten(), return_inverse=True)
        found = torch.zeros(len(asked), self._weights.vocabulary)
        row_of = torch.full((len(self.ids),), -1)
        row_of[asked] = torch.arange(len(asked))
        longest = max(map(len, self.texts))
        for text in self.texts:
            rows = row_of[text]
            wanted = rows >= 0
            if not wanted.any():
                continue
            end = int(wanted.nonzero().max()) + 1  # what comes after changes nothing
            session = self._open(longest, 1, BATCH)
            logits = session.read(self.ids[text[:end]].tolist(), wanted[:end].tolist())
            found[rows[wanted]] = torch.from_numpy(logits)
        return found[back].reshape(*places.shape[:-1], -1)


class LlamaCpp(nn.Module):
    """A language model that llama.cpp runs on the CPU.

    Args:
        weights: The open file.
        config: transformers' configuration of the model.
        threads: Of the CPU.
    """

    def __init__(self, weights: Weights, config: Any, threads: int) -> None:
        super().__init__()
        self.config, self._threads = config, threads
        self._weights = weights
        self._session: Session | None = None
        self._output = _Output(weights, self._open)

    def _open(self, length: int, sequences: int, outputs: int) -> Session:
        """Return an empty session with the room asked for."""
        now = self._session
        if (
            now is None
            or now.length < length
            or now.outputs < outputs
            or now.sequences != sequences
        ):
            self._session = None  # its memory goes before the next one's comes
            self._session = now = Session(
                self._weights, length, sequences, outputs, self._threads
            )
        now.clear()
        return now

    def get_output_embeddings(self) -> nn.Module:
        """Return the layer that the logits come out of."""
        return self._output

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        use_cache: bool = False,
    ) -> Any:
        """Return an object with ``logits`` [B, T, V], fp32; 0 where there is padding.

        Args:
            input_ids: [B, T] int64.
            attention_mask: [B, T], 0 at padding, left or right.
            position_ids: [B, T]; a text begins wherever they are 0 (packing).
            use_cache: Nothing is kept for a later call, whatever is asked.
        """
        from transformers.modeling_outputs import CausalLMOutput

        self._output.ids = input_ids.flatten()
        self._output.texts = _texts(input_ids, attention_mask, position_ids)
        places = torch.arange(input_ids.numel()).reshape(*input_ids.shape, 1)
        return CausalLMOutput(logits=self._output(places))

    def greedy(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        on_token: Callable[[], None] | None = None,
        stop: bool = True,
    ) -> list[list[int]]:
        """Return the most likely continuation of each prompt, all in one batch.

        Args:
            prompts: Token ids.
            new_tokens: Of an answer at most.
            on_token: Called once all prompts have their next token.
            stop: Whether an answer ends with the end-of-text token, which is in it.
        """
        ends = _ends(self.config.eos_token_id) if stop else ()

        def told(_: list[int]) -> None:
            if on_token:
                on_token()

        return self._write(prompts, new_tokens, _likeliest, ends, told)

    def generate(  # noqa: PLR0913 - the arguments are transformers'
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        max_new_tokens: int,
        do_sample: bool = False,
        temperature: float = 1.0,
        num_return_sequences: int = 1,
        pad_token_id: int | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        streamer: Any = None,
        use_cache: bool = True,
    ) -> torch.Tensor:
        """Return prompts and answers, [B · sequences, T + new], as transformers does.

        Args:
            input_ids: [B, T], padded at the left.
            attention_mask: [B, T], 0 at padding.
            max_new_tokens: Of an answer at most.
            do_sample: Sample from softmax(logits / temperature), else the likeliest.
            temperature: Of sampling, which uses torch's generator.
            num_return_sequences: Answers to a prompt.
            pad_token_id: Stands after a shorter answer.
            eos_token_id: Ends an answer; None: that of the configuration.
            streamer: transformers' streamer, told of the prompt and of each token.
            use_cache: It is always used.
        """
        texts = _texts(input_ids, attention_mask, None)
        flat = input_ids.flatten()
        prompts = [flat[t].tolist() for t in texts for _ in range(num_return_sequences)]
        given = self.config.eos_token_id if eos_token_id is None else eos_token_id
        if streamer:
            streamer.put(input_ids)

        def told(tokens: list[int]) -> None:
            if streamer:
                streamer.put(torch.tensor(tokens))

        def sampled(logits_BV: torch.Tensor) -> torch.Tensor:
            shares_BV = (logits_BV / temperature).softmax(-1)
            return shares_BV.multinomial(1).flatten()

        pick = sampled if do_sample else _likeliest
        made = self._write(prompts, max_new_tokens, pick, _ends(given), told)
        if streamer:
            streamer.end()
        pad = self.config.pad_token_id if pad_token_id is None else pad_token_id
        width = max(map(len, made))
        rows = [row + [pad or 0] * (width - len(row)) for row in made]
        before = input_ids.repeat_interleave(num_return_sequences, 0)
        return torch.cat([before, torch.tensor(rows, dtype=before.dtype)], 1)

    def _write(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        pick: Callable[[torch.Tensor], torch.Tensor],
        ends: Collection[int],
        told: Callable[[list[int]], None],
    ) -> list[list[int]]:
        """Continue each prompt until it ends, one token of all at a time."""
        session = self._open(
            max(map(len, prompts)) + new_tokens, len(prompts), len(prompts)
        )
        answers: list[list[int]] = [[] for _ in prompts]
        going = list(range(len(prompts)))
        found = []
        for row, prompt in enumerate(prompts):
            last = [False] * (len(prompt) - 1) + [True]
            found.append(torch.from_numpy(session.read(prompt, last, row)))
        logits_BV = torch.cat(found)
        for done in range(1, new_tokens + 1):
            tokens = pick(logits_BV).tolist()
            for row, token in zip(going, tokens, strict=True):
                answers[row].append(token)
            told(tokens)
            going = [row for row in going if answers[row][-1] not in ends]
            if not going or done == new_tokens:
                break
            places = [len(prompts[r]) + len(answers[r]) - 1 for r in going]
            tokens = [answers[r][-1] for r in going]
            logits = session.feed(tokens, places, going, [True] * len(going))
            logits_BV = torch.from_numpy(logits)
        return answers

    def describe(self) -> dict[str, Any]:
        """Return engine, version, kernel and threads, as a measurement names them."""
        return {
            "engine": "llama-cpp",
            "version": library().__version__,
            "kernel": kernel(),
            "threads": self._threads,
        }


def _likeliest(logits_BV: torch.Tensor) -> torch.Tensor:
    return logits_BV.argmax(-1)


def _ends(given: int | Sequence[int] | None) -> tuple[int, ...]:
    if given is None:
        return ()
    return (given,) if isinstance(given, int) else tuple(given)


def _texts(
    ids_BT: torch.Tensor, mask_BT: torch.Tensor | None, places_BT: torch.Tensor | None
) -> list[torch.Tensor]:
    """Return the flat indices of each text's tokens, texts in order."""
    rows, length = ids_BT.shape
    flat_BT = torch.arange(rows * length).reshape(rows, length)
    if places_BT is not None:
        begins = (places_BT.flatten() == 0).nonzero().flatten()[1:].tolist()
        return list(flat_BT.flatten().tensor_split(begins))
    if mask_BT is None:
        return list(flat_BT)
    return [row[mask.bool()] for row, mask in zip(flat_BT, mask_BT, strict=True)]


@register("engine", "llama-cpp")
def open_model(folder: Path, note: dict[str, Any], numerics: Numerics) -> LlamaCpp:
    """Open a GGUF artefact.

    Args:
        folder: Holds ``model.gguf`` and ``config.json``.
        note: What ``loralab.json`` says; everything is in the file itself.
        numerics: Its device must be the CPU.

    Raises:
        ModelError: llama-cpp-python is missing, the file is broken, or not the CPU.
    """
    from transformers import AutoConfig

    if numerics.device != "cpu":
        raise ModelError(
            f"llama.cpp runs on the CPU here, not on {numerics.device}",
            where="model.device",
            fix="set it to cpu",
        )
    library()
    weights = Weights(folder / FILE)
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            "no configuration beside the weights",
            where=str(folder / "config.json"),
            why=str(error).split("\n")[0],
            fix="export again",
        ) from None
    return LlamaCpp(weights, config, torch.get_num_threads()).eval()
