"""The files of a format that torch reads, and their size to the byte.

A codec says how one matrix is held; what is left of a model (embeddings, norms, biases,
heads) is cast to one float dtype. All of it stands in one safetensors file:

    8 bytes + header, filled up to a multiple of 8 + the tensors' bytes

The header is JSON with a name, dtype, shape and offsets for each tensor, sorted by
dtype and name, so names and shapes alone give the file's exact size.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from loralab.errors import QuantizationError
from loralab.quantization.storage import Source, Stored, Tell
from loralab.registry import Params

if TYPE_CHECKING:
    import torch

METADATA = {"format": "pt"}
FLOATS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

# torch's name of a dtype -> safetensors' name, in the order of the file's tensors
NAMES = {
    "int64": "I64", "float32": "F32", "int32": "I32", "bfloat16": "BF16",
    "float16": "F16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
ORDER = list(NAMES.values())

Layout = dict[str, tuple["torch.dtype", tuple[int, ...]]]
"""Name of a tensor -> dtype and shape."""

Tensors = dict[str, "torch.Tensor"]


class TorchParams(Params):
    """What every format of the torch engine lets one choose."""

    rest: Literal["bf16", "fp16", "fp32"] = Field(
        "bf16", description="dtype of all that is not quantized: embeddings, heads …"
    )


@dataclass(frozen=True)
class Codec:
    """How one matrix (O × I) is held; each function takes the format's params first.

    Attributes:
        layout: From O and I to the tensors that hold it, by the end of their name.
        encode: From the matrix to those tensors.
        decode: From those tensors to its values (O × I), fp32.
        settings: From params and the linear modules that stay float to what
            ``config.json`` says as its ``quantization_config``.
        file: Name of the weights' file.
        held: From params and a module to the tensors of one that is held so already,
            which are stored as they are; None of any other.
    """

    layout: Callable[[Any, tuple[int, int]], Layout]
    encode: Callable[[Any, torch.Tensor], Tensors]
    decode: Callable[[Any, Tensors], torch.Tensor]
    settings: Callable[[Any, list[str]], dict[str, Any]]
    file: str = "model.safetensors"
    held: Callable[[Any, Any], Tensors | None] = lambda *_: None


def float_dtype(name: str) -> torch.dtype:
    """Return torch's dtype of ``bf16``, ``fp16`` or ``fp32``."""
    import torch

    found: torch.dtype = getattr(torch, FLOATS[name])
    return found


