"""What PEFT tells as AdaLoRA's loss in evaluation, beside cross-entropy.

PEFT adds its regulariser to every loss that a model returns, in evaluation too:

    told = cross-entropy + orth_reg_weight · R(P, Q)

R is `loralab.adapters.adalora.orthogonality`. AdaLoRA is trained as `train` trains it,
and both losses are measured on the same test rows, before the adapter is made plain.

    python studies/adalora_eval_loss/measure.py           # some minutes
    python studies/adalora_eval_loss/measure.py --page    # only the page, from results
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from loralab import compose
from loralab.adapters.adalora import config_of, orthogonality
from loralab.config import ExperimentConfig
from loralab.config.arguments import to_training_arguments
from loralab.data.batching import collate, evaluation_order, unit_lengths, units
from loralab.data.examples import IGNORE, Examples
from loralab.evaluation.intervals import Interval
from loralab.evaluation.statistics.seeds import t_interval
from loralab.models.forward import INPUTS, Batch, supervised_logits
from loralab.models.loaded import LoadedModel
from loralab.models.numerics import seed_everything
from loralab.models.quiet import quiet_libraries
from loralab.reporting.figures import Curve, learning_curves, save
from loralab.reporting.renderers import to_markdown
from loralab.reporting.tables import Cell, Column, Table, format_number
from loralab.runs.environment import environment
from loralab.runs.files import write_text
from loralab.runs.run import create
from loralab.training.drivers import driver_of
from loralab.training.events import EventLog
from loralab.training.prepare import Prepared, prepare
from loralab.training.trainer import PEFTTrainer

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results.json", HERE / "README.md"
WEIGHTS = (0.5, 0.1)
"""Of the regulariser: PEFT's default, and less."""
CONFIDENCE = 0.95
DRAWN = "trec-6"
"""The set in the figure."""
COMMON = (
    "peft=adalora",
    "model.dtype=fp32",
    "model.device=cpu",
    "training.callbacks=[]",
    "evaluation.per_device_eval_batch_size=32",
)


@dataclass(frozen=True)
class Case:
    """An experiment, how it is cut, and when it is measured.

    Attributes:
        experiment: A preset.
        seeds: Of training, from 0.
        steps: Optimizer steps.
        measured: After which of them; 0 is before the first.
        overrides: Of the preset.
    """

    experiment: str
    seeds: int
    steps: int
    measured: tuple[int, ...]
    overrides: tuple[str, ...]


ENCODER = (
    "training.per_device_train_batch_size=16",
    "training.learning_rate=5e-3",
    "data.max_rows={train: 320, validation: 8, test: 64}",
)
CASES = (
    Case("trec-6", 3, 20, (0, 4, 8, 12, 16, 20), ENCODER),
    Case("sms-spam", 3, 20, (0, 20), ENCODER),
    Case(
        "chatterbot",
        1,
        6,
        (0, 6),
        (
            "training.per_device_train_batch_size=2",
            "task.params.max_length=128",
            "data.max_rows={train: 48, validation: 8, test: 12}",
        ),
    ),
)


def as_peft_takes_it(batch: Batch, examples: Examples) -> dict[str, Any]:
    """Return a batch with labels as transformers' models take them."""
    found = {name: batch[name] for name in INPUTS if name in batch}
    if examples.supervision == "example":
        return {**found, "labels": batch["labels"]}
    labels_BT = torch.full_like(batch["input_ids"], IGNORE)
    # ours is the token after a place; the model shifts them itself
    labels_BT.view(-1)[batch["places"] + 1] = batch["labels"]
    return {**found, "labels": labels_BT, "use_cache": False}


@torch.no_grad()
def losses(
    model: Any, base: LoadedModel, examples: Examples, size: int
) -> dict[str, float]:
    """Return both losses of a PEFT model with AdaLoRA, means over labels, in nats.

    Args:
        model: It is in evaluation mode meanwhile.
        base: Its base.
        examples: One class index an example, or next tokens.
        size: Units a batch.

    Returns:
        ``cross_entropy``, ``told`` by PEFT, their ``difference``, the ``regulariser``
        with its weight, and ``error``: how far the two last are apart in the worst
        batch.
    """
    was = model.training
    model.eval()
    regulariser = float(config_of(model).orth_reg_weight * orthogonality(model))
    of = units(examples)
    labels, ours, told, error = 0, 0.0, 0.0, 0.0
    for chosen in evaluation_order(unit_lengths(examples, of), size):
        batch = collate(examples, [of[i] for i in chosen], base.processor.pad_token_id)
        logits_NC, labels_N, _ = supervised_logits(model, batch, base)
        own = float(cross_entropy(logits_NC, labels_N))
        pefts = float(model(**as_peft_takes_it(batch, examples)).loss)
        labels += len(labels_N)
        ours += own * len(labels_N)
        told += pefts * len(labels_N)
        error = max(error, abs(pefts - own - regulariser))
    model.train(was)
    return {
        "cross_entropy": ours / labels,
        "told": told / labels,
        "difference": (told - ours) / labels,
        "regulariser": regulariser,
        "error": error,
    }


