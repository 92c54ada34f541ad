"""llama.cpp by its C interface: a file's weights, and tokens fed to them.

V vocabulary, N tokens whose logits are asked for.
"""

from __future__ import annotations

import ctypes
import logging
import re
import weakref
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loralab.errors import ModelError
from loralab.logs import libraries

BATCH = 512
"""Tokens fed at a time, llama.cpp's own default."""
PAGE = 256
"""Lengths are rounded up to this, as llama.cpp does, so that a context serves often."""

LEVELS = {2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
_heard: dict[str, Any] = {"last error": "", "callback": None}


@cache
def library() -> Any:
    """Return the package ``llama_cpp``; what llama.cpp says goes to the log.

    Raises:
        ModelError: it is not installed, or its library cannot be loaded.
    """
    if find_spec("llama_cpp") is None:
        raise ModelError(
            "llama-cpp-python is not installed",
            where="engine llama-cpp",
            fix="pip install 'loralab[llama-cpp]' (it compiles llama.cpp, which takes "
            "some minutes and needs a C++ compiler)",
        )
    try:
        import llama_cpp
    except (OSError, RuntimeError) as error:
        raise ModelError(
            "llama-cpp-python is installed but cannot be loaded",
            where="engine llama-cpp",
            why=str(error).split("\n")[0],
        ) from None

    def hear(level: int, text: bytes, _: Any) -> None:
        line = text.decode("utf-8", "replace").strip()
        if level == 4 and line:
            _heard["last error"] = line
        libraries.log(LEVELS.get(level, logging.DEBUG), "llama.cpp: %s", line)

    # C keeps a bare pointer to it, so somebody must keep the object
    _heard["callback"] = llama_cpp.llama_log_callback(hear)
    llama_cpp.llama_log_set(_heard["callback"], ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


def kernel() -> str:
    """Return the instruction sets that the library was compiled for and uses."""
    said = library().llama_print_system_info().decode()
    return " ".join(re.findall(r"(\w+) = 1", said))


class Weights:
    """An open GGUF file.

    Args:
        path: Of the file.

    Raises:
        ModelError: llama.cpp cannot open it.
    """

    def __init__(self, path: Path) -> None:
        self.lib = library()
        params = self.lib.llama_model_default_params()
        params.n_gpu_layers = 0
        _heard["last error"] = ""
        self.pointer = self.lib.llama_model_load_from_file(str(path).encode(), params)
        if not self.pointer:
            raise ModelError(
                "llama.cpp cannot open the file",
                where=str(path),
                why=_heard["last error"],
                fix="export again; or copy the file again and compare its sha256",
            )
        weakref.finalize(self, self.lib.llama_model_free, self.pointer)
        vocabulary = self.lib.llama_model_get_vocab(self.pointer)
        self.vocabulary = int(self.lib.llama_vocab_n_tokens(vocabulary))
        self.positions = int(self.lib.llama_model_n_ctx_train(self.pointer))


class Session:
    """Room for a number of sequences, and what was fed to them so far.

    Args:
        weights: The file.
        length: Tokens of a sequence at most.
        sequences: How many there are.
        outputs: Logits asked for at a time at most.
        threads: Of the CPU.

    Raises:
        ModelError: longer than the model's positions, or no memory.
    """

    def __init__(
        self, weights: Weights, length: int, sequences: int, outputs: int, threads: int
    ) -> None:
        if length > weights.positions:
            raise ModelError(
                f"{length:,} tokens, and the model has {weights.positions:,} positions",
                where="engine llama-cpp",
                fix="shorten the prompt, or ask for fewer new tokens",
            )
        self._weights, self._lib = weights, weights.lib
        self.length, self.sequences = -(-length // PAGE) * PAGE, sequences
        self.outputs = outputs
        params = self._lib.llama_context_default_params()
        params.n_ctx = self.length * sequences
        params.n_seq_max = sequences
        params.n_batch = params.n_ubatch = max(BATCH, sequences)
        params.n_outputs_max = max(outputs, sequences)
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = False
        self._context = self._lib.llama_init_from_model(weights.pointer, params)
        if not self._context:
            raise ModelError(
                f"llama.cpp has no room for {sequences} × {self.length:,} tokens",
                where="engine llama-cpp",
                why=_heard["last error"],
            )
        weakref.finalize(self, self._lib.llama_free, self._context)

    def clear(self) -> None:
        """Forget what was fed."""
        memory = self._lib.llama_get_memory(self._context)
        self._lib.llama_memory_clear(memory, False)

    def feed(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        sequences: Sequence[int],
        wanted: Sequence[bool],
    ) -> NDArray[np.float32]:
        """Feed at most `BATCH` tokens.

        Args:
            ids: Of the tokens.
            positions: Of each in its sequence.
            sequences: The sequence of each.
            wanted: Whether its logits are asked for.

        Returns:
            Logits of those, in order, [N, V].
        """
        count, lib = len(ids), self._lib
        batch = lib.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            given = {"token": ids, "pos": positions, "n_seq_id": [1] * count}
            for name, column in (given | {"logits": wanted}).items():
                place = getattr(batch, name)
                np.ctypeslib.as_array(place, shape=(count,))[:] = column
            for index, sequence in enumerate(sequences):
                batch.seq_id[index][0] = sequence
            failed = lib.llama_decode(self._context, batch)
        finally:
            lib.llama_batch_free(batch)
        if failed:
            raise ModelError(
                f"llama.cpp gave up with code {failed}",
                where="engine llama-cpp",
                why=_heard["last error"],
            )
        shape = (sum(map(bool, wanted)), self._weights.vocabulary)
        if not shape[0]:
            return np.empty(shape, np.float32)
        found = lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(found, shape=shape).copy()

    def read(
        self, ids: Sequence[int], wanted: Sequence[bool], sequence: int = 0
    ) -> NDArray[np.float32]:
        """Feed a whole text to an empty sequence; return the logits asked for, [N, V].

        Args:
            ids: Of the tokens.
            wanted: Whether a token's logits are asked for.
            sequence: The sequence.
        """
        found = []
        for start in range(0, len(ids), BATCH):
            part = slice(start, start + BATCH)
            places = range(start, min(start + BATCH, len(ids)))
            own = [sequence] * len(places)
            found.append(self.feed(ids[part], places, own, wanted[part]))
        return np.concatenate(found)
