"""What README, guide and tutorials say of the repository is there, as they say it."""

import html
import json
import re
import shlex

import pytest
import typer
import yaml
from tests.pages import GUIDE, PAGES, README, ROOT, TUTORIALS, blocks, files, links
from tests.pages import commands as commands_of
from tests.pages import name as name_of

from loralab import compose
from loralab.cli.main import app
from loralab.experiments.study_config import read_study

VERBS = typer.main.get_command(app)
SPEED, HOUSE = ROOT / "docs/guide/speed.md", ROOT / "docs/guide/house.md"
TEXT = README.read_text(encoding="utf-8")


def results(path):
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(TEXT.splitlines()) <= 200
    led = {(ROOT / one).resolve() for one in links(README)}
    others = {page for page in [*GUIDE, *TUTORIALS] if page.stem != "index"}
    assert len(others) >= 14
    assert others <= led


def test_the_two_commands_stand_as_they_are_read_elsewhere():
    typed = [one.text for one in blocks(README) if one.language == "bash"]
    words = [line.partition("#")[0].strip() for line in typed[0].splitlines()]
    assert words == ["make demo", "make test"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_has_one_title_and_its_links_lead_somewhere(page):
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    titles = re.findall(r"^# .+$", prose, re.M)
    assert len(titles) == 1 and prose.startswith(titles[0])
    gone = [one for one in links(page) if not (page.parent / one).exists()]
    assert not gone


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_is_to_be_typed_is_known(page):
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, name_of(page), "exec")
        if block.language != "bash":
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "make":
                assert re.search(rf"^{words[1]}:", targets, re.M), line
    for command in commands_of(page):
        words = shlex.split(command, comments=True)
        assert words[1] in VERBS.commands, command


def test_every_verb_of_the_table_is_one():
    table = TEXT.partition("## The verbs")[2].partition("\n## ")[0]
    cells = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ")]
    named = {one.split()[0] for cell in cells for one in re.findall("`([^`]+)`", cell)}
    assert set(VERBS.commands) - named <= {"sketch"}  # a step of one merge method
    assert named <= set(VERBS.commands)


@pytest.mark.parametrize("page", [README, HOUSE], ids=name_of)
def test_rooms_stand_in_the_order_that_lint_holds(page):
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    layers = contract.partition("layers = [")[2].partition("]")[0]
    rooms = re.findall(r'"loralab\.(\w+)"', layers)[::-1]
    rooms = [room for room in rooms if (ROOT / "src/loralab" / room).is_dir()]
    told = page.read_text(encoding="utf-8").partition("## The house")
    named = re.findall(r"`(?:src/loralab/)?(\w+)`", told[2] or told[0])
    assert [name for name in named if name in rooms] == rooms


