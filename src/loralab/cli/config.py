"""`loralab config`: what an experiment resolves to, its schema, known names."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from loralab.cli.options import Experiment, Overrides

app = typer.Typer(help="Look at configurations.", no_args_is_help=True)


@app.command("show")
def show(experiment: Experiment, overrides: Overrides = None) -> None:
    """Print the resolved, complete configuration, and the run it would be."""
    import yaml

    from loralab.config import compose

    config = compose(experiment, overrides or [])
    typer.echo(f"# run {config.run_id}")
    typer.echo(
        yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), nl=False
    )


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of an experiment, with the params of every named thing."""
    import json

    from loralab import registry
    from loralab.config import ExperimentConfig

    content: dict[str, Any] = ExperimentConfig.model_json_schema()
    content["$defs"]["params"] = {
        kind: {
            name: registry.get(kind, name).schema.model_json_schema()
            for name in registry.names(kind)
        }
        for kind in registry.PACKAGES
    }
    typer.echo(json.dumps(content, indent=1))


@app.command("list")
def list_(
    group: Annotated[str | None, typer.Argument(help="experiment, model, …")] = None,
) -> None:
    """List presets by group, and everything that can be named."""
    from loralab import registry
    from loralab.config.compose import GROUPS, describe, presets
    from loralab.errors import ConfigError, nearest

    groups = ("experiment", *GROUPS)
    if group and group not in groups:
        raise ConfigError(f"no group {group!r}; {nearest(group, groups)}")
    for name in [group] if group else groups:
        typer.secho(f"{name}", bold=True)
        for option, path in presets(name).items():
            typer.echo(f"  {option:22} {describe(path)}")
    if group:
        return
    for kind in registry.PACKAGES:
        typer.secho(kind, bold=True)
        typer.echo(f"  {', '.join(registry.names(kind))}")
