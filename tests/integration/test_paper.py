"""`loralab paper build` on committed results: each guard, by the mistake it is for."""

import json
import shutil
from pathlib import Path

import pytest

from loralab.reporting.paper import lock
from loralab.reporting.paper.build import build
from loralab.reporting.paper.render import svg_to_pdf
from loralab.reporting.tables import MINUS
from loralab.runs.files import sha256_file, write_json
from tests.cli import loralab

pytest.importorskip("pypandoc")
pytest.importorskip("typst")

ROOT = Path(__file__).parents[2]
STUDY = "adaptive_rank_smollm2"
RUN = "trec-6-0123456789"
DRAFT = f"""---
title: A paper
bibliography: references.bib
---
# Results

By {{{{ {STUDY} gradient difference }}}} nats, {{{{ claim {STUDY} gradient better }}}}
than uniform rank [@holm1979].

An accuracy of {{{{ runs/{RUN} test/accuracy adapter }}}}, in {{{{ figure seeds }}}}, at
$\\alpha = {{{{ {STUDY} $.study.alpha }}}}$.

![Seeds.](../studies/{STUDY}/figures/seeds.svg){{#fig:seeds width=50%}}

| arm | difference |
|:----|-----------:|
| gradient | {{{{ {STUDY} gradient difference }}}} |

: A table. {{#tbl:arms}}
"""
HOLM = """@article{holm1979, title={A Simple Sequentially Rejective Multiple Test
Procedure}, author={Holm, Sture}, journal={Scandinavian Journal of Statistics},
year={1979}}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one committed study, one run's evaluation, and a draft."""
    shutil.copytree(ROOT / "studies" / STUDY, tmp_path / "studies" / STUDY)
    run = tmp_path / "runs" / RUN
    environment = {"git_commit": "0" * 40}
    head = {"format": 1, "name": "trec-6", "hash": "0123456789", "kind": "adapter"}
    head |= {"status": "complete", "started": "2026-01-01T00:00:00+00:00"}
    write_json(run / "run.json", {**head, "environment": environment})
    accuracy = {"adapter": {"value": 0.5, "low": 0.4, "high": 0.6}}
    content = {"better": {"accuracy": "higher"}, "metrics": {"accuracy": accuracy}}
    write_json(run / "eval" / "test.json", content)
    paper = tmp_path / "paper"
    paper.mkdir()
    (paper / "draft.md").write_text(DRAFT, encoding="utf-8")
    (paper / "references.bib").write_text(HOLM, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(*args):
    """Build, and return what the refusal says; nothing may have been written."""
    before = sorted(Path("paper").iterdir())
    done = loralab("paper", "build", "paper/draft.md", *args)
    assert done.code == 2, done.out + done.err
    assert sorted(Path("paper").iterdir()) == before
    return done.err


def stands_on(manifest, text):
    """Return a number's entry, and its runs and commits by their names."""
    entry = next(
        source["numbers"][text]
        for source in manifest["sources"].values()
        if text in source["numbers"]
    )
    behind = manifest["stands_on"][entry["stands_on"]]
    named = ([manifest[key][n] for n in behind[key]] for key in ("runs", "commits"))
    return entry, *named


def with_line(text):
    file = Path("paper/draft.md")
    file.write_text(file.read_text(encoding="utf-8") + f"\n{text}\n", encoding="utf-8")


def test_a_paper_is_built_and_its_manifest_tells_where_numbers_are_from(project):
    done = loralab("paper", "build", "paper/draft.md")
    assert done.code == 0, done.err
    assert (project / "paper/draft.pdf").read_bytes()[:5] == b"%PDF-"
    manifest = json.loads((project / "paper/draft.manifest.json").read_text())
    run, runs, commits = stands_on(manifest, f"runs/{RUN} test/accuracy adapter")
    assert (runs, commits) == ([RUN], ["0" * 40])
    assert run["shown"] == "0.50 [0.40, 0.60]"
    file = f"runs/{RUN}/eval/test.json"
    assert manifest["sources"][file]["sha256"] == sha256_file(project / file)
    gradient, runs, _ = stands_on(manifest, f"{STUDY} gradient difference")
    assert len(runs) == 6
    assert len(manifest["runs"]) == len(set(manifest["runs"])) == 7
    assert gradient["lines"] == [7, 17]
    assert gradient["pointers"] == ["/comparisons/2/difference"]
    first = (project / "paper/draft.pdf").read_bytes()
    assert loralab("paper", "build", "paper/draft.md").code == 0
    assert (project / "paper/draft.pdf").read_bytes() == first


def test_latex_and_typst_sources_come_with_their_figures(project):
    for to, natbib in (("tex", False), ("tex", True), ("typst", False)):
        out = Path(f"made/{natbib}/paper.{to}")
        args = ["--citations", "natbib"] if natbib else []
        done = loralab(
            "paper", "build", "paper/draft.md", "--to", to, "--out", out, *args
        )
        assert done.code == 0, done.err
        text = out.read_text(encoding="utf-8")
        assert f"{MINUS}0.019" in text
        figure = (
            out.parent / "paper-figures" / f"1-seeds.{'svg' if to != 'tex' else 'pdf'}"
        )
        assert f"paper-figures/{figure.name}" in text
        assert figure.stat().st_size > 1000
        assert (out.parent / "references.bib").exists() == natbib
        if to == "tex":
            assert r"\alpha = 0.05" in text
            assert r"\toprule" in text
            assert (r"\citep{holm1979}" in text) == natbib


def test_a_template_of_the_user_is_used_and_a_missing_tex_is_named(
    project, monkeypatch
):
    Path("mine.tex").write_text(r"\documentclass{mine} $title$ $body$", "utf-8")
    args = ("paper", "build", "paper/draft.md", "--template", "mine.tex")
    done = loralab(*args, "--to", "tex")
    assert done.code == 0, done.err
    assert r"\documentclass{mine} A paper" in Path("paper/draft.tex").read_text("utf-8")
    monkeypatch.setenv("PATH", "")
    said = refused("--template", "mine.tex")
    assert "no such TeX is installed" in said
    assert "--to tex" in said
    assert "template cannot be used" in refused("--template", "none.typ")


def test_a_claim_about_a_run_is_about_its_base(project):
    file = project / "runs" / RUN / "eval/test.json"
    content = json.loads(file.read_text())
    content["metrics"]["accuracy"] |= {
        "base": {"value": 0.2, "low": 0.1, "high": 0.3},
        "difference": {"value": 0.3, "low": 0.1, "high": 0.5},
    }
    write_json(file, content)
    with_line(f"{{{{ claim runs/{RUN} test/accuracy better than base }}}}")
    assert loralab("paper", "build", "paper/draft.md", "--to", "typst").code == 0
    content["metrics"]["accuracy"]["difference"]["low"] = -0.1
    write_json(file, content)
    assert "is claimed to be better, and is not" in refused("--update")


def test_a_figure_without_a_pdf_is_converted_for_latex(project):
    made = svg_to_pdf(project / "studies" / STUDY / "figures/seeds.svg")
    assert made[:5] == b"%PDF-"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("It is 0.5 nats.", "'0.5' is typed by hand"),
        (f"{{{{ claim {STUDY} mlp-heavy worse }}}}", "the interval includes zero"),
        (
            f"{{{{ claim {STUDY} gradient better than eva }}}}",
            "about 'eva'",
        ),
        (f"{{{{ {STUDY} gradent value }}}}", "nearest: chatterbot/gradient"),
        (
            "{{ adaptive_rank trec-6/eva value }}",
            "no study 'adaptive_rank'",
        ),
        ("{{ runs/trec-6-9999999999 test/accuracy base }}", f"nearest: runs/{RUN}"),
        (f"{{{{ runs/{RUN} dev/accuracy adapter }}}}", "no evaluation of 'dev'"),
        (f"{{{{ runs/{RUN} test/accuracy base }}}}", "no key 'base'"),
        ("As [@holm1997] says.", "@holm1997 is in no bibliography (references.bib)"),
        ("![No](none.svg)", "no figure none.svg"),
        ("{{ figure none }}", "no figure 'none'"),
        ("{{ literal 0.05 }}", "the reason why no run measured it"),
        ("An {{ open brace.", "{{ does not close"),
        (
            f'{{{{ claim {STUDY} gradient better as "better by 12 %" }}}}',
            "'12 %' is typed by hand",
        ),
    ],
)
def test_each_mistake_is_refused_with_its_line(project, line, said):
    with_line(line)
    told = refused()
    assert said in told, told
    assert f"paper/draft.md:{len(DRAFT.splitlines()) + 2}:" in told


