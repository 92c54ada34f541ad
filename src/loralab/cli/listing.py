"""Help that lists the things a verb takes by name, and their keys."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from loralab.registry import Params


def _shown(value: Any) -> str:
    """Return a default as it is typed."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def keys(schema: type[Params]) -> dict[str, str]:
    """Return the keys of a schema, each as ``key=default``."""
    return {
        key: f"{key}={'…' if field.is_required() else _shown(field.default)}"
        for key, field in schema.model_fields.items()
    }


def meanings(schema: type[Params]) -> dict[str, str]:
    """Return what the docstrings of a schema and its bases say of each key."""
    found: dict[str, str] = {}
    for one in reversed(schema.__mro__):
        _, _, attributes = (inspect.getdoc(one) or "").partition("Attributes:\n")
        for key, text in re.findall(
            r"^    (\w+): (.*(?:\n {5,}.*)*)", attributes, re.M
        ):
            if key in schema.model_fields:
                found[key] = " ".join(text.split()).replace("``", "")
    return found


def listing(kind: str, title: str, option: str | None = None) -> type[TyperCommand]:
    """Return a command whose help ends with every thing of a kind and its keys.

    They are looked up when help is asked for, so that nothing else waits for it.

    Args:
        kind: A kind of the registry.
        title: What stands above the list.
        option: An option that names a thing, such as ``--method``; with it the help
            tells that thing alone, and what each of its keys means.
    """

    class Listing(TyperCommand):
        """A command with a list below its help."""

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            """Keep what the option names: help is written before options are read.

            Where the option is missing, the error tells the names.
            """
            if option:
                ctx.meta[kind] = _value(args, option)
            try:
                return super().parse_args(ctx, args)
            except typer.BadParameter as error:
                _name_them(error, kind, option)
                raise

        def format_help(self, ctx: Any, formatter: Any) -> None:
            """Write the help, the list last."""
            from loralab import registry

            name = ctx.meta.get(kind)
            if name:
                schema = registry.get(kind, name.replace("_", "-")).schema
                told, shown = meanings(schema), keys(schema)
                lines = [f"{name}:" if shown else f"{name} has no keys"]
                lines += [f"{text}  {told.get(key, '')}" for key, text in shown.items()]
                self.epilog = "\n\n".join(lines)
            else:
                lines = [
                    f"{one}: {' '.join(keys(entry.schema).values())}"
                    for one, entry in registry.entries(kind).items()
                ]
                self.epilog = "\n\n".join([title, *lines])
            super().format_help(ctx, formatter)

    return Listing


def _name_them(error: typer.BadParameter, kind: str, option: str | None) -> None:
    """Let an error that an option is missing tell the names that it takes."""
    from loralab import registry

    if option and option in getattr(error.param, "opts", ()):
        error.message = f"Known: {', '.join(registry.names(kind))}"


def _value(args: Sequence[str], option: str) -> str | None:
    """Return what follows an option on a command line, if it is there."""
    for number, arg in enumerate(args):
        if arg == option:
            return args[number + 1] if number + 1 < len(args) else None
        if arg.startswith(f"{option}="):
            return arg.partition("=")[2]
    return None
