r"""The second moment of a layer's inputs, as a sketch that is kept beside an adapter.

    G = (1/N) Σ_n x_n x_nᵀ  [in, in],      G ≈ S Sᵀ + diag(d − diag(S Sᵀ)),  d = diag G

S [in, k] is made in one pass by Frequent Directions (Liberty 2013; Ghashami et al.
2016, section 3): rows are collected, and when 3k are there, they are replaced by k,

    X = UΣVᵀ,   X' = √(Σ² − δ·I)₊ Vᵀ,   δ = σ_{k+1}²

so that 0 ⪯ G − SSᵀ ⪯ (Σδ / N)·I, which is `Sketch.bound`; up to k rows nothing is lost.
The diagonal d is summed exactly, so that what S misses of it is known, is nowhere
negative, and is put back. In memory 3k·in values, and never in × in.

The file ``inputs.safetensors`` beside an adapter, format 1:

    <module>.sketch     [in, k]  float32: S
    <module>.diagonal   [in]     float32: d

Modules that read the same tensor (query, key, value) share what the first of them has.
The metadata has one entry, ``loralab``, of JSON:

    format     1
    rank       k
    rows       training rows that were read
    base       the base's fingerprint
    adapter    sha256 of the adapter_model.safetensors the inputs were measured with
    modules    module -> {from: the module whose tensors are its, tokens: N, bound}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loralab.errors import AdapterError
from loralab.lowrank.stream import Spec, TensorFile, write_tensors
from loralab.runs.files import check_format, sha256_file

INPUTS, ADAPTER = "inputs.safetensors", "adapter_model.safetensors"
FORMAT_VERSION = 1
MAKE = "loralab sketch RUN"


@dataclass(frozen=True, eq=False)
class Sketch:
    """The second moment of a layer's inputs.

    Attributes:
        S: [in, k], S·Sᵀ ≈ G from below.
        diagonal: [in], that of G, exactly.
        tokens: N, the inputs that were seen.
        bound: Spectral norm of G − S·Sᵀ at most.
    """

    S: Tensor
    diagonal: Tensor
    tokens: int
    bound: float

    def shrunk(self, alpha: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return X [in, k] and D [in] of G' = X·Xᵀ + diag(D), its off-diagonal × alpha.

        D = d − α·diag(S·Sᵀ) has no negative entry, and the diagonal of G' is d.

        Args:
            alpha: From 0 (the diagonal alone) to 1.
            dtype: Of the result.
        """
        X = alpha**0.5 * self.S.to(dtype)
        D = self.diagonal.to(dtype) - X.square().sum(1)
        return X, D.clamp(min=0)

    def within(self, V: Tensor) -> Sketch:
        """Return the sketch of the inputs Vᵀx.

        Its diagonal is that of Vᵀ(S·Sᵀ + diag(D))V: as near as the sketch is, where
        the original's is exact.

        Args:
            V: [in, l], orthonormal columns.
        """
        X, D = self.shrunk(1.0, V.dtype)
        S = V.T @ X
        diagonal = S.square().sum(1) + V.square().T @ D
        return replace(self, S=S, diagonal=diagonal)


