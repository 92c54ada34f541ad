"""safetensors files one tensor at a time: read by range, written as they come.

A file is eight bytes (the header's length, little-endian), a JSON header (name ->
dtype, shape, first and last byte) and the bytes of all tensors without a gap. Reading
is `safetensors.safe_open` with ``backend="pread"``, which checks the header and reads
the bytes of one tensor with pread(2). Its default maps the file: then every page that
was touched counts as resident, and a few tensors of a large file look like all of it.

The package can only write what is in memory as a whole, so writing is ours: the plan
says every dtype and shape, which gives the header and each tensor's place before any
tensor exists.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loralab.errors import AdapterError, ExportError
from loralab.runs.files import atomic_file

if TYPE_CHECKING:
    from collections.abc import Iterator

Spec = tuple[torch.dtype, tuple[int, ...]]
"""A tensor's dtype and shape."""
CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""dtype -> its name in the header."""
DTYPES = {code: dtype for dtype, code in CODES.items()}
ALIGNMENT = 8
"""Bytes to a multiple of which the header is padded with spaces."""


class TensorFile:
    """A safetensors file whose tensors are read when they are asked for.

    Args:
        path: The file; it stays open as long as this object lives.

    Attributes:
        path: As given.
        tensors: Name -> (dtype, shape), in the order of the file.
        metadata: The header's own strings.

    Raises:
        AdapterError: no such file, or it is none: a header that is cut, absurdly long
            or no JSON, tensors that overlap or leave gaps, sizes that do not fit their
            shapes, a file that ends too early or too late, or an unknown dtype.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            opened: Any = safe_open(self.path, framework="pt", backend="pread")
        except (OSError, SafetensorError) as error:
            raise self._broken("not safetensors, or not there", error) from None
        self._file = opened
        self.metadata: dict[str, str] = opened.metadata() or {}

    def _broken(self, what: str, error: Exception) -> AdapterError:
        return AdapterError(
            what,
            where=str(self.path),
            why=str(error),
            fix="get the file anew; pickles (.bin, .pt) are never loaded",
        )

    @cached_property
    def tensors(self) -> dict[str, Spec]:
        """Name -> (dtype, shape), in the order of the file; from its header alone."""
        found: dict[str, Spec] = {}
        for name in self._file.offset_keys():
            view = self._file.get_slice(name)
            code = view.get_dtype()
            if code not in DTYPES:
                raise AdapterError(
                    f"{name} is of the dtype {code}",
                    where=str(self.path),
                    fix=f"known: {', '.join(DTYPES)}",
                )
            found[name] = (DTYPES[code], tuple(view.get_shape()))
        return found

    def read(self, name: str) -> Tensor:
        """Return one tensor, read now.

        Raises:
            AdapterError: no such tensor, or its bytes can no longer be read.
        """
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise self._broken(f"{name} cannot be read", error) from None
        return tensor


def write_tensors(
    path: Path,
    plan: Mapping[str, Spec],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file, whole or not at all, one tensor in memory at a time.

    Args:
        path: Replaced if it exists.
        plan: Name -> (dtype, shape) of every tensor there will be.
        tensors: Each of them once, in any order, drawn one by one.
        metadata: The header's own strings.

    Raises:
        ExportError: the file is larger than the disk's free space, or the disk (or a
            limit on files) is full on the way. `path` is as it was.
        ValueError: `tensors` and `plan` disagree.
    """
    head, places = _laid_out(plan, metadata or {})
    whole = len(head) + sum(map(size_of, plan.values()))
    path.parent.mkdir(parents=True, exist_ok=True)
    check_space(path.parent, whole)
    with full_disk_told(path), atomic_file(path) as temporary:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            _write(handle, memoryview(head), 0)
            for name, tensor in tensors:
                if name not in places:
                    raise ValueError(f"{name} is not planned, or came twice")
                if (tensor.dtype, tuple(tensor.shape)) != plan[name]:
                    raise ValueError(f"{name} is not the planned {plan[name]}")
                _write(handle, bytes_of(tensor), places.pop(name))
            if places:
                raise ValueError(f"{len(places)} planned tensors never came")
            os.fsync(handle)
        finally:
            os.close(handle)


def file_size(
    plan: Mapping[str, Spec], metadata: Mapping[str, str] | None = None
) -> int:
    """Return the bytes of the file that `write_tensors` makes of a plan."""
    head, _ = _laid_out(plan, metadata or {})
    return len(head) + sum(map(size_of, plan.values()))


def check_space(folder: Path, size: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        folder: An existing directory on the disk.
        size: Bytes that will be written.

    Raises:
        ExportError: fewer are free.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        need = f"{size / 1e6:.1f} MB are needed, and {free / 1e6:.1f} MB are free"
        raise _full(folder, need)


@contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write into one error of ours.

    Raises:
        ExportError: for any `OSError` inside.
    """
    try:
        yield
    except OSError as error:
        raise _full(path, error.strerror or str(error)) from None


def _full(path: Path, why: str) -> ExportError:
    return ExportError(
        "cannot be written",
        where=str(path),
        why=why,
        fix="make room, or write to another disk; nothing was left behind",
    )


def size_of(spec: Spec) -> int:
    """Return a tensor's bytes."""
    dtype, shape = spec
    return dtype.itemsize * torch.Size(shape).numel()


def _laid_out(
    plan: Mapping[str, Spec], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """Return the file's head and the first byte of each tensor in the file.

    Wider dtypes come first, as the package has it, so that each tensor is aligned.
    """
    names = sorted(plan, key=lambda name: -plan[name][0].itemsize)
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    places, end = {}, 0
    for name in names:
        dtype, shape = plan[name]
        places[name], end = end, end + size_of(plan[name])
        header[name] = {
            "dtype": CODES[dtype],
            "shape": list(shape),
            "data_offsets": [places[name], end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + place for name, place in places.items()}


def bytes_of(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes; no copy where it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _write(handle: int, content: memoryview, place: int) -> None:
    """Write all of it; one call of the system may take less."""
    while content:
        written = os.pwrite(handle, content, place)
        content, place = content[written:], place + written