def test_all_mistakes_are_told_at_once_in_their_order(project):
    with_line("0.5\n\n[@nobody]\n\n{{ nothing $.a }}")
    told = refused()
    places = [told.index(word) for word in ("'0.5'", "@nobody", "no study 'nothing'")]
    assert places == sorted(places)


def test_a_number_that_changed_in_a_run_stops_the_build(project):
    assert loralab("paper", "build", "paper/draft.md").code == 0
    file = project / "runs" / RUN / "eval/test.json"
    content = json.loads(file.read_text())
    content["metrics"]["accuracy"]["adapter"]["value"] = 0.45
    write_json(file, content)
    old = lock.path_of(Path("paper/draft.md")).read_bytes()
    told = refused()
    assert "it was 0.50 [0.40, 0.60], and is 0.45 [0.40, 0.60]" in told
    assert "paper/draft.md:10: a number is stale" in told
    assert f"runs/{RUN} test/accuracy adapter" in told
    assert lock.path_of(Path("paper/draft.md")).read_bytes() == old
    done = loralab("paper", "build", "paper/draft.md", "--update")
    assert done.code == 0, done.err
    assert loralab("paper", "build", "paper/draft.md").code == 0


def test_a_source_or_figure_with_other_bytes_stops_the_build(project):
    assert loralab("paper", "build", "paper/draft.md").code == 0
    study = project / "studies" / STUDY
    for file in (study / "analysis.json", study / "figures/seeds.svg"):
        before = file.read_bytes()
        file.write_bytes(before + b"\n")
        told = refused()
        assert f"{file.relative_to(project)} has changed since the paper" in told
        file.write_bytes(before)
    assert loralab("paper", "build", "paper/draft.md").code == 0


