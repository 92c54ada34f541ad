"""`loralab merge`: adapters into one, at once or one after another."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from loralab.cli.json_output import Json, print_json
from loralab.cli.listing import listing
from loralab.cli.merge_inputs import (
    adapter_of,
    base_of,
    config_of,
    keep_trials,
    method_of,
    room_of,
    weights_of,
)
from loralab.cli.merge_options import (
    Adapters,
    Bake,
    Budget,
    Energy,
    Force,
    Head,
    MethodName,
    Out,
    OutDtype,
    Pairs,
    Rank,
    State,
    Tune,
    TuneScale,
    Weights,
    Words,
)
from loralab.cli.merge_work import progress, tell, tuned_weights, write_and_tell
from loralab.cli.options import RunsDir

if TYPE_CHECKING:
    from loralab.merging.state.log import Entry
    from loralab.merging.state.state import MergedState

SHORT = "adapters"
"""The command that stands for no command: ``loralab merge A B --out C``."""
Methods = listing("merge method", "Methods and their keys:", "--method")


class Short(TyperGroup):
    """A group whose arguments, where they name no command, are adapters to merge."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command in that is not written."""
        named = args and args[0] in (*self.commands, *ctx.help_option_names)
        return super().parse_args(ctx, [SHORT, *args] if args and not named else args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command; the one that is not written has no name in its usage."""
        name, command, rest = super().resolve_command(ctx, args)
        return "" if name == SHORT else name, command, rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, and name the methods."""
        from loralab import registry

        names = ", ".join(registry.names("merge method"))
        self.epilog = (
            f"Methods: {names}.\n\nWhere to begin (docs/guide/merge.md says what was "
            "measured): iso-c at exact rank; regmean where the runs have sketches "
            "(loralab sketch); c-task-arithmetic norm=mean, a sum of the right size, "
            "for a small --rank; opcm for one task after another.\n\nloralab merge "
            "--method NAME --help tells the options of the short form and the keys of "
            "a method."
        )
        super().format_help(ctx, formatter)


app = typer.Typer(
    cls=Short,
    no_args_is_help=True,
    help="""Merge adapters exactly, in factored form; no base model is read.

    At once: loralab merge A B C --out DIR --method NAME key=value …

    One after another: init, then add, and export when you like.

    An adapter is a plain PEFT folder or a run; a folder called add is written ./add.
    """,
)


@app.command(SHORT, hidden=True, cls=Methods)
def adapters(
    words: Words,
    method: MethodName,
    out: Out,
    weights: Weights = None,
    rank: Rank = "exact",
    energy: Energy = None,
    budget_mb: Budget = None,
    dtype: OutDtype = None,
    head: Head = None,
    bake: Bake = None,
    tune: Tune = None,
    tune_scale: TuneScale = False,
    force: Force = False,
    json_output: Json = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Merge adapters into a plain PEFT adapter; exact, unless a rank option is given.

    No state is kept: to add another one later, use init and add.

    With --json an object: folder, room, dtype, scale, bytes, layers, energy, error,
    relative_error, rounding, relative_rounding, kept, head, heads, left_out, warnings,
    baked (of --bake), tuning (of --tune).

    Example: loralab merge trec-6 sms-spam --out both --method opcm mode=paper
    """
    from loralab.cli.merge_view import cost
    from loralab.merging.sequential import merge_to_adapter
    from loralab.merging.state.fit import check_fit, opened

    (named, chosen), room = method_of(method, words), room_of(rank, energy, budget_mb)
    scales = weights_of(weights, tune, tune_scale)
    sources = opened([adapter_of(text, runs_dir) for text in named])
    check_fit(sources, force)
    base = base_of(bake, sources, force)
    tell(cost(chosen, sources), quiet=json_output)
    tuned = tuned_weights(chosen, named, tune, tune_scale, runs_dir, json_output)
    write = partial(
        merge_to_adapter,
        sources=sources,
        method=chosen,
        weights=tuned.best.weights if tuned else scales,
        room=room,
        head=head,
    )
    found = write_and_tell(write, out, dtype, chosen, base, json_output)
    tuning = keep_trials(out, tuned)
    if json_output:
        print_json({**found, "tuning": tuning})


@app.command("init", cls=Methods)
def init(
    state: State,
    method: MethodName,
    pairs: Pairs = None,
    precision: Annotated[
        Literal["float64", "float32"],
        typer.Option(help="What the algebra is done in, and the sum is stored in."),
    ] = "float64",
) -> None:
    """Make the folder of a merge, without an adapter yet.

    Example: loralab merge init many --method opcm
    """
    from loralab.merging.state.state import MergedState

    made = MergedState.begin(state, config_of(method, pairs or []), precision)
    params = " ".join(f"{k}={v}" for k, v in _shown_params(made).items())
    tell(f"{made.method.name} {params}".rstrip(), f"in {state}")


@app.command("add")
def add(
    state: State,
    adapters: Adapters,
    name: Annotated[
        str | None, typer.Option(help="What the task is called (of one adapter).")
    ] = None,
    weight: Annotated[
        float, typer.Option(help="What the update is multiplied with.")
    ] = 1.0,
    force: Force = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Merge one more adapter, or several in their order.

    Example: loralab merge add many trec-6 sms-spam
    """
    from loralab.errors import ConfigError
    from loralab.merging.state.state import MergedState

    if name and len(adapters) > 1:
        raise ConfigError("--name is of one adapter, and several are added")
    found = MergedState.open(state)
    with progress() as on_event:
        for adapter in adapters:
            place = adapter_of(adapter, runs_dir)
            entry = found.add(place, name, weight, force, on_event=on_event)
            tell(f"added    {_told(entry)}")
    tell(*_numbers(found))


@app.command("export")
def export(
    state: State,
    out: Out,
    rank: Rank = "exact",
    energy: Energy = None,
    budget_mb: Budget = None,
    dtype: OutDtype = None,
    head: Head = None,
    bake: Bake = None,
    force: Force = False,
    json_output: Json = False,
) -> None:
    """Write what is merged as a plain PEFT adapter; the merge stays as it is.

    With --json an object: folder, room, dtype, scale, bytes, layers, energy, error,
    relative_error, rounding, relative_rounding, kept, head, heads, left_out, warnings,
    baked (of --bake).

    Example: loralab merge export many --out small --rank 8
    """
    from loralab.cli.merge_view import cost
    from loralab.merging.state.state import MergedState

    room = room_of(rank, energy, budget_mb)
    found = MergedState.open(state)
    base = base_of(bake, found.sources, force)
    tell(cost(found.method, found.sources), quiet=json_output)
    write = partial(
        found.export,
        rank=room.rank,
        energy=room.energy,
        budget_mb=room.megabytes,
        head=head,
    )
    made = write_and_tell(write, out, dtype, found.method, base, quiet=json_output)
    if json_output:
        print_json(made)


@app.command("undo")
def undo(state: State) -> None:
    """Take the last adapter out again; what is left is merged anew.

    Example: loralab merge undo many
    """
    from loralab.merging.state.state import MergedState

    found = MergedState.open(state)
    with progress() as on_event:
        entry = found.undo(on_event)
    tell(f"undone   {_told(entry)}", *_numbers(found))


@app.command("log")
def log(
    state: State,
    verify: Annotated[
        bool, typer.Option("--verify", help="Merge anew, and compare with the sum.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Show all that was done to a merge; every file of it is hashed.

    With --json a list, of each entry: number, action, adapter, digest, weight, norm,
    files (name -> sha256), merged (the sum's file), time, version, previous (sha256).

    Example: loralab merge log many --verify
    """
    from rich.table import Table

    from loralab.cli import render
    from loralab.merging.state.state import MergedState

    found = MergedState.open(state)
    if verify:
        with progress(json_output) as on_event:
            found.verify(on_event)
    if json_output:
        print_json([entry.model_dump(mode="json") for entry in found.log])
        return
    table = Table("", "what", "adapter", "weight", "norm", "sha256", "when (UTC)")
    for entry in found.log:
        table.add_row(
            str(entry.number),
            entry.action,
            entry.adapter,
            f"{entry.weight:g}",
            f"{entry.norm:.4g}",
            entry.digest[:12],
            entry.time,
        )
    render.console().print(table)
    tell(*_numbers(found), *(["verified by a replay"] if verify else []))


@app.command("check")
def check(
    adapters: Adapters,
    figures: Annotated[
        Path | None, typer.Option(help="Write figures into this folder.")
    ] = None,
    json_output: Json = False,
    force: Annotated[bool, typer.Option("--force", help="Also other bases.")] = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Compare adapters before they are merged, and say what it means in words.

    With --json an object: names, tasks, pairs, layers, total_rank, sum_rank, cuts,
    removals, similarity, suggested_threshold, imbalance, verdicts.

    Example: loralab merge check trec-6 sms-spam --figures figures
    """
    from loralab.cli import render
    from loralab.cli.merge_view import drawn, pairs_table, summary, tasks_table
    from loralab.merging.analysis.analyzer import MergingAnalyzer
    from loralab.merging.state.fit import check_bases, opened

    found = opened([adapter_of(adapter, runs_dir) for adapter in adapters])
    check_bases(found, force)
    analysis = MergingAnalyzer(found).report()
    paths = drawn(analysis, figures) if figures else []
    if json_output:
        print_json(analysis.record())
        return
    console = render.console()
    console.print(tasks_table(analysis))
    console.print(pairs_table(analysis))
    tell(*summary(analysis), *(f"wrote    {path}" for path in paths))


def _shown_params(state: MergedState) -> dict[str, Any]:
    return state.method.params.model_dump(mode="json")


def _told(entry: Entry) -> str:
    """Return an entry in a line."""
    weight = "" if entry.weight == 1 else f", weight {entry.weight:g}"
    return f"{entry.adapter} (norm {entry.norm:.4g}{weight}, {entry.digest[:12]})"


def _numbers(state: MergedState) -> list[str]:
    """Return a merge's numbers in lines."""
    if not state.task_count:
        return ["no task is merged"]
    names = ", ".join(task.adapter for task in state.tasks)
    lines = [
        f"tasks    {state.task_count}: {names}",
        f"method   {state.method.name}; a task has a mean norm of {state.avg_norm:.4g}",
    ]
    if state.method.continual:  # λ of others costs a merge
        lines[1] += f", λ {state.lambda_t:.4g}"
    return lines
