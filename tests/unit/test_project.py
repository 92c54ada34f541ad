"""What surrounds the code: images, hooks, workflows, messages, the changelog."""

import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from tests.commits import FORM, subjects, wrong
from tests.dockerfile import (
    OWN,
    Build,
    Instruction,
    assigned,
    is_system,
    parse,
    stages,
)

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent  # the environment need not be on PATH
IMAGES = {name: ROOT / "docker" / name for name in ("Dockerfile", "Dockerfile.cuda")}
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
HOOKS = [
    hook
    for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in repo["hooks"]
]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yaml"))


def values(name, instructions):
    return [one.value for one in instructions if one.name == name]


def read(*parts):
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


# images


@pytest.mark.parametrize("name", IMAGES)
def test_a_base_image_has_a_whole_version(name):
    for value in values("FROM", parse(IMAGES[name])):
        assert re.match(r"python:3\.11\.\d+-slim-\w+\b", value)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_loralab_and_not_root(name):
    last = stages(parse(IMAGES[name]))[-1]
    assert values("ENTRYPOINT", last) == ['["loralab"]']
    (user,) = values("USER", last)
    assert user.split(":")[0].isdigit() and int(user.split(":")[0]) > 0
    assert last.index(Instruction("USER", user)) > max(
        i for i, one in enumerate(last) if one.name in ("RUN", "COPY")
    )
    assert values("VOLUME", last) == ["/srv/loralab/runs"]


@pytest.mark.parametrize("name", IMAGES)
def test_torch_comes_first_and_is_the_one_of_the_makefile(name):
    first, *later = values("RUN", stages(parse(IMAGES[name]))[0])
    (pinned,) = re.findall(r"torch==[\d.]+", MAKEFILE)
    assert pinned in first
    assert not any("torch==" in run for run in later)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_s_extras_are_those_of_the_package_and_locked(name):
    (extras,) = [a for a in values("ARG", parse(IMAGES[name])) if "EXTRAS" in a]
    text = read("pyproject.toml").split("[project.optional-dependencies]")[1]
    locked = re.findall(r"^([\w.-]+)==", read("requirements.lock"), re.MULTILINE)
    for extra in extras.partition("=")[2].split(","):
        (wanted,) = re.findall(rf"^{extra} = \[(.*?)\]", text, re.MULTILINE | re.S)
        for package in re.findall(r'"([\w.-]+)', wanted):
            assert package in locked


def test_the_image_for_gpus_differs_in_its_torch_and_two_variables_only():
    plain, cuda = (parse(file) for file in IMAGES.values())
    assert len(plain) == len(cuda)
    pairs = [(a, b) for a, b in zip(plain, cuda, strict=True) if a != b]
    assert [one.name for pair in pairs for one in pair] == ["ARG", "ARG", "ENV", "ENV"]
    assert pairs[0][1].value == "TORCH_INDEX=https://pypi.org/simple"
    more = assigned(pairs[1][1].value).keys() - assigned(pairs[1][0].value).keys()
    assert more == {"NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}


@pytest.mark.parametrize("name", IMAGES)
def test_every_step_is_shell(name):
    for run in values("RUN", parse(IMAGES[name])):
        subprocess.run(["/bin/sh", "-n", "-c", run], check=True)


@pytest.mark.parametrize("name", IMAGES)
def test_what_is_copied_is_let_into_the_context_and_is_there(name):
    allowed = read(".dockerignore").splitlines()
    assert allowed[1] == "*"
    for value in values("COPY", stages(parse(IMAGES[name]))[0]):
        for source in value.split()[:-1]:
            assert f"!{source}" in allowed
            assert (ROOT / source).exists()


@pytest.mark.parametrize("name", IMAGES)
def test_hadolint_finds_nothing(name):
    call = [BIN / "hadolint", IMAGES[name]]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_steps_that_are_the_machine_s_own_are_not_run(tmp_path):
    assert is_system("apt-get update")
    assert is_system("rm -rf /var/lib/apt/lists/*")
    assert not is_system(f"python -m venv {OWN}/venv")
    build = Build(tmp_path, {"TORCH_INDEX": "elsewhere"})
    build.take(Instruction("ARG", "TORCH_INDEX=here"))
    build.take(Instruction("WORKDIR", f"{OWN}/source"))
    build.take(Instruction("RUN", f"apt-get no && echo $TORCH_INDEX > {OWN}/told"))
    told = tmp_path / "image" / OWN[1:] / "told"
    assert told.read_text() == "elsewhere\n"
    asked = f"python -c 'import sys; print(sys.version)' > {OWN}/told"
    build.take(Instruction("RUN", asked))
    assert told.read_text() == f"{sys.version}\n"
    assert {file.name for file in build.context.iterdir()} == {
        *("src", "pyproject.toml", "requirements.lock", "README.md", "LICENSE")
    }
    with pytest.raises(subprocess.CalledProcessError):
        build.take(Instruction("RUN", "false && true"))


@pytest.mark.slow
def test_the_steps_make_a_loralab_that_trains(tmp_path):
    index = "TORCH_INDEX=https://pypi.org/simple"  # pip's settings may say another
    given = [sys.executable, "-m", "tests.dockerfile", IMAGES["Dockerfile"], tmp_path]
    subprocess.run([*map(str, given), index], cwd=ROOT, check=True)
    own = tmp_path / "image" / OWN[1:]
    work = tmp_path / "work"
    work.mkdir()
    clean = {"PATH": f"{own}/venv/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    small = "data.max_rows={train: 32, validation: 8, test: 8}"
    short = ["training.max_steps=2", "evaluation.resamples=200"]
    subprocess.run(
        ["loralab", "train", "sms-spam", small, *short],
        cwd=work,
        env={**clean, "LORALAB_CACHE": str(own / "cache")},
        check=True,
    )
    assert len(list(work.glob("runs/sms-spam-*/adapter/*.safetensors"))) == 1


def test_compose_s_services_keep_runs_and_are_not_root():
    found = yaml.safe_load(read("compose.yaml"))
    assert list(found["volumes"]) == ["runs"]
    for service in found["services"].values():
        assert "runs:/srv/loralab/runs" in service["volumes"]
        (user,) = values("USER", parse(ROOT / service["build"]["dockerfile"]))
        assert service["user"] == user
    gpu = found["services"]["loralab-cuda"]
    assert gpu["profiles"] == ["gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


# hooks and workflows


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_a_hook_s_entry_is_there(hook):
    first, *rest = shlex.split(hook["entry"])
    assert (ROOT / first).exists()
    if Path(first).name == "python":
        name = rest[1].replace(".", "/") + ".py" if rest[0] == "-m" else rest[0]
        assert (ROOT / name).is_file()


def test_hooks_hold_all_that_make_lint_holds():
    lint = MAKEFILE.split("lint: setup")[1].split("\n\n")[0]
    asked = re.findall(r"\$\(BIN\)/(.*)", lint)
    held = {hook["entry"].removeprefix(".venv/bin/") for hook in HOOKS}
    assert len(asked) == 5
    for line in asked:
        assert line.removesuffix(" .").replace(" --check", "") in held


def test_the_workflow_runs_the_same_script_as_everybody():
    found = yaml.safe_load(read(".github", "workflows", "ci.yaml"))
    told = found[True]  # YAML 1.1 reads `on` so
    assert told.keys() == {"push", "pull_request"}
    assert found["permissions"] == {"contents": "read"}
    steps = [step for job in found["jobs"].values() for step in job["steps"]]
    assert ".ci/run" in [step.get("run") for step in steps]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
    for step in steps:
        assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/a@v1"))


@pytest.mark.parametrize("file", FORMS, ids=lambda file: file.stem)
def test_a_form_asks_for_what_is_needed(file):
    fields = {f["id"]: f for f in yaml.safe_load(file.read_text("utf-8"))["body"]}
    assert all(field["attributes"]["label"] for field in fields.values())
    if file.stem in ("bug", "result"):
        assert "loralab doctor" in fields["doctor"]["attributes"]["label"]
        assert "run.json" in fields["run"]["attributes"]["label"]
        assert fields["doctor"]["validations"]["required"] is True


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", [".github/workflows/ci.yaml"]),
        ("github-issue-forms", [str(file) for file in FORMS]),
        ("github-issue-config", [".github/ISSUE_TEMPLATE/config.yml"]),
        ("compose-spec", ["compose.yaml"]),
    ],
)
def test_files_fit_their_schema(schema, files):
    done = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


# messages, links, versions


def test_every_message_has_its_form():
    if not (ROOT / ".git").exists():
        pytest.skip("no history here")
    assert [found for found in map(wrong, subjects()) if found] == []


@pytest.mark.parametrize(
    "message",
    [
        "update things",
        "feature: a thing",
        "feat:no space",
        "feat: a full stop.",
        "Feat: a capital",
        "feat: one\nno empty line",
        "",
    ],
)
def test_a_message_of_another_form_is_refused(message):
    assert wrong(message)


@pytest.mark.parametrize(
    "message",
    [
        "feat: a thing",
        "fix(merging)!: another\n\nwith words.\n# and a comment",
        "Merge branch 'x'",
        f"Merge {'0' * 40} into {'1' * 40}",
        "# a comment first\nfix: a thing",
    ],
)
def test_a_message_of_the_form_is_taken(message):
    assert wrong(message) == ""


def test_the_page_names_every_type_of_message_that_was_used():
    page = read("CONTRIBUTING.md").split("## Commits")[1].split("## Results")[0]
    told = set(re.findall(r"`([a-z]+)`", page))
    used = {re.match(r"[a-z]+", one)[0] for one in subjects() if FORM.fullmatch(one)}
    assert used <= told


@pytest.mark.parametrize(
    "page", ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs/policy.md"]
)
def test_links_lead_somewhere(page):
    prose = re.sub(r"```.*?```", "", read(page), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
        if not link.startswith("http"):
            assert (ROOT / page).parent.joinpath(link).exists(), link


def test_every_kind_of_plug_in_is_in_the_page_s_table_with_its_folder():
    from loralab.registry import PACKAGES

    rows = re.findall(
        r"^\| ([\w ]+) \| `([\w/]+)` \| \[", read("CONTRIBUTING.md"), re.M
    )
    folders = {kind: f"loralab.{folder.replace('/', '.')}" for kind, folder in rows}
    assert folders == PACKAGES


def test_the_changelog_tells_of_the_version_that_is():
    page = read("CHANGELOG.md")
    heads = re.findall(r"^## \[(.+?)\]", page, re.MULTILINE)
    assert heads[0] == "Unreleased"
    coming = re.findall(r"To be ([\d.]+),", page)
    assert version("loralab") in [*heads, *coming]
    parts = set(re.findall(r"^### (.+)$", page, re.MULTILINE))
    usual = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert parts <= usual | {"Known limits"}
