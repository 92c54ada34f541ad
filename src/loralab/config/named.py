"""A named thing from the command line: its name, and ``key=value`` for its params."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import yaml
from pydantic import ValidationError

from loralab.config.problems import config_errors
from loralab.config.schema import Named
from loralab.errors import ConfigError

Chosen = TypeVar("Chosen", bound=Named)


def named(schema: type[Chosen], name: str, pairs: Sequence[str] = ()) -> Chosen:
    """Return what is chosen by name, with its params.

    Args:
        schema: Of which kind, such as `StorageConfig`.
        name: Its name.
        pairs: ``key=value``, the value as YAML reads it.

    Raises:
        ConfigError: no such name, or params that it does not have; all at once.
    """
    params = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{pair!r} is not key=value")
        try:
            params[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"{value!r} cannot be read", where=key) from None
    raw = {"name": name, "params": params}
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise config_errors(error, raw, root=schema) from None
