"""`loralab doctor`: what works on this machine, and what ails a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loralab.cli.completion import runs_like
from loralab.cli.json_output import Json, print_json
from loralab.cli.options import RunsDir
from loralab.units import size

if TYPE_CHECKING:
    from loralab.evaluation.diagnose import Diagnosis

STYLES = {"failure": "bold red", "cause": "red", "suspect": "yellow", "note": "dim"}


def doctor(
    run: Annotated[
        str | None,
        typer.Argument(
            help="A run's path, id or name; without it, this machine.",
            autocompletion=runs_like,
        ),
    ] = None,
    json_output: Json = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Say what works on this machine; or, of a RUN, whether it helped and why not.

    Without RUN, device and dtypes are found by trying them. Exit code 0: all
    that this release needs is here; 1: the last line says what to install.

    With RUN, its own files are checked for the usual mistakes. Exit code 0:
    the adapter beats its base; 1: that is not shown.

    With --json an object: default, environment, probes, memory_bytes, disk_free_bytes,
    cache, settings, traps, missing; of a RUN: run, verdict, measured, findings.

    Example: loralab doctor trec-6
    """
    if run is None:
        _machine(runs_dir, json_output)
    else:
        _run(run, runs_dir, json_output)


def _machine(runs_dir: Path, json_output: bool) -> None:
    from loralab.cli import render

    found = _found(runs_dir)
    missing: list[str] = found["missing"]
    if json_output:
        print_json(found)
    else:
        render.console().print(_machine_table(found), markup=True)
        if missing:
            wanted = " ".join(f'"{one}"' for one in missing)
            typer.echo(f"missing, or in an untested version: pip install {wanted}")
        else:
            typer.echo("all that this release needs is here")
    if missing:
        raise typer.Exit(1)


def _found(runs_dir: Path) -> dict[str, Any]:
    """Try everything; return plain JSON."""
    from dataclasses import asdict

    from loralab.data.packages import cache_dir
    from loralab.models.numerics import choose_numerics
    from loralab.runs import machine
    from loralab.runs.environment import environment

    needed = machine.requirements()
    names = [*machine.trap_packages(), *(one.name for one in needed)]
    versions = machine.installed(names)
    missing = machine.unmet(needed, versions)
    here = environment()
    if not needed:
        missing = [n for n, v in here["packages"].items() if v == "not installed"]
    numerics = choose_numerics("best", "best")
    devices = machine.devices()
    probes = [
        *devices,
        *(p for d in devices if d.works for p in machine.dtypes(d.name)),
        *machine.quantized(numerics.device),
        *machine.engines(),
        *machine.trackers(),
    ]
    cache = cache_dir()
    return {
        "default": asdict(numerics),
        "environment": {**here, "packages": versions | _own(here)},
        "probes": [asdict(probe) for probe in probes],
        "memory_bytes": machine.memory(),
        "disk_free_bytes": {str(p): machine.disk_free(p) for p in (runs_dir, cache)},
        "cache": _cached(cache),
        "settings": _settings(),
        "traps": [asdict(trap) for trap in machine.sprung(versions)],
        "missing": missing,
    }


def _own(here: dict[str, Any]) -> dict[str, str]:
    return {"loralab": here["packages"]["loralab"]}


def _settings() -> dict[str, str]:
    """Say which variables are set; a secret's value is never read out."""
    token = "set" if os.environ.get("HF_TOKEN") else "not set"
    return {
        "HF_TOKEN": f"{token} (needed for gated hub models only)",
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE") or "not set",
    }


def _cached(cache: Path) -> dict[str, str]:
    from loralab.data.packages import PACKAGES, missing
    from loralab.models.embedded import EMBEDDED_MODELS

    found = {}
    for name, package in PACKAGES.items():
        lacking = missing(package)
        found[f"package {name}"] = "not fetched yet" if lacking else "in the cache"
    for name in EMBEDDED_MODELS:
        there = any((cache / "models").glob(f"{name}-*"))
        found[f"embedded:{name}"] = "converted" if there else "not converted yet"
    return found


