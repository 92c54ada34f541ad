"""What a sweep varies: `key=value` in Hydra's sweep grammar, told apart from the rest.

    training.learning_rate=1e-4,3e-4,1e-3          a choice
    seed=range(5)                                  a range; `seed` is training.seed
    training.learning_rate=tag(log,interval(1e-5,1e-2))   drawn, not listed
    peft.params.rank=tag(int,interval(2,64))       drawn, whole numbers
    model=glob(smol*)                              presets of a group, by name

Everything else is the same in every run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import product
from typing import Any

from loralab.config.compose import GROUPS, presets
from loralab.errors import ConfigError

SHORT = {"seed": "training.seed"}
"""Keys that a sweep may call by a short name."""

Point = tuple[str, ...]
"""The overrides of one run, `key=value` each, in the order of the axes."""


@dataclass(frozen=True)
class Axis:
    """A key that is varied.

    Attributes:
        key: Of the configuration.
        values: The choices as Hydra writes them; empty for an interval.
        low: Of an interval.
        high: Of an interval.
        log: Whether an interval is drawn evenly in its logarithm.
        whole: Whether an interval holds whole numbers only.
    """

    key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @property
    def listed(self) -> bool:
        """Whether all values are listed."""
        return bool(self.values)

    def number(self, value: float) -> int | float:
        """Return a number of an interval as the configuration wants it."""
        if not self.whole:
            return float(f"{value:.6g}")
        return min(max(round(value), math.ceil(self.low)), math.floor(self.high))

    def at(self, value: Any) -> str:
        """Return the override that sets this key."""
        return f"{self.key}={value}"


@dataclass(frozen=True)
class Space:
    """What is varied, and what is the same in every run."""

    axes: tuple[Axis, ...]
    fixed: Point


def read_space(overrides: Sequence[str]) -> Space:
    """Tell the axes of a sweep from what is fixed.

    Raises:
        ConfigError: an override that cannot be read, or a key that stands twice.
    """
    axes: list[Axis] = []
    fixed: list[str] = []
    for text in overrides:
        key, equals, value = text.partition("=")
        text = f"{SHORT.get(key, key)}{equals}{value}"
        axis = _axis(text)
        if axis is None:
            fixed.append(text)
        else:
            axes.append(axis)
    keys = [axis.key for axis in axes] + [text.partition("=")[0] for text in fixed]
    for key in keys:
        if keys.count(key) > 1 and key in {axis.key for axis in axes}:
            raise ConfigError(f"{key} stands twice, and is swept", fix="name it once")
    return Space(tuple(axes), tuple(fixed))


def _axis(text: str) -> Axis | None:
    """Return the axis that an override describes, or None if it is one value."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(text)
        if not parsed.is_sweep_override():
            return None
    except HydraException:
        return None  # `compose` says what is wrong with it
    key, value = parsed.key_or_group, parsed.value()
    if parsed.is_interval_sweep():
        return _interval(key, value, text)
    if hasattr(value, "include"):
        return Axis(key, _globbed(key, value, text))
    values = tuple(parsed.sweep_string_iterator())
    if not values:
        raise ConfigError(f"{text!r} has no value", fix="range(5) is 0 to 4")
    if len(set(values)) < len(values):
        raise ConfigError(f"{text!r} has a value twice", fix="list each once")
    return Axis(key, values)


def _interval(key: str, value: Any, text: str) -> Axis:
    low, high, log = value.start, value.end, "log" in value.tags
    if not low < high or (log and low <= 0):
        raise ConfigError(
            f"{text!r} is no interval",
            fix="low must be below high, and above 0 with tag(log, …)",
        )
    whole = "int" in value.tags
    return Axis(key, low=float(low), high=float(high), log=log, whole=whole)


def _globbed(key: str, value: Any, text: str) -> tuple[str, ...]:
    known = presets(key) if key in GROUPS else {}
    found = tuple(
        name
        for name in known
        if any(fnmatch(name, one) for one in value.include)
        and not any(fnmatch(name, one) for one in value.exclude)
    )
    if not found:
        raise ConfigError(
            f"{text!r} matches nothing",
            fix=f"glob() is for presets of {', '.join(GROUPS)}",
        )
    return found


def grid(space: Space) -> list[Point]:
    """Return every combination of the listed values, the last axis fastest.

    Raises:
        ConfigError: an axis is an interval, which has no list of values.
    """
    for axis in space.axes:
        if not axis.listed:
            raise ConfigError(
                f"{axis.key} is an interval, and a grid lists its values",
                fix="list values (1e-4,1e-3), or draw them with --sampler random",
            )
    options = [[axis.at(value) for value in axis.values] for axis in space.axes]
    return [tuple(point) for point in product(*options)]
