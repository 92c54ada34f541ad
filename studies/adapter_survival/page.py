"""The page of the survival study: every number on it comes from its results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loralab.evaluation.intervals import Interval
from loralab.export.survival import THRESHOLD
from loralab.reporting.figures import save
from loralab.reporting.figures.parts import (
    empty_figure,
    freeze,
    legend_above,
    log_axis,
)
from loralab.reporting.renderers import to_markdown
from loralab.reporting.style import (
    BAND,
    COLUMN_WIDTH,
    HAIR,
    MARK,
    PALE_INK,
    THIN,
    look,
    style,
)
from loralab.reporting.tables import (
    Cell,
    Column,
    Table,
    format_interval,
    format_number,
)
from loralab.runs.files import write_text

FLOAT_BASE = "minilm"
"""The base whose weights are true floats: it carries the claims."""
STARTS = {
    "grid": "merged on the grid",
    "float": "merged in float",
    "zeros": "QA-LoRA, zeros shifted",
}
DRAWN = (
    "NF4",
    "int4 g32, fp32 zeros",
    "int4 g128, fp32 zeros",
    "int4 g32, integer zeros",
    "int4 g128, integer zeros",
    "int8 g128, fp32 zeros",
    "int4 g32, fp16 zeros",
    "int4 g32, bf16 zeros",
)
ZEROS = "int4 g32, {} zeros"
HALVES = ("fp16", "bf16")
PANEL_HEIGHT = 1.9
KEPT_AXIS = (-0.1, 1.25)
"""Noise of rounding carries some points past 0 and 1."""
Record = dict[str, Any]


def of_base(found: Record, base: str) -> list[Record]:
    """Return the adapters of a base."""
    return [one for one in found["adapters"] if one["base"].startswith(base)]


def cells_of(
    adapters: Sequence[Record], grid: str, start: str, target: float | None
) -> list[Record]:
    """Return the cells of a grid, a start and a target, one an adapter at most."""
    return [
        cell
        for adapter in adapters
        for cell in adapter["cells"]
        if (cell["grid"], cell["start"], cell["scaled_to"]) == (grid, start, target)
    ]


def ways_of(adapters: Sequence[Record]) -> list[tuple[str, str]]:
    """Return every (grid, start), in the order that they were measured in."""
    every = ((c["grid"], c["start"]) for a in adapters for c in a["cells"])
    return sorted(dict.fromkeys(every), key=lambda way: list(STARTS).index(way[1]))


def mean(cells: Sequence[Record], key: str) -> float:
    """Return the mean over adapters."""
    return fmean(cell[key] for cell in cells)


def crossing(
    adapters: Sequence[Record], grid: str, start: str, targets: Sequence[float]
) -> str:
    """Return the size from which the mean kept stays at `THRESHOLD` or above.

    Between targets it is interpolated over the logarithm of the size.
    """
    kept = [mean(cells_of(adapters, grid, start, t), "kept") for t in targets]
    below = [i for i, value in enumerate(kept) if value < THRESHOLD]
    if not below:
        return f"≤ {percent(targets[0])}"
    last = below[-1]
    if last == len(targets) - 1:
        return f"> {percent(targets[-1])}"
    logs = np.log(targets[last : last + 2])
    share = (THRESHOLD - kept[last]) / (kept[last + 1] - kept[last])
    return percent(float(np.exp(logs[0] + share * (logs[1] - logs[0]))), 1)


def percent(value: float, digits: int = 1) -> str:
    """Return a share as it is read."""
    text = format_number(100 * value, digits)
    whole = text.rstrip("0").rstrip(".") if "." in text else text
    return f"{'0' if whole == '−0' else whole} %"


def spread(cells: Sequence[Record], key: str) -> str:
    """Return the mean over adapters in percent, with the least and the most."""
    values = [cell[key] for cell in cells]
    middle = percent(fmean(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({percent(min(values))} … {percent(max(values))})"


def kept_table(found: Record, base: str, title: str) -> Table:
    """Return what was kept at every target, by start and grid."""
    adapters = of_base(found, base)
    shared = {c["scaled_to"] for c in adapters[0]["cells"]} - {None}
    targets = sorted(shared)
    rows: list[list[Cell]] = []
    for grid, start in ways_of(adapters):
        sets = [cells_of(adapters, grid, start, target) for target in targets]
        limit = crossing(adapters, grid, start, targets)
        cells: list[Cell] = [spread(cells, "kept") for cells in sets]
        rows.append([STARTS[start], grid, len(sets[0]), *cells, limit])
    columns = [Column("way"), Column("grid"), Column("adapters")]
    columns += [Column(f"kept at {percent(t)}") for t in targets]
    columns.append(Column(f"{percent(THRESHOLD, 0)} kept from"))
    return Table(title, columns, rows, ["Mean over adapters (least … most)."])


def noise_table(found: Record) -> Table:
    """Return the noise of every way at every target, over ‖ΔW‖."""
    adapters = of_base(found, FLOAT_BASE)
    targets = found["targets"]
    rows: list[list[Cell]] = []
    for grid, start in ways_of(adapters):
        sets = [cells_of(adapters, grid, start, target) for target in targets]
        cells: list[Cell] = [mean(cells, "noise") for cells in sets]
        rows.append([STARTS[start], grid, *cells])
    columns = [Column("way"), Column("grid")]
    columns += [Column(f"noise at {percent(t)}") for t in targets]
    title = "What changed besides, over ‖ΔW‖ (mean over adapters, MiniLM)"
    return Table(title, columns, rows)


def trained_table(found: Record) -> Table:
    """Return the adapters as they were trained."""
    rows: list[list[Cell]] = []
    for one in found["adapters"]:
        learnt = f"{one['test']['metric']} {format_number(one['test']['value'])}"
        own = [c for c in one["cells"] if c["scaled_to"] is None]
        sizes = own[0]["layer_sizes"]
        for cell in own:
            if cell["grid"] not in DRAWN and one["base"].startswith(FLOAT_BASE):
                continue
            enough = sum(kept >= THRESHOLD for kept in cell["layer_kept"])
            rows.append(
                [
                    one["name"],
                    one["base"],
                    learnt,
                    percent(cell["size"], 2),
                    f"{percent(min(sizes), 2)} … {percent(max(sizes), 2)}",
                    STARTS[cell["start"]],
                    cell["grid"],
                    percent(cell["kept"]),
                    f"{enough} of {len(sizes)}",
                ]
            )
    names = "adapter", "base", "test", "size", "layers' sizes", "way", "grid", "kept"
    columns = [*(Column(name) for name in names), Column("layers that kept 90 %")]
    return Table("Adapters as they were trained, not scaled", columns, rows)


def answer_table(found: Record) -> Table:
    """Return cross-entropy of test rows, and its change from the unmerged adapter."""
    rows: list[list[Cell]] = []
    for one in found["adapters"]:
        for answer in one["answers"]:
            own = [one["name"], one["base"], one["test_rows"]]
            measured = [Interval(**answer[key]) for key in ("cross_entropy", "change")]
            unmerged = answer["grid"] == "–"
            change = None if unmerged else measured[1]
            rows.append([*own, answer["grid"], answer["arm"], measured[0], change])
    columns = [
        Column("adapter"),
        Column("base"),
        Column("test rows"),
        Column("grid"),
        Column("arm"),
        Column("cross-entropy", "nats", digits=4),
        Column("change from the unmerged adapter", "nats", digits=4, signed=True),
    ]
    notes = [
        "In brackets: 95 % over test rows, paired bootstrap, of one trained adapter "
        "each; nothing is said of other seeds.",
        "Base alone: the stored base without the adapter, with its trained head.",
    ]
    return Table("Cross-entropy of test rows", columns, rows, notes)


def at(found: Record, grid: str, start: str, target: float, key: str = "kept") -> str:
    """Return the mean over MiniLM's adapters."""
    cells = cells_of(of_base(found, FLOAT_BASE), grid, start, target)
    return percent(mean(cells, key))


