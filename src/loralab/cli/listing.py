"""Help that lists the things a verb takes by name, and their keys."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


def _shown(value: Any) -> str:
    """Return a default as it is typed."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def listing(kind: str, title: str) -> type[TyperCommand]:
    """Return a command whose help ends with every thing of a kind and its keys.

    They are looked up when help is asked for, so that nothing else waits for it.

    Args:
        kind: A kind of the registry.
        title: What stands above the list.
    """

    class Listing(TyperCommand):
        """A command with a list below its help."""

        def format_help(self, ctx: Any, formatter: Any) -> None:
            """Write the help, the list last."""
            from loralab import registry

            lines = []
            for name in registry.names(kind):
                fields = registry.get(kind, name).schema.model_fields
                keys = [
                    f"{key}={'…' if f.is_required() else _shown(f.default)}"
                    for key, f in fields.items()
                ]
                lines.append(f"{name}: {' '.join(keys)}")
            self.epilog = "\n\n".join([title, *lines])
            super().format_help(ctx, formatter)

    return Listing
