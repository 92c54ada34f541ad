"""Progress of one training or of many: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
)
from rich.table import Table

from loralab.cli import render
from loralab.units import counted, duration, percent, size


class TrainingProgress:
    """Subscribes to the events of a run and draws them."""

    def __init__(self, stderr: bool = False) -> None:
        self._console = render.console(stderr)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._last = ""
        self._shown = ""

    def __call__(self, event: dict[str, Any]) -> None:
        """Draw one event."""
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler:
            handler(event)

    def close(self) -> None:
        """End the live bar."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def _on_preparing(self, event: dict[str, Any]) -> None:
        self._print(f"{event['what']} …")

    def _on_found(self, event: dict[str, Any]) -> None:
        self._print(f"found: this was made before, in {event['run']}")

    def _on_moved(self, event: dict[str, Any]) -> None:
        self._print(f"the old run is now {event['to']}")

    def _on_plan(self, plan: dict[str, Any]) -> None:
        for line in plan_lines(plan):
            self._print(line)

    def _on_features(self, event: dict[str, Any]) -> None:
        kept = f"known after {event['seconds']:.1f} s, and no more computed"
        word = kept if event["kept"] else f"computed in every pass: {event['why']}"
        self._print(f"features {word}")

    def _start(self, what: str, total: int) -> None:
        if not self._console.is_terminal:
            return
        if self._shown != what:
            self.close()
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task(what, total=total, note="")
            self._shown = what

    def _on_step(self, event: dict[str, Any]) -> None:
        self._start("training", event["of"])
        rate = f"{event['tokens_per_second']:,.0f} tokens/s"
        self._last = f"{rate}, {duration(event['eta_seconds'])} left"
        if self._bar:
            note = f"{self._last}"
            self._bar.update(self._task, completed=event["step"], note=note)
        elif event["step"] == 1:
            self._print(f"step 1 of {event['of']}: {self._last}")

    def _on_log(self, event: dict[str, Any]) -> None:
        memory = size(event["peak_memory_bytes"])
        self._print(
            f"step {event['step']}  loss {event['loss']:.4f}  "
            f"lr {event['learning_rate']:.2e}  peak {memory}  {self._last}"
        )

    def _on_validation(self, event: dict[str, Any]) -> None:
        names = {"eval_loss": "cross-entropy"}
        shown = [
            f"{names.get(key, key.removeprefix('eval_'))} {value:.4f}"
            for key, value in event.items()
            if key.startswith("eval_")
        ]
        self._print(f"step {event['step']}  validation: {', '.join(shown)}")

    def _on_evaluating(self, event: dict[str, Any]) -> None:
        what = "" if event["what"] == "reading" else f", {event['what']}"
        self._start(f"{event['split']} rows, {event['arm']}{what}", event["of"])
        if self._bar:
            self._bar.update(self._task, completed=event["done"])
            if event["done"] == event["of"]:
                self.close()
        elif event["done"] == 1:
            self._print(f"evaluating the {event['arm']} on {event['split']} rows …")

    def _on_saving(self, event: dict[str, Any]) -> None:
        self.close()

    def _on_stage(self, event: dict[str, Any]) -> None:
        self._print(f"stage {event['number']} of {event['of']}: {event['stage']}")

    def _on_storing(self, event: dict[str, Any]) -> None:
        self._counted(event, event["what"])

    def _on_merging(self, event: dict[str, Any]) -> None:
        self._counted(event, event["what"])

    def _on_comparing(self, event: dict[str, Any]) -> None:
        self._counted(event, f"comparing: {event['what']}")

    def _on_sketching(self, event: dict[str, Any]) -> None:
        self._counted(event, "reading inputs")

    def _counted(self, event: dict[str, Any], what: str) -> None:
        """Draw what is done step by step; elsewhere say once that it begins."""
        self._start(what, event["of"])
        if self._bar:
            self._bar.update(self._task, completed=event["done"])
            if event["done"] == event["of"]:
                self.close()
        elif event["done"] <= 1 and self._shown != what:
            self._shown = what
            self._print(f"{what} …")


