"""A comparison of runs as tables, a figure, Markdown and one HTML page.

It reads what `loralab.evaluation.compare` returns, and measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loralab import __version__
from loralab.evaluation.intervals import Interval
from loralab.reporting.renderers import to_markdown
from loralab.reporting.tables import Cell, Column, Table, label_of, unit_of
from loralab.units import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from loralab.reporting.page import Part

Comparison = Mapping[str, Any]
MEGA = 1e6


def _interval(found: Mapping[str, float] | None) -> Interval | None:
    return Interval(found["value"], found["low"], found["high"]) if found else None


def _called(found: Comparison) -> dict[str, str]:
    """Return what each run is called: its stage in a pipeline, else its id."""
    stages = {run: stage for stage, run in found.get("stages", {}).items()}
    return {one["run"]: stages.get(one["run"], one["run"]) for one in found["records"]}


def _form(record: Mapping[str, Any]) -> str:
    """Return how a run's weights are stored, in a word."""
    return str(record["storage"]["name"]) if record["kind"] == "artefact" else "adapter"


def _size(record: Mapping[str, Any]) -> float:
    """Return the bytes of what answers: stored weights, or base and adapter."""
    if record["kind"] == "artefact":
        return float(record["bytes"]["measured"])
    return float(record["weight_bytes"] + record["adapter_bytes"])


def told_apart(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Cell]]:
    """Return what each run says of how it was measured, where not all say the same.

    By column: ``metric``, ``better``, ``split``, ``rows``, ``intervals``.
    """
    metrics = [record["metric"] for record in records]
    said: dict[str, list[Cell]] = {
        "metric": [f"{metric} ({unit_of(metric)})" for metric in metrics],
        "better": [record["better"] for record in records],
        "split": [split_of(record) for record in records],
        "rows": [record["rows"] for record in records],
        "intervals": [percent(record["confidence"], None) for record in records],
    }
    return {name: cells for name, cells in said.items() if len(set(cells)) > 1}


def split_of(record: Mapping[str, Any]) -> str:
    """Return whose rows were measured; a pipeline's older comparison means test."""
    return str(record.get("split", "test"))


def why_unpaired(found: Comparison) -> list[str]:
    """Return a sentence of each run that is not compared with the first row by row."""
    called = _called(found)
    return [
        f"{called[one['first']]} and {called[one['second']]} are not paired: "
        f"{one['why']}."
        for one in found.get("unpaired", [])
    ]


def _measured(found: Comparison, apart: Mapping[str, Any]) -> str:
    """Return how all runs were measured, but for what each says for itself."""
    first = found["records"][0]
    words = [] if "rows" in apart else [f"{first['rows']:,}"]
    words += [] if "split" in apart else [split_of(first)]
    text, sure = " ".join([*words, "rows"]), percent(first["confidence"], None)
    text = text[0].upper() + text[1:]
    if "intervals" in apart:
        text += f", intervals over rows, the difference paired, with one of {sure}"
    else:
        text += f", {sure} intervals over rows, the difference paired"
    return f"{text}." if "better" in apart else f"{text}; {first['better']} is better."


def quality(found: Comparison) -> Table:
    """Return size and quality of every run, and its paired difference to the first."""
    gaps = {pair["second"]: pair for pair in found["paired"]}
    records, called = found["records"], _called(found)
    metric, apart = records[0]["metric"], told_apart(records)
    rows: list[list[Cell]] = []
    for number, record in enumerate(records):
        whole = 2 * record["parameters"]
        row: list[Cell] = [called[record["run"]], _form(record), _size(record) / MEGA]
        row += [100 * _size(record) / whole]
        row += [cells[number] for cells in apart.values()]
        row.append(_interval(record["values"]["adapter"]))
        row.append(_interval(gaps.get(record["run"])))
        kept = record.get("kept")
        row.append(None if kept is None else 100 * kept)
        rows.append(row)
    columns = [
        Column("run"),
        Column("stored as"),
        Column("size", "MB", 1),
        Column("of fp16", "%", 1),
        *(Column(name) for name in apart),
        Column("value") if "metric" in apart else Column(metric, unit_of(metric)),
        Column("difference to the first", signed=True),
        Column("adapter kept", "%", 1),
    ]
    notes = [
        _measured(found, apart),
        *why_unpaired(found),
        "The size of an adapter is that of its base in the dtype it was run in, with "
        "the adapter; of a stored model, that of its weights' files.",
    ]
    return Table("Size and quality", columns, rows, notes)


