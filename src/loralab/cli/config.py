"""`loralab config`: what an experiment resolves to, its schema, known names."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from loralab.cli.completion import groups_like
from loralab.cli.json_output import Json, print_json
from loralab.cli.options import Experiment, Overrides

app = typer.Typer(help="Look at configurations.", no_args_is_help=True)


@app.command("show")
def show(experiment: Experiment, overrides: Overrides = None) -> None:
    """Print the resolved, complete configuration, and the run it would be.

    What is printed is YAML, and can be trained as it is.

    Example: loralab config show trec-6 peft.params.rank=4
    """
    import yaml

    from loralab.config import compose

    config = compose(experiment, overrides or [])
    typer.echo(f"# run {config.run_id}")
    typer.echo(
        yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), nl=False
    )


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of an experiment, with the params of every named thing.

    Example: loralab config schema
    """
    from loralab import registry
    from loralab.config import ExperimentConfig

    content: dict[str, Any] = ExperimentConfig.model_json_schema()
    content["$defs"]["params"] = {
        kind: {
            name: entry.schema.model_json_schema()
            for name, entry in registry.entries(kind).items()
        }
        for kind in registry.PACKAGES
    }
    print_json(content)


@app.command("list")
def list_(
    group: Annotated[
        str | None,
        typer.Argument(help="experiment, model, …", autocompletion=groups_like),
    ] = None,
    json_output: Json = False,
) -> None:
    """List presets by group, and everything that can be named.

    With --json an object: presets (group -> name -> what it is), names (kind -> names).

    Example: loralab config list model
    """
    from loralab import registry
    from loralab.config.compose import GROUPS, describe, presets
    from loralab.errors import ConfigError, nearest

    groups = ("experiment", *GROUPS)
    if group and group not in groups:
        raise ConfigError(f"no group {group!r}; {nearest(group, groups)}")
    found = {
        name: {option: describe(path) for option, path in presets(name).items()}
        for name in ([group] if group else groups)
    }
    kinds = () if group else registry.PACKAGES
    named = {kind: registry.names(kind) for kind in kinds}
    if json_output:
        print_json({"presets": found, "names": named})
        return
    for name, options in found.items():
        typer.secho(f"{name}", bold=True)
        for option, about in options.items():
            typer.echo(f"  {option:22} {about}")
    for kind, names in named.items():
        typer.secho(kind, bold=True)
        typer.echo(f"  {', '.join(names)}")