def by_size(found: Record, grid: str, start: str) -> str:
    """Return what was kept at each target, in words."""
    targets = found["targets"]
    return ", ".join(
        f"{at(found, grid, start, target)} at {percent(target)}" for target in targets
    )


def sentences(found: Record) -> Iterator[str]:
    """Yield what the results say, in words."""
    adapters = of_base(found, FLOAT_BASE)
    sizes = [one["size"] for one in adapters]
    small = found["targets"][1]
    limit = crossing(adapters, "NF4", "grid", found["targets"])
    gaussian = ", ".join(
        f"{percent(cell['kept'])} at {percent(cell['scaled_to'])}"
        for cell in found["gaussian"]["cells"]
        if (cell["grid"], cell["start"]) == ("NF4", "grid")
    )
    yield (
        "**Merged on the grid** (what PEFT's merge into a 4-bit base does), NF4 kept "
        f"of real adapters {by_size(found, 'NF4', 'grid')} of ‖ΔW‖/‖W‖; "
        f"{percent(THRESHOLD, 0)} from {limit} on. Gaussian weights with a random ΔW "
        f"of rank 8 through the same code: {gaussian}."
    )
    floats = [
        mean(cells_of(adapters, grid, "float", small), "kept")
        for grid, start in ways_of(adapters)
        if start == "float"
    ]
    yield (
        f"**Merged in float, then stored**, an adapter of {percent(small)} survives: "
        f"{percent(min(floats))} to {percent(max(floats))} kept over all grids, for "
        "the weights of a float base lie between the codes. The rounding error is "
        f"drawn anew (noise in NF4 at {percent(small)}: "
        f"{format_number(mean(cells_of(adapters, 'NF4', 'float', small), 'noise'))} "
        "times ‖ΔW‖), which is the error of quantization, not a loss of the adapter."
    )
    real = []
    for kind in ("fp32", "fp16", "bf16"):
        cells = cells_of(adapters, ZEROS.format(kind), "zeros", small)
        error = format_number(100 * mean(cells, "noise"))
        real.append(f"{percent(mean(cells, 'kept'))} in {kind} (error {error} %)")
    yield (
        "**QA-LoRA, zeros shifted** (groups of 32): integer zeros kept "
        f"{by_size(found, ZEROS.format('integer'), 'zeros')}. Real zeros kept, at "
        f"{percent(small)}, {', '.join(real)}; the error is the noise in percent of "
        "‖ΔW‖."
    )
    layers = [size for one in adapters for size in one["cells"][0]["layer_sizes"]]
    yield (
        f"As they were trained, the {len(adapters)} adapters on MiniLM were of "
        f"{percent(min(sizes), 2)} to {percent(max(sizes), 2)}, and their layers of "
        f"{percent(min(layers), 2)} to {percent(max(layers), 2)}."
    )
    for one in found["adapters"]:
        changes = {a["arm"]: a["change"] for a in one["answers"] if a["grid"] == "NF4"}
        if changes:
            told = ", ".join(
                f"{arm} {format_interval(Interval(**change), 4, signed=True)}"
                for arm, change in changes.items()
            )
            yield (
                f"Cross-entropy in NF4 against the unmerged adapter, {one['name']} on "
                f"{one['base']} ({percent(one['size'], 2)}), nats on "
                f"{one['test_rows']} test rows: {told}."
            )


