"""Data sets of the Hugging Face hub, locked to a commit, without code of theirs.

The hub is asked for the commit before anything else, under a deadline, because the
retries of the libraries below can take minutes. `datasets` itself falls back to the
newest copy in its cache, of whatever commit, when the hub does not answer; here only
the locked commit is ever read.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from loralab.data.embedded import RawRow
from loralab.errors import DataError
from loralab.registry import Params, Strict, register

SOCKET_SECONDS = 4.0
DEADLINE_SECONDS = 7.0
"""For the whole question; a name server that does not answer knows no timeout."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SPLIT = re.compile(r"[\w.-]+(\[(-?\d+%?)?:(-?\d+%?)?\])?")

T = TypeVar("T")


class HubSplits(Strict):
    """The data set's splits that are our train, validation and test rows."""

    train: str = "train"
    validation: str | None = Field(None, description="null: taken from train")
    test: str | None = Field(None, description="null: taken from train")

    @field_validator("*")
    @classmethod
    def _is_simple(cls, name: str | None) -> str | None:
        if name is not None and not _SPLIT.fullmatch(name):
            raise ValueError("write a split's name, or a slice of it as train[:10%]")
        return name


class HubParams(Params):
    """Which data set, which part of it, and which state."""

    path: str = Field(
        pattern=r"^[\w.-]+/[\w.-]+$", description="the hub id, `ORG/NAME`"
    )
    config: str | None = Field(None, description="its subset; null: its default")
    splits: HubSplits = HubSplits()
    revision: str | None = Field(
        None, description="branch, tag or commit; resolved and locked into the run"
    )
    caution: str | None = Field(
        None, description="what a reader of results must know; told beside them"
    )
    streaming: bool = Field(False, description="read only the first `take` rows")
    take: int | None = Field(None, gt=0, description="rows of each split at most")

    @model_validator(mode="after")
    def _a_stream_ends(self) -> HubParams:
        if self.streaming and self.take is None:
            raise PydanticCustomError(
                "loralab", "streaming needs take: how many rows of each split to read"
            )
        if self.streaming and "[" in str(self.splits.model_dump()):
            raise PydanticCustomError(
                "loralab", "a stream has no slices: set take, or streaming=false"
            )
        return self


def _within(seconds: float, ask: Callable[[], T]) -> T:
    """Return what `ask` returns, or raise what it raises, or TimeoutError."""
    answers: queue.Queue[Callable[[], T]] = queue.Queue()

    def run() -> None:
        try:
            found = ask()
        except Exception as error:
            failure = error

            def fail() -> T:
                raise failure

            answers.put(fail)
        else:
            answers.put(lambda: found)

    # a daemon: a question that hangs must not keep the process alive
    threading.Thread(target=run, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} seconds") from None
    return answer()


def _ask(params: HubParams) -> str:
    """Return the commit that the revision is now.

    Raises:
        OSError: the hub cannot be reached, or we are told not to.
        DataError: it answers, and there is nothing for us; or only a script.
    """
    import datasets.config
    from huggingface_hub import HfApi, errors

    if datasets.config.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    revision = params.revision

    def ask() -> Any:
        return HfApi().dataset_info(
            params.path, revision=revision, timeout=SOCKET_SECONDS
        )

    try:
        info = _within(DEADLINE_SECONDS, ask)
    except errors.RevisionNotFoundError:
        raise DataError(f"it has no revision {revision!r}", where=params.path) from None
    except errors.RepositoryNotFoundError:
        raise DataError(
            "no such data set on the hub, or it is private or gated",
            where=params.path,
            fix="check the spelling; a private or gated one needs HF_TOKEN in the "
            "environment, and its terms accepted on its page",
        ) from None
    except Exception as error:  # two HTTP libraries' errors, of no common kind
        raise OSError(f"{type(error).__name__}: {error}".splitlines()[0]) from None
    script = f"{params.path.partition('/')[2]}.py"
    if any(file.rfilename == script for file in info.siblings or ()):
        raise DataError(
            f"this data set is a script ({script}), and scripts are never run",
            where=params.path,
            fix="try data.source.params.revision=refs/convert/parquet, the hub's own "
            "copy as Parquet, or another copy without a script",
        )
    return str(info.sha)


def _prepared(params: HubParams) -> list[Path]:
    """Return the data set's folders in the cache of `datasets`, newest first.

    They are ``<org>___<name>/<config>/<version>/<commit>``.
    """
    import datasets.config
    from datasets.naming import camelcase_to_snakecase

    org, _, name = params.path.partition("/")
    root = Path(datasets.config.HF_DATASETS_CACHE)
    root = root / f"{org}___{camelcase_to_snakecase(name)}"
    found = [
        folder
        for folder in root.glob("*/*/*")
        if _COMMIT.fullmatch(folder.name)
        and (folder / "dataset_info.json").is_file()
        and params.config in (None, folder.parts[-3])
    ]
    return sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)