def file_bytes(layout: Layout) -> int:
    """Return the exact size of a safetensors file with these tensors."""
    named = [
        (NAMES[str(dtype).removeprefix("torch.")], name, dtype, shape)
        for name, (dtype, shape) in layout.items()
    ]
    named.sort(key=lambda one: (ORDER.index(one[0]), one[1]))
    header: dict[str, Any] = {"__metadata__": METADATA}
    end = 0
    for kind, name, dtype, shape in named:
        begin, size = end, dtype.itemsize
        for length in shape:
            size *= length
        end += size
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    return 8 + -(-len(text.encode()) // 8) * 8 + end


def matrices_of(model: Any, names: Sequence[str]) -> Tensors:
    """Return the float matrix (O × I) of each named linear module.

    Raises:
        QuantizationError: no such module, another kind of module, or a tied weight.
    """
    from loralab.quantization.linear import float_matrices  # which imports torch

    return float_matrices(model, names)


def rest_names(model: Any, names: Sequence[str]) -> list[str]:
    """Return the stored tensors but for the quantized weights; tied ones once."""
    quantized = {f"{name}.weight" for name in names}
    once = {name for name, _ in model.named_parameters()}
    once |= {name for name, _ in model.named_buffers()}
    return [name for name in model.state_dict() if name in once - quantized]


def predict(
    codec: Codec,
    params: TorchParams,
    model: Any,
    names: Sequence[str],
    processor: Any = None,
) -> int:
    """Return the exact bytes of the weights' file; a `Predict` but for the codec."""
    return file_bytes(_layout(codec, params, model, names))


def float_layout(params: Any, model: Any, names: Sequence[str]) -> Layout:
    """Return what the file holds besides the named modules' weights."""
    dtype, state = float_dtype(params.rest), model.state_dict()
    found: Layout = {}
    for name in rest_names(model, names):
        floating = state[name].is_floating_point()
        kept = dtype if floating else state[name].dtype
        found[name] = (kept, tuple(state[name].shape))
    return found


def _layout(codec: Codec, params: Any, model: Any, names: Sequence[str]) -> Layout:
    """Return what the file holds; the model may be on the meta device."""
    ready = _ready(codec, params, model, names)
    found = float_layout(params, model, names)
    for name, tensors in ready.items():
        for end, tensor in tensors.items():
            found[f"{name}.{end}"] = (tensor.dtype, tuple(tensor.shape))
    for name, weight in matrices_of(
        model, [n for n in names if n not in ready]
    ).items():
        rows, columns = weight.shape
        for end, form in codec.layout(params, (rows, columns)).items():
            found[f"{name}.{end}"] = form
    return found


def _ready(
    codec: Codec, params: Any, model: Any, names: Sequence[str]
) -> dict[str, Tensors]:
    """Return the modules that are held in the format already, and their tensors."""
    found = {}
    for name in names:
        if tensors := codec.held(params, model.get_submodule(name)):
            found[name] = tensors
    return found


def rounded(codec: Codec, params: TorchParams, weight: torch.Tensor) -> torch.Tensor:
    """Return what a matrix is once stored; a `Rounded` but for the codec."""
    return codec.decode(params, _encoded(codec, params, weight, ""))


def _encoded(
    codec: Codec, params: TorchParams, weight: torch.Tensor, where: str
) -> Tensors:
    if not weight.isfinite().all():
        raise QuantizationError("a weight is NaN or infinite", where=where)
    return codec.encode(params, weight.detach())


def _cast(tensor: torch.Tensor, dtype: torch.dtype, where: str) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor.contiguous()
    cast = tensor.detach().to(dtype).contiguous()
    if not cast.isfinite().all():
        raise QuantizationError(
            f"a value is not finite in {dtype}",
            where=where,
            why="it is too large for this dtype, or was NaN or infinite before",
            fix="choose rest=bf16 or rest=fp32",
        )
    return cast


def write(
    codec: Codec, params: Any, source: Source, folder: Path, tell: Tell
) -> Stored:
    """Write weights and configuration; a `Write` but for the codec.

    Raises:
        QuantizationError: a module that the format cannot hold, a full disk, or a file
            that is not what was predicted.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    model, names = source.model, source.names
    layout = _layout(codec, params, model, names)
    state, dtype = model.state_dict(), float_dtype(params.rest)
    tensors = {n: _cast(state[n], dtype, n) for n in rest_names(model, names)}
    ready = _ready(codec, params, model, names)
    for name, own in ready.items():
        tensors |= {f"{name}.{end}": t.detach() for end, t in own.items()}
    left = matrices_of(model, [name for name in names if name not in ready])
    for done, (name, weight) in enumerate(left.items(), 1 + len(ready)):
        encoded = _encoded(codec, params, weight, name)
        tensors |= {f"{name}.{end}": tensor for end, tensor in encoded.items()}
        tell("quantizing", done, len(names))
    file = folder / codec.file
    try:
        save_file(tensors, file, metadata=METADATA)
        save_config(model, folder, params, codec.settings(params, kept(model, names)))
    except (OSError, SafetensorError) as error:
        raise QuantizationError(
            "cannot be written", where=str(folder), why=str(error)
        ) from None
    if _read_layout(file) != layout or file.stat().st_size != file_bytes(layout):
        raise QuantizationError("the file is not what was predicted", where=str(file))
    return Stored({codec.file: file.stat().st_size}, tuple(names))


def kept(model: Any, names: Sequence[str]) -> list[str]:
    """Return the linear modules that stay float, as transformers would have them.

    A pooler that was taken off is among them: transformers builds it again.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and name not in names
    ]
    return [*found, "pooler"] if getattr(model, "pooler", model) is None else found


def save_config(
    model: Any, folder: Path, params: Any, settings: dict[str, Any]
) -> None:
    """Write ``config.json``, which says how the weights are held."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = float_dtype(params.rest)
    if settings:
        config.quantization_config = settings
    if getattr(config, "use_cache", None) is False:  # off for training
        config.use_cache = True
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def opened(file: Path) -> Any:
    """Return safetensors' handle on a format's file.

    Raises:
        QuantizationError: there is none, or it is broken.
    """
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise QuantizationError(
            "not a whole safetensors file",
            where=str(file),
            why=str(error),
            fix="write it again",
        ) from None


def _read_layout(file: Path) -> Layout:
    with opened(file) as handle:
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    return {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}


def matrices(
    codec: Codec, params: TorchParams, folder: Path
) -> Iterator[tuple[str, Tensors]]:
    """Yield each quantized module of a file, and the tensors that hold it.

    Raises:
        QuantizationError: the file is missing, broken, or of another format.
    """
    ends = list(codec.layout(params, (0, 0)))  # which any group divides
    with opened(folder / codec.file) as handle:
        every = set(handle.keys())
        names = [n.removesuffix(f".{ends[-1]}") for n in handle.keys()  # noqa: SIM118
                 if n.endswith(f".{ends[-1]}")]  # fmt: skip
        for name in sorted(names):
            keys = {end: f"{name}.{end}" for end in ends}
            if not every.issuperset(keys.values()):
                raise QuantizationError(
                    "the tensors are those of another format", where=name
                )
            yield name, {end: handle.get_tensor(key) for end, key in keys.items()}


def values(
    codec: Codec, params: TorchParams, folder: Path
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each quantized module and its values; a `Values` but for the codec."""
    for name, tensors in matrices(codec, params, folder):
        yield name, codec.decode(params, tensors)


def facts(codec: Codec) -> dict[str, Any]:
    """Return the facts of a format that a codec decides."""
    return {
        "engine": "torch",
        "heads": (),
        "predict": partial(predict, codec),
        "rounded": partial(rounded, codec),
        "values": partial(values, codec),
    }
