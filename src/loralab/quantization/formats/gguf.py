"""``gguf``: one file that llama.cpp runs, and that transformers can open again.

Architectures of the Llama family (`loralab.quantization.gguf_layout`), one tensor at a
time from the model to the disk. Bits and rounding are those of the `gguf` package,
llama.cpp's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from loralab.errors import ExportError
from loralab.quantization.gguf_layout import (
    LINEAR,
    PERMUTED,
    Tensor,
    architecture,
    encoded,
    fitting,
    ggml,
    layers_of,
    layout,
    rope_factors,
    unpermute,
)
from loralab.quantization.gguf_metadata import add_sizes, add_vocabulary
from loralab.quantization.storage import Source, Stored, Tell
from loralab.registry import Params, register

if TYPE_CHECKING:
    import torch

FILE = "model.gguf"
TOKEN_BYTES = 36
"""Of a token in the file's head where the tokenizer is not at hand: its text, kind and
merge, the mean of SmolLM2's 49,152."""


class GGUFParams(Params):
    """How the weights are stored.

    Attributes:
        type: Of the linear modules.
        embeddings: Of the embedding and the output matrix. ``auto`` is what llama.cpp
            does: in a 4-bit file the output matrix, and an embedding tied to it, in
            q8_0 (its own choice for long rows, q6_K, is written by it alone), an
            embedding of its own in `type`; else `type` for both.
    """

    type: Literal["f16", "q8_0", "q4_0", "q4_1"] = "q4_0"
    embeddings: Literal["auto", "f16", "q8_0", "same"] = "auto"


def predict(
    params: GGUFParams, model: Any, names: Sequence[str], processor: Any = None
) -> int:
    """Return the bytes of the file.

    Args:
        params: Of the format.
        model: A transformers language model; the meta device will do.
        names: The modules to be quantized.
        processor: Its tokenizer, which is part of the file: with it the bytes are
            exact; without it the tokens are reckoned at `TOKEN_BYTES` each.

    Raises:
        QuantizationError: an architecture that is not written.
    """
    tensors = layout(model, names, params.type, params.embeddings)
    with TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        _begin(path, params, model, processor, tensors).close()
        head = path.stat().st_size
    if processor is None:
        head += TOKEN_BYTES * model.get_input_embeddings().weight.shape[0]
    return _padded(head) + sum(_padded(tensor.nbytes) for tensor in tensors)


def _padded(size: int) -> int:
    from gguf import GGUF_DEFAULT_ALIGNMENT

    return math.ceil(size / GGUF_DEFAULT_ALIGNMENT) * int(GGUF_DEFAULT_ALIGNMENT)


def _begin(
    path: Path,
    params: GGUFParams,
    model: Any,
    processor: Any,
    tensors: Sequence[Tensor],
) -> Any:
    """Write the head of a file, and return the writer that waits for the tensors."""
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture(model.config))
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name,
            tensor.shape,
            np.dtype(np.float32),
            tensor.nbytes,
            raw_dtype=ggml(tensor.kind),
        )
    add_sizes(writer, model, params.type)
    if processor is not None:
        rows = model.get_input_embeddings().weight.shape[0]
        add_vocabulary(writer, processor, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def rounded(params: GGUFParams, weight: torch.Tensor) -> torch.Tensor:
    """Return the values that a matrix (O × I) has once it is stored, fp32.

    Raises:
        QuantizationError: a weight is not finite.
    """
    import torch
    from gguf.quants import dequantize

    kind = fitting(params.type, weight.shape)
    data = encoded(Tensor("", "", tuple(weight.shape), kind), weight)
    return torch.from_numpy(dequantize(data, ggml(kind)))


def _read(folder: Path) -> Any:
    """Return a reader of the file.

    Raises:
        ExportError: there is none, or it is not whole.
    """
    from gguf import GGUFReader

    path = folder / FILE
    try:
        return GGUFReader(path)
    except FileNotFoundError:
        raise ExportError("no such file", where=str(path)) from None
    except (ValueError, LookupError, OverflowError) as error:
        raise ExportError(
            "no whole GGUF file",
            where=str(path),
            why=str(error),
            fix="export again; or copy the file again and compare its sha256",
        ) from None


def _linear(folder: Path) -> Iterator[tuple[str, Any, int]]:
    """Yield each linear module's path, its tensor, and the heads to be put back."""
    reader = _read(folder)

    def said(key: str) -> Any:
        return reader.fields[key].contents()

    arch = said("general.architecture")
    layers = said(f"{arch}.block_count")
    turned = {}
    if arch == PERMUTED:
        turned = {
            "attn_q": said(f"{arch}.attention.head_count"),
            "attn_k": said(f"{arch}.attention.head_count_kv"),
        }
    paths = [f"model.layers.{n}.{own}" for n in range(layers) for own in LINEAR]
    name_map = layers_of(arch, layers)
    by_name = {f"{name_map.get_name(path)}.weight": path for path in paths}
    for tensor in reader.tensors:
        if tensor.name in by_name:
            heads = turned.get(tensor.name.split(".")[2], 0)
            yield by_name[tensor.name], tensor, heads


def values(params: GGUFParams, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each linear module's path in transformers and its values (O × I), fp32.

    A module that was left out, and so is in f16, is not among them.

    Raises:
        ExportError: the file is missing or not whole.
    """
    import numpy as np
    import torch
    from gguf.quants import dequantize

    for path, tensor, heads in _linear(folder):
        shape = tuple(reversed(tensor.shape.tolist()))
        if tensor.tensor_type == ggml(fitting(params.type, shape)):
            rows = dequantize(tensor.data, tensor.tensor_type)
            if heads:
                rows = unpermute(rows, heads)
            yield path, torch.from_numpy(np.array(rows))  # a copy, not the open file


@register(
    "storage format",
    "gguf",
    GGUFParams,
    engine="llama-cpp",
    heads=("causal-lm",),
    predict=predict,
    rounded=rounded,
    values=values,
)
def write(params: GGUFParams, source: Source, folder: Path, tell: Tell) -> Stored:
    """Write ``model.gguf``, one tensor at a time, and transformers' ``config.json``.

    A module whose rows 32 does not divide stays in f16, and is not counted among the
    quantized.

    Raises:
        QuantizationError: an architecture, a tokenizer or a weight that cannot be held.
    """
    model, path = source.model, folder / FILE
    tensors = layout(model, source.names, params.type, params.embeddings)
    weights = model.state_dict()
    writer = _begin(path, params, model, source.processor, tensors)
    try:
        for done, tensor in enumerate(tensors):
            tell(f"write {tensor.name}", done, len(tensors))
            made = weights[tensor.key] if tensor.key else rope_factors(model.config)
            writer.write_tensor_data(encoded(tensor, made))
    finally:
        writer.close()
    model.config.save_pretrained(folder)
    tell("read back", len(tensors), len(tensors))
    wanted = {name: found.tensor_type for name, found, _ in _linear(folder)}
    quantized = [n for n in source.names if wanted.get(n) == ggml(params.type)]
    return Stored({FILE: path.stat().st_size}, tuple(quantized))
