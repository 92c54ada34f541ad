"""Where a paper's numbers come from: results of studies, runs, other JSON files.

    adaptive_rank                        studies/adaptive_rank/{analysis,results}.json
    continual_merging/confirmation       the same, in a folder of a study
    runs/trec-6-0a1b2c3d4e               a run's eval/<split>.json
    benchmarks/results/merging.json      any JSON file, from the project's root

Of the two kinds that have arms there are short addresses beside paths: table `READERS`.
In them ``*`` stands for every one:

    adaptive_rank trec-6/gradient difference        of a study's analysis
    adaptive_rank */gradient p                      on every data set
    runs/trec-6-0a1b2c3d4e test/accuracy base       of a run
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from loralab.errors import PaperError, RunError, nearest
from loralab.reporting.paper.path import Hit, find
from loralab.runs import Run
from loralab.runs.files import sha256_file

STUDY_FILES = "analysis.json", "results.json"
LEVEL = 0.05
"""Of the tests of a document that names none."""
LOWER, HIGHER = "lower", "higher"


@dataclass(frozen=True)
class Quantity:
    """What a short address can ask of an arm.

    Attributes:
        lists: Keys of the document whose records are looked through.
        key: The path below a record.
        form: How it is shown unless the draft says otherwise.
    """

    lists: tuple[str, ...]
    key: str
    form: str = ""


_COMPARED = ("comparisons", "controls")
ANALYSIS: dict[str, Quantity] = {
    "value": Quantity(("arms",), ".interval"),
    "seeds": Quantity(("arms",), ".seeds"),
    "trainable": Quantity(("arms",), ".trainable"),
    "seconds": Quantity(("arms",), ".seconds"),
    "bytes": Quantity(("arms",), ".adapter_bytes"),
    "difference": Quantity(_COMPARED, ".difference", "signed"),
    "p": Quantity(_COMPARED, ".p_holm", "p"),
    "p-equivalence": Quantity(_COMPARED, ".p_equivalence_holm", "p"),
    "p-flips": Quantity(_COMPARED, ".permutation.p_value", "p"),
    "detectable": Quantity(_COMPARED, ".detectable"),
    "of-interest": Quantity(_COMPARED, ".smallest_difference"),
    "sd": Quantity(("noise",), ".sd"),
    "largest-pair": Quantity(("noise",), ".largest_pair"),
    "floor": Quantity(("noise",), ".half_width.5"),
}
"""Quantities of an arm in a study's ``analysis.json``."""
RUN = ("adapter", "base", "difference")
"""Quantities of a metric in a run's ``eval/<split>.json``."""


@dataclass(frozen=True)
class Source:
    """A JSON document that numbers are read from.

    Attributes:
        name: As the draft names it.
        file: From the project's root, with forward slashes.
        sha256: Of the file.
        document: Its content.
        record: A run's ``run.json``; empty for everything else.
    """

    name: str
    file: str
    sha256: str
    document: Any = field(repr=False)
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def is_analysis(self) -> bool:
        """Whether arms have short addresses here."""
        return (
            isinstance(self.document, Mapping)
            and self.document.get("kind") == "analysis"
        )

    def better(self, hit: Hit) -> str | None:
        """Return ``lower`` or ``higher``, where the document says which is better."""
        found = self.document.get("better") if isinstance(self.document, dict) else None
        if isinstance(found, dict):  # of a run, by metric
            found = next((found[step] for step in hit.steps if step in found), None)
        return found if found in (LOWER, HIGHER) else None

    @property
    def alpha(self) -> float:
        """The level of the document's tests."""
        if self.is_analysis:
            return float(self.document["study"]["alpha"])
        return LEVEL

    @cached_property
    def addresses(self) -> dict[tuple[str, str], list[Hit]]:
        """Arms by (data, arm): their records of all lists, the list's name first."""
        found: dict[tuple[str, str], list[Hit]] = {}
        for name in ("arms", *_COMPARED, "noise"):
            for place, record in enumerate(self.document[name]):
                key = record["data"], record["arm"]
                found.setdefault(key, []).append(Hit((name, place), record))
        return found


class Library:
    """The sources that a draft names, each read once.

    Args:
        root: The project's root.
        runs_dir: Where runs are.
    """

    def __init__(self, root: Path, runs_dir: Path | None = None) -> None:
        self.root, self.runs_dir = root, runs_dir or root / "runs"
        self._read: dict[Path, Source] = {}

    @property
    def used(self) -> list[Source]:
        """Every source that was read, by its file."""
        return sorted(self._read.values(), key=lambda source: source.file)

    def studies(self) -> list[str]:
        """Return the names of the studies that have results."""
        top = self.root / "studies"
        files = (file for name in STUDY_FILES for file in top.rglob(name))
        return sorted({file.parent.relative_to(top).as_posix() for file in files})

    def runs(self) -> list[str]:
        """Return the names of the runs that were evaluated."""
        found = sorted(self.runs_dir.glob("*/eval/*.json"))
        return list(dict.fromkeys(f"runs/{file.parent.parent.name}" for file in found))

    def study(self, name: str) -> Source:
        """Return the result of a study, or of a JSON file.

        Raises:
            PaperError: there is none.
        """
        if name.endswith(".json"):
            return self._source(name, self.root / name)
        if name.startswith("runs/"):
            raise PaperError(
                f"{name} is a run, and a path needs one of its files",
                fix=f"write {name}/run.json or {name}/eval/test.json before the path",
            )
        folder = self.root / "studies" / name.removeprefix("studies/")
        for file in STUDY_FILES:
            if (folder / file).is_file():
                return self._source(name, folder / file)
        raise PaperError(
            f"no study {name!r} has results; {nearest(name, self.studies())}",
            why=f"neither {' nor '.join(STUDY_FILES)} is in studies/{name}",
            fix="run it, or name another; `loralab paper numbers` lists them",
        )

    def run(self, name: str, split: str) -> Source:
        """Return the evaluation of a run on a split.

        Raises:
            PaperError: the run is missing, or was not evaluated on it.
        """
        folder = self.runs_dir / name.removeprefix("runs/")
        if not folder.is_dir():
            raise PaperError(
                f"no run {name!r}; {nearest(name, self.runs())}",
                fix="train it again: the same configuration makes the same name",
            )
        file = folder / "eval" / f"{split}.json"
        if not file.is_file():
            splits = sorted(path.stem for path in file.parent.glob("*.json"))
            raise PaperError(
                f"run {folder.name} has no evaluation of {split!r}",
                fix=nearest(split, splits),
            )
        return self._source(name, file)

    def _source(self, name: str, file: Path) -> Source:
        if file.is_file() and (path := file.resolve()) in self._read:
            return self._read[path]
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PaperError(
                f"{name} cannot be read", why=str(error), fix="name a JSON file"
            ) from None
        shown = below(file, self.root)
        record = _record(file.parent.parent)
        source = Source(name, shown, sha256_file(file), document, record)
        self._read[file.resolve()] = source
        return source


