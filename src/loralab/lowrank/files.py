r"""Plain PEFT LoRA folders to factors and back, without PEFT and without a base.

What PEFT 0.21 stores of a module, and what is read from it as ΔW = s·B·A (out × in):

    linear       lora_A.weight [r, in]       lora_B.weight [out, r]        ΔW = s·B·A
    Conv1D       the same two; W alone is [in, out], not A and B
    convolution  lora_A.weight [r, in, k…]   lora_B.weight [out, r, 1…]    A flattened
    embedding    lora_embedding_A [r, n]     lora_embedding_B [dim, r]     W is (s·B·A)ᵀ

An update is always a map from inputs to outputs, whichever way its weight is stored:
`Kind` says how a module's factors stand in the file, and brings them back there. A
convolution of groups is refused: its B is one block a group, and PEFT cannot merge it.

A folder is opened by its header alone; factors are read by range when a module's turn
comes (see `stream.py`).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loralab.errors import AdapterError
from loralab.lowrank.base import Base, read_base
from loralab.lowrank.factors import Factors
from loralab.lowrank.settings import CONFIG, plain_config, read_config, scale_of
from loralab.lowrank.sketch import INPUTS, Sketch, Sketched
from loralab.lowrank.stream import Spec, TensorFile, write_tensors
from loralab.runs.files import atomic_directory, sha256_file

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Endings of what a trainer's checkpoint holds beside the adapter."""
PREFIX = "base_model.model."
STORED = re.compile(
    rf"{re.escape(PREFIX)}(.+)\.lora_(?:([AB])\.weight|embedding_([AB]))"
)