def test_files_that_a_page_gives_are_right(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [one for page in PAGES for one in files(page).values()]
    experiments = 0
    for one in given:
        path = tmp_path / one.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(one.text, encoding="utf-8")
        if one.language != "yaml":
            continue
        if "defaults" in yaml.safe_load(one.text):
            experiments += 1
            assert compose(str(path)).name == path.stem
        else:
            assert read_study(path).question
    assert experiments >= 3


def test_own_rows_take_ten_lines_of_configuration():
    assert len(files(README)["tickets.yaml"].text.splitlines()) <= 10


def training_ratios(arm):
    found = results("benchmarks/results/training.json")["results"].values()
    rates = [
        {name: told["labels_per_second"] for name, told in one.items()} for one in found
    ]
    ratios = [one["loralab"] / one[arm] for one in rates if arm in one]
    return f"{min(ratios):.1f} to {max(ratios):.1f} times"


def memory_ratios():
    rows = results("benchmarks/results/plan.json")["rows"]
    found = [row["ratio"]["peak"] for row in rows]
    return (
        f"{min(found):.2f} to {max(found):.2f} of the measured one in {len(found)} "
        "trainings"
    )


def merged():
    files_part = results("benchmarks/results/merging.json")["files"]
    one = next(e for e in files_part["exports"] if e["algebra"] == "float64")
    return f"in {one['seconds']:.0f} s and {one['peak_bytes'] / 1e9:.2f} GB"


def merged_by_peft():
    seconds = results("benchmarks/results/merging.json")["peft"]["extrapolated_seconds"]
    return f"would take {seconds / 60:.0f} minutes"


def survived(start):
    adapters = results("studies/adapter_survival/results.json")["adapters"]
    wanted = {"grid": "NF4", "start": start, "scaled_to": 0.01}
    found = [
        cell["kept"]
        for one in adapters
        if (one["base"], one["method"]) == ("minilm", "lora")
        for cell in one["cells"]
        if wanted.items() <= cell.items()
    ]
    return 100 * sum(found) / len(found)


def coverage():
    cells = results("benchmarks/results/coverage.json")["seeds"]
    of = {k: [c["coverage"] for c in cells if c["seeds"] == k] for k in (3, 5, 10)}
    mixed = [100 * cell["mixed"] for found in of.values() for cell in found]
    means = [
        100 * sum(cell["bootstrap of seeds"] for cell in found) / len(found)
        for found in of.values()
    ]
    told = "{:.0f}, {:.0f} and {:.0f} %".format(*means)
    return f"cover {min(mixed):.0f} to {max(mixed):.0f} %, a bootstrap's {told}"


def regulariser():
    runs = results("studies/adalora_eval_loss/results.json")["runs"]
    found = [one["difference"] for run in runs for one in run["measured"]]
    return f"{min(found):.2f} to {max(found):.2f} nats too many"


BOUND = {
    "coverage": coverage,
    "regulariser": regulariser,
    "padded to 256": lambda: training_ratios("max_length"),
    "padded to the longest": lambda: training_ratios("dynamic"),
    "memory": memory_ratios,
    "merged": merged,
    "merged by PEFT": merged_by_peft,
    "on the grid": lambda: f"{survived('grid'):.0f} % is kept",
    "in float": lambda: f"{survived('float'):.1f} % when it is merged in float",
}


@pytest.mark.parametrize("figure", BOUND)
def test_a_figure_of_the_table_is_that_of_its_result(figure):
    assert BOUND[figure]() in TEXT


def test_the_picture_is_of_the_demo():
    drawn = (ROOT / "docs/images/demo.svg").read_text(encoding="utf-8")
    shown = html.unescape(re.sub(r"<[^>]+>", "", drawn)).replace("\xa0", " ")
    made = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    recipe = made.partition("\ndemo: ")[2].partition("\n\n")[0].splitlines()[1:]
    asked = [line.split("/loralab ")[1].split() for line in recipe]
    seen = [words for words in asked if words[0] in ("compare", "infer")]
    assert len(seen) == 3
    for words in seen:
        assert f"$ loralab {words[0]} {words[1]}" in shown
    assert "@font-face" not in drawn  # it loads nothing from elsewhere
    told = next(one.text for one in blocks(SPEED) if one.language == "text")
    gains = next(line for line in told.splitlines() if "difference" in line)
    found = re.findall(r"\S+ \[.*?\]", gains)
    assert len(found) == 2
    assert all(gain in shown for gain in found)


def test_the_table_of_decoding_is_that_of_the_benchmark():
    found = results("benchmarks/results/decoding.json")
    page = (ROOT / "docs/guide/quantize-and-deploy.md").read_text(encoding="utf-8")
    assert found["prompt_tokens"] == 128 and found["new_tokens"] == 64
    assert "prompts of 128 tokens, 64 new ones" in page

    def rate(batch, form, what):
        return found["batches"][batch][form][f"{what}_tokens_per_second"]["value"]

    for form in found["bytes"]:
        name = form.replace("onnx int4 g", "`onnx-int4`, blocks of ")
        name = name.replace("onnx fp32", "ONNX Runtime fp32")
        if f"| {name} |" not in page:
            continue
        line = (
            f"| {name} | {found['bytes'][form]['measured'] / 1e6:.0f} "
            f"| {rate('batch 1', form, 'prefill'):,.0f} "
            f"| {rate('batch 1', form, 'decode'):.0f} "
            f"| {rate('batch 8', form, 'decode'):.0f} |"
        )
        assert line in page
    assert page.count("| `onnx-int4`, blocks of") == 2
