"""What a storage format is: one way to write a model's weights into files.

A format is a function that writes (`Write`), registered as a ``storage format``. Its
facts say the rest, each a function of the format's own params first:

``engine``   the engine that reads it: ``torch``, ``onnx`` or ``llama-cpp``
``heads``    the heads it can store, keys of `loralab.models.forward.HEADS`; () is all
``predict``  `Predict`: the exact bytes of the weights' files, from shapes alone
``rounded``  `Rounded`: the values a matrix has once it is stored
``values``   `Values`: the matrices that files really hold, dequantized

So what was stored can be compared, layer by layer, with what should have been.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Source:
    """A model to be stored.

    Attributes:
        model: A transformers model in float, adapter merged, on the CPU; it is not
            changed.
        processor: Its tokenizer.
        head: What it was loaded for, a key of `loralab.models.forward.HEADS`.
        names: Paths of the linear modules that are to be quantized.
    """

    model: Any
    processor: Any
    head: str
    names: Sequence[str]


@dataclass(frozen=True)
class Stored:
    """What was written.

    Attributes:
        files: The weights' files -> bytes; a tokenizer or a configuration is none.
        quantized: The modules whose weights are quantized in the files, read back.
    """

    files: dict[str, int]
    quantized: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the weights' files."""
        return sum(self.files.values())


Tell = Callable[[str, int, int], None]
"""Called with (what is done, steps done, steps in all)."""

Write = Callable[[Any, Source, Path, Tell], Stored]
"""From params, source and an existing empty folder to what was written there."""

Predict = Callable[[Any, Any, Sequence[str], Any], int]
"""From params, a model (the meta device will do), names and the tokenizer to bytes.

The tokenizer counts where the weights' file holds it (GGUF)."""

Rounded = Callable[[Any, "torch.Tensor"], "torch.Tensor"]
"""From params and a float matrix (O × I) to its stored values (O × I), fp32."""

Values = Callable[[Any, Path], "Iterator[tuple[str, torch.Tensor]]"]
"""From params and a folder to each quantized module and its values (O × I), fp32."""
