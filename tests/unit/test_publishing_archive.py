import hashlib
import json
import os
import random
import stat
import subprocess
import sys
import zipfile

import pytest
from tests.cli import loralab
from tests.published import adapter_run, content

from loralab.errors import PublishingError
from loralab.publishing.archive import check_archive, extract
from loralab.publishing.publish import publish, target_config


def to(path):
    return target_config("archive", {"path": str(path)})


@pytest.fixture
def published(tmp_path):
    run = adapter_run(tmp_path)
    publish(run, to(tmp_path / "a.zip"))
    return run, tmp_path / "a.zip"


def hostile(path, entries, listed=None):
    """Write a zip whose manifest lists its entries (or `listed`) truthfully."""
    told = {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in entries:
            archive.writestr(entry, data)
            name = getattr(entry, "filename", entry)
            sha256 = hashlib.sha256(data).hexdigest()
            told[name] = {"bytes": len(data), "sha256": sha256}
        manifest = {"format": 1, "run": "spam-0", "kind": "adapter"}
        manifest["files"] = told if listed is None else listed
        archive.writestr("manifest.json", json.dumps(manifest))
    return path


def refused(path, folder, said):
    """The archive is refused, and nothing is there, in the folder or beside it."""
    before = sorted(p.name for p in folder.parent.rglob("*"))
    with pytest.raises(PublishingError, match=said):
        extract(path, folder)
    assert sorted(p.name for p in folder.parent.rglob("*")) == before


def test_what_went_in_comes_out(tmp_path, published):
    run, path = published
    manifest = extract(path, tmp_path / "out")
    assert manifest.run == run.id
    weights = tmp_path / "out" / "adapter_model.safetensors"
    assert weights.read_bytes() == content(run)["adapter/adapter_model.safetensors"]
    assert (tmp_path / "out/eval/test.json").is_file()
    found = {p.name for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == {name.split("/")[-1] for name in manifest.files} | {"manifest.json"}


def test_the_same_run_gives_the_same_bytes(tmp_path, published):
    run, path = published
    for file in run.adapter.iterdir():
        os.utime(file, (1, 1))
        file.chmod(0o600)
    publish(run, to(tmp_path / "b.zip"))
    assert path.read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_repeat_writes_nothing_and_a_changed_run_writes_again(published):
    run, path = published
    before = path.stat().st_mtime_ns
    assert publish(run, to(path))["sent"] == []
    assert path.stat().st_mtime_ns == before
    (run.adapter / "adapter_config.json").write_text('{"r": 16}')
    assert "adapter_config.json" in publish(run, to(path))["sent"]
    assert check_archive(path).files["adapter_config.json"].bytes == len('{"r": 16}')


def test_a_broken_archive_of_this_run_is_written_again(published):
    run, path = published
    data = path.read_bytes()
    at = data.index(b"weights")
    path.write_bytes(data[:at] + b"WEIGHTS" + data[at + 7 :])
    with pytest.raises(PublishingError, match=r"broken|not what the manifest"):
        check_archive(path)
    publish(run, to(path))
    assert path.read_bytes() == data


def test_another_file_is_not_written_over(tmp_path):
    run, path = adapter_run(tmp_path), tmp_path / "thesis.zip"
    path.write_bytes(b"mine")
    with pytest.raises(PublishingError, match="not written over"):
        publish(run, to(path))
    hostile(path, [("a", b"of another run")])
    with pytest.raises(PublishingError, match="not written over"):
        publish(run, to(path))


def test_into_a_folder_it_is_named_after_the_run(tmp_path):
    run = adapter_run(tmp_path / "runs")
    receipt = publish(run, to(tmp_path))
    assert receipt["destination"] == str(tmp_path / f"{run.id}.zip")


def test_a_full_disk_leaves_no_half_archive(tmp_path):
    run = adapter_run(tmp_path, weights=b"w" * 100_000)
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from loralab import Run, publish, target_config\n"
        "from loralab.errors import PublishingError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n"
        "    publish(Run(Path(sys.argv[1])), "
        "target_config('archive', {'path': sys.argv[2]}))\n"
        "except PublishingError as error:\n"
        "    assert 'File too large' in str(error), error\n"
        "    sys.exit(7)\n"
    )
    command = [sys.executable, "-c", code, str(run.path), str(tmp_path / "o" / "a.zip")]
    assert subprocess.run(command, check=False).returncode == 7
    assert list((tmp_path / "o").iterdir()) == []
    assert not (run.path / "published.json").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../evil", "leads out"),
        ("eval/../../evil", "leads out"),
        ("..", "leads out"),
        ("a/./b", "leads out"),
        ("a//b", "leads out"),
        ("/etc/evil", "absolute"),
        ("C:/evil", "no plain name"),
        ("..\\evil", "no plain name"),
        ("folder/", "leads out"),
        ("n" * 300, "too long a name"),
        ("/".join(["d" * 200] * 30), "too long a name"),
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(tmp_path, name, said):
    path = hostile(tmp_path / "a.zip", [("good", b"1"), (name, b"evil")])
    refused(path, tmp_path / "in" / "out", said)


def test_a_link_is_refused(tmp_path):
    link = zipfile.ZipInfo("weights")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    path = hostile(tmp_path / "a.zip", [(link, b"/etc/passwd")])
    refused(path, tmp_path / "out", "link")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["a.json", "A.JSON"])
