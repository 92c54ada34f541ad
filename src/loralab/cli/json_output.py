"""`--json`: one document on stdout, and nothing else there.

What is on its way goes to stderr. Numbers are whole, where tables round them; bytes and
seconds have no unit; what is not known, infinite or not a number is null. The help of
a verb says after "With --json" which keys there are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, and nothing else on stdout.")
]


def print_json(content: Any) -> None:
    """Print a document in one line.

    Args:
        content: Mappings, lists, dataclasses, paths, numbers and texts.
    """
    text = json.dumps(_plain(content), ensure_ascii=False, allow_nan=False)
    typer.echo(text)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; there is no NaN and no infinity in it."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
