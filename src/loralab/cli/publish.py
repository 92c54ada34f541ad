"""`loralab publish` and `loralab unpack`: a run to a target, and an archive back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loralab.cli.completion import named_like
from loralab.cli.json_output import Json, print_json
from loralab.cli.options import RunName, RunsDir
from loralab.units import size

Target = Annotated[
    str,
    typer.Argument(
        help="Where to: see below.", autocompletion=named_like("publishing target")
    ),
]
Params = Annotated[list[str] | None, typer.Argument(help="key=value of the target.")]


def publish(
    run: RunName,
    target: Target,
    params: Params = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be sent; send nothing.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also an artefact without parity certificate."),
    ] = False,
    json_output: Json = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Publish a finished run: files, model card, checksums; verified where it arrives.

    A repeat sends only what is not there. Secrets come from the environment only:
    HF_TOKEN, AWS_…, GOOGLE_APPLICATION_CREDENTIALS.

    With --json an object: target, destination, forced, files, and what was sent: time,
    sent, there; or dry_run.

    Example: loralab publish trec-6 archive path=trec-6.zip --dry-run
    """
    from loralab.cli import render
    from loralab.cli.progress import PublishProgress
    from loralab.config.named import named
    from loralab.publishing.publish import TargetConfig
    from loralab.publishing.publish import publish as send
    from loralab.runs import find_run

    config = named(TargetConfig, target, params or [], str, option="TARGET")
    progress = PublishProgress(render.console(stderr=json_output))
    try:
        receipt = send(
            find_run(run, runs_dir),
            config,
            dry_run=dry_run,
            force=force,
            on_event=progress,
        )
    finally:
        progress.close()
    if json_output:
        print_json(receipt)


def unpack(
    archive: Annotated[Path, typer.Argument(help="What `publish RUN archive` wrote.")],
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
) -> None:
    """Take a published archive apart, after checking that it may be trusted to.

    A path that leads out of the folder, a link, a name that stands twice, a wrong
    checksum or size is refused, and nothing of it is kept.

    Example: loralab unpack trec-6.zip unpacked
    """
    from loralab.cli import render
    from loralab.publishing.archive import extract

    manifest = extract(archive, folder)
    total = size(sum(entry.bytes for entry in manifest.files.values()))
    said = f"{manifest.run}: {len(manifest.files)} files, {total}, checked, in {folder}"
    render.console().print(said, soft_wrap=True)
