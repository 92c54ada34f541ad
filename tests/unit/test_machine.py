import json
import os
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from loralab.runs import machine

SOUND = {"torch": "2.13.0+cpu", "transformers": "5.23.0", "peft": "0.21.2"}


@pytest.mark.parametrize("trap", machine.TRAPS, ids=lambda t: t.package)
def test_each_trap_is_found_and_its_fix_is_not_one(trap):
    def first_within(allowed):
        tries = ["0.1", "0.20", "0.47", "1.0", "3.0", "4.57", "5.23", "6.0", "7.0"]
        return next(v for v in tries if SpecifierSet(allowed).contains(v))

    stepped_in = {trap.package: first_within(trap.versions)}
    if trap.beside:
        stepped_in[trap.beside] = first_within(trap.beside_versions)
    assert trap in machine.sprung(stepped_in)
    if trap.beside:
        assert trap not in machine.sprung({trap.package: stepped_in[trap.package]})
    if trap.fix.startswith("pip install"):
        wanted = Requirement(trap.fix.split('"')[1])
        assert wanted.name in (trap.package, trap.beside)


def test_sound_versions_spring_no_trap():
    assert machine.sprung(SOUND) == []
    assert machine.sprung({}) == []


def test_a_trap_ends_at_its_version():
    beside = {"transformers": "5.23.0"}
    assert machine.sprung({"peft": "0.21.1", **beside})
    assert not machine.sprung({"peft": "0.21.2", **beside})
    assert not machine.sprung({"peft": "0.21.1", "transformers": "5.17.0"})


def test_a_requirement_is_unmet_if_absent_or_in_another_version():
    needed = [Requirement("torch>=2.6"), Requirement("transformers>=5.23,<5.24")]
    assert machine.unmet(needed, SOUND) == []
    other = machine.unmet(needed, {"transformers": "5.24.0"})
    assert other == ["torch>=2.6", "transformers<5.24,>=5.23"]


def test_requirements_are_those_of_the_package_without_extras():
    names = {one.name for one in machine.requirements()}
    assert {"torch", "transformers", "peft"} <= names
    assert "pytest" not in names


def test_the_cpu_is_found_and_multiplies_in_fp32():
    cpu = next(p for p in machine.devices() if p.name == "cpu")
    assert cpu.works
    fp32 = next(p for p in machine.dtypes("cpu") if p.name == "fp32 on cpu")
    assert fp32.works
    assert "relative error" in fp32.detail


def test_a_device_that_is_not_there_fails_as_a_finding_not_as_an_error():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    cuda = next(p for p in machine.devices() if p.name == "cuda")
    assert cuda.works is False


def test_a_trial_that_throws_says_what_and_keeps_the_fix():
    def broken():
        raise OSError("libfoo.so is missing\nlong trace")

    found = machine._tried("engine", "foo", broken, "pip install foo")
    assert found.works is False
    assert found.detail == "OSError: libfoo.so is missing"
    assert found.fix == "pip install foo"


def test_quantized_layers_are_tried_or_said_to_be_not_installed():
    found = machine.quantized("cpu")
    if machine.installed(["bitsandbytes"]):
        layer = next(p for p in found if p.name.startswith("4-bit"))
        assert layer.works
        assert "relative error" in layer.detail
        assert not next(p for p in found if p.name.startswith("paged")).works
    else:
        assert all("pip install bitsandbytes" in p.detail for p in found)


def test_a_secret_is_never_read_out():
    env = {**os.environ, "WANDB_API_KEY": "s3cr3t-a", "HF_TOKEN": "s3cr3t-b"}
    command = [sys.executable, "-m", "loralab.cli.main", "doctor", "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert done.returncode == (1 if found["missing"] else 0)
    assert "s3cr3t" not in done.stdout + done.stderr
    keys = [p for p in found["probes"] if p["name"] == "WANDB_API_KEY"]
    assert keys[0]["detail"] == "set"
    assert found["settings"]["HF_TOKEN"].startswith("set")


def test_disk_is_told_of_a_directory_that_is_not_made_yet(tmp_path):
    assert machine.disk_free(tmp_path / "a" / "b") > 0
    assert not (tmp_path / "a").exists()


def test_memory_available_is_within_the_total():
    found = machine.memory()
    assert 0 < found["available"] <= found["total"]
