"""A named thing from the command line: its name, and ``key=value`` for its params."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from loralab.config.problems import config_errors
from loralab.config.schema import Named
from loralab.errors import ConfigError, ConfigErrors

Chosen = TypeVar("Chosen", bound=Named)


def named(
    schema: type[Chosen],
    name: str,
    pairs: Sequence[str] = (),
    read: Callable[[str], Any] = yaml.safe_load,
    *,
    option: str = "name",
    prefix: str = "",
) -> Chosen:
    """Return what is chosen by name, with the params of a command line.

    Args:
        schema: Of which kind, such as `StorageConfig`.
        name: Its name.
        pairs: ``key=value``.
        read: Makes a value of its text; `str` where an id of digits is still a text.
        option: What the name was typed after, such as ``--to``; errors call it so.
        prefix: What stands before each key on the command line, such as ``route.``.

    Raises:
        ConfigError: no such name, or params that it does not have; all at once, in
            the words of the command line.
    """
    params: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{pair!r} is not key=value")
        if key in params:
            raise ConfigError(f"{key} is given twice")
        try:
            params[key] = read(value)
        except yaml.YAMLError:
            raise ConfigError(f"{value!r} cannot be read", where=key) from None
    try:
        return chosen(schema, name, params)
    except ConfigErrors as errors:
        typed = (_typed(problem, option, prefix) for problem in errors.problems)
        raise ConfigErrors(typed) from None


def _typed(problem: ConfigError, option: str, prefix: str) -> ConfigError:
    """Return an error that calls a key as it is typed, not as it stands in a file."""
    where, fix = problem.where, problem.fix
    if where == "name":
        where = option
    elif where.startswith("params."):
        fix = fix.replace(
            f"add {where}=", f"add {where.replace('params.', prefix, 1)}="
        )
        where = where.replace("params.", prefix, 1)
    return ConfigError(problem.what, where=where, why=problem.why, fix=fix)


def chosen(schema: type[Chosen], name: str, params: Mapping[str, Any]) -> Chosen:
    """Return what is chosen by name, with checked params.

    Raises:
        ConfigError: no such name, or params that it does not have; all at once.
    """
    raw = {"name": name, "params": dict(params)}
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise config_errors(error, raw, root=schema) from None
