"""What a GGUF file of the Llama family holds: names, shapes, types, order of rows.

A row of a matrix (O × I) is cut into blocks of 32 weights:

    q8_0   w = d · q             q = −128 … 127    fp16 d, 32 bytes       34 bytes
    q4_0   w = d · (q − 8)       q = 0 … 15        fp16 d, 16 bytes       18 bytes
    q4_1   w = d · q + m         q = 0 … 15        fp16 d, m, 16 bytes    20 bytes

A row that 32 does not divide stays in f16, and vectors are in f32, as llama.cpp has it.

Rotary positions turn a pair of a head's rows: (j, j + d/2) in transformers, neighbours
(2j, 2j + 1) in llama.cpp's ``llama``. So the rows of its q and k are stored in another
order: row 2j + h of a head is row h·d/2 + j. ``qwen2`` and ``qwen3`` keep theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loralab.errors import QuantizationError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

# transformers' model type -> llama.cpp's architecture
ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
}  # fmt: skip
PERMUTED = "llama"

# the linear modules of a layer, as transformers calls them in all of these
LINEAR = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip

EMBEDDING, OUTPUT, ROPE = "token_embd.weight", "output.weight", "rope_freqs.weight"
LARGEST = 65504.0  # of a half; weights in f16, and d and m of the others, are halves


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file.

    Attributes:
        name: In GGUF: ``blk.0.attn_q.weight``.
        key: In transformers: ``model.layers.0.self_attn.q_proj.weight``; empty if it
            is made from the configuration.
        shape: As in transformers.
        kind: How it is stored: ``f32``, ``f16``, ``q8_0``, ``q4_0``, ``q4_1``.
        heads: Heads whose rows are put in llama.cpp's order; 0 is none.
    """

    name: str
    key: str
    shape: tuple[int, ...]
    kind: str
    heads: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of its data, without padding."""
        block, size = block_of(self.kind)
        return math.prod(self.shape) // block * size


def ggml(kind: str) -> Any:
    """Return the `gguf` package's constant of a kind."""
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[kind.upper()]


def block_of(kind: str) -> tuple[int, int]:
    """Return the weights of a block, and its bytes."""
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[ggml(kind)]
    return int(block), int(size)


def fitting(kind: str, shape: Sequence[int]) -> str:
    """Return the kind in which a matrix asked for in `kind` is really stored."""
    return kind if shape[-1] % block_of(kind)[0] == 0 else "f16"


def architecture(config: Any) -> str:
    """Return llama.cpp's name of a transformers configuration's architecture.

    Raises:
        QuantizationError: we do not write it, or llama.cpp would compute another thing.
    """
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        raise QuantizationError(
            f"GGUF is not written for the architecture {config.model_type!r}",
            where="gguf",
            fix=f"it is for {', '.join(ARCHITECTURES)}; take another storage format",
        )
    if config.hidden_act != "silu":
        raise QuantizationError(
            f"llama.cpp's {found} computes silu, not {config.hidden_act}", where="gguf"
        )
    if rope_type(config) not in ("default", "linear", "llama3"):
        raise QuantizationError(
            f"GGUF is not written for rotary positions of type {rope_type(config)!r}",
            where="gguf",
            fix="it is for default, linear and llama3",
        )
    return found


def rope_type(config: Any) -> str:
    """Return the kind of rotary scaling, such as ``llama3``."""
    return str((config.rope_parameters or {}).get("rope_type", "default"))


def layers_of(name_of: str, layers: int) -> Any:
    """Return the `gguf` package's map of names of an architecture."""
    import gguf

    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(kinds[name_of], layers)