# ---- the figure ----


def _panel(axes: Axes, found: Record, start: str) -> None:
    adapters, targets = of_base(found, FLOAT_BASE), found["targets"]
    present = [grid for grid, way in ways_of(adapters) if way == start]
    # how real zeros are stored is drawn where something is merged into them
    left_out = [] if start == "zeros" else [ZEROS.format(half) for half in HALVES]
    axes.axhline(THRESHOLD, color=PALE_INK, linewidth=THIN, linestyle=":")
    for grid in (g for g in DRAWN if g in present and g not in left_out):
        seen = look(DRAWN.index(grid))
        sets = [cells_of(adapters, grid, start, target) for target in targets]
        kept = [[cell["kept"] for cell in cells] for cells in sets]
        x = [100 * target for target in targets]
        low, high = [min(v) for v in kept], [max(v) for v in kept]
        axes.fill_between(x, low, high, color=seen.colour, alpha=BAND, linewidth=0)
        axes.plot(
            x, [fmean(v) for v in kept], color=seen.colour, linestyle=seen.dash,
            marker=seen.marker, markersize=MARK, markerfacecolor="white", label=grid,
        )  # fmt: skip
        own = cells_of(adapters, grid, start, None)
        axes.plot(
            [100 * cell["size"] for cell in own], [cell["kept"] for cell in own],
            color=seen.colour, linestyle="none", marker=seen.marker, markersize=MARK,
            markeredgecolor="white", markeredgewidth=HAIR,
        )  # fmt: skip
    axes.set_xscale("log")
    log_axis(axes.xaxis, 100 * targets[0], 100 * targets[-1])
    axes.set_ylim(*KEPT_AXIS)
    axes.set_title(STARTS[start], loc="left")
    axes.set_ylabel("kept (share)")


def figure(found: Record) -> Figure:
    """Draw what was kept against the size: open marks scaled, full ones as trained."""
    with style():
        made = empty_figure(COLUMN_WIDTH, PANEL_HEIGHT * len(STARTS))
        panels = made.subplots(len(STARTS), 1, sharex=True)
        for axes, start in zip(panels, STARTS, strict=True):
            _panel(axes, found, start)
        panels[-1].set_xlabel("‖ΔW‖ / ‖W‖ (%)")
        lines = {line.get_label(): line for axes in panels for line in axes.lines}
        legend_above(made, [lines[grid] for grid in DRAWN if grid in lines])
        return freeze(made)


def page(found: Record) -> str:
    """Return the README."""
    here = found["environment"]
    parts = [
        "# What survives of an adapter in a quantized base",
        *sentences(found),
        "kept = ⟨Q1 − Q0, ΔW⟩ / ‖ΔW‖², noise = ‖(Q1 − Q0) − kept·ΔW‖ / ‖ΔW‖, Q1 the "
        "stored values with the adapter and Q0 those without "
        "(`loralab.export.survival`). *Grid*: Q0 = Q(W), merged into Q(W) and stored "
        "in the same format again. *Float*: merged into W, then stored. A size is that "
        "of all layers together; where it is a round number ΔW was **scaled** to it. "
        "One training seed an adapter.",
        "![kept against size](figures/survival.svg)",
        "Open marks and lines: scaled adapters, mean over them, with the range as a "
        "band. Full marks: the adapters as they were trained. Dotted: 90 %.",
        to_markdown(kept_table(found, FLOAT_BASE, "Kept, on MiniLM (float weights)")),
        to_markdown(noise_table(found)),
        to_markdown(trained_table(found)),
        to_markdown(answer_table(found)),
    ]
    if of_base(found, "smollm2"):
        title = (
            "Kept, on SmolLM2 (secondary: its weights were on the Q4_1 grid of group "
            "32 before, so only NF4 and group 64)"
        )
        parts.append(to_markdown(kept_table(found, "smollm2", title)))
    parts.append(
        f"Measured in {format_number(found['minutes'])} minutes at commit "
        f"`{here['git_commit']}` with torch {here['packages']['torch']} and PEFT "
        f"{here['packages']['peft']} by `python -m studies.adapter_survival.measure "
        "evidence`, which wrote this page."
    )
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def write(found: Record, folder: Path) -> None:
    """Write page and figure into a folder."""
    write_text(folder / "README.md", page(found))
    save(figure(found), folder / "figures", "survival", ("svg",))
