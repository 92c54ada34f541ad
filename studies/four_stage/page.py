"""The page of the study: every number on it comes from results.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from studies.four_stage.analyse import CONFIDENCE, ENOUGH, LOSS, survivors
from studies.four_stage.plan import BESIDE, BF16, LORA, MERGED, ON_GRID, PROBE, QA_LORA

from loralab.evaluation.intervals import Interval
from loralab.reporting.figures import ForestRow, forest, save
from loralab.reporting.figures.parts import empty_figure, freeze
from loralab.reporting.renderers import to_markdown
from loralab.reporting.style import COLUMN_WIDTH, MARK, PALE_INK, THIN, look, style
from loralab.reporting.tables import (
    Cell,
    Column,
    Table,
    format_interval,
    format_number,
)
from loralab.runs.files import write_text

Record = dict[str, Any]
ROOT = Path(__file__).parents[2]
SPEED = ROOT / "benchmarks" / "results" / "decoding.json"
"""How fast SmolLM2 writes in each format, measured by benchmarks/decoding.py."""
DECODE = "decode_tokens_per_second"
FOUR_BITS = ("int4 g32", "int4 g64", "NF4")
KEPT_AXIS = (-0.1, 1.3)
PANEL_HEIGHT, LINE_HEIGHT = 0.6, 0.17


def interval(told: dict[str, float] | None) -> Interval | None:
    """Return an interval of the results."""
    return Interval(**told) if told else None


def percent(value: float) -> str:
    """Return a share as it is read."""
    return f"{format_number(100 * value, 1)} %"


def percents(told: dict[str, float] | None) -> str | None:
    """Return a share with its interval."""
    if told is None:
        return None
    shares = Interval(**{key: 100 * value for key, value in told.items()})
    return f"{format_interval(shares, 1)} %"


def signed(told: dict[str, float], digits: int = 4) -> str:
    """Return a change with its interval."""
    return format_interval(Interval(**told), digits, signed=True)


def way_of(one: Record) -> str:
    """Return method and route in words."""
    return f"{one['method']}, {one['route']}"


def of_methods(base: Record, *methods: str) -> list[Record]:
    """Return what was stored of some methods."""
    return [one for one in base["stored"] if one["method"] in methods]


def adapters(base: Record) -> list[Record]:
    """Return what was stored of adapters."""
    return [one for one in base["stored"] if one["method"] != PROBE]


# ---- tables ----


def trained_table(found: Record) -> Table:
    """Return what was trained, and what it gained."""
    rows: list[list[Cell]] = [
        [
            base["name"],
            one["method"],
            base["seeds"],
            base["test_rows"],
            base["metric"],
            None if base["metric"] == LOSS else interval(one["metric"]),
            interval(one["loss"]),
            interval(one["gain"]),
        ]
        for base in found["bases"]
        for one in base["trained"]
    ]
    columns = [
        *(Column(name) for name in ("base", "method", "seeds", "test rows", "metric")),
        Column("value", "share", digits=3),
        Column("cross-entropy", "nats/label", digits=4),
        Column("gained on the probe", "nats/label", digits=4, signed=True),
    ]
    notes = ["Probe of a language model: the base itself, which brings its head along."]
    return Table("Trained, and unmerged", columns, rows, notes)


def cost_table(found: Record) -> Table:
    """Return what a format costs the base alone."""
    rows: list[list[Cell]] = [
        [
            base["name"],
            one["format"],
            base["seeds"],
            interval(one["loss_change"]),
            None if base["metric"] == LOSS else interval(one["metric_change"]),
            "yes" if Interval(**one["loss_change"]).excludes_zero else "no",
        ]
        for base in found["bases"]
        for one in of_methods(base, PROBE)
    ]
    columns = [
        *(Column(name) for name in ("base", "format", "seeds")),
        Column("change of cross-entropy", "nats/label", digits=4, signed=True),
        Column("change of the metric", "share", digits=4, signed=True),
        Column("beyond 0"),
    ]
    title = "What a format costs the base: stored probe minus probe, same rows"
    return Table(title, columns, rows, cautions(found))


def cautions(found: Record) -> list[str]:
    """Return what must be said of bases."""
    told = ((base["name"], base["caution"]) for base in found["bases"])
    return [f"{name}: {caution}." for name, caution in told if caution]


def kept_table(found: Record) -> Table:
    """Return what every route kept of the adapters, in weights and in answers."""
    rows: list[list[Cell]] = []
    for base in found["bases"]:
        for one in adapters(base):
            kept = one["survival"]
            weights = percents(kept["interval"]) or percent(kept["kept"])
            metric = None
            if base["metric"] != LOSS:
                metric = interval(one["metric_change"])
            rows.append(
                [
                    *(base["name"], way_of(one), one["format"], weights),
                    "yes" if kept["least"] >= ENOUGH else "no",
                    interval(one["loss_change"]),
                    metric,
                    percents(one["kept_gain"]),
                ]
            )
    columns = [
        *(Column(name) for name in ("base", "adapter, route", "format")),
        Column("of the weights' update kept"),
        Column(f"≥ {percent(ENOUGH)} in every seed"),
        Column("change of cross-entropy", "nats/label", digits=4, signed=True),
        Column("change of the metric", "share", digits=4, signed=True),
        Column("of the gain kept"),
    ]
    notes = [
        "Changes: stored minus the unmerged adapter of the same seed, same test rows.",
        *cautions(found),
    ]
    return Table("What is kept of an adapter", columns, rows, notes)


def layers_table(found: Record) -> Table:
    """Return what single layers kept."""
    rows: list[list[Cell]] = []
    for base in found["bases"]:
        for one in adapters(base):
            layers = one["survival"]["layers"]
            least = min(layers, key=lambda name: layers[name])
            whole = sum(kept >= ENOUGH for kept in layers.values())
            rows.append(
                [
                    *(base["name"], way_of(one), one["format"]),
                    percents_of(one["survival"]["size"]),
                    f"{whole} of {len(layers)}",
                    percent(layers[least]),
                    least,
                    one["survival"]["noise"],
                ]
            )
    columns = [
        *(Column(name) for name in ("base", "adapter, route", "format")),
        Column("‖ΔW‖/‖W‖"),
        Column(f"layers that kept {percent(ENOUGH)}"),
        Column("the least"),
        Column("in layer"),
        Column("noise", "‖ΔW‖"),
    ]
    notes = ["Means over seeds; noise is what changed besides, over ‖ΔW‖."]
    return Table("Layer by layer", columns, rows, notes)


def percents_of(value: float) -> str:
    """Return a small share as it is read."""
    return f"{format_number(100 * value, 2)} %"


def bytes_table(found: Record) -> Table:
    """Return what was stored, predicted and measured."""
    rows: list[list[Cell]] = []
    for base in found["bases"]:
        for one in adapters(base):
            gap = one["measured"] - one["beside"] - one["predicted"]
            rows.append(
                [
                    *(base["name"], way_of(one), one["format"]),
                    *(one["predicted"], one["measured"], one["beside"]),
                    "exactly" if gap == 0 else percents_of(gap / one["predicted"]),
                    percent(one["of_fp32"]),
                    percent(one["of_fp16"]),
                ]
            )
    columns = [
        *(Column(name) for name in ("base", "adapter, route", "format")),
        Column("predicted", "bytes"),
        Column("measured", "bytes"),
        Column("of it beside", "bytes"),
        Column("off by"),
        Column("of fp32"),
        Column("of fp16"),
    ]
    notes = ["Predicted before writing, of the base; an adapter beside is added to it."]
    return Table("Stored bytes", columns, rows, notes)


@cache
def speed() -> Record:
    """Return the committed benchmark of writing."""
    told: Record = json.loads(SPEED.read_text(encoding="utf-8"))
    return told


def speed_table() -> Table:
    """Return how fast SmolLM2 writes in each format, as benchmarks/ measured it."""
    batches = speed()["batches"]
    rows: list[list[Cell]] = [
        [name, speed()["engines"][name]["kernel"], size]
        + [interval(batches[batch][name][DECODE]) for batch in batches]
        for name, size in (
            (name, told["measured"]) for name, told in speed()["bytes"].items()
        )
    ]
    columns = [Column("engine and format"), Column("kernel"), Column("stored", "bytes")]
    columns += [Column(f"decode, {batch}", "tokens/s") for batch in batches]
    title = "SmolLM2: speed of the stored base (benchmarks/decoding.py, not this study)"
    return Table(title, columns, rows)


def tables(found: Record) -> dict[str, Table]:
    """Return every table by the name of its file."""
    return {
        "trained": trained_table(found),
        "cost": cost_table(found),
        "kept": kept_table(found),
        "layers": layers_table(found),
        "bytes": bytes_table(found),
        "speed": speed_table(),
    }


# ---- words ----


def primary(found: Record) -> list[Record]:
    """Return the bases whose weights are true floats."""
    return [base for base in found["bases"] if not base["caution"]]


def best(base: Record) -> Record | None:
    """Return the survivor in four bits that costs its adapter least, if any."""
    chosen = [one for one in survivors(base) if one["format"] in FOUR_BITS]
    return min(chosen, key=lambda one: one["loss_change"]["value"], default=None)


def one_of(base: Record, route: str, form: str) -> Record | None:
    """Return LoRA by a route in a format."""
    ways = of_methods(base, LORA)
    return next((w for w in ways if (w["route"], w["format"]) == (route, form)), None)


def sentences(found: Record) -> Iterator[str]:
    """Yield what the results say, in words."""
    for base in found["bases"]:
        label = " (labelled, see below)" if base["caution"] else ""
        about = f"**{base['name']}**{label}, {base['seeds']} seed(s), "
        about += f"{base['test_rows']} test rows."
        costs = [one for one in of_methods(base, PROBE) if one["format"] in FOUR_BITS]
        told = ", ".join(f"{o['format']} {signed(o['loss_change'])}" for o in costs)
        about += f" Four bits cost the base, in nats: {told}."
        if (one := best(base)) is None:
            about += f" No route in four bits kept {percent(ENOUGH)} in every seed."
        else:
            about += (
                f" Of the routes in four bits that kept {percent(ENOUGH)} of LoRA's "
                f"update in every seed, {one['route']} in {one['format']} costs the "
                f"adapter least: {signed(one['loss_change'])} nats"
            )
            gain = percents(one["kept_gain"])
            about += f", and {gain} of its gain is left." if gain else "."
        if grid := one_of(base, ON_GRID, "NF4"):
            about += (
                f" Merged on the grid of NF4 it keeps "
                f"{percent(grid['survival']['kept'])} of the update and "
                f"{percents(grid['kept_gain'])} of the gain; merged in float first, "
            )
            floats = one_of(base, MERGED, "NF4")
            assert floats is not None  # they are planned together
            about += (
                f"{percent(floats['survival']['kept'])} and "
                f"{percents(floats['kept_gain'])}."
            )
        yield about


# ---- figures ----


def _panel(axes: Axes, ways: Sequence[Record], name: str) -> None:
    for number, one in enumerate(ways):
        seen = look(number)
        layers = list(one["survival"]["layers"].values())
        axes.plot(
            layers, [-number] * len(layers), color=seen.colour, linestyle="none",
            marker=seen.marker, markersize=MARK, markerfacecolor="none",
        )  # fmt: skip
    axes.axvline(ENOUGH, color=PALE_INK, linewidth=THIN, linestyle=":")
    axes.set_yticks([-n for n in range(len(ways))])
    axes.set_yticklabels([f"{way_of(one)}, {one['format']}" for one in ways])
    axes.set_ylim(-len(ways) + 0.5, 0.5)
    axes.set_xlim(*KEPT_AXIS)
    axes.set_title(name, loc="left")


def survival_figure(found: Record) -> Figure:
    """Draw what every layer kept, by way."""
    each = [(base["name"], adapters(base)) for base in found["bases"]]
    heights = [PANEL_HEIGHT + LINE_HEIGHT * len(ways) for _, ways in each]
    with style():
        made = empty_figure(COLUMN_WIDTH, sum(heights))
        panels = made.subplots(
            len(each), 1, sharex=True, squeeze=False, height_ratios=heights
        )
        for (axes,), (name, ways) in zip(panels, each, strict=True):
            _panel(axes, ways, name)
        panels[-1][0].set_xlabel("kept of the update of a layer (share)")
        return freeze(made)


def cost_figure(found: Record) -> Figure:
    """Draw what storing cost the adapters."""
    rows = [
        ForestRow(
            base["name"],
            f"{way_of(one)}, {one['format']}",
            Interval(**one["loss_change"]),
            "survived" if one["survival"]["least"] >= ENOUGH else "swallowed in part",
            base["seeds"],
        )
        for base in found["bases"]
        for one in adapters(base)
    ]
    return forest(rows, "change of cross-entropy (nats)", better="lower")


# ---- the page ----


def page(found: Record) -> str:
    """Return the README."""
    here = found["environment"]
    minutes = sum(found["seconds"].values()) / 60
    parts = [
        "# Base, base in few bits, adapter, adapter in few bits",
        "What do four bits cost a base, what do they cost an adapter, and by which "
        "route does the adapter survive?",
        *sentences(found),
        "A base is measured with a linear probe, so that its own loss means something; "
        "an adapter's gain is what it is better than that. *Kept of the update*: "
        "⟨Q1 − Q0, ΔW⟩ / ‖ΔW‖² (`loralab.export.survival`). *Kept of the gain*: what "
        "is left of the drop of cross-entropy. In brackets: "
        f"{percent(CONFIDENCE)}, over seeds and test rows from three seeds on, else "
        "over test rows of one seed; of weights over seeds. Stored models compute in "
        "the format's own dtype, bf16 where the CPU has it: what that alone does is in "
        f"the rows {BF16.label}. Routes: *{MERGED}* adds ΔW to float weights and "
        f"stores the sum; *{ON_GRID}* is PEFT's merge into 4 bits; *{BESIDE}* leaves "
        f"the adapter beside; *{QA_LORA}* shifts the zeros.",
        "![kept by layer](figures/survival.svg)",
        f"Each mark is a layer, mean over seeds. Dotted: {percent(ENOUGH)}.",
        "![cost](figures/cost.svg)",
        *(to_markdown(table) for table in tables(found).values()),
        f"Ledger beforehand: {format_number(found['ledger']['minutes'])} minutes. "
        f"Measured in {format_number(minutes, 1)} minutes at commit "
        f"`{here['git_commit']}` with torch {here['packages']['torch']} and PEFT "
        f"{here['packages']['peft']} by `python -m studies.four_stage.measure run "
        f"{found['size']}`, which wrote this page.",
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def write(found: Record, folder: Path) -> None:
    """Write page, tables and figures into a folder."""
    write_text(folder / "README.md", page(found))
    for name, table in tables(found).items():
        write_text(folder / "tables" / f"{name}.md", to_markdown(table))
    save(survival_figure(found), folder / "figures", "survival", ("svg",))
    save(cost_figure(found), folder / "figures", "cost", ("svg",))