class JobsProgress:
    """One view of many runs: a line as each ends, and on a terminal what runs now."""

    def __init__(self, console: Any) -> None:
        self._console = console
        self._live: Live | None = None
        self._notes: dict[int, tuple[str, str]] = {}
        self._total = self._left = self._ended = 0
        self._began = 0.0

    def close(self) -> None:
        """End the live view."""
        if self._live:
            self._live.stop()
            self._live = None

    def __call__(self, event: dict[str, Any]) -> None:
        """Draw one event of a job."""
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler:
            handler(event)
        if self._live:
            self._live.update(self._view())

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def _on_stage(self, event: dict[str, Any]) -> None:
        self._total, self._left, self._ended = event["total"], event["left"], 0
        self._began = time.monotonic()
        if self._total - self._left:
            self._print(f"{self._total - self._left} of {self._total} ended before")
        if self._console.is_terminal and self._live is None:
            self._live = Live(console=self._console, refresh_per_second=2)
            self._live.start()

    def _on_job(self, event: dict[str, Any]) -> None:
        number, label = event["number"], event["label"]
        if event["status"] == "running":
            self._notes[number] = (label, "")
            return
        self._notes.pop(number, None)
        if event["status"] == "pending":
            self._print(f"pending   {label}  {event['note']}".rstrip())
            return
        self._ended += 1
        found = "found" if event["status"] == "complete" else ""
        took = duration(event["seconds"]) if event["seconds"] else found
        note, *_ = event["note"].splitlines() or [""]
        said = f"{event['status']:9} {label}  {note}  {took}{self._rest()}"
        self._print(said.replace("    ", "  "))

    def _on_handed_on(self, event: dict[str, Any]) -> None:
        waiting, at_work = event["waiting"], event["at_work"]
        if at_work:
            self._print(f"{at_work} runs are being trained")
        if waiting:
            self._print(f"{waiting} runs wait in a batch script; submit it, once none")
            self._print("of its tasks is in the queue, by")
            self._print(f"  {event['command']}")
        if waiting or at_work:
            self._print("then call this again: it finds the runs that have ended")

    def _rest(self) -> str:
        left = self._left - self._ended
        if left <= 0:
            return ""
        seconds = (time.monotonic() - self._began) / self._ended * left
        done = self._total - left
        return f"  ({done} of {self._total}, {duration(seconds)} left)"

    def _note(self, event: dict[str, Any], text: str) -> None:
        number = event["number"]
        label, before = self._notes.get(number, (str(number), ""))
        if not (before or self._live):
            self._print(f"begins    {label}")
        self._notes[number] = (label, text)

    def _on_preparing(self, event: dict[str, Any]) -> None:
        self._note(event, str(event["what"]))

    def _on_evaluating(self, event: dict[str, Any]) -> None:
        self._note(event, f"evaluating the {event['arm']}")

    def _on_step(self, event: dict[str, Any]) -> None:
        rate = f"{event['tokens_per_second']:,.0f} tokens/s"
        self._note(event, f"step {event['step']} of {event['of']}, {rate}")

    def _view(self) -> Table:
        table = Table(box=None, show_header=False)
        for label, note in self._notes.values():
            table.add_row(label, note)
        done = self._total - self._left + self._ended
        table.add_row(f"{done} of {self._total} ended", "")
        return table


class PublishProgress:
    """What is published: the files, a bar of bytes on a terminal, the end."""

    def __init__(self, console: Any) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def close(self) -> None:
        """End the live bar."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def __call__(self, event: dict[str, Any]) -> None:
        """Draw one event."""
        getattr(self, f"_on_{event['event']}")(event)

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def _on_publishing(self, event: dict[str, Any]) -> None:
        files = event["files"]
        total = sum(told["bytes"] for told in files.values())
        for name, told in files.items():
            self._print(f"{size(told['bytes']):>9}  {name}")
        dry = "; nothing was sent (--dry-run)" if event["dry_run"] else ""
        to = f"to {event['destination']}"
        self._print(f"{size(total):>9}  in {len(files)} files {to}{dry}")
        if event["forced"]:
            self._print("WARNING: forced: no parity certificate that passed")
        if self._console.is_terminal and not event["dry_run"]:
            columns = (BarColumn(), DownloadColumn(), TextColumn("{task.fields[note]}"))
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=total, note="")

    def _on_sending(self, event: dict[str, Any]) -> None:
        if self._bar:
            self._bar.update(self._task, advance=event["bytes"], note=event["name"])

    def _on_retry(self, event: dict[str, Any]) -> None:
        wait = f"again in {event['seconds']:.1f} s ({event['left']} attempts left)"
        self._print(f"{event['why']}; {wait}")

    def _on_published(self, event: dict[str, Any]) -> None:
        self.close()
        sent, there = len(event["sent"]), len(event["there"])
        said = f"sent {sent}, {there} were there already; all verified at the target"
        self._print(said)


class RowsProgress:
    """A bar of rows done, on a terminal, when there are many."""

    def __init__(self, many: int = 64) -> None:
        self._many = many
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> RowsProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, done: int, of: int) -> None:
        """Draw how far it is."""
        console = render.console(stderr=True)
        if of < self._many or not console.is_terminal:
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("rows"), BarColumn(), MofNCompleteColumn(), console=console
            )
            self._bar.start()
            self._task = self._bar.add_task("rows", total=of)
        self._bar.update(self._task, completed=done)


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """Return what training will do and cost, before it starts."""
    rows = " · ".join(f"{count:,} {split}" for split, count in plan["rows"].items())
    dropped = [*plan["rows_report"]]
    notes = {k.replace("_", " "): v for k, v in plan["notes"].items() if v}
    dropped += [f"{count:,} {what}" for what, count in notes.items()]
    share = 100 * plan["trainable"] / plan["total"]
    targets = ", ".join(f"{name} ×{n}" for name, n in plan["targets"].items())
    scale = ", ".join(f"{float(s):g} (×{n})" for s, n in plan["scales"].items())
    adapter = [
        f"{plan['trainable']:,} of {plan['total']:,} parameters trained ({share:.2f} %)"
        + (f", effective scale {scale}" if scale else ""),
        *plan.get("adapter", ()),
    ]
    cost = f"{counted(plan['steps'], 'step')}, {plan['tokens']:,} tokens"
    if plan["packs"]:
        cost += f", {plan['examples']:,} examples in {plan['packs']:,} packs"
    if each := plan.get("image_tokens"):
        cost += f": {plan['tokens'] // each:,} images of {each} tokens"
    else:
        cost += f"; {percent(plan['padded_share'])} of positions are padding, "
        cost += f"{percent(plan['supervised_share'])} of tokens have a label"
    return [
        f"rows     {rows}" + (f" ({'; '.join(dropped)})" if dropped else ""),
        f"compute  {plan['dtype']} on {plan['device']}: {plan['dtype_reason']}",
        *([f"storage  {plan['storage']}"] if plan.get("storage") else []),
        *(f"adapter  {line}" for line in adapter),
        *([f"targets  {targets}"] if targets else []),
        f"cost     {cost}",
    ]
