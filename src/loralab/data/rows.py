"""Rows: read, checked, split, without leaks; and a fingerprint of the outcome.

Splits depend on content, not on order: the inputs are ranked by sha256(seed, input)
and the first ones are test, the next ones validation. Rows with an equal input
therefore never stand in two splits that we make ourselves; where the source brings
its own splits, such rows are dropped from the earlier one.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from loralab import registry
from loralab.config import DataConfig
from loralab.data.embedded import RawRow
from loralab.data.examples import IMAGE, DataPreprocessor
from loralab.data.leaks import (
    SPLITS,
    WHOLE,
    Checked,
    count_near,
    remove_answering,
    remove_duplicates,
)
from loralab.errors import DataError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

PREPROCESSING_VERSION = 1
"""Raised whenever the same file would give other examples."""


@dataclass(frozen=True)
class RowsReport:
    """What happened between the source and the splits, as counts.

    Attributes:
        read: Rows in the source.
        malformed: Rows the task could not use (`data.malformed=skip`).
        duplicates: Rows that repeated another of their split.
        leaks: Rows of an earlier split whose input stands in a later one too.
        conflicts: Rows whose input stood in their split before, with another answer.
        earlier_turns: Those of the leaks that answer the later row's input in an
            earlier turn.
        near: By split, rows that differ from a train row in case or white space only.
    """

    read: int
    malformed: int
    duplicates: int
    leaks: int
    conflicts: int
    earlier_turns: int = 0
    near: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """The splits, what was dropped on the way, and a fingerprint of all of it.

    Attributes:
        splits: By name.
        fingerprint: sha256 of the rows of every split.
        report: What was dropped.
        locks: Which state of a changing source was read, such as a hub's commit;
            with them the same rows are read again.
        caution: What a reader of results must know of them, or empty.
    """

    splits: dict[str, Dataset]
    fingerprint: str
    report: RowsReport
    locks: dict[str, str] = field(default_factory=dict)
    caution: str = ""

    def sizes(self) -> dict[str, int]:
        """Return the number of rows of each split."""
        return {name: len(rows) for name, rows in self.splits.items()}

    def record(self) -> dict[str, Any]:
        """Return what ``run.json`` says of the rows."""
        return {
            "fingerprint": self.fingerprint,
            "sizes": self.sizes(),
            "report": asdict(self.report),
            "locks": self.locks,
            **({"caution": self.caution} if self.caution else {}),
        }


def _sha(*parts: object) -> str:
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _column_names(columns: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield every name that `data.columns` may use, nested ones by dots."""
    for key, value in columns.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _column_names(value, f"{prefix}{key}.")


def _column(columns: Mapping[str, Any], own: str) -> Any:
    """Return a column; its dots lead into nested ones if none has that very name.

    In a list a number is a place: ``answers.text.0`` is SQuAD's first answer.

    Raises:
        KeyError: there is none.
    """
    value: Any = columns
    for key in [own] if own in columns else own.split("."):
        if isinstance(value, (list, tuple)) and key.isdigit():
            value = dict(enumerate(value))[int(key)]
        elif isinstance(value, Mapping):
            value = value[key]
        else:
            raise KeyError(own)
    return value


def _rename(columns: Mapping[str, Any], wanted: Mapping[str, str]) -> dict[str, Any]:
    """Give the source's columns the names that the task uses."""
    found = {}
    for name, own in wanted.items():
        try:
            found[name] = _column(columns, own)
        except KeyError:
            hint = nearest(own, _column_names(columns))
            raise ValueError(
                f"no column {own!r} (data.columns.{name}); {hint}"
            ) from None
    taken = set(wanted.values())
    kept = {k: v for k, v in columns.items() if k not in taken and k not in wanted}
    return {**kept, **found}


def check_rows(
    raw: Iterable[RawRow], config: DataConfig, task: DataPreprocessor
) -> tuple[list[Checked], int]:
    """Return the rows the task can use, and how many it cannot.

    Raises:
        DataError: a row is malformed and `config.malformed` is ``error``; it names
            file and line of the first five.
    """
    good: list[Checked] = []
    bad: list[str] = []
    earlier = getattr(task, "earlier_inputs", lambda _: ())
    for row in raw:
        reason = row.problem
        if not reason:
            try:
                content = task.parse(_rename(row.columns, config.columns))
                told = {k: v for k, v in content.items() if k != IMAGE}
                keys = _sha(task.input_of(content)), _sha(told)
                turns = tuple(map(_sha, earlier(content)))
            except ValueError as error:  # a lone surrogate has no UTF-8, hence no key
                reason = str(error)
            else:
                good.append(Checked(content, row.origin, row.split, *keys, turns))
        if reason:
            bad.append(f"{row.origin}: {reason}")
    if bad and config.malformed == "error":
        shown = "\n".join(f"  {line}" for line in bad[:5])
        more = f"\n  … and {len(bad) - 5} more" if len(bad) > 5 else ""
        fix = "mend them, or leave them out with data.malformed=skip"
        raise DataError(
            f"{len(bad)} of {len(bad) + len(good)} rows cannot be used\n{shown}{more}",
            fix=fix if good else "mend them, or name other columns in data.columns",
        )
    if not good:
        raise DataError(
            "no usable row", why="; ".join(bad[:3]) or "the source is empty"
        )
    return good, len(bad)


def assign_splits(rows: list[Checked], config: DataConfig) -> dict[str, list[Checked]]:
    """Return the rows of each split; missing splits are drawn from the train rows."""
    splits: dict[str, list[Checked]] = {name: [] for name in SPLITS}
    pool: list[Checked] = []
    for row in rows:
        (splits[row.split] if row.split in ("validation", "test") else pool).append(row)
    order = {key: _sha(config.seed, key) for key in {row.input_key for row in pool}}
    pool_sizes = Counter(row.input_key for row in pool)
    wanted = {"test": config.test_fraction, "validation": config.validation_fraction}
    chosen: dict[str, str] = {}
    ranked = iter(sorted(order, key=order.__getitem__))
    for split, fraction in wanted.items():
        count = 0 if splits[split] else round(fraction * len(pool))
        taken = 0
        while taken < count and (key := next(ranked, None)) is not None:
            chosen[key] = split
            taken += pool_sizes[key]
    for row in pool:
        splits[chosen.get(row.input_key, "train")].append(row)
    return {name: found for name, found in splits.items() if found}


def limit_rows(rows: list[Checked], count: int | None, seed: int) -> list[Checked]:
    """Return `count` of the rows, the same for the same content, in their order.

    Where rows have a ``label``, every class keeps its share: the rows are taken by
    their rank within the class, so a rare class is not lost from a small sample.
    """
    if count is None or count >= len(rows):
        return rows
    sizes = Counter(str(row.content.get("label")) for row in rows)
    taken: Counter[str] = Counter()
    place: dict[int, tuple[float, str]] = {}
    for i in sorted(
        range(len(rows)), key=lambda i: _sha("limit", seed, rows[i].row_key)
    ):
        label = str(rows[i].content.get("label"))
        place[i] = ((taken[label] + 0.5) / sizes[label], label)
        taken[label] += 1
    return [rows[i] for i in sorted(sorted(place, key=place.__getitem__)[:count])]


def _read(
    config: DataConfig, locks: Mapping[str, str] | None
) -> tuple[Iterable[RawRow], dict[str, str]]:
    """Return the source's rows and the locks they are read under, found if not given.

    A source of changing content registers ``lock``: params to the params to keep.
    """
    entry = registry.get("data source", config.source.name)
    params = entry.schema(**config.source.params)
    if locks is None:
        locks = entry.facts["lock"](params) if "lock" in entry.facts else {}
    return entry.target(params.model_copy(update=locks)), dict(locks)


def load_rows(
    config: DataConfig,
    task: DataPreprocessor,
    locks: Mapping[str, str] | None = None,
) -> Rows:
    """Read the source and return its checked, split, leak-free rows.

    Args:
        config: Source, columns, splits and policies.
        task: Decides which rows are usable and what an equal input is.
        locks: `Rows.locks` of an earlier reading, whose rows are wanted; None: the
            source's present state.

    Raises:
        DataError: malformed rows, duplicates under ``error``, or nothing to train on.
    """
    from datasets import Dataset

    raw, found_locks = _read(config, locks)
    checked, malformed = check_rows(raw, config, task)
    given = {
        name: [row for row in checked if (row.split or "train") == name]
        for name in SPLITS
    }
    single, counts = remove_duplicates(given, config.duplicates)
    splits = assign_splits([row for rows in single.values() for row in rows], config)
    splits, turns = remove_answering(splits, config.duplicates)
    counts |= {"leaks": counts["leaks"] + turns, "earlier_turns": turns}
    limits = config.max_rows.model_dump()
    splits = {
        name: limit_rows(rows, limits[name], config.seed)
        for name, rows in splits.items()
    }
    if not splits.get("train"):
        raise DataError("no training row is left", fix="lower the fractions, add rows")
    near = count_near(splits, task.input_of)
    keys = {name: [row.row_key for row in rows] for name, rows in splits.items()}
    return Rows(
        {
            name: Dataset.from_list(
                [{**r.content, "origin": r.origin, "key": r.row_key} for r in rows]
            )
            for name, rows in splits.items()
        },
        _sha(PREPROCESSING_VERSION, keys),
        RowsReport(len(checked) + malformed, malformed, **counts, near=near),
        found_locks,
        config.source.params.get("caution") or "",
    )


def report_lines(rows: Rows, policy: str) -> list[str]:
    """Return in words what a reader must know of the rows."""
    counts = asdict(rows.report)
    verb = {"drop": "dropped", "keep": "KEPT"}.get(policy, policy)
    texts = {
        "malformed": "malformed rows skipped",
        "duplicates": f"duplicate rows {verb}",
        "leaks": f"rows whose input stands in a later split too {verb}",
        "earlier_turns": f"of these answer it in an earlier turn: {WHOLE}",
        "conflicts": "rows whose input stands with another answer too",
    }
    found = [f"{counts[k]:,} {text}" for k, text in texts.items() if counts[k]]
    return [*found, *filter(None, [rows.caution])]


def near_lines(rows: Rows) -> list[str]:
    """Return in words, if there are any, how many rows are nearly train rows."""
    sizes = rows.sizes()
    found = [f"{n:,} of {sizes[x]:,} {x} rows" for x, n in rows.report.near.items()]
    if not found:
        return []
    differ = "differs" if list(rows.report.near.values()) == [1] else "differ"
    return [
        f"{' and '.join(found)} {differ} from a train row in case or spaces only "
        "(spell them alike, and they share a split)"
    ]