class Watch(TrainerCallback):  # type: ignore[misc]
    """Measures both losses on test rows after some steps of a training."""

    def __init__(self, prepared: Prepared, steps: Sequence[int], size: int) -> None:
        rows = list(prepared.rows.splits["test"])
        self._examples = prepared.task(rows, prepared.base.processor)
        self._base, self._steps, self._size = prepared.base, steps, size
        self.found: list[dict[str, float]] = []

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Measure the adapter as it was drawn."""
        self._measure(model, 0)

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Measure after a step; ranks are allocated by then."""
        self._measure(model, state.global_step)

    def _measure(self, model: Any, step: int) -> None:
        if step in self._steps:
            measured = losses(model, self._base, self._examples, self._size)
            self.found.append({"step": step, **measured})


def watched(config: ExperimentConfig, steps: Sequence[int]) -> list[dict[str, float]]:
    """Train AdaLoRA; return both losses on the test rows after each of the steps."""
    prepared = prepare(config)
    watch = Watch(prepared, steps, config.evaluation.per_device_eval_batch_size)
    with tempfile.TemporaryDirectory() as folder:
        run = create(config, Path(folder), "adapter")
        args = to_training_arguments(
            config.training, str(run.checkpoints), device="cpu", validated=False
        )
        args.save_strategy = "no"
        trainer = PEFTTrainer(
            prepared.attached.model,
            args,
            prepared.base,
            prepared.examples["train"],
            None,
        )
        trainer.add_callback(watch)
        driver = driver_of(config.peft)
        assert driver is not None
        driver.drive(trainer, EventLog(run), config.peft)
        seed_everything(config.training.seed)
        with quiet_libraries():
            trainer.train()
        driver.result(trainer.model)  # refuses ranks that are not final
    return watch.found


def runs() -> Iterator[dict[str, Any]]:
    """Train every case with every weight and seed; yield what was measured."""
    for case in CASES:
        for weight in WEIGHTS:
            for seed in range(case.seeds):
                given = [
                    *COMMON,
                    *case.overrides,
                    f"training.max_steps={case.steps}",
                    f"training.seed={seed}",
                    f"peft.params.orth_reg_weight={weight}",
                ]
                config = compose(case.experiment, given)
                found = watched(config, case.measured)
                first, last = found[0], found[-1]
                print(
                    f"{case.experiment} weight {weight} seed {seed}: cross-entropy "
                    f"{first['cross_entropy']:.3f} -> {last['cross_entropy']:.3f}, "
                    f"PEFT tells {first['told']:.3f} -> {last['told']:.3f}",
                    flush=True,
                )
                yield {
                    "data": case.experiment,
                    "base": config.model.path.partition(":")[2],
                    "weight": weight,
                    "seed": seed,
                    "run": config.run_id,
                    "measured": found,
                }


# ---- the page: everything on it is computed from the results ----


def groups(found: dict[str, Any]) -> dict[tuple[str, float], list[dict[str, Any]]]:
    """Return the runs of each set and weight."""
    made: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for run in found["runs"]:
        made.setdefault((run["data"], run["weight"]), []).append(run)
    return made


def over_seeds(own: Sequence[dict[str, Any]], index: int, key: str) -> Interval | float:
    """Return the mean over runs with its interval; the value of a single run."""
    values = [float(run["measured"][index][key]) for run in own]
    return t_interval(values, CONFIDENCE) if len(values) > 1 else values[0]


def value_of(cell: Interval | float) -> float:
    """Return the value of either."""
    return cell.value if isinstance(cell, Interval) else cell


def table(found: dict[str, Any]) -> Table:
    """Return both losses, before the first step and after the last."""
    rows: list[list[Cell]] = []
    for (data, weight), own in groups(found).items():
        for index in (0, -1):
            cells = [
                over_seeds(own, index, key)
                for key in ("cross_entropy", "told", "difference", "regulariser")
            ]
            error = max(run["measured"][index]["error"] for run in own)
            step = int(own[0]["measured"][index]["step"])
            head = [data, own[0]["base"], weight, len(own), step]
            rows.append([*head, *cells, error])
    columns = [
        Column("data"),
        Column("base"),
        Column("orth_reg_weight"),
        Column("seeds"),
        Column("after", "steps"),
        Column("cross-entropy", "nats"),
        Column("PEFT's loss", "nats"),
        Column("difference", "nats"),
        Column("weight × R", "nats"),
        Column("largest error", "nats"),
    ]
    notes = [
        "In brackets: 95 % over training seeds, Student's t, on these test rows; none "
        "where there is one seed.",
        "The largest error is of the difference in a single batch against weight × R.",
    ]
    title = "AdaLoRA on test rows: the loss that PEFT returns beside cross-entropy"
    return Table(title, columns, rows, notes)


