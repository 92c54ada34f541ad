"""A decoder in ONNX Runtime: logits of whole sequences, and answers by GenAI.

Two traps of GenAI are kept out here. Its attention on a CPU takes from the mask only
how many tokens of a row are real, and believes them at the left: answers to a batch
that is padded at the left are wrong, without a word. And it takes the pad token of its
configuration for padding wherever a prompt ends with it. So only prompts of one length
share a batch, and the pad token, which fills rows that have ended, is one that ends no
prompt.

Shape suffixes: B rows, T tokens, S sequences, N places, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from loralab.inference.engines._onnx_session import (
    Adapters,
    described,
    open_session,
    refused,
)
from loralab.quantization.onnx_decoder import CONFIG, whole
from loralab.quantization.onnx_graph import Graph

TOKENS = 1024
"""Padded tokens of a run, whose logits are in memory at once."""

TOP_K = 50
"""Tokens that are sampled from: transformers' default."""

OnTokens = Callable[[list[int]], None]


@dataclass(frozen=True)
class _Sequences:
    """What a call of the model was given: ids [B · T], and where each sequence lies."""

    ids: torch.Tensor
    places: list[torch.Tensor]


class _Output(nn.Module):
    """Stands for the output layer, from the places of tokens (… × N × 1) to logits.

    A hook that lets the output layer see some positions only, as
    `loralab.models.forward.output_only_at` does, so keeps all other logits away.
    """

    def __init__(self, run: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._run = run

    def forward(self, places_BN1: torch.Tensor) -> torch.Tensor:
        """Return the logits at places, fp32 (… × N × V)."""
        return self._run(places_BN1.squeeze(-1))


class OnnxDecoder(nn.Module):
    """A language model in ONNX Runtime; sessions are opened when they are first used.

    Args:
        folder: What a format wrote.
        graph: Its graph.
        threads: Of a product.
    """

    def __init__(self, folder: Path, graph: Graph, threads: int) -> None:
        super().__init__()
        from transformers import AutoConfig

        self.config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model"]
        self._context = int(said["context_length"])
        self._eos = _ids(said["eos_token_id"])
        self._heads = int(said["decoder"]["num_key_value_heads"])
        self._head_size = int(said["decoder"]["head_size"])
        self.adapters = Adapters(folder)
        self._folder, self._graph, self._threads = folder, graph, threads
        self._told = described(graph, threads, "onnxruntime-genai")
        self._output = _Output(self._logits)
        self._given = _Sequences(torch.empty(0, dtype=torch.long), [])
        self._session: Any = None
        self._genai: Any = None
        self._beside: Any = None
        self._known: set[str] = set()
        self._opened_for: tuple[Collection[int], int] | None = None

    def set_adapter(self, name: str | None) -> None:
        """Let an adapter beside the model answer with it; None: the base alone.

        Raises:
            AdapterError: there is no such adapter.
        """
        self.adapters.choose(name)

    def describe(self) -> dict[str, Any]:
        """Return the engine, its versions, kernels and threads."""
        return dict(self._told)

    def get_output_embeddings(self) -> nn.Module:
        """Return the module through which all logits pass."""
        return self._output

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **_: Any,
    ) -> SimpleNamespace:
        """Return ``logits`` [B, T, V] fp32 (or [1, N, V] under a hook); 0 on padding.

        Args:
            input_ids: [B, T].
            attention_mask: [B, T]; padding may be at either side.
            position_ids: [B, T]; without a mask, a sequence begins wherever they are 0,
                and sequences of one row do not see one another.
            _: ``use_cache`` and the like.
        """
        B, T = input_ids.shape
        all_BT = torch.arange(B * T).reshape(B, T)
        if attention_mask is not None:
            real_BT = attention_mask.cpu().bool()
            places = [row[real] for row, real in zip(all_BT, real_BT, strict=True)]
        elif position_ids is not None:
            starts = (position_ids.cpu() == 0).flatten().nonzero().flatten()[1:]
            places = list(all_BT.flatten().tensor_split(starts))
        else:
            places = list(all_BT)
        self._given = _Sequences(input_ids.cpu().flatten(), places)
        return SimpleNamespace(logits=self._output(all_BT.unsqueeze(-1)))

    def _logits(self, wanted_BN: torch.Tensor) -> torch.Tensor:
        """Return the logits at places of what was given."""
        given = self._given
        row_of = torch.full((len(given.ids),), -1)
        row_of[wanted_BN.flatten()] = torch.arange(wanted_BN.numel())
        todo = [p for p in given.places if (row_of[p] >= 0).any()]
        todo.sort(key=len, reverse=True)
        out_NV = torch.zeros(wanted_BN.numel(), int(self.config.vocab_size))
        while todo:
            count = max(1, TOKENS // len(todo[0]))
            now, todo = todo[:count], todo[count:]
            made_STV = self._run([given.ids[p] for p in now])
            for places, made_TV in zip(now, made_STV, strict=True):
                rows = row_of[places]
                kept = rows >= 0
                out_NV[rows[kept]] = torch.from_numpy(made_TV[: len(rows)])[kept]
        return out_NV.reshape(*wanted_BN.shape, -1)

    def _run(self, sequences: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        """Return the logits [S, T, V] of sequences, padded at the right."""
        if self._session is None:
            every = whole(self._graph.model)
            self._session = open_session(self._folder, self._threads, every)
        ids_ST = nn.utils.rnn.pad_sequence(list(sequences), batch_first=True)
        ones = [torch.ones_like(ids) for ids in sequences]
        empty = np.zeros((len(ids_ST), self._heads, 0, self._head_size), np.float32)
        feed: dict[str, NDArray[Any]] = {
            given.name: empty
            for given in self._session.get_inputs()
            if given.name.startswith("past_key_values")
        }
        feed["input_ids"] = ids_ST.numpy()
        feed["attention_mask"] = nn.utils.rnn.pad_sequence(ones, True).numpy()
        if any(given.name == "position_ids" for given in self._session.get_inputs()):
            at = np.arange(ids_ST.shape[1])
            feed["position_ids"] = np.broadcast_to(at, ids_ST.shape).copy()
        made: NDArray[np.float32] = self._session.run(
            ["logits"], feed, self.adapters.options()
        )[0]
        return made

    def _model(self, stops: Collection[int], prompts: Sequence[list[int]]) -> Any:
        """Return GenAI's model, with these stops and a pad token that ends no prompt.

        It is opened again when another pair of them is needed: seldom.
        """
        last = {prompt[-1] for prompt in prompts}
        pad = next(i for i in (*stops, *range(len(last) + 1)) if i not in last)
        if self._opened_for != (stops, pad):
            self._genai, self._beside = self._open(stops, pad), None
            self._opened_for = stops, pad
        return self._genai

    def _open(self, stops: Collection[int], pad: int) -> Any:
        import onnxruntime_genai as genai

        session = {
            "intra_op_num_threads": self._threads,
            "inter_op_num_threads": 1,
            "log_severity_level": 4,
        }
        ours = {
            "pad_token_id": pad,
            "eos_token_id": sorted(stops),
            "decoder": {"session_options": session},
        }
        try:
            config = genai.Config(str(self._folder))
            config.overlay(json.dumps({"model": ours}))
            return genai.Model(config)
        except RuntimeError as error:
            raise refused(self._folder, error) from None

    def _adapted(self, generator: Any) -> None:
        """Let the active adapter take part in what a generator writes."""
        import onnxruntime_genai as genai

        name = self.adapters.active
        if name is None:
            return
        if self._beside is None:
            self._beside, self._known = genai.Adapters(self._genai), set()
        if name not in self._known:
            self._beside.load(self.adapters.file(name), name)
            self._known.add(name)
        generator.set_active_adapter(self._beside, name)

    def _write(
        self,
        prompts: Sequence[list[int]],
        new_tokens: int,
        stops: frozenset[int],
        on_tokens: OnTokens,
        stop: bool = True,
        **search: Any,
    ) -> list[list[int]]:
        """Return the answers to prompts of one length, with the token they stop at."""
        import onnxruntime_genai as genai

        length = len(prompts[0])
        last = min(length + new_tokens, self._context)
        model = self._model(stops, prompts)
        params = genai.GeneratorParams(model)
        least = 0 if stop else last
        params.set_search_options(
            max_length=last, min_length=least, batch_size=len(prompts), **search
        )
        generator = genai.Generator(model, params)
        self._adapted(generator)
        ids = np.asarray(prompts, np.int32)
        generator.append_tokens(ids if len(prompts) > 1 else ids[0])
        answers: list[list[int]] = [[] for _ in prompts]
        for _ in range(last - length):
            generator.generate_next_token()
            tokens = [int(token) for token in generator.get_next_tokens()]
            for answer, token in zip(answers, tokens, strict=True):
                if not answer or answer[-1] not in stops:
                    answer.append(token)
            on_tokens([answer[-1] for answer in answers])
            if all(answer[-1] in stops for answer in answers):
                break
        return answers

    def greedy(
        self,
        prompts: Sequence[list[int]],
        new_tokens: int,
        on_token: Callable[[], None] | None = None,
        stop: bool = True,
    ) -> list[list[int]]:
        """Return the most likely continuation of each prompt.

        Args:
            prompts: Token ids; those of one length are written together.
            new_tokens: Tokens at most.
            on_token: Called at each step of a batch.
            stop: Whether an end-of-sequence token, which is kept, ends an answer; if
                not, none is written, as under transformers' ``min_new_tokens``.
        """

        def step(_: list[int]) -> None:
            if on_token:
                on_token()

        answers: dict[int, list[int]] = {}
        for group in _of_one_length(prompts):
            chosen = [prompts[i] for i in group]
            said = self._write(
                chosen, new_tokens, self._eos, step, stop, do_sample=False
            )
            answers.update(zip(group, said, strict=True))
        return [answers[i] for i in range(len(prompts))]

    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        max_new_tokens: int,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int = 0,
        streamer: Any = None,
        **sampling: Any,
    ) -> torch.Tensor:
        """Return prompts and answers, [B · num_return_sequences, T + new], as given.

        Args:
            input_ids: [B, T], padded at the left.
            attention_mask: [B, T].
            max_new_tokens: Tokens of an answer at most.
            eos_token_id: Ends an answer; by default the stored configuration's.
            pad_token_id: Fills an answer that ended.
            streamer: Told of the prompt and of each token, one prompt only.
            sampling: ``do_sample``, from the 50 likeliest tokens as transformers does,
                with draws that follow torch's seed; ``temperature``;
                ``num_return_sequences``.
        """
        copies = int(sampling.get("num_return_sequences", 1))
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        repeated = input_ids.repeat_interleave(copies, 0)
        real = mask.repeat_interleave(copies, 0).bool()
        prompts = [ids[own].tolist() for ids, own in zip(repeated, real, strict=True)]
        stops = self._eos if eos_token_id is None else _ids(eos_token_id)

        def step(tokens: list[int]) -> None:
            if streamer is not None:
                streamer.put(torch.tensor(tokens))

        if streamer is not None:
            streamer.put(input_ids.cpu())
        answers: dict[int, list[int]] = {}
        for group in _of_one_length(prompts):
            chosen, search = [prompts[i] for i in group], _search(sampling)
            said = self._write(chosen, max_new_tokens, stops, step, **search)
            answers.update(zip(group, said, strict=True))
        if streamer is not None:
            streamer.end()
        new = [torch.tensor(answers[i], dtype=torch.long) for i in range(len(prompts))]
        filled = nn.utils.rnn.pad_sequence(new, True, float(pad_token_id))
        return torch.cat([repeated.cpu(), filled], 1)


def _ids(given: int | Sequence[int]) -> frozenset[int]:
    return frozenset([given] if isinstance(given, int) else given)


def _search(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return GenAI's options of a search, from transformers' of sampling."""
    if not sampling.get("do_sample"):
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": float(sampling.get("temperature", 1)),
        "top_k": TOP_K,
        "random_seed": int(torch.randint(2**31 - 1, ())),
    }


def _of_one_length(prompts: Sequence[list[int]]) -> list[list[int]]:
    """Return the numbers of prompts in groups of one length."""
    groups: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(len(prompt), []).append(i)
    return list(groups.values())
