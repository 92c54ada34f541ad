"""`loralab doctor`: what works on this machine."""

from __future__ import annotations

import os

import typer


def doctor() -> None:
    """Say what works here: device, dtype, memory, versions, caches."""
    from rich.table import Table

    from loralab.cli import render
    from loralab.data.packages import PACKAGES, cache_dir
    from loralab.models.embedded import EMBEDDED_MODELS
    from loralab.models.numerics import choose_numerics
    from loralab.runs.environment import environment

    here = environment()
    numerics = choose_numerics("best", "best")
    table = Table(show_header=False)
    table.add_row("device", f"{numerics.device} ({here['gpu'] or here['cpu']})")
    table.add_row("dtype", f"{numerics.dtype}: {numerics.reason}")
    table.add_row("cores, threads", f"{here['cores']}, {here['threads']}")
    table.add_row("memory", render.size(here["memory_bytes"]))
    table.add_row("python", f"{here['python']} on {here['platform']}")
    for name, version in here["packages"].items():
        table.add_row(name, version)
    held = cache_dir() / "packages"
    for name, package in PACKAGES.items():
        there = (held / f"{name}-{package.version}").is_dir()
        table.add_row(f"package {name}", "in the cache" if there else "not fetched yet")
    models = cache_dir() / "models"
    for name in EMBEDDED_MODELS:
        there = any(models.glob(f"{name}-*"))
        table.add_row(f"embedded:{name}", "converted" if there else "not converted yet")
    token = "set" if os.environ.get("HF_TOKEN") else "not set"
    table.add_row("HF_TOKEN", f"{token} (needed for gated hub models only)")
    console = render.console()
    console.print(table)
    if missing := [n for n, v in here["packages"].items() if v == "not installed"]:
        typer.echo(f"missing: {', '.join(missing)}")
        raise typer.Exit(1)
    typer.echo("all that this release needs is here")