class Sketcher:
    """Makes a sketch of inputs that come a few at a time.

    Args:
        rank: k, at least 1; no more than `in` is used.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._rows = torch.zeros(0)  # [m, in], fewer than 3k
        self._squares = torch.zeros(())
        self._tokens = 0
        self._shrunk = 0.0

    def add(self, X_NI: Tensor) -> None:
        """Take inputs in, [N, in]; they are summed in float64."""
        X_NI = X_NI.detach().double()
        if not self._tokens:
            self._rank = min(self._rank, X_NI.shape[1])
            self._rows, self._squares = X_NI[:0], X_NI.new_zeros(X_NI.shape[1])
        self._tokens += len(X_NI)
        self._squares = self._squares + X_NI.square().sum(0)
        while len(X_NI):
            room = 3 * self._rank - len(self._rows)
            self._rows, X_NI = torch.cat([self._rows, X_NI[:room]]), X_NI[room:]
            if len(self._rows) == 3 * self._rank:
                self._rows, δ = shrunk_rows(self._rows, self._rank)
                self._shrunk += δ

    def sketch(self) -> Sketch:
        """Return the sketch of what has been added, in float64.

        Raises:
            ValueError: nothing was.
        """
        if not self._tokens:
            raise ValueError("no inputs")
        rows, δ = shrunk_rows(self._rows, self._rank)
        return Sketch(
            S=rows.T / self._tokens**0.5,
            diagonal=self._squares / self._tokens,
            tokens=self._tokens,
            bound=(self._shrunk + δ) / self._tokens,
        )


def shrunk_rows(X: Tensor, k: int) -> tuple[Tensor, float]:
    """Return k rows X' with 0 ⪯ XᵀX − X'ᵀX' ⪯ δ·I, and δ; X itself if it has no more.

    The Gram matrix of the rows is small, and has U and Σ².

    Args:
        X: [m, in] float64.
        k: At most m or in.
    """
    if len(X) <= k:
        return X, 0.0
    λ, U = torch.linalg.eigh(X @ X.T)  # ascending
    δ = float(λ[-k - 1].clamp(min=0))
    top, U = λ[-k:], U[:, -k:]
    least = top[-1] * len(λ) * torch.finfo(λ.dtype).eps  # below it there is rounding
    weight = torch.where(top > least, ((top - δ).clamp(min=0) / top).sqrt(), 0.0)
    return weight[:, None] * (U.T @ X), δ


@dataclass(frozen=True, eq=False)
class Sketched:
    """The sketches beside an adapter; a module's are read when they are asked for.

    Attributes:
        file: ``inputs.safetensors``.
        facts: What its metadata say.
    """

    file: TensorFile
    facts: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Sketched | None:
        """Return the sketches of an adapter folder, None where it has none.

        Raises:
            AdapterError: broken, of a later format, or of other weights than those
                that are there now.
        """
        path = Path(folder) / INPUTS
        if not path.is_file():
            return None
        file = TensorFile(path)
        try:
            facts = json.loads(file.metadata["loralab"])
            version, adapter = facts["format"], facts["adapter"]
        except (ValueError, KeyError, TypeError) as error:
            raise AdapterError(
                "the file is no sketch of inputs",
                where=str(path),
                why=repr(error),
                fix=f"make it again: {MAKE}",
            ) from None
        check_format(version, FORMAT_VERSION, AdapterError, path)
        if adapter != sha256_file(Path(folder) / ADAPTER):
            raise AdapterError(
                "the inputs were measured with other weights than the adapter's",
                where=str(path),
                why="the adapter has been trained or written again since",
                fix=f"make the sketch again: {MAKE}",
            )
        return cls(file, facts)

    def read(self, module: str) -> Sketch | None:
        """Return the sketch of a module, None where there is none."""
        if module not in self.facts["modules"]:
            return None
        said = self.facts["modules"][module]
        S, diagonal = (self.file.read(name) for name in _names(said["from"]))
        return Sketch(S, diagonal, said["tokens"], said["bound"])


def _names(module: str) -> tuple[str, str]:
    return f"{module}.sketch", f"{module}.diagonal"


def write_sketches(
    folder: Path,
    sketches: Mapping[str, Sketch],
    shared: Mapping[str, str],
    *,
    rows: int,
    rank: int,
    base: str,
) -> Sketched:
    """Write the sketches beside an adapter, whole or not at all.

    Args:
        folder: With the adapter's weights.
        sketches: Module -> its own sketch.
        shared: Other modules -> the one whose inputs they read too.
        rows: Training rows that were read.
        rank: k.
        base: The base's fingerprint.

    Raises:
        ExportError: the disk cannot hold it.
    """
    tensors: dict[str, Tensor] = {}
    for module, sketch in sketches.items():
        pair = (sketch.S.float(), sketch.diagonal.float())
        tensors.update(zip(_names(module), pair, strict=True))
    leaders = {name: name for name in sketches} | dict(shared)
    facts = {
        "format": FORMAT_VERSION,
        "rank": rank,
        "rows": rows,
        "base": base,
        "adapter": sha256_file(folder / ADAPTER),
        "modules": {
            name: {
                "from": leader,
                "tokens": sketches[leader].tokens,
                "bound": sketches[leader].bound,
            }
            for name, leader in sorted(leaders.items())
        },
    }
    plan: dict[str, Spec] = {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()
    }
    told = {"loralab": json.dumps(facts)}
    write_tensors(folder / INPUTS, plan, tensors.items(), told)
    return Sketched(TensorFile(folder / INPUTS), facts)
