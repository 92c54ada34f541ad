"""`loralab methods`: what each PEFT method can do."""

from __future__ import annotations

from typing import Annotated

import typer

from loralab.cli.completion import named_like
from loralab.cli.json_output import Json, print_json


def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Tell the reasons of this method only.",
            autocompletion=named_like("PEFT method"),
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Show which method can merge, stand on a quantized base, adapt images, and so on.

    What a method cannot do is refused before training, with the reason that is shown
    here for `loralab methods NAME`.

    With --json an object: each method -> what it might do -> the reason why it cannot,
    or an empty text.

    Example: loralab methods qa-lora
    """
    from rich.table import Table

    from loralab import registry
    from loralab.adapters.abilities import WORDS, table
    from loralab.cli import render

    rows = table()
    if name is not None:
        registry.get("PEFT method", name)  # an unknown one is told here
        rows = [row for row in rows if row.method.split(" ")[0] == name]
    if json_output:
        print_json({row.method: row.cells() for row in rows})
        return
    console = render.console()
    shown = Table(*["method", *WORDS], title="what a PEFT method can do")
    for row in rows:
        marks = ["–" if reason else "yes" for reason in row.cells().values()]
        shown.add_row(row.method, *marks)
    console.print(shown)
    if name is None:
        console.print("reasons: loralab methods NAME")
        return
    for row in rows:
        for need, reason in row.cells().items():
            if reason:
                line = f"{row.method} cannot {WORDS[need]}: {reason}"
                console.print(line, soft_wrap=True)
