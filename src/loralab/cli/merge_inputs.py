"""What `loralab merge` makes of the words of a command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loralab.config import MergeConfig
    from loralab.experiments.merge_tuning import Tuned
    from loralab.lowrank.files import AdapterFolder
    from loralab.merging.export.room import Room
    from loralab.merging.method import Method

PAIR = re.compile(r"[A-Za-z_][\w.]*=")
"""What begins like this is key=value; a folder of such a name is written ./a=b."""


def config_of(name: str, pairs: list[str]) -> MergeConfig:
    """Return a method with the params of a command line."""
    from loralab.config import MergeConfig
    from loralab.config.named import named

    return named(MergeConfig, name, pairs, option="--method")


def method_of(name: str, words: list[str]) -> tuple[list[str], Method]:
    """Return the adapters among words, and the method with the params among them."""
    from loralab.merging.method import resolve

    pairs = [word for word in words if PAIR.match(word)]
    named = [word for word in words if not PAIR.match(word)]
    return named, resolve(config_of(name, pairs))


def room_of(rank: str, energy: float | None, megabytes: float | None) -> Room:
    """Return how much is written."""
    from loralab.errors import ConfigError
    from loralab.merging.export.room import Room

    if rank != "exact" and not rank.isdecimal():
        raise ConfigError(
            f"--rank {rank}: neither exact nor a whole number", fix="such as --rank 8"
        )
    return Room(None if rank == "exact" else int(rank), energy, megabytes)


def weights_of(text: str | None, tune: int | None, one: bool) -> tuple[float, ...]:
    """Return the numbers of ``0.5,0.5,1``, and refuse what contradicts tuning.

    Args:
        text: What is given.
        tune: How many are tried.
        one: Whether those that are tried are one for all adapters.
    """
    from loralab.errors import ConfigError

    if one and not tune:
        raise ConfigError(
            "--tune-scale is given without --tune",
            fix="--tune 20 --tune-scale tries 20 weights",
        )

    if text and tune:
        raise ConfigError("--weights are given, and --tune would choose them")
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ConfigError(
            f"--weights {text}: not numbers", fix="such as --weights 0.5,0.5,1"
        ) from None


def adapter_of(text: str, runs_dir: Path) -> Path:
    """Return the folder that a text names: its path, or a run's adapter.

    A folder without an adapter does not hide the run of its name.
    """
    from loralab.runs import find_run
    from loralab.runs.run import called, list_runs

    path = Path(text).expanduser()
    if path.is_dir() and not (path / "run.json").is_file():
        adapter = (path / "adapter_config.json").is_file()
        if adapter or not called(text, list_runs(runs_dir)):
            return path
    return find_run(text, runs_dir).require_adapter()


def base_of(
    text: str | None, sources: Sequence[AdapterFolder], force: bool
) -> Path | None:
    """Return the folder of the base that is to be baked into.

    Raises:
        AdapterError: it is not the one that the adapters were trained on, or their
            method made another of it.
    """
    if text is None:
        return None
    from loralab.config import ModelConfig
    from loralab.errors import AdapterError
    from loralab.models.source import fingerprint_of, resolve_source

    folder = resolve_source(ModelConfig(path=text)).folder
    known = sources[0].base.fingerprint
    if known and not force and fingerprint_of(folder) != known:
        raise AdapterError(
            f"trained on {sources[0].base.name} ({known[:12]}), and {text} is another",
            where=sources[0].name,
            why="an update is a difference to the very weights it was trained on",
            fix="--bake that base, or --force",
        )
    for source in () if force else sources:
        if source.base.rewritten:
            raise AdapterError(
                f"trained on {source.base.name} {source.base.form}, "
                f"and {text} is as it was before",
                where=source.name,
                why="an update is a difference to the very weights it was trained on",
                fix="quantize the run (loralab quantize; of qa-lora with --route "
                "qa-lora), or train lora, whose base stays as it is; or --force",
            )
    return folder


def keep_trials(folder: Path, tuned: Tuned | None) -> dict[str, Any] | None:
    """Write what was tried, if it was, beside the adapter that came of it."""
    from loralab.runs.files import write_json

    if tuned is None:
        return None
    write_json(folder / "tuning.json", tuned.record())
    return tuned.record()