WORDS = {
    "first_token_seconds": ("first token", "s"),
    "prefill_tokens_per_second": ("prefill", "tokens/s"),
    "decode_tokens_per_second": ("decode", "tokens/s"),
    "batch_seconds": ("batch", "s"),
    "rows_per_second": ("rows", "1/s"),
}


def speed(found: Comparison) -> Table | None:
    """Return how fast every run answered, at every batch size; None if not timed."""
    timed = found.get("latency")
    if not timed:
        return None
    batches, called = timed["batches"], _called(found)
    quantities = list(next(iter(next(iter(batches.values())).values())))
    rows: list[list[Cell]] = []
    for batch, by_name in batches.items():
        for name, values in by_name.items():
            engine = timed["engines"][name]
            row: list[Cell] = [batch.removeprefix("batch "), called[name]]
            row.append(engine["engine"])
            row += [str(engine["kernel"]), str(engine["threads"])]
            rows.append(row + [_interval(values[one]) for one in quantities])
    columns = [Column("batch"), Column("run"), Column("engine"), Column("kernel")]
    columns += [Column("threads"), *(Column(*WORDS[one]) for one in quantities)]
    asked = f"{timed['rounds']} rounds, every run in each; medians with 95 % intervals."
    notes = [asked]
    if "prompt_tokens" in timed:
        notes.append(
            f"Prompts of {timed['prompt_tokens']} tokens, {timed['new_tokens']} new "
            "ones; the same token ids to every run."
        )
    return Table("Speed", columns, rows, notes)


def memory(found: Comparison) -> Table | None:
    """Return load time and peak memory of every run; None if not measured."""
    measured = found.get("footprint")
    if not measured:
        return None
    called = _called(found)
    rows: list[list[Cell]] = [
        [
            called[name],
            one["load_seconds"],
            one["peak_bytes"] / MEGA,
            (one["peak_bytes"] - one["before_bytes"]) / MEGA,
        ]
        for name, one in measured.items()
    ]
    columns = [
        Column("run"),
        Column("load", "s", 2),
        Column("peak memory", "MB", 0),
        Column("of it the model", "MB", 0),
    ]
    note = "Each run in a process of its own: loaded, and asked once."
    return Table("Load time and memory", columns, rows, [note])


def answers(found: Comparison) -> Table | None:
    """Return what every run said to every input; None if nothing was asked."""
    said = found.get("answers")
    if not said:
        return None
    names, called = list(said[0]["answers"]), _called(found)
    rows: list[list[Cell]] = [
        [_text(one["input"]), *(_text(one["answers"][name]) for name in names)]
        for one in said
    ]
    columns = [Column("input"), *(Column(called[name]) for name in names)]
    return Table("Answers", columns, rows)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):  # a class and its probability
        return ", ".join(f"{key} {_text(one)}" for key, one in value.items())
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def tables(found: Comparison) -> list[Table]:
    """Return every table that there is something in."""
    made = (quality(found), speed(found), memory(found), answers(found))
    return [table for table in made if table]


def trade_off(found: Comparison) -> Figure | None:
    """Return the figure of size against quality, with the front of the best.

    None where the runs have other metrics: they stand on no common axis.
    """
    from loralab.reporting.figures import Point, pareto

    records, called = found["records"], _called(found)
    if "metric" in told_apart(records):
        return None
    points = [
        Point(called[record["run"]], _size(record) / MEGA, value, _form(record))
        for record in records
        if (value := _interval(record["values"]["adapter"]))
    ]
    return pareto(
        points,
        "size (MB)",
        label_of(records[0]["metric"]),
        x_better="lower",
        y_better=records[0]["better"],
        x_log=True,
    )


def markdown(title: str, found: Comparison) -> str:
    """Return the comparison as Markdown."""
    parts = [f"# {title}", *(to_markdown(table) for table in tables(found))]
    return "\n\n".join(parts) + "\n"


def html(title: str, found: Comparison) -> str:
    """Return the comparison as one HTML page."""
    from loralab.reporting.page import FigurePart, Heading, TablePart, page

    caption = "Size of the weights against quality; the line joins the best trade-offs."
    parts: list[Part] = [Heading("What the runs show")]
    made: Sequence[Table] = tables(found)
    parts.append(TablePart(made[0]))
    if figure := trade_off(found):
        parts.append(FigurePart(figure, caption, caption))
    parts += [TablePart(table) for table in made[1:]]
    return page(title, parts, f"loralab {__version__}")
