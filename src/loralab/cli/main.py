"""`loralab`: the verbs, and how errors end.

Nothing heavy is imported here or at the head of a verb's file: `--help` stays instant.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import typer
from typer.core import TyperGroup

from loralab.cli import (
    compare,
    config,
    data,
    doctor,
    evaluate,
    infer,
    log,
    merge,
    methods,
    paper,
    pipeline,
    plan,
    publish,
    quantize,
    ranks,
    reproduce,
    runs,
    sketch,
    study,
    sweep,
    train,
)
from loralab.cli.listing import listing
from loralab.errors import LoralabError

FIXES = {
    errno.EACCES: "make it readable and writable, or name another place",
    errno.EROFS: "name a place that can be written to",
    errno.ENOSPC: "make room on the disk, or name another one",
    errno.ENOTDIR: "a file stands where a folder should be: name another place",
    errno.EEXIST: "a file stands where a folder should be: name another place",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOENT: "check the path",
}
"""What to do when the system refuses a file, by its number."""

CONTINUED = {
    "train": "; --resume continues the run",
    "sweep": "; the same command goes on",
    "study": "; the same command goes on",
    "pipeline": "; the same command goes on",
}
"""What a user who stopped a verb is told, beyond that it stopped."""


@contextmanager
def _plainly() -> Iterator[None]:
    """Take from typer's word on a wrong value what pydantic says before it."""
    try:
        yield
    except typer.BadParameter as error:
        error.message = error.message.removeprefix("Value error, ")
        raise


class Verbs(TyperGroup):
    """The verbs; a value that an option does not take is refused in plain words."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the options that stand before the verb."""
        with _plainly():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Read a verb's own options, and run it."""
        with _plainly():
            return super().invoke(ctx)


app = typer.Typer(
    name="loralab",
    cls=Verbs,
    help="The whole life of a LoRA adapter: configure, train, evaluate, use, compare.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def options(
    context: typer.Context,
    log_level: Literal["debug", "info", "warning", "error"] = typer.Option(
        "warning", help="Log lines of this level and above are shown on stderr."
    ),
) -> None:
    """Set what holds for every verb."""
    from loralab.cli.render import log_to_stderr

    context.call_on_close(log_to_stderr(log_level))


app.command("plan")(plan.plan)
app.command("methods")(methods.methods)
app.command("ranks")(ranks.ranks)
app.command("train")(train.train)
app.command("sketch")(sketch.sketch)
app.command(
    "sweep", cls=listing("executor", "Executors and their keys:", "--executor")
)(sweep.sweep)
app.command("evaluate")(evaluate.evaluate)
app.command("infer")(infer.infer)
app.command("quantize", cls=listing("storage format", "Formats and their keys:"))(
    quantize.quantize
)
app.command("pipeline")(pipeline.pipeline)
app.add_typer(merge.app, name="merge")
app.command("compare")(compare.compare)
app.command("runs")(runs.runs)
app.command("reproduce")(reproduce.reproduce)
app.command("log")(log.log)
app.command("publish", cls=listing("publishing target", "Targets and their keys:"))(
    publish.publish
)
app.command("unpack")(publish.unpack)
app.add_typer(study.app, name="study")
app.add_typer(paper.app, name="paper")
app.add_typer(data.app, name="data")
app.add_typer(config.app, name="config")
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Run the command line; a user's mistake ends with one message and exit code 2."""
    try:
        app(prog_name="loralab")  # what completion is installed for
    except LoralabError as error:
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        sys.exit(2)
    except OSError as error:  # a full disk, a missing permission
        told = LoralabError(
            error.strerror or str(error),
            where=str(error.filename or ""),
            fix=FIXES.get(error.errno or 0, ""),
        )
        typer.secho(f"error: {told}", err=True, fg=typer.colors.RED)
        sys.exit(2)
    except KeyboardInterrupt:
        verb = next((word for word in sys.argv[1:] if word in CONTINUED), "")
        typer.secho(f"stopped{CONTINUED.get(verb, '')}", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
