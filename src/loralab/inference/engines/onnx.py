"""The engine ``onnx``: ONNX Runtime on a CPU, and GenAI for what decoders write.

What `open_model` returns is called, and answers, as a transformers model does: it works
in `loralab.inference.predict` and `loralab.inference.generate`. It takes token ids; the
tokenizer is transformers', so a prompt has the same ids in every engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from loralab.errors import ExportError, ModelError
from loralab.inference.engines._onnx_decoder import OnnxDecoder
from loralab.inference.engines._onnx_session import Adapters, described, open_session
from loralab.models.numerics import Numerics
from loralab.quantization.onnx_decoder import CONFIG
from loralab.quantization.onnx_encoder import PROBE
from loralab.quantization.onnx_graph import MODEL, Graph
from loralab.registry import register


class OnnxEncoder(nn.Module):
    """A classifier, tagger, reader, vision model or encoder in ONNX Runtime.

    Args:
        folder: What a format wrote.
        graph: Its graph.
        threads: Of a product.
    """

    def __init__(self, folder: Path, graph: Graph, threads: int) -> None:
        super().__init__()
        from transformers import AutoConfig

        self.config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        self._session = open_session(folder, threads)
        self._takes = {given.name for given in self._session.get_inputs()}
        self._gives = [made.name for made in self._session.get_outputs()]
        self.adapters = Adapters(folder)
        self._told = described(graph, threads)
        if (folder / PROBE).is_file():
            self.probe = _load_probe(folder / PROBE)

    def forward(self, **inputs: Any) -> SimpleNamespace:
        """Return the outputs by transformers' names, fp32.

        Args:
            inputs: Tensors by name; those that the graph does not take are ignored.
        """
        feed = {n: t.cpu().numpy() for n, t in inputs.items() if n in self._takes}
        if "token_type_ids" in self._takes - set(feed):
            feed["token_type_ids"] = feed["input_ids"] * 0
        made = self._session.run(self._gives, feed, self.adapters.options())
        return SimpleNamespace(
            **{n: torch.from_numpy(v) for n, v in zip(self._gives, made, strict=True)}
        )

    def set_adapter(self, name: str | None) -> None:
        """Let an adapter beside the model answer with it; None: the base alone.

        Raises:
            AdapterError: there is no such adapter.
        """
        self.adapters.choose(name)

    def describe(self) -> dict[str, Any]:
        """Return the engine, its version, kernels and threads."""
        return dict(self._told)


def _load_probe(file: Path) -> nn.Linear:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(file)
    except SafetensorError as error:
        raise ExportError(
            "the probe cannot be read", where=str(file), why=str(error)
        ) from None
    classes, hidden = state["weight"].shape
    made = nn.Linear(hidden, classes)
    made.load_state_dict(state)
    return made.requires_grad_(False)


@register("engine", "onnx")
def open_model(
    folder: Path, note: Mapping[str, Any], numerics: Numerics
) -> OnnxEncoder | OnnxDecoder:
    """Open a stored model; it takes as many threads as torch does.

    Args:
        folder: What a format of this engine wrote.
        note: The artefact's note; nothing of it is needed, the graph says it all.
        numerics: Where to compute.

    Raises:
        ModelError: another device than the CPU, or the runtime refuses the graph.
        ExportError: a file is missing or truncated.
    """
    if numerics.device != "cpu":
        raise ModelError(
            f"the engine onnx runs on the CPU, not on {numerics.device}",
            where="model.device",
            fix="set model.device=cpu, or use the engine torch",
        )
    graph, threads = Graph(folder), torch.get_num_threads()
    if (folder / CONFIG).is_file():
        return OnnxDecoder(folder, graph, threads).eval()
    if any(given.name.startswith("past_") for given in graph.model.graph.input):
        raise ExportError(
            "no such file",
            where=str(folder / CONFIG),
            why=f"{MODEL} is a decoder, which GenAI does not run without it",
            fix="store the model again",
        )
    return OnnxEncoder(folder, graph, threads).eval()
