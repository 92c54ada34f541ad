"""Every committed figure is drawn again, byte for byte, from the data beside it."""

import json
from importlib import import_module
from pathlib import Path

import pytest
from studies.vit_peft import page as vit_page
from tests.cli import loralab

from loralab.experiments.report import figures, html, read_analysis
from loralab.reporting.figures.files import save

STUDIES = Path(__file__).parents[2] / "studies"
DRAWN = sorted({file.parent.parent for file in STUDIES.rglob("figures/*.svg")})
ANALYSED = [folder for folder in DRAWN if (folder / "analysis.json").is_file()]


def named(folder):
    return str(folder.relative_to(STUDIES))


def svgs(folder):
    return {file.name: file.read_bytes() for file in folder.glob("figures/*.svg")}


def draw_again(folder, out):
    """Draw as whoever reads the repository would: from committed data alone."""
    if folder in ANALYSED:
        for name, figure in figures(read_analysis(folder)).items():
            save(figure, out / "figures", name, ("svg",))
        if folder == STUDIES / "vit_peft":  # its page draws more
            vit_page.draw(read_analysis(folder), out / "figures")
        return
    study = folder.relative_to(STUDIES).parts[0]  # a script of its own
    module = "page" if (STUDIES / study / "page.py").is_file() else "measure"
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    import_module(f"studies.{study}.{module}").write(found, out)


def test_every_study_that_shows_something_is_drawn_here():
    shown = {file.parent for file in STUDIES.rglob("figures")}
    assert shown == set(DRAWN)
    assert len(ANALYSED) < len(DRAWN)


@pytest.mark.parametrize("folder", DRAWN, ids=named)
def test_a_study_s_figures_are_the_same_bytes_again(folder, tmp_path):
    draw_again(folder, tmp_path)
    assert svgs(tmp_path) == svgs(folder)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ANALYSED, ids=named)
def test_a_study_s_page_is_the_same_text_again(folder):
    analysis = read_analysis(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert html(analysis, figures(analysis)) == page


def test_a_front_is_of_one_data_set():
    analysis = read_analysis(STUDIES / "vit_peft")
    drawn = figures(analysis)
    for data in analysis["study"]["data"]:
        axes = drawn[f"pareto-{data}"].axes[0]
        means = {a["value"] for a in analysis["arms"] if a["data"] == data}
        (front,) = [line for line in axes.lines if line.get_label() == "front"]
        assert set(front.get_ydata()) <= means
        (zone,) = [p for p in axes.patches if "A/A" in p.get_label()]
        (noise,) = [
            n
            for n in analysis["noise"]
            if (n["data"], n["arm"]) == (data, analysis["study"]["baseline"])
        ]
        middle = zone.get_y() + zone.get_height() / 2
        assert middle == pytest.approx(noise["mean"])
        assert zone.get_height() == pytest.approx(2 * noise["half_width"]["3"])


def test_another_value_is_another_figure(tmp_path):
    folder = STUDIES / "aa_floor"
    analysis = read_analysis(folder)
    analysis["runs"][0]["value"] += 0.1
    for name, figure in figures(analysis).items():
        save(figure, tmp_path / "figures", name, ("svg",))
    assert svgs(tmp_path) != svgs(folder)


def test_the_verb_draws_from_the_analysis_alone(tmp_path):
    out = loralab("study", "figures", STUDIES / "aa_floor", "--out", tmp_path)
    assert out.code == 0, out.err
    drawn = (tmp_path / "seeds.svg").read_bytes()
    assert drawn == (STUDIES / "aa_floor" / "figures" / "seeds.svg").read_bytes()
    assert {file.suffix for file in tmp_path.iterdir()} == {".pdf", ".svg", ".png"}
    wrong = loralab("study", "figures", tmp_path)
    assert wrong.code == 2
    assert "study report" in wrong.err
