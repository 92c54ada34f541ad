"""safetensors by range and as a stream."""

from __future__ import annotations

import json
import resource
import struct
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loralab.errors import AdapterError, ExportError
from loralab.lowrank.stream import CODES, TensorFile, file_size, write_tensors


def some():
    random = torch.Generator().manual_seed(0)
    drawn = torch.randn(6, 4, generator=random, dtype=torch.float64)
    return {
        "scalar": torch.tensor(7),
        "b.half": drawn.bfloat16(),
        "a.transposed": drawn.T,
        "none": torch.zeros(0, 4),
        "flags": drawn > 0,
        **{str(dtype): drawn.to(dtype) for dtype in CODES},
    }


def planned(tensors):
    return {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}


def same(one, other):
    return one.dtype == other.dtype and torch.equal(
        one.contiguous().reshape(-1).view(torch.uint8),
        other.contiguous().reshape(-1).view(torch.uint8),
    )


def test_what_is_written_in_any_order_is_what_the_library_reads(tmp_path):
    tensors, file = some(), tmp_path / "new" / "a.safetensors"
    stream = reversed(list(tensors.items()))
    write_tensors(file, planned(tensors), stream, {"format": "pt"})
    whole = load_file(file)
    assert whole.keys() == tensors.keys()
    assert all(same(whole[name], tensor) for name, tensor in tensors.items())
    assert file.stat().st_size == file_size(planned(tensors), {"format": "pt"})
    ours = TensorFile(file)
    assert ours.metadata == {"format": "pt"}
    assert ours.tensors == planned(tensors)
    assert all(same(ours.read(name), tensor) for name, tensor in tensors.items())
    (length,) = struct.unpack("<Q", file.read_bytes()[:8])
    header = json.loads(file.read_bytes()[8 : 8 + length])
    for name, (dtype, _) in planned(tensors).items():  # a reader may map it
        assert (8 + length + header[name]["data_offsets"][0]) % dtype.itemsize == 0


def test_what_the_library_writes_is_read(tmp_path):
    tensors = {name: tensor.contiguous() for name, tensor in some().items()}
    save_file(tensors, tmp_path / "a")
    ours = TensorFile(tmp_path / "a")
    assert ours.metadata == {} and ours.tensors == planned(tensors)
    assert all(same(ours.read(name), tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    "stream",
    [
        [("a", torch.zeros(2))],
        [("a", torch.zeros(2)), ("a", torch.zeros(2))],
        [("a", torch.zeros(2)), ("b", torch.zeros(1))],
        [("a", torch.zeros(2)), ("b", torch.zeros(3).half())],
        [("a", torch.zeros(2)), ("b", torch.zeros(3)), ("c", torch.zeros(1))],
    ],
    ids=["missing", "twice", "shape", "dtype", "unknown"],
)
def test_a_stream_that_breaks_its_plan_leaves_the_old_file(stream, tmp_path):
    file = tmp_path / "a"
    file.write_text("old")
    plan = {"a": (torch.float32, (2,)), "b": (torch.float32, (3,))}
    with pytest.raises(ValueError):
        write_tensors(file, plan, stream)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def made(header, content):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text)) + text + bytes(content)


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


BROKEN = {
    "empty": b"",
    "cut in the header": made({"a": entry([2], 0, 8)}, 8)[:20],
    "cut in a tensor": made({"a": entry([2], 0, 8)}, 7),
    "too long": made({"a": entry([2], 0, 8)}, 9),
    "an absurd header": struct.pack("<Q", 1 << 60) + b"{}",
    "no JSON": made(b"{not json", 0),
    "a list": made([1], 0),
    "overlap": made({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12),
    "a gap": made({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, 20),
    "a shape of another size": made({"a": entry([3], 0, 8)}, 8),
    "a shape beyond all": made({"a": entry([1 << 62, 1 << 10], 0, 8)}, 8),
    "an unknown dtype": made({"a": entry([2], 0, 8, "X9")}, 8),
    "a dtype that torch lacks here": made({"a": entry([16], 0, 8, "F4")}, 8),
    "a pickle": b"\x80\x02}q\x00.",
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_files_are_one_clear_error(how, tmp_path):
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(BROKEN[how])
    with pytest.raises(AdapterError) as caught:
        _ = TensorFile(file).tensors
    assert caught.value.where == str(file) and "\n" not in caught.value.what


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(AdapterError, match="not there"):
        TensorFile(tmp_path / "none")
    save_file({"a": torch.zeros(2)}, tmp_path / "a")
    with pytest.raises(AdapterError, match="b cannot be read"):
        TensorFile(tmp_path / "a").read("b")


def test_a_file_that_shrinks_after_it_was_opened_is_told(tmp_path):
    save_file({"a": torch.zeros(200)}, tmp_path / "a")
    opened = TensorFile(tmp_path / "a")
    with (tmp_path / "a").open("r+b") as handle:
        handle.truncate(300)
    with pytest.raises(AdapterError, match="a cannot be read"):
        opened.read("a")


def test_more_than_the_disk_holds_is_refused_before_anything_is_drawn(tmp_path):
    def never():
        raise AssertionError("drawn")
        yield

    plan = {"a": (torch.float32, (1 << 50,))}
    with pytest.raises(ExportError, match="are free"):
        write_tensors(tmp_path / "a", plan, never())
    assert not list(tmp_path.iterdir())


@contextmanager
def limited(size):
    """Let the operating system refuse files above a size, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_on_the_way_leaves_the_old_file(tmp_path):
    file = tmp_path / "a"
    file.write_text("old")
    plan = dict.fromkeys("abc", (torch.float32, (1000,)))
    stream = ((name, torch.zeros(1000)) for name in plan)
    with limited(6000), pytest.raises(ExportError, match="cannot be written"):
        write_tensors(file, plan, stream)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_one_tensor_of_a_large_file_costs_one_tensor(tmp_path):
    """Resident memory, file pages included, as a mapped file would count them."""
    file = tmp_path / "large"
    plan = {str(i): (torch.float32, (1 << 20,)) for i in range(16)}
    write_tensors(file, plan, ((name, torch.zeros(1 << 20)) for name in plan))
    opened = TensorFile(file)
    before = resident()
    for name in opened.tensors:
        opened.read(name).sum()
    assert resident() - before < 3 * (4 << 20)  # of 64 MiB


def resident():
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])