@dataclass(frozen=True)
class Kind:
    """How a module's factors stand in a file.

    Attributes:
        name: ``linear``, ``convolution`` or ``embedding``.
        inner: (in, k…) of a convolution; empty of the others.
    """

    name: str = "linear"
    inner: tuple[int, ...] = ()

    @property
    def transposed(self) -> bool:
        """Whether the base's weight is ΔW's transpose; a Conv1D cannot be told here."""
        return self.name == "embedding"

    def names(self, module: str) -> tuple[str, str]:
        """Return the names of A and B."""
        if self.name == "embedding":
            stems = ("lora_embedding_A", "lora_embedding_B")
        else:
            stems = ("lora_A.weight", "lora_B.weight")
        return f"{PREFIX}{module}.{stems[0]}", f"{PREFIX}{module}.{stems[1]}"

    def shapes(
        self, shape: tuple[int, int], rank: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the stored shapes of A and B of an update of out × in."""
        out, into = shape
        ones = (1,) * (len(self.inner) - 1)
        return (rank, *(self.inner or (into,))), (out, rank, *ones)

    def plan(
        self, module: str, shape: tuple[int, int], rank: int, dtype: torch.dtype
    ) -> dict[str, Spec]:
        """Return what `tensors` will give, for `stream.write_tensors`."""
        specs = ((dtype, found) for found in self.shapes(shape, rank))
        return dict(zip(self.names(module), specs, strict=True))

    def tensors(self, module: str, factors: Factors) -> dict[str, Tensor]:
        """Return A and B as they are stored; the scale is the configuration's."""
        A, B = self.shapes(factors.shape, factors.rank)
        pair = (factors.A.reshape(A), factors.B.reshape(B))
        return dict(zip(self.names(module), pair, strict=True))


@dataclass(frozen=True)
class StoredModule:
    """One module's factors, before they are read.

    Attributes:
        kind: How they stand in the file.
        shape: (out, in) of the update.
        rank: Of the factors.
        scale: s.
        dtype: The narrowest that holds A and B.
    """

    kind: Kind
    shape: tuple[int, int]
    rank: int
    scale: float
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class AdapterFolder:
    """A plain PEFT LoRA folder; a `loralab.merging.merge.Source`.

    Attributes:
        path: The folder with PEFT's two files.
        name: What messages and logs call it.
        config: PEFT's configuration as it was read.
        modules: Module path in the base -> its factors' place, sorted.
        file: The tensors.
    """

    path: Path
    name: str
    config: dict[str, Any]
    modules: Mapping[str, StoredModule]
    file: TensorFile

    @classmethod
    def open(cls, folder: Path | str, name: str | None = None) -> AdapterFolder:
        """Open a folder, or a run's; reads the configuration and the header.

        Args:
            folder: An adapter's folder, or a run directory with ``adapter/``.
            name: By default the folder's name, or that of the run it is in.

        Raises:
            AdapterError: a file is missing or broken, the adapter is no plain LoRA, or
                tensors and configuration do not belong together.
        """
        given = Path(folder)
        path = given if (given / CONFIG).exists() else given / "adapter"
        if not (path / CONFIG).exists():
            path = given
        config = read_config(path)
        file = _weights(path)
        called = path.resolve()
        in_run = called.name == "adapter" and (called.parent / "run.json").exists()
        own = called.parent.name if in_run else called.name
        return cls(path, name or own, config, _modules(file, config), file)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Module path -> (out, in) of its update."""
        return {name: module.shape for name, module in self.modules.items()}

    @property
    def kinds(self) -> dict[str, Kind]:
        """Module path -> how its factors are stored."""
        return {name: module.kind for name, module in self.modules.items()}

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest dtype that holds every factor."""
        return widest(module.dtype for module in self.modules.values())

    def factors(self, module: str) -> Factors:
        """Return the update of one module, read now: float32, or float64 if stored so.

        Raises:
            AdapterError: NaN or infinite numbers, or the file can no longer be read.
        """
        stored = self.modules[module]
        exact = torch.float64 if stored.dtype == torch.float64 else torch.float32
        pair = []
        for name in stored.kind.names(module):
            pair.append(self.saved(name).to(exact).flatten(1))
        A, B = pair
        return Factors(A, B.reshape(stored.shape[0], stored.rank), stored.scale)

    @cached_property
    def sketched(self) -> Sketched | None:
        """The sketches of inputs beside the adapter, if there are any.

        Raises:
            AdapterError: the file is broken, or of other weights than the adapter's.
        """
        return Sketched.open(self.path)

    def inputs(self, module: str) -> Sketch | None:
        """Return the sketch of the module's inputs, if there is one."""
        return self.sketched.read(module) if self.sketched else None

    @property
    def rest_plan(self) -> dict[str, Spec]:
        """Stored name -> (dtype, shape) of what is saved in full, such as a head."""
        tensors = self.file.tensors
        return {name: s for name, s in tensors.items() if not STORED.fullmatch(name)}

    def rest(self) -> dict[str, Tensor]:
        """Return the tensors that are saved in full, by their stored names.

        Raises:
            AdapterError: see `saved`.
        """
        return {name: self.saved(name) for name in self.rest_plan}

    def saved(self, name: str) -> Tensor:
        """Return one tensor as it is stored.

        Raises:
            AdapterError: NaN or infinite numbers, or the file can no longer be read.
        """
        tensor = self.file.read(name)
        if not all_finite(tensor):
            raise AdapterError(
                f"{name} holds NaN or infinite numbers",
                where=str(self.file.path),
                fix="the training that wrote it diverged: take an earlier state",
            )
        return tensor

    @cached_property
    def base(self) -> Base:
        """The base that it was trained on, as far as the folder says."""
        return read_base(self.path, self.config)

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of its content: of the sha256 of each of PEFT's files."""
        parts = [sha256_file(self.path / name) for name in (CONFIG, WEIGHTS)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()


def all_finite(tensor: Tensor) -> bool:
    """Tell whether no number is NaN or infinite; a sum tells most without a copy."""
    wide = tensor if tensor.dtype.itemsize > 1 else tensor.float()  # float8 has no sum
    return bool(wide.sum().isfinite() or wide.isfinite().all())


def widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the narrowest dtype that holds all of these; float32 for float8."""
    wide = (dtype if dtype.itemsize > 1 else torch.float32 for dtype in dtypes)
    return reduce(torch.promote_types, wide)


def _weights(path: Path) -> TensorFile:
    """Return the adapter's tensors; a pickle is refused by its name."""
    if not (path / WEIGHTS).exists() and (path / PICKLE).exists():
        raise AdapterError(
            f"{PICKLE} is a pickle, and loading one runs whatever it holds",
            where=str(path),
            fix="if you trust it, load it in PEFT once and save_pretrained again",
        )
    return TensorFile(path / WEIGHTS)


def _modules(file: TensorFile, config: Mapping[str, Any]) -> dict[str, StoredModule]:
    """Return every module's place, its two tensors checked against each other."""
    pairs: dict[tuple[str, str], dict[str, Spec]] = {}
    for name, spec in file.tensors.items():
        if match := STORED.fullmatch(name):
            key = (match[1], "linear" if match[2] else "embedding")
            pairs.setdefault(key, {})[match[2] or match[3]] = spec
        elif "lora_" in name or not name.startswith(PREFIX):
            raise AdapterError(
                f"{name} is no tensor of a plain LoRA adapter of PEFT",
                where=str(file.path),
                why="an update that is more than s·B·A, or another tool's names",
            )
    if not pairs:
        raise AdapterError("the adapter has no lora_A and lora_B", where=str(file.path))
    return {
        module: _module(config, module, name, pairs[module, name], file.path)
        for module, name in sorted(pairs)
    }


def _module(
    config: Mapping[str, Any],
    module: str,
    name: str,
    found: Mapping[str, Spec],
    file: Path,
) -> StoredModule:
    stems = dict(zip("AB", Kind(name).names(module), strict=True))
    if missing := set("AB") - set(found):
        raise AdapterError(
            f"{stems[missing.pop()]} is missing, its other half is there",
            where=str(file),
            fix="get the file anew",
        )
    (dtype_A, A), (dtype_B, B) = found["A"], found["B"]
    if not (dtype_A.is_floating_point and dtype_B.is_floating_point):
        raise AdapterError(f"{stems['A']} holds no floats", where=str(file))
    rank = A[0] if A else 0
    kind = Kind("convolution", A[1:]) if len(A) > 2 else Kind(name)
    out, into = (B[0] if B else 0), torch.Size(A[1:]).numel()
    if not rank or len(A) < 2 or kind.shapes((out, into), rank) != (A, B):
        raise AdapterError(
            f"{stems['A']} is {list(A)} and B {list(B)}, "
            "which make no rank × in and out × rank",
            where=str(file),
            why="grouped convolutions are refused: B is then one block a group"
            if len(A) > 2
            else "rank 0 has no direction; leave the layer out" * (not rank),
        )
    scale = scale_of(config, module, rank, file)
    return StoredModule(kind, (out, into), rank, scale, widest((dtype_A, dtype_B)))


@dataclass(frozen=True, eq=False)
class StoredAdapter:
    """A LoRA adapter in memory.

    Attributes:
        factors: Module path in the base -> its update.
        rest: Tensors that are saved in full (a head), by their stored names.
        config: PEFT's configuration as it was read.
        kinds: How factors are stored; by default as those of a linear layer.
    """

    factors: dict[str, Factors]
    rest: dict[str, Tensor]
    config: dict[str, Any]
    kinds: Mapping[str, Kind] = field(default_factory=dict)


def read_adapter(folder: Path) -> StoredAdapter:
    """Return all of a plain PEFT LoRA folder; no base and no PEFT is loaded.

    Raises:
        AdapterError: see `AdapterFolder.open` and `AdapterFolder.factors`.
    """
    opened = AdapterFolder.open(folder)
    factors = {module: opened.factors(module) for module in opened.modules}
    return StoredAdapter(factors, opened.rest(), opened.config, opened.kinds)


def write_adapter(
    folder: Path, stored: StoredAdapter, beside: Path | None = None
) -> None:
    """Write a plain PEFT LoRA folder, whole or not at all.

    Modules of rank 0 are left out: their update is zero.

    Args:
        folder: Replaced if it exists.
        stored: Factors, tensors saved in full, and a configuration whose other keys
            (base, task) are kept.
        beside: An adapter folder whose other files (tokenizer, note) are copied.

    Raises:
        AdapterError: no module has a direction.
        ExportError: the disk cannot hold it.
    """
    pairs = {name: (f.rank, f.scale) for name, f in stored.factors.items()}
    config = plain_config(pairs, stored.config)
    tensors = dict(stored.rest)
    for name, factors in stored.factors.items():
        if factors.rank:
            kind = stored.kinds.get(name, Kind())
            tensors.update(kind.tensors(name, factors))
    with atomic_directory(Path(folder)) as temporary:
        for file in other_files(beside) if beside else ():
            shutil.copyfile(file, temporary / file.name)
        text = json.dumps(config, indent=2, sort_keys=True)
        (temporary / CONFIG).write_text(text, encoding="utf-8")
        plan: dict[str, Spec] = {
            name: (tensor.dtype, tuple(tensor.shape))
            for name, tensor in tensors.items()
        }
        write_tensors(temporary / WEIGHTS, plan, tensors.items(), {"format": "pt"})


def other_files(folder: Path) -> Iterator[Path]:
    """Yield what stands beside PEFT's two files and belongs to other weights too.

    Sorted; a sketch of inputs is of these weights alone, and a pickle (a trainer's
    optimizer, its arguments) of the training that made them.
    """
    for file in sorted(folder.iterdir()):
        own = file.name in (CONFIG, WEIGHTS, INPUTS) or file.suffix in PICKLES
        if file.is_file() and not own:
            yield file