def _record(folder: Path) -> dict[str, Any]:
    """Return the ``run.json`` of a run's folder; empty where it is none.

    Raises:
        PaperError: it cannot be read, so nothing says what the numbers are of.
    """
    if not (folder / "run.json").is_file():
        return {}
    try:
        return Run(folder).read()
    except RunError as error:
        raise PaperError(
            f"the run.json of {folder.name} cannot be read",
            why=error.why,
            fix="train it again: the same configuration makes the same name",
        ) from None


def below(file: Path, root: Path) -> str:
    """Return a file from the root on; one that is elsewhere as it is."""
    try:
        return file.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return file.as_posix()


def records(
    library: Library, words: Sequence[str]
) -> tuple[Source, list[Hit], str, list[str]]:
    """Return what the words of a reference lead to.

    Args:
        library: Where sources are read.
        words: A source, then a path, or an address with a quantity (of a claim: the
            quantity is ``difference`` where it is left out).

    Returns:
        The source, the hits, the form that they are shown in unless told otherwise,
        and the words that are left.

    Raises:
        PaperError: a source, path or address that does not exist.
    """
    if len(words) < 2:
        raise PaperError(
            "a reference needs a source and an address in it",
            fix="{{ STUDY DATA/ARM QUANTITY }} or {{ STUDY $.path }}",
        )
    name, address, *rest = words
    if address.startswith("$"):
        source = library.study(name)
        return source, find(source.document, address), "", rest
    quantity, rest = (rest[0], rest[1:]) if rest else ("difference", [])
    quantity, _, below = quantity.partition(".")
    if name.startswith("runs/"):
        return _of_run(library, name, address, (quantity, below), rest)
    source = library.study(name)
    if not source.is_analysis:
        raise PaperError(
            f"{source.file} has no arms that an address could name",
            why="it is no analysis of a study",
            fix="write a path: {{ SOURCE $.key[name=value].key }}; "
            f"`loralab paper numbers {name}` lists them",
        )
    if quantity not in ANALYSIS:
        raise PaperError(
            f"an arm has no quantity {quantity!r}", fix=nearest(quantity, ANALYSIS)
        )
    asked = ANALYSIS[quantity]
    hits = [
        hit
        for arm in _arms(source, address)
        for hit in _of_arm(source, arm, asked, quantity, below)
    ]
    if not hits:
        raise PaperError(
            f"{address} is compared with nothing in {source.file}",
            fix="name an arm that is not the baseline",
        )
    return source, hits, asked.form, rest


def _of_run(
    library: Library, name: str, address: str, asked: tuple[str, str], rest: list[str]
) -> tuple[Source, list[Hit], str, list[str]]:
    split, _, metric = address.partition("/")
    source = library.run(name, split)
    quantity, below = asked
    path = f'$.metrics."{metric}"."{quantity}"' + (f".{below}" if below else "")
    form = "signed" if quantity == "difference" else ""
    return source, find(source.document, path), form, rest


def _arms(source: Source, address: str) -> list[tuple[str, str]]:
    """Return the (data, arm) that an address means.

    Raises:
        PaperError: none, or the data set was left out where there are several.
    """
    known = source.addresses
    sets = dict.fromkeys(data for data, _ in known)
    data, slash, arm = address.rpartition("/")
    if not slash:
        data = next(iter(sets))
    found = [(d, a) for d, a in known if data in ("*", d) and arm in ("*", a)]
    if not found or (not slash and len(sets) > 1):
        hint = nearest(address, (f"{d}/{a}" for d, a in known))
        raise PaperError(f"{source.name} has no {address!r}", fix=f"DATA/ARM; {hint}")
    return found


def _of_arm(
    source: Source, arm: tuple[str, str], asked: Quantity, name: str, below: str
) -> Iterable[Hit]:
    """Return an arm's quantity; of a baseline there is no difference.

    Raises:
        PaperError: the arm has no such quantity.
    """
    for hit in source.addresses[arm]:
        if hit.steps[0] in asked.lists:
            lone = asked.key == ".interval" and hit.value["interval"] is None
            key = ".value" if lone else asked.key  # one seed has no interval
            path = f"${key}" + (f".{below}" if below else "")
            for inner in find(hit.value, path):
                yield Hit((*hit.steps, *inner.steps), inner.value)
            return
    if asked.lists != _COMPARED:
        raise PaperError(f"{'/'.join(arm)} has no {name} in {source.file}")
