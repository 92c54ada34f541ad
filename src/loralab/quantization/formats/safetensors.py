"""``safetensors``: every weight in one float dtype, as transformers itself writes it.

Storing in 16 bits rounds too: a merged adapter that moves a weight by less than half a
unit in its last place is gone, so survival is measured here as anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from loralab.errors import QuantizationError
from loralab.logs import routed
from loralab.quantization.formats._files import (
    Codec,
    file_bytes,
    float_dtype,
    float_layout,
    opened,
    write,
)
from loralab.quantization.storage import Source, Stored, Tell
from loralab.registry import Params, register

if TYPE_CHECKING:
    import torch

TRANSPOSED = {"gpt2": ("c_attn", "c_proj", "c_fc")}
"""Architectures that store some matrices as in × out, and their names."""


class SafetensorsParams(Params):
    """The params of a float model."""

    dtype: Literal["bf16", "fp16", "fp32"] = Field(
        "bf16", description="of every floating tensor"
    )

    @property
    def rest(self) -> str:
        """The dtype of all that is not quantized: of everything."""
        return self.dtype

    @property
    def compute(self) -> str:
        """The dtype that it is run in."""
        return self.dtype


def _none(*_: Any) -> dict[str, Any]:
    return {}


CODEC = Codec(_none, _none, _none, _none)  # type: ignore[arg-type]  # holds no matrix


def predict(
    params: SafetensorsParams, model: Any, names: Any, processor: Any = None
) -> int:
    """Return the exact bytes of the file, whatever is named."""
    return file_bytes(float_layout(params, model, ()))


def rounded(params: SafetensorsParams, weight: torch.Tensor) -> torch.Tensor:
    """Return a matrix rounded to the dtype, fp32."""
    return weight.to(float_dtype(params.dtype)).float()


def values(
    params: SafetensorsParams, folder: Path
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every matrix that is stored, by its module (O × I), fp32."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    turned = TRANSPOSED.get(config.get("model_type", ""), ())
    with opened(folder / CODEC.file) as file:
        for name in file.keys():  # noqa: SIM118 - a handle, not a mapping
            if name.endswith(".weight") and len(file.get_slice(name).get_shape()) == 2:
                module, weight = name.removesuffix(".weight"), file.get_tensor(name)
                last = module.rpartition(".")[2]
                yield module, (weight.T if last in turned else weight).float()


def open_folder(
    params: SafetensorsParams,
    folder: Path,
    auto_class: str,
    device: str,
    dtype: torch.dtype,
) -> Any:
    """Return the stored model, by transformers alone.

    Args:
        params: The format's.
        folder: What the format wrote.
        auto_class: transformers' class that loads it.
        device: ``cpu``, ``cuda`` or ``mps``.
        dtype: To compute in.

    Raises:
        QuantizationError: the file is broken, or misses a weight.
    """
    import transformers

    with opened(folder / CODEC.file):  # a broken file is told here
        pass
    with routed():
        model, info = getattr(transformers, auto_class).from_pretrained(
            str(folder),
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    missing = {n for n in info["missing_keys"] if not n.startswith("pooler.")}
    if missing:
        raise QuantizationError(
            f"{len(missing)} weights are missing, such as {min(missing)}",
            where=str(folder),
        )
    return model.to(device).eval()


@register(
    "storage format",
    "safetensors",
    SafetensorsParams,
    engine="torch",
    heads=(),
    predict=predict,
    rounded=rounded,
    values=values,
    open=open_folder,
)
def safetensors(
    params: SafetensorsParams, source: Source, folder: Path, tell: Tell
) -> Stored:
    """Write a model in one float dtype."""
    plain = Source(source.model, source.processor, source.head, ())
    return write(CODEC, params, plain, folder, tell)