def sentences(found: dict[str, Any]) -> list[str]:
    """Return what the results say, in words."""
    made = groups(found)
    everything = [one for run in found["runs"] for one in run["measured"]]
    worst = max(one["error"] for one in everything)
    more = [one["difference"] for one in everything]
    high, low = (made[DRAWN, weight] for weight in WEIGHTS)

    def at(own: Sequence[dict[str, Any]], index: int, key: str) -> float:
        return value_of(over_seeds(own, index, key))

    def share(own: Sequence[dict[str, Any]]) -> str:
        def fall(key: str) -> float:
            return at(own, 0, key) - at(own, -1, key)

        percent = format_number(100 * fall("difference") / fall("told"), 0)
        case = own[0]
        return f"{percent} % on {case['data']} ({case['measured'][-1]['step']} steps)"

    shares = [share(own) for (_, weight), own in made.items() if weight == WEIGHTS[0]]
    told = at(high, -1, "told") - at(low, -1, "told")
    ours = at(high, -1, "cross_entropy") - at(low, -1, "cross_entropy")
    return [
        f"In all {len(everything)} measurements of {len(found['runs'])} trainings PEFT "
        "returned, in evaluation mode, the cross-entropy plus `orth_reg_weight` × R, "
        f"to within {format_number(worst)} nats: {format_number(min(more))} to "
        f"{format_number(max(more))} nats too many.",
        f"Of the fall of PEFT's loss over these short trainings at weight {WEIGHTS[0]} "
        f"the regulariser's was {', '.join(shares)}; at the end on {DRAWN} the runs of "
        f"weight {WEIGHTS[0]} and {WEIGHTS[1]} were "
        f"{format_number(told, 3, signed=True)} nats apart by PEFT's loss, "
        f"{format_number(ours, 3, signed=True)} by cross-entropy.",
    ]


def curves(found: dict[str, Any]) -> list[Curve]:
    """Return both losses over the steps of one set, by weight."""
    drawn = []
    for (data, weight), own in groups(found).items():
        for key, name in (("told", "PEFT's loss"), ("cross_entropy", "cross-entropy")):
            if data != DRAWN:
                continue
            steps = [one["step"] for one in own[0]["measured"]]
            cells = [over_seeds(own, i, key) for i in range(len(steps))]
            spans = [c if isinstance(c, Interval) else Interval(c, c, c) for c in cells]
            drawn.append(
                Curve(
                    f"{name}, weight {weight}",
                    steps,
                    [span.value for span in spans],
                    [span.low for span in spans],
                    [span.high for span in spans],
                    len(own),
                )
            )
    return drawn


def page(found: dict[str, Any]) -> str:
    """Return the README."""
    here = found["environment"]
    return "\n\n".join(
        [
            "# AdaLoRA's loss in evaluation: PEFT's and cross-entropy",
            *sentences(found),
            "R is the mean over modules of ‖PᵀP − I‖ and ‖QQᵀ − I‖ "
            "(`loralab.adapters.adalora.orthogonality`). loralab tells cross-entropy "
            "from logits, and puts the regulariser into the gradient only.",
            f"![both losses on {DRAWN}](figures/{DRAWN}.svg)",
            to_markdown(table(found)).rstrip(),
            f"Measured at commit `{here['git_commit']}` with PEFT "
            f"{here['packages']['peft']} and torch {here['packages']['torch']} by "
            "`python studies/adalora_eval_loss/measure.py`, which wrote this page.\n",
        ]
    )


def write(found: dict[str, Any], folder: Path) -> None:
    """Write page and figure into a folder."""
    write_text(folder / PAGE.name, page(found))
    figure = learning_curves(curves(found), "training (steps)", "loss (nats)")
    save(figure, folder / "figures", DRAWN, ("svg",))


def main() -> None:
    """Train, measure, and write results, page and figure."""
    if "--page" not in sys.argv:
        here = environment()
        content = {
            "environment": here,
            "cases": [asdict(case) for case in CASES],
            "runs": list(runs()),
        }
        text = json.dumps(content, indent=1) + "\n"
        write_text(RESULTS, text)
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    write(found, HERE)
    print("\n".join(sentences(found)))


if __name__ == "__main__":
    main()