def _unreachable(params: HubParams, why: str) -> DataError:
    commits = ", ".join(dict.fromkeys(f.name for f in _prepared(params)))
    here = f"in the cache are the commits {commits}" if commits else ""
    return DataError(
        "the hub cannot be reached, and this data set is not in the cache"
        if not commits
        else "the hub cannot be reached, and what is wanted is not in the cache",
        where=f"{params.path}, revision {params.revision or 'main'}",
        why="; ".join(filter(None, [why, here])),
        fix="check the network (and HF_ENDPOINT, HF_HUB_OFFLINE, or HF_TOKEN for a "
        "gated data set); or download it where there is one, set HF_HUB_OFFLINE=1 and "
        "data.source.params.revision=COMMIT here; or save the rows as files and use "
        "data=file",
    )


def lock(params: HubParams) -> dict[str, str]:
    """Return the commit that the revision is now, as what a run keeps.

    Without the hub it is the newest commit in the cache, if no revision is named.

    Raises:
        DataError: the hub cannot be reached and nothing fitting is in the cache; or
            it answers that there is nothing for us.
    """
    try:
        return {"revision": _ask(params)}
    except OSError as error:
        if params.revision and _COMMIT.fullmatch(params.revision):
            return {"revision": params.revision}
        prepared = _prepared(params)
        if params.revision or not prepared:
            raise _unreachable(params, str(error)) from None
        return {"revision": prepared[0].name}


@contextmanager
def _quiet() -> Iterator[None]:
    import datasets
    from datasets.utils import logging

    before, bars = logging.get_verbosity(), datasets.is_progress_bar_enabled()
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            datasets.enable_progress_bars()


def _from_cache(params: HubParams, why: str) -> Any:
    """Return the builder of the locked commit's folder in the cache."""
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    folders = [f for f in _prepared(params) if f.name == params.revision]
    if len(folders) != 1 or params.streaming:
        raise _unreachable(params, why)
    config, version, commit = folders[0].parts[-3:]
    return Cache(
        dataset_name=camelcase_to_snakecase(params.path.partition("/")[2]),
        repo_id=params.path,
        config_name=config,
        version=version,
        hash=commit,
    )


def _builder(params: HubParams) -> Any:
    """Return the `datasets` builder of the locked commit, its rows at hand.

    Raises:
        DataError: neither hub nor cache has it.
    """
    from datasets import load_dataset_builder

    try:
        commit = _ask(params)
    except OSError as error:
        return _from_cache(params, str(error))
    # the prefix: a folder of that name here is not the hub's data set
    name = f"hf://datasets/{params.path}"
    builder = load_dataset_builder(name, params.config, revision=commit)
    if builder.hash != commit:  # it fell back to whatever it had
        return _from_cache(params, "the hub stopped answering")
    if not params.streaming:
        builder.download_and_prepare()
    return builder


def decoder(feature: Any) -> Callable[[Any], Any] | None:
    """Return what turns a column's class indices into names; None if it has none.

    Args:
        feature: A value of `datasets.Features`, nested as it may be. An index below
            zero is the hub's sign for a label that is not told: it becomes None.
    """
    from datasets import ClassLabel, LargeList, Sequence

    if isinstance(feature, ClassLabel):
        names = feature.names
        return lambda i: None if i is None or i < 0 else names[i]
    if isinstance(feature, Mapping):
        parts = {k: d for k, v in feature.items() if (d := decoder(v))}
        if not parts:
            return None
        return lambda row: (
            row and {k: parts[k](v) if k in parts else v for k, v in row.items()}
        )
    if isinstance(feature, (Sequence, LargeList)):
        inner = decoder(feature.feature)
        return inner and (lambda many: many and [inner(one) for one in many])
    return None


def rows_of(dataset: Any, name: str, split: str) -> Iterator[RawRow]:
    """Yield a `datasets` split's rows, class indices as names.

    Args:
        dataset: A ``Dataset`` or ``IterableDataset``.
        name: Of the rows' origin, ``org/name[config]:split``.
        split: Ours: ``train``, ``validation`` or ``test``.
    """
    from datasets import Image

    features = dataset.features or {}
    for column in [k for k, v in features.items() if isinstance(v, Image)]:
        # undecoded: {bytes, path}, so that a broken one is an error with its row
        dataset = dataset.cast_column(column, Image(decode=False))
    decode = decoder(features) or (lambda row: row)
    for index, row in enumerate(dataset):
        yield RawRow(decode(row), f"{name}:{index}", split)


def _read_all(params: HubParams) -> Iterator[RawRow]:
    builder = _builder(params)
    for ours, theirs in params.splits.model_dump(exclude_none=True).items():
        if params.streaming:
            dataset = builder.as_streaming_dataset(split=theirs)
        else:
            dataset = builder.as_dataset(split=theirs)
        name = f"{params.path}[{builder.config.name}]:{theirs}"
        yield from islice(rows_of(dataset, name, ours), params.take)


@register("data source", "hub", HubParams, lock=lock)
def read(params: HubParams) -> Iterator[RawRow]:
    """Yield the rows of a data set of the hub.

    Raises:
        DataError: it cannot be had; the message says what to do.
    """
    try:
        with _quiet():
            yield from _read_all(params)
    except DataError:
        raise
    except Exception as error:  # files of others, read by several libraries
        reason = " ".join(str(error).split())
        raise DataError(
            "this data set cannot be read",
            where=params.path,
            why=f"{type(error).__name__}: {reason[:400]}",
            fix="look at its page for its configs (data.source.params.config), splits "
            "(data.source.params.splits) and terms (HF_TOKEN for a gated one)",
        ) from None
