"""The site: pages say what there is, links lead somewhere, commands can be called."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests import markdown

import loralab
from loralab import registry
from loralab.config.compose import GROUPS, presets
from loralab.experiments.study_config import read_study

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts)
sys.path.insert(0, str(DOCS))

import generated  # noqa: E402

pages = pytest.mark.parametrize(
    "page", PAGES, ids=lambda p: p.relative_to(DOCS).as_posix()
)


@pages
def test_every_command_of_a_page_could_be_called(page):
    text = page.read_text(encoding="utf-8")
    for block in markdown.blocks(text, "bash"):
        for line in markdown.lines_of(block.text):
            if not line.endswith("# refused"):  # it is called, and refused, elsewhere
                markdown.check(line)


@pytest.mark.parametrize(
    "line",
    [
        "loralab trian trec-6",
        "loralab train trec-6 --resmue",
        "loralab train trec-6 peft.params.rnk=4",
        "loralab train trec-6 model=smollm3",
        "loralab sweep trec-6 training.learning_rate=1e-3,0",
        "loralab sweep trec-6 seed=range(2) --executor ray executor.gpu=1",
        "loralab merge a b --out c --method opcm alpha=0.5",
        "loralab merge a b --method opcm",
        "loralab quantize a --to onnx-int3",
        "loralab quantize a --to onnx-int4 block=32",
        "loralab publish a hub",
        "loralab publish a ftp",
        "python -m benchmarks.nothing",
        "python studies/nothing.py",
        "pip install 'loralab[everything]'",
        "make documents",
    ],
)
def test_a_command_that_loralab_would_refuse_is_found(line):
    with pytest.raises(markdown.Wrong):
        markdown.check(line)


@pages
def test_code_of_a_page_compiles_and_names_what_there_is(page):
    text = page.read_text(encoding="utf-8")
    for block in markdown.blocks(text, "python"):
        compile(block.text, f"{page.name}:{block.line}", "exec")
        for name in markdown.public_names(block.text):
            assert hasattr(loralab, name), f"{page.name}:{block.line} loralab.{name}"


@pages
def test_yaml_of_a_page_is_what_it_says(page, tmp_path):
    for block in markdown.blocks(page.read_text(encoding="utf-8"), "yaml"):
        given = yaml.safe_load(block.text)
        if "defaults" in given:
            file = tmp_path / "experiment.yaml"
            file.write_text(block.text, encoding="utf-8")
            loralab.compose(str(file))
        if "question" in given:
            file = tmp_path / "study.yaml"
            file.write_text(block.text, encoding="utf-8")
            read_study(file)


def links(text):
    plain = re.sub(r"^(`{3,}).*?^\1$|`[^`\n]+`", "", text, flags=re.M | re.S)
    return re.findall(r"\]\(([^)\s]+)\)", plain)


def anchors(page):
    text = generated.fill(page.read_text(encoding="utf-8"))
    heads = re.findall(r"^#+ +(.+)$", text, re.M)
    slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}
    return slugs | set(re.findall(r"^\(([\w-]+)\)=$", text, re.M))


@pages
def test_links_of_a_page_lead_somewhere(page):
    for link in links(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if target.suffix == ".md" and DOCS in target.parents:
            assert not anchor or anchor in anchors(target), link


def test_a_folder_of_pages_is_in_the_contents():
    listed = [generated.pages("tutorial"), generated.pages("guide")]
    for folder, contents in zip(("tutorial", "guide"), listed, strict=True):
        for page in (DOCS / folder).glob("*.md"):
            assert page.stem == "index" or f"\n{page.stem}\n" in contents


def test_paths_that_the_guide_and_the_explanations_name_exist():
    named = r"`((?:src|tests|studies|benchmarks|paper|docs)/[\w./-]+)`"
    count = 0
    for page in PAGES:
        if page.parent.name == "tutorial":  # whose reader makes files
            continue
        for path in re.findall(named, page.read_text(encoding="utf-8")):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
            count += page.name == "reading-guide.md"
    assert count > 30


def test_the_guide_has_four_phases_and_a_way_into_every_room():
    text = (DOCS / "reading-guide.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^## Phase \d", text, re.M)) == 4
    rooms = {p.parent.name for p in (ROOT / "src/loralab").glob("*/__init__.py")}
    entered = set(re.findall(r"src/loralab/(\w+)/", text))
    assert rooms - entered <= {"inference", "publishing"}  # one verb each


def reference():
    folder = DOCS / "reference"
    return "".join(
        generated.fill(page.read_text(encoding="utf-8"))
        for page in folder.glob("*.md")
        if page.name != "api.md"
    )


def test_the_reference_has_every_name_key_preset_and_verb():
    text = reference()
    for kind in registry.PACKAGES:
        for name in registry.names(kind):
            assert f"({generated.slug(kind, name)})=" in text, (kind, name)
            for key in registry.get(kind, name).schema.model_fields:
                assert f"| `{key}` |" in text, (kind, name, key)
    for _, schema in generated.sections(loralab.ExperimentConfig):
        for key in schema.model_fields:
            assert f"| `{key}` |" in text, key
    for group in ("experiment", *GROUPS):
        for name in presets(group):
            assert f"| `{name}` |" in text, name
    assert "## `loralab merge add`" in text and "## `loralab merge`" in text
    assert "## `loralab train`" in text and "`--resume`" in text


def test_the_api_has_every_public_name():
    text = generated.api()
    for name in loralab.__all__[1:]:
        assert f"loralab.{name}" in text, name


def test_a_number_of_a_page_is_read_from_a_result():
    page = "{{ adapter_survival $.targets[1] percent }} and `{{ code }}`"
    assert generated.measured(page) == "1 % and `{{ code }}`".replace(" %", "\u00a0%")
    with pytest.raises(loralab.LoralabError, match="nothing"):
        generated.measured("{{ adapter_survival $.nothing }}")


FOUND = re.findall(
    r"benchmarks\.findings ([\w-]+)", (DOCS / "findings.md").read_text(encoding="utf-8")
)


def test_findings_are_those_that_can_be_tried():
    from benchmarks.findings import FINDINGS

    assert sorted(FOUND) == sorted(FINDINGS)


@pytest.mark.parametrize("name", FOUND)
def test_what_we_found_is_still_so(name):
    """Where a tool has mended it, the page and perhaps a guard of ours can go."""
    from benchmarks.findings import FINDINGS

    found = FINDINGS[name].try_it()
    if found.seen is None:
        pytest.skip(found.told)
    assert found.seen, found.told


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-E"]
    made = subprocess.run(
        [*command, "-d", tmp_path / "trees", DOCS, tmp_path / "html"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert made.returncode == 0, made.stderr
    assert len(list((tmp_path / "html").rglob("*.html"))) > 25
    page = (tmp_path / "html/explanation/merging.html").read_text(encoding="utf-8")
    assert "<math" in page and "{{" not in page
