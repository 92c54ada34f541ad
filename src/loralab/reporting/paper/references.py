"""From a reference to what stands in the paper, and to where it was read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loralab.errors import PaperError, nearest
from loralab.reporting.paper import claims
from loralab.reporting.paper.draft import Reference, typed_in
from loralab.reporting.paper.numbers import AGGREGATES, Figure, figure, write
from loralab.reporting.paper.path import Hit
from loralab.reporting.paper.provenance import runs_and_commits
from loralab.reporting.paper.sources import Library, Source, records
from loralab.reporting.tables import MINUS

_LITERAL_WORDS = 3
_MARKUP = re.compile(r"([\\`*_\[\]{}#|<>~^$@])")
_POWER = re.compile(r"(?<=\d)e([+−]?)0*(\d+)")


@dataclass(frozen=True)
class Resolved:
    """A reference and what it came to.

    Attributes:
        reference: As the draft has it.
        shown: What is written, as plain text.
        source: The file that it was read from; empty for a literal or a label.
        pointers: Where in the file, as JSON pointers.
        values: What stands there, each a number, a text, or value, low and high.
        runs: Ids of the runs behind it.
        commits: Git commits that they were made at.
        why: Of a literal.
        markup: What is written, where the draft gives it as Markdown of its own.
    """

    reference: Reference
    shown: str
    source: str = ""
    pointers: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()
    runs: tuple[str, ...] = ()
    commits: tuple[str, ...] = ()
    why: str = ""
    markup: str | None = None

    @property
    def written(self) -> str:
        """What is written, as pandoc's Markdown or, in maths, as TeX."""
        if self.markup is not None:
            return self.markup
        if self.reference.maths:
            text = self.shown.replace(MINUS, "-").replace("\N{NO-BREAK SPACE}", "~")
            return _POWER.sub(r"\\times 10^{\1\2}", text.replace("%", r"\%"))
        text = _MARKUP.sub(r"\\\1", self.shown)
        return _POWER.sub(r" × 10^\1\2^", text)


def resolve(
    library: Library, reference: Reference, labels: Mapping[tuple[str, str], str]
) -> Resolved:
    """Return what a reference comes to.

    Args:
        library: Where sources are read.
        reference: Of a draft.
        labels: Of its figures and tables.

    Raises:
        PaperError: it cannot be resolved, or is a claim that does not hold.
    """
    words = [word.replace('"', "") for word in reference.words]
    if words:  # a path keeps its quotes: they say what a bracket holds
        pairs = zip(words, reference.words, strict=True)
        words = [raw if raw.startswith("$") else word for word, raw in pairs]
    match words:
        case ["literal", *rest]:
            return _literal(reference, rest)
        case [("figure" | "table") as kind, *rest]:
            return _label(reference, kind, rest, labels)
        case ["claim", *rest]:
            return _claim(library, reference, rest)
        case ["count", word, *rest] if word in claims.WORDS:
            return _count(library, reference, word, rest)
        case [name, *rest] if name in AGGREGATES:
            return _number(library, reference, rest, name)
    return _number(library, reference, words, None)


def _literal(reference: Reference, words: Sequence[str]) -> Resolved:
    if len(words) + 1 != _LITERAL_WORDS or not all(words):
        raise PaperError(
            "a literal is a number and the reason why no run measured it",
            fix='{{ literal 0.05 "the level of every test" }}',
        )
    shown = words[0].replace("-", MINUS).replace("%", "\N{NO-BREAK SPACE}%")
    return Resolved(reference, shown, why=words[1])


def _label(
    reference: Reference,
    kind: str,
    words: Sequence[str],
    labels: Mapping[tuple[str, str], str],
) -> Resolved:
    name = " ".join(words)
    if (kind, name) not in labels:
        known = [label for of, label in labels if of == kind]
        mark = "fig" if kind == "figure" else "tbl"
        raise PaperError(
            f"no {kind} {name!r}{'; ' + nearest(name, known) if known else ''}",
            fix=f"give its caption or image {{#{mark}:{name}}}",
        )
    return Resolved(reference, labels[kind, name])


