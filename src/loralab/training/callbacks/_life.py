"""The life of a run's callbacks: checked, made, subscribed, closed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

from loralab import registry
from loralab.config.schema import CallbackConfig
from loralab.errors import ConfigError
from loralab.runs import Run
from loralab.training.events import EventLog


def check_callbacks(chosen: Sequence[CallbackConfig]) -> None:
    """Ask each chosen callback whether it can work here.

    Raises:
        ConfigError: one cannot.
    """
    for config in chosen:
        entry = registry.get("callback", config.name)
        if "check" in entry.facts:
            entry.facts["check"](entry.schema.model_validate(config.params))


@contextmanager
def opened(
    chosen: Sequence[CallbackConfig], run: Run, log: EventLog
) -> Iterator[list[Any]]:
    """Make the chosen callbacks, subscribe them to the log; at the end close them."""
    made: list[Any] = []
    with ExitStack() as stack:
        for config in chosen:
            entry = registry.get("callback", config.name)
            params = entry.schema.model_validate(config.params)
            callback = entry.target(params, run)
            if hasattr(callback, "close"):
                stack.callback(callback.close)
            if hasattr(callback, "bind"):
                callback.bind(log)
            if hasattr(callback, "on_event"):
                log.subscribe(callback.on_event)
            made.append(callback)
        yield made


def require(package: str, callback: str) -> None:
    """Raise unless the optional package of a callback is installed.

    Raises:
        ConfigError: it is not; the message names the extra.
    """
    if find_spec(package) is None:
        raise ConfigError(
            f"the callback {callback!r} needs the package {package}, which is not here",
            where="training.callbacks",
            fix=f"pip install 'loralab[{package}]', or take {callback} out of the list",
        )