def head_width(config: Any) -> int:
    """Return the rows of one head."""
    width = getattr(config, "head_dim", None)
    return int(width or config.hidden_size // config.num_attention_heads)


def is_tied(model: Any) -> bool:
    """Whether the output matrix is the embedding itself."""
    own = model.get_output_embeddings().weight
    return own is model.get_input_embeddings().weight


def layout(
    model: Any, names: Sequence[str], kind: str, embeddings: str
) -> list[Tensor]:
    """Return the tensors of the file, in its order.

    Args:
        model: A transformers language model; the meta device will do.
        names: The linear modules to be stored in `kind`; others are in f16.
        kind: ``f16``, ``q8_0``, ``q4_0`` or ``q4_1``.
        embeddings: ``auto``, ``f16``, ``q8_0`` or ``same``.

    Raises:
        QuantizationError: an architecture, or a tensor, that is not llama.cpp's.
    """
    config, tied, wanted = model.config, is_tied(model), set(names)
    arch = architecture(config)
    name_map = layers_of(arch, config.num_hidden_layers)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    found = [_rope(config)] if rope_type(config) == "llama3" else []
    for key, weight in model.state_dict().items():
        path, _, suffix = key.rpartition(".")
        own = name_map.get_name(path)
        if own is None:
            raise QuantizationError(f"llama.cpp's {arch} has no such tensor", where=key)
        name, shape = f"{own}.{suffix}", tuple(weight.shape)
        if name == OUTPUT and tied:
            continue
        chosen = "f32"
        if len(shape) > 1:
            chosen = kind if path in wanted else "f16"
            if name in (EMBEDDING, OUTPUT):
                chosen = _embedding(embeddings, kind, name == OUTPUT or tied)
            chosen = fitting(chosen, shape)
        turned = heads.get(own.rpartition(".")[2], 0) if arch == PERMUTED else 0
        found.append(Tensor(name, key, shape, chosen, turned))
    return found


def _embedding(embeddings: str, kind: str, output: bool) -> str:
    """Return how the embedding or the output matrix is stored.

    llama.cpp gives the output matrix of a 4-bit file more bits than the rest: q6_K, or
    q8_0 where 256 does not divide its rows. q6_K is not in the `gguf` package.
    """
    if embeddings == "same" or (embeddings == "auto" and not output):
        return kind
    if embeddings == "auto":
        return "q8_0" if kind.startswith("q4") else kind
    return embeddings


def _rope(config: Any) -> Tensor:
    return Tensor(ROPE, "", (head_width(config) // 2,), "f32")


def rope_factors(config: Any) -> torch.Tensor:
    """Return Llama 3's divisors of the rotary frequencies (d/2), fp32.

    Wave lengths below L / high are kept, those above L / low divided by the factor,
    those between by a mean of both (Llama 3.1's `apply_scaling`).
    """
    import torch

    rope = config.rope_parameters
    exponents = torch.arange(0, head_width(config), 2, dtype=torch.float32)
    lengths = 2 * math.pi * rope["rope_theta"] ** (exponents / head_width(config))
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    waves = rope["original_max_position_embeddings"] / lengths
    share = ((waves - low) / (high - low)).clamp(0, 1)
    factors: torch.Tensor = 1 / ((1 - share) / rope["factor"] + share)
    return factors


def permute(rows: Array, heads: int) -> Array:
    """Put rows (or biases) of q or k into llama.cpp's order."""
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def unpermute(rows: Array, heads: int) -> Array:
    """Undo `permute`."""
    split = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def encoded(tensor: Tensor, weight: torch.Tensor) -> Array:
    """Return a weight's data as it stands in the file.

    Raises:
        QuantizationError: a weight is not finite, or beyond what a half can hold.
    """
    import numpy as np
    from gguf.quants import quantize

    rows = weight.detach().float().numpy()
    if not np.abs(rows).max() <= LARGEST:
        raise QuantizationError(
            "a weight is NaN, infinite or above 65,504",
            where=tensor.key,
            why="GGUF keeps weights, or their scales, in half precision",
        )
    if tensor.heads:
        rows = np.ascontiguousarray(permute(rows, tensor.heads))
    data: Array = quantize(rows, ggml(tensor.kind))
    return data
