"""Progress of a training: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
)

from loralab.cli import render


class TrainingProgress:
    """Subscribes to the events of a run and draws them."""

    def __init__(self) -> None:
        self._console = render.console()
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
        self._console.print(text, markup=False, soft_wrap=True)

    def _on_preparing(self, event: dict[str, Any]) -> None:
        self._print(f"{event['what']} …")

    def _on_found(self, event: dict[str, Any]) -> None:
        self._print(f"found: this configuration was trained before, in {event['run']}")

    def _on_moved(self, event: dict[str, Any]) -> None:
        self._print(f"the old run is now {event['to']}")

    def _on_plan(self, plan: dict[str, Any]) -> None:
        for line in plan_lines(plan):
            self._print(line)

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
        self._last = f"{rate}, {render.duration(event['eta_seconds'])} left"
        if self._bar:
            note = f"{self._last}"
            self._bar.update(self._task, completed=event["step"], note=note)
        elif event["step"] == 1:
            self._print(f"step 1 of {event['of']}: {self._last}")

    def _on_log(self, event: dict[str, Any]) -> None:
        memory = render.size(event["peak_memory_bytes"])
        self._print(
            f"step {event['step']}  loss {event['loss']:.4f}  "
            f"lr {event['learning_rate']:.2e}  peak {memory}  {self._last}"
        )

    def _on_validation(self, event: dict[str, Any]) -> None:
        shown = f"cross-entropy {event['eval_loss']:.4f}"
        if "eval_accuracy" in event:
            shown += f", accuracy {event['eval_accuracy']:.4f}"
        self._print(f"step {event['step']}  validation: {shown}")

    def _on_evaluating(self, event: dict[str, Any]) -> None:
        self._start(f"{event['split']} rows, {event['arm']}", event["of"])
        if self._bar:
            self._bar.update(self._task, completed=event["done"])
            if event["done"] == event["of"]:
                self.close()
        elif event["done"] == 1:
            self._print(f"evaluating the {event['arm']} on {event['split']} rows …")

    def _on_saving(self, event: dict[str, Any]) -> None:
        self.close()


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """Return what training will do and cost, before it starts."""
    rows = " · ".join(f"{count:,} {split}" for split, count in plan["rows"].items())
    dropped = [*plan["rows_report"]]
    notes = {k.replace("_", " "): v for k, v in plan["notes"].items() if v}
    dropped += [f"{count:,} {what}" for what, count in notes.items()]
    share = 100 * plan["trainable"] / plan["total"]
    targets = ", ".join(f"{name} ×{n}" for name, n in plan["targets"].items())
    scales = ", ".join(f"{float(s):g} (×{n})" for s, n in plan["scales"].items())
    cost = f"{plan['steps']:,} steps, {plan['tokens']:,} tokens"
    if plan["packs"]:
        cost += f", {plan['examples']:,} examples in {plan['packs']:,} packs"
    return [
        f"rows     {rows}" + (f" ({'; '.join(dropped)})" if dropped else ""),
        f"compute  {plan['dtype']} on {plan['device']}: {plan['dtype_reason']}",
        f"adapter  {plan['trainable']:,} of {plan['total']:,} parameters trained "
        f"({share:.2f} %), effective scale {scales}",
        f"targets  {targets}",
        f"cost     {cost}; {100 * plan['padded_share']:.1f} % of positions are "
        f"padding, {100 * plan['supervised_share']:.1f} % of tokens have a label",
    ]