def _machine_table(found: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(show_header=False)
    default, here = found["default"], found["environment"]
    name = here["gpu"] or here["cpu"]
    table.add_row("default", f"{default['dtype']} on {default['device']} ({name})")
    table.add_row("", f"because {default['reason']}")
    marks = {True: "[green]works[/]", False: "[yellow]no[/]", None: ""}
    for probe in found["probes"]:
        mark, works = marks[probe["works"]], probe["works"]
        if works and "not tried" in probe["detail"]:
            mark = "[green]is here[/]"
        fix = f" → {probe['fix']}" if probe["fix"] and not works else ""
        if probe["fix"] in probe["detail"]:
            fix = ""
        told = f"{mark}  {_plain(probe['detail'])}{_plain(fix)}".strip()
        table.add_row(f"{probe['topic']} {probe['name']}", told)
    for name, count in found["memory_bytes"].items():
        table.add_row(f"memory {name.replace('_', ' ')}", size(count))
    for path, count in found["disk_free_bytes"].items():
        table.add_row("disk free", f"{size(count)} at {_plain(path)}")
    table.add_row("python", f"{here['python']} on {here['platform']}")
    versions = [f"{name} {held}" for name, held in sorted(here["packages"].items())]
    table.add_row("versions", ", ".join(versions))
    for name, told in {**found["cache"], **found["settings"]}.items():
        table.add_row(name, _plain(told))
    for trap in found["traps"]:
        beside = f" beside {trap['beside']}" if trap["beside"] else ""
        told = f"{trap['package']} {here['packages'][trap['package']]}{beside}: "
        told += f"{trap['wrong']} → {trap['fix']}"
        table.add_row("[red]known trap[/]", _plain(told))
    if not found["traps"]:
        table.add_row("known traps", "none of these versions")
    return table


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _run(reference: str, runs_dir: Path, json_output: bool) -> None:
    from dataclasses import asdict

    from loralab.evaluation.diagnose import diagnose
    from loralab.runs import find_run

    run = find_run(reference, runs_dir)
    found = diagnose(run)
    if json_output:
        print_json({"run": run.id, **asdict(found)})
    else:
        heads = HEADS_OF_ARTEFACT if run.read()["kind"] == "artefact" else HEADS
        _print_diagnosis(run.id, heads[found.verdict], found)
    if found.verdict != "better":
        raise typer.Exit(1)


HEADS = {
    "better": "the adapter beats its base",
    "worse": "the adapter is WORSE than its base",
    "not shown": "not shown that the adapter beats its base",
    "not measured": "not measured whether the adapter beats its base",
    "failed": "the training failed",
    "interrupted": "the training was killed",
    "running": "the training is running",
}
HEADS_OF_ARTEFACT = {
    "not measured": "the artefact is complete",
    "failed": "the artefact was not made",
    "interrupted": "the making of the artefact was killed",
    "running": "the artefact is being made",
}


def _print_diagnosis(name: str, head: str, found: Diagnosis) -> None:
    from rich.table import Table

    from loralab.cli import render

    console = render.console()
    head = f"{name}: {head}"
    if found.measured and "difference" in found.measured:
        one = found.measured
        head += (
            f": {one['metric']} {one['base']['value']:.3f} → "
            f"{one['adapter']['value']:.3f}, difference "
            f"{render.interval(one['difference'], sign=True)} "
            f"({one['rows']:,} {one['split']} rows)"
        )
    console.print(head, soft_wrap=True)
    if not found.findings:
        if found.verdict != "better":
            console.print("none of the usual causes was seen in the run's files")
        return
    better = found.verdict == "better"
    console.print("worth knowing all the same:" if better else "what was seen:")
    table = Table.grid(padding=(0, 2))
    for finding in found.findings:
        mark = f"[{STYLES[finding.severity]}]{finding.severity}[/]"
        table.add_row(mark, finding.kind, _plain(finding.evidence))
        table.add_row("", "", f"[green]→[/] {_plain(finding.fix)}")
    console.print(table, markup=True)