def test_a_name_that_stands_twice_is_refused(tmp_path, second):
    path = hostile(tmp_path / "a.zip", [("a.json", b"1"), (second, b"2")])
    refused(path, tmp_path / "out", "twice")


@pytest.mark.parametrize(
    "names", [("a", "a/b"), ("a/b/c", "A"), ("manifest.json/x", "b")]
)
def test_a_name_that_is_anothers_folder_is_refused(tmp_path, names):
    path = hostile(tmp_path / "a.zip", [(name, b"1") for name in names])
    refused(path, tmp_path / "out", "a file in it, and a folder")


def test_a_folder_that_cannot_be_written_is_told(tmp_path, published):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PublishingError, match="cannot be taken apart here"):
        extract(published[1], tmp_path / "file" / "out")


def test_broken_compression_is_told(tmp_path):
    noise = random.Random(0).randbytes(5000)
    path = hostile(tmp_path / "a.zip", [("noise", noise), ("a", b"12345678" * 20)])
    at = zipfile.ZipFile(path).getinfo("a").header_offset + 31
    data = path.read_bytes()
    path.write_bytes(data[:at] + b"\xff" * 4 + data[at + 4 :] + b"\0" * 500)
    refused(path, tmp_path / "out", "broken")


def test_a_manifest_without_end_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("manifest.json", "[" * 200_000)
    refused(tmp_path / "a.zip", tmp_path / "out", "cannot be read")


def test_a_bomb_is_refused(tmp_path):
    path = hostile(tmp_path / "a.zip", [("weights", b"\0" * 10_000_000)])
    assert path.stat().st_size < 50_000
    refused(path, tmp_path / "out", "zip bomb|claim")


def test_an_entry_that_lies_about_its_size_is_cut_off(tmp_path):
    """The list of entries says 4 bytes; the stream would give ten million."""
    path = hostile(tmp_path / "a.zip", [("weights", b"\0" * 10_000_000)])
    small = hashlib.sha256(b"\0" * 4).hexdigest()
    told = {"weights": {"bytes": 4, "sha256": small}}
    hostile(path, [("weights", b"\0" * 10_000_000)], told)
    data = bytearray(path.read_bytes())
    size = (10_000_000).to_bytes(4, "little")
    while (at := data.find(size)) >= 0:
        data[at : at + 4] = (4).to_bytes(4, "little")
    path.write_bytes(data)
    refused(path, tmp_path / "out", "broken|not what")


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ({}, "disagree"),
        ({"a": {"bytes": 9, "sha256": "0" * 64}}, "disagree"),
        ({"a": {"bytes": 1, "sha256": "0" * 64}}, "not what the manifest"),
        ({"a": {"bytes": -1, "sha256": "0" * 64}}, "is none"),
        ({"a": {"bytes": 1, "sha256": "zz"}}, "is none"),
        ([], "is none"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path, listed, said):
    path = hostile(tmp_path / "a.zip", [("a", b"1")], listed)
    refused(path, tmp_path / "out", said)


def test_what_is_no_archive_is_refused(tmp_path, published):
    _, path = published
    other = tmp_path / "other.zip"
    refused(other, tmp_path / "out", "no such archive")
    other.write_bytes(path.read_bytes()[:-40])
    refused(other, tmp_path / "out", "not a whole zip")
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a", "1")
    refused(other, tmp_path / "out", "has no manifest")


def test_a_folder_that_has_something_is_left_alone(tmp_path, published):
    (tmp_path / "out").mkdir()
    extract(published[1], tmp_path / "out")  # an empty one is taken
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis").write_text("mine")
    with pytest.raises(PublishingError, match="something already"):
        extract(published[1], tmp_path / "full")
    assert (tmp_path / "full" / "thesis").read_text() == "mine"


def test_the_command_line(tmp_path):
    run = adapter_run(tmp_path)
    there = ["--runs-dir", tmp_path]
    path = tmp_path / "a.zip"
    dry = loralab("publish", "spam", "archive", f"path={path}", "--dry-run", *there)
    assert dry.code == 0
    assert "adapter_model.safetensors" in dry.out
    assert f"to {path}; nothing was sent" in dry.out
    assert not path.exists()
    done = loralab("publish", run.path, "archive", f"path={path}", "--json")
    assert json.loads(done.out)["destination"] == str(path)
    out = loralab("unpack", path, tmp_path / "out")
    assert (out.code, "5 files" in out.out) == (0, True)
    bad = hostile(tmp_path / "bad.zip", [("../evil", b"1")])
    wrong = loralab("unpack", bad, tmp_path / "out2")
    assert wrong.code == 2
    assert "leads out" in wrong.err
    assert "Traceback" not in wrong.err
    help_text = loralab("publish", "--help").out
    assert all(f"{name}:" in help_text for name in ("archive", "gdrive", "hub", "s3"))


def test_the_command_line_refuses_what_it_cannot_read(tmp_path):
    adapter_run(tmp_path)
    for given, said in {
        ("path",): "not key=value",
        ("path=a", "path=b"): "given twice",
        ("pth=a",): "nearest: path",
        (): "add path=VALUE",
        ("path=a.tar.gz",): "or a folder that is there",
        ("path=no/folder/",): "not the name of one",
    }.items():
        told = loralab("publish", "spam", "archive", *given, "--runs-dir", tmp_path)
        assert told.code == 2
        assert said in told.err
        assert "params" not in told.err
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []
