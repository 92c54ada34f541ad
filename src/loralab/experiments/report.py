"""`report`: an analysis as tables, figures and one page. Every number is read from it.

analysis.json             all numbers, each run among them
tables/<name>.md .tex .csv .html
figures/<name>.pdf .svg .png
report.html               everything, in one file that needs no network
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loralab import __version__
from loralab.errors import RunError
from loralab.experiments.analyse import analyse
from loralab.experiments.report_figures import figures
from loralab.experiments.report_tables import Analysis, tables
from loralab.experiments.study import Study
from loralab.reporting.tables import write_table
from loralab.runs.files import write_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from loralab.reporting.page import Part

CAPTIONS = {
    "differences": "Paired differences with their intervals; in grey, what is too "
    "small to matter.",
    "seeds": "Every run as a dot, less the mean of its group; below, the mean with its "
    "interval over seeds.",
    "map": "Differences by data set and arm.",
    "pareto": "Quality against trained parameters; in grey, how far two arms with as "
    "many seeds may lie apart by noise alone.",
    "curves": "Cross-entropy on validation rows; mean and interval over seeds.",
}
CURVES = "curves-"


def _caption(name: str) -> str:
    if name in CAPTIONS:
        return CAPTIONS[name]
    kind, _, data = name.partition("-")
    return f"{data}: {CAPTIONS[kind][0].lower()}{CAPTIONS[kind][1:]}"


def read_analysis(folder: Path) -> Analysis:
    """Return the analysis in a study's directory, committed or in ``runs``.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    file = folder / "analysis.json"
    try:
        found: Analysis = json.loads(file.read_text(encoding="utf-8"))
        if not {"study", "runs"} <= found.keys():
            raise ValueError("it holds no study")
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(
            "no analysis of a study: analysis.json cannot be read",
            where=str(folder),
            why=str(error),
            fix="`loralab study report` writes one; a study that is a script of its "
            "own says in its README what draws it",
        ) from None
    return found


def write_figures(analysis: Analysis, folder: Path) -> dict[str, Figure]:
    """Write the figures of an analysis; the same analysis gives the same bytes.

    Returns:
        The figures by name, each in three files (`loralab.reporting.figures.save`).
    """
    from loralab.reporting.figures.files import save

    drawn = figures(analysis)
    for name, figure in drawn.items():
        save(figure, folder, name)
    return drawn


def write_report(study: Study, folder: Path) -> Path:
    """Analyse a study, and write numbers, tables, figures and the page.

    Returns:
        The page.

    Raises:
        LoralabError: as `analyse`.
    """
    analysis = analyse(study)
    write_json(folder / "analysis.json", analysis)
    for name, table in tables(analysis).items():
        write_table(table, folder / "tables", name)
    drawn = write_figures(analysis, folder / "figures")
    write_text(folder / "report.html", html(analysis, drawn))
    return folder / "report.html"


def html(analysis: Analysis, drawn: dict[str, Figure]) -> str:
    """Return the page of an analysis."""
    from loralab.reporting.page import page

    commits = sorted({str(one["commit"]) for one in analysis["runs"]})
    by = (
        f"loralab {__version__}, from {len(analysis['runs'])} runs of commit "
        f"{', '.join(commits)}"
    )
    return page(analysis["study"]["name"], _page_parts(analysis, drawn), by)


def _page_parts(analysis: Analysis, drawn: dict[str, Figure]) -> list[Part]:
    from loralab.reporting.page import Details, FigurePart, Heading, TablePart, Text

    made = tables(analysis)
    parts: list[Part] = [Text(analysis["study"]["question"])]
    parts += _callouts(analysis)
    parts.append(Heading("What the runs show"))
    shown = [
        FigurePart(drawn[name], _caption(name), f"{_caption(name)} See the tables.")
        for name in drawn
        if not name.startswith(CURVES)
    ]
    order = ("comparisons", "controls", "over-tasks", "noise", "floor", "arms")
    first = [name for name in order if name in made]
    parts += [TablePart(made[name]) for name in first]
    parts += shown
    curves = [name for name in drawn if name.startswith(CURVES)]
    if curves:
        parts.append(Heading("Learning curves"))
        parts += [FigurePart(drawn[n], _caption(n), _caption(n)) for n in curves]
    rest: Sequence[str] = [name for name in made if name not in first]
    parts.append(Heading("Every run, and how it was made"))
    parts += [Details(made[name].title, [TablePart(made[name])]) for name in rest]
    parts.append(Details("The study as it was asked", [Text(_asked(analysis))]))
    return parts


def _callouts(analysis: Analysis) -> list[Part]:
    """Return what must not be overlooked."""
    from loralab.reporting.page import Callout

    found: list[Part] = []
    if analysis["size"] == "smoke":
        found.append(Callout("warning", "A smoke study: it shows that it runs."))
    broken = [one["name"] for one in analysis["controls"] if one["held"] is False]
    if broken:
        text = f"Controls that did not hold: {', '.join(broken)}."
        found.append(Callout("bad", text))
    unseen = [one["name"] for one in analysis["controls"] if one["held"] is None]
    if unseen:
        text = f"Controls that these runs are too few to show: {', '.join(unseen)}."
        found.append(Callout("warning", text))
    left = analysis["waiting"], len(analysis["failed"])
    if any(left):
        text = f"{left[0]} runs have not ended, {left[1]} have failed."
        found.append(Callout("warning", text))
    cautions = {run.get("caution") for run in analysis["runs"]}
    found += [Callout("warning", text) for text in sorted(filter(None, cautions))]
    if analysis["study"]["tuning"] is None and len(analysis["study"]["arms"]) > 1:
        found.append(Callout("note", _untuned(analysis["study"])))
    return found


def _untuned(study: Mapping[str, Any]) -> str:
    own = [
        name
        for name, overrides in study["arms"].items()
        if any(one.startswith("training.") for one in overrides)
    ]
    if not own:
        return "The arms were not tuned: all share the experiment's settings."
    return f"No arm was tuned here; settings of their own have: {', '.join(own)}."


def _asked(analysis: Analysis) -> str:
    import yaml

    text = yaml.safe_dump(analysis["study"], sort_keys=False, width=80)
    return "\n\n".join(f"`{line}`" for line in text.splitlines() if line.strip())