def _made(
    reference: Reference,
    shown: str,
    source: Source,
    hits: Sequence[Hit],
    values: Sequence[Any],
) -> Resolved:
    runs, commits = dict[str, None](), dict[str, None]()
    for hit in hits:
        told = runs_and_commits(source, hit)
        runs |= dict.fromkeys(told["runs"])
        commits |= dict.fromkeys(told["commits"])
    pointers = tuple(hit.pointer for hit in hits)
    place = source.file, pointers, tuple(values), tuple(runs), tuple(commits)
    return Resolved(reference, shown, *place)


def _value(found: Figure) -> Any:
    if found.interval is None:
        return found.value
    return {"value": found.value, "low": found.low, "high": found.high}


def _number(
    library: Library, reference: Reference, words: Sequence[str], aggregate: str | None
) -> Resolved:
    source, hits, form, forms = records(library, words)
    if aggregate == "count":
        hits = _spread_out(hits)
        shown = write(Figure(len(hits)), forms)
        return _made(reference, shown, source, hits, [len(hits)])
    figures = [figure(source.document, hit) for hit in hits]
    if aggregate is None and len(figures) > 1:
        raise PaperError(
            f"this leads to {len(figures)} numbers: {hits[0].pointer}, "
            f"{hits[1].pointer}, …",
            fix=f"choose one by [key=value], or say {', '.join(AGGREGATES)} first",
        )
    found = AGGREGATES[aggregate](figures) if aggregate else figures[0]
    shown = write(found, [*form.split(), *forms])
    return _made(reference, shown, source, hits, [_value(one) for one in figures])


def _spread_out(hits: list[Hit]) -> list[Hit]:
    """Return the entries, where a path ends at lists and does not choose of them."""
    found: list[Hit] = []
    for hit in hits:
        if isinstance(hit.value, list):
            found += [Hit((*hit.steps, i), v) for i, v in enumerate(hit.value)]
        else:
            found.append(hit)
    return found


def _claim(library: Library, reference: Reference, words: Sequence[str]) -> Resolved:
    known = next((at for at, word in enumerate(words) if word in claims.WORDS), None)
    if known is None:
        raise PaperError(
            "a claim says none of the words that can be checked",
            fix=f"{{{{ claim SOURCE ADDRESS WORD }}}}, WORD: {', '.join(claims.WORDS)}",
        )
    word, rest = words[known], list(words[known + 1 :])
    than = shown = None
    while rest:
        match rest:
            case ["than", name, *rest]:
                than = name
            case ["as", text, *rest]:
                shown = _without_numbers(text)
            case _:
                raise PaperError(
                    f"a claim ends with than NAME or as TEXT, and not with {rest!r}"
                )
    source, hits, _, left = records(library, words[:known])
    if left:
        raise PaperError(f"words that a claim does not know: {left}")
    hits = _spread_out(hits)
    for hit in hits:
        claims.check(source, hit, word, than)
    text = claims.WORDS[word] if shown is None else shown
    made = _made(reference, text, source, hits, [word] * len(hits))
    return replace(made, markup=text)


def _without_numbers(text: str) -> str:
    """Return the words of a claim.

    Raises:
        PaperError: they hold a number that was typed.
    """
    if found := typed_in(text):
        raise PaperError(
            f"{found!r} is typed by hand",
            why="the words of a claim are prose",
            fix="close the claim, and write the number as a reference behind it",
        )
    return text


def _count(
    library: Library, reference: Reference, word: str, words: Sequence[str]
) -> Resolved:
    source, hits, _, forms = records(library, words)
    hits = _spread_out(hits)
    count = sum(claims.holds(source, hit, word) for hit in hits)
    return _made(reference, write(Figure(count), forms), source, hits, [count])