def test_what_is_not_installed_is_named_with_its_extra(project, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "typst", None)
    assert "pip install 'loralab[paper]'" in refused()
    monkeypatch.setitem(__import__("sys").modules, "pypandoc", None)
    assert "a paper needs pypandoc" in refused()


def test_pandoc_refuses_maths_that_it_cannot_read(project):
    with_line("$\\frac{a}{$")
    assert "pandoc refuses the document" in refused()


def test_code_stays_code_so_that_it_hides_no_typed_number(project):
    with_line("By `0.26`{=typst} nats.")
    done = loralab("paper", "build", "paper/draft.md", "--to", "typst")
    assert done.code == 0, done.err
    text = Path("paper/draft.typ").read_text("utf-8")
    assert "0.26" in text and "By 0.26 nats" not in text


def test_numbers_lists_sources_and_what_they_hold(project):
    assert loralab("paper", "numbers").out.split() == [STUDY, f"runs/{RUN}"]
    said = loralab("paper", "numbers", STUDY, "gradient", "difference").out
    assert f"{{{{ {STUDY} chatterbot/gradient difference }}}}" in said
    assert "mlp-heavy" not in said
    said = loralab("paper", "numbers", f"runs/{RUN}").out
    assert f"{{{{ runs/{RUN} test/accuracy adapter }}}}  0.50 [0.40, 0.60]" in said
    assert loralab("paper", "numbers", "nothing").code == 2


def test_our_own_paper_says_what_is_committed():
    """Its lock holds: no number of it has changed since somebody read it."""
    paper = build(ROOT / "paper/draft.md", ROOT)
    assert len(paper.numbers) > 300
    assert lock.read(ROOT / "paper/draft.md") == paper.lock
    manifest = json.loads((ROOT / "paper/draft.manifest.json").read_text("utf-8"))
    parts = [s["numbers"] for s in manifest["sources"].values()]
    parts.append(manifest["literals and labels"])
    shown = {
        (text, entry["shown"], line)
        for part in parts
        for text, entry in part.items()
        for line in entry["lines"]
    }
    assert shown == {
        (one.reference.text, one.shown, one.reference.line) for one in paper.numbers
    }


def test_our_own_paper_becomes_a_pdf_and_latex(tmp_path, monkeypatch):
    for name in ("studies", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "paper", tmp_path / "paper")
    monkeypatch.chdir(tmp_path)
    done = loralab("paper", "build", "paper/draft.md", "--out", "made/paper.pdf")
    assert done.code == 0, done.err
    assert (tmp_path / "made/paper.pdf").read_bytes()[:5] == b"%PDF-"
    done = loralab(
        "paper", "build", "paper/draft.md", "--to", "tex", "--out", "made/paper.tex"
    )
    assert done.code == 0, done.err
    assert r"\begin{figure}" in (tmp_path / "made/paper.tex").read_text("utf-8")


def test_a_broken_record_beside_a_run_s_numbers_is_told_with_its_line(project):
    (project / "runs" / RUN / "run.json").write_text("{", encoding="utf-8")
    said = refused("--to", "tex")
    assert f"the run.json of {RUN} cannot be read" in said
    assert "paper/draft.md:" in said
