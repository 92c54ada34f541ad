"""How much of a real adapter survives each way into a quantized base.

Adapters are trained by loralab on float bases. Each is also scaled, so that ‖ΔW‖/‖W‖
of all its layers is a target; those points say so. Two starts of a merge:

    float   Q(W + ΔW) against Q(W)          the base's weights are between codes
    grid    Q(Q(W) + ΔW) against Q(Q(W))    the base stands on the format's grid already

and the shift of zeros for a QA-LoRA. `loralab.export.survival` measures. Of some cells
the cross-entropy of test rows is measured too, paired with the unmerged adapter.

    python -m studies.adapter_survival.measure smoke      # keeps nothing
    python -m studies.adapter_survival.measure evidence   # minutes
    python -m studies.adapter_survival.measure page       # from results
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from studies.adapter_survival.formats import (
    GROUPS,
    INTEGER,
    ZEROS,
    Rounded,
    grids,
    name_of,
    shifted,
)
from torch import Tensor

from loralab import compose, train
from loralab.evaluation.evaluate import split_of
from loralab.evaluation.intervals import score_intervals
from loralab.evaluation.scores import ratio_of
from loralab.export.survival import LayerSurvival, Survival, layer_survival, norm
from loralab.export.weights import adapted, bare, factors_of, layer_of, to_float
from loralab.export.weights import values_of as stored_values
from loralab.inference.load import LoadedAdapter, load_adapter
from loralab.inference.predict import Predictions, predict
from loralab.lowrank.factors import Factors
from loralab.models.base import load_base
from loralab.runs import Run
from loralab.runs.environment import environment
from loralab.runs.files import write_text

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results.json", HERE / "README.md"
WORK = Path("runs") / "adapter_survival"
"""Runs and pieces of the evidence: stopped, it goes on where it was."""
COMMON = (
    "model.dtype=fp32",
    "model.device=cpu",
    "training.callbacks=[]",
    "training.warmup_ratio=0.1",
    "evaluation.base=false",
    "evaluation.resamples=200",
)
CONFIDENCE, RESAMPLES = 0.95, 2000
DIGITS = 6
"""Significant figures of what is written."""
GAUSSIAN = "gaussian"
"""The artificial adapter: W and ΔW drawn at random, for comparison."""


@dataclass(frozen=True)
class Case:
    """An adapter to train.

    Attributes:
        name: In the results.
        experiment: A preset.
        overrides: Of the preset.
        grids: Names of the grids it is stored on; () is all. A QA-LoRA is stored on
            its own.
        answered: Grids of which cross-entropy is measured; () is none.
        targets: Relative sizes that it is scaled to; () is those of the study.
    """

    name: str
    experiment: str
    overrides: tuple[str, ...]
    grids: tuple[str, ...] = ()
    answered: tuple[str, ...] = ()
    targets: tuple[float, ...] = ()


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        cases: What is trained.
        targets: Relative sizes that every adapter is scaled to.
        side: Of the artificial matrix.
    """

    cases: tuple[Case, ...]
    targets: tuple[float, ...]
    side: int


def encoder(steps: int, rows: int, *more: str) -> tuple[str, ...]:
    """Return the overrides of a training on MiniLM."""
    return (
        f"training.max_steps={steps}",
        "training.per_device_train_batch_size=16",
        f"data.max_rows={{train: {16 * steps}, validation: 8, test: {rows}}}",
        *more,
    )


def lora(rank: int, rate: str) -> tuple[str, ...]:
    """Return the overrides of LoRA on all linear modules, alpha twice the rank."""
    params = {"rank": rank, "alpha": 2 * rank, "target_modules": "all-linear"}
    given = tuple(f"peft.params.{key}={value}" for key, value in params.items())
    return ("peft=lora", *given, f"training.learning_rate={rate}")


def qa_lora(group: int, rate: str) -> tuple[str, ...]:
    """Return the overrides of QA-LoRA; it quantizes the float base itself."""
    return (
        "peft=qa-lora",
        "peft.params.rank=8",
        "peft.params.alpha=16",
        f"peft.params.group_size={group}",
        f"training.learning_rate={rate}",
    )


ANSWERED = ("NF4", name_of(4, 32, "fp32"))
DECODER_GRIDS = ("NF4", *(name_of(4, 64, z) for z in ("fp32", INTEGER)))
DECODER = (
    "training.max_steps=15",
    "training.per_device_train_batch_size=2",
    "task.params.max_length=128",
    "data.max_rows={train: 60, validation: 8, test: 40}",
)
EVIDENCE = Size(
    cases=(
        Case("trec-6 r8 1e-4", "trec-6", encoder(100, 400, *lora(8, "1e-4"))),
        Case(
            "trec-6 r8 1e-3",
            "trec-6",
            encoder(100, 400, *lora(8, "1e-3")),
            answered=ANSWERED,
        ),
        Case(
            "sms-spam r16 5e-4",
            "sms-spam",
            encoder(80, 400, *lora(16, "5e-4")),
            answered=ANSWERED,
        ),
        Case("trec-6 r16 2e-3", "trec-6", encoder(100, 400, *lora(16, "2e-3"))),
        *(
            Case(
                f"trec-6 qa-lora g{group}",
                "trec-6",
                encoder(60, 400, *qa_lora(group, "1e-3")),
                answered=ZEROS if group == GROUPS[0] else (),
            )
            for group in GROUPS
        ),
        Case(
            "chatterbot r8 5e-4",
            "chatterbot",
            (*DECODER, *lora(8, "5e-4")),
            grids=DECODER_GRIDS,
            answered=("NF4",),
            targets=(0.01, 0.1),
        ),
    ),
    targets=(0.005, 0.01, 0.03, 0.05, 0.1, 0.3),
    side=768,
)
SMOKE = Size(
    cases=(
        Case(
            "smoke lora",
            "trec-6",
            encoder(4, 40, *lora(8, "1e-3")),
            grids=ANSWERED,
            answered=("NF4",),
        ),
        Case(
            "smoke qa-lora",
            "trec-6",
            encoder(4, 40, *qa_lora(32, "1e-3")),
            answered=("fp32", INTEGER),
        ),
    ),
    targets=(0.01, 0.1),
    side=128,
)

Layer = tuple[str, Tensor, Factors]
"""A module, W (O × I, fp32) and ΔW."""
Ways = Callable[[Tensor, Factors], Iterator[tuple[str, str, Tensor, Tensor, Tensor]]]
"""From W and ΔW to (grid, start, the weight that is moved, Q0, Q1) of each way."""


def dense(update: Factors) -> Tensor:
    """Return ΔW (O × I), fp32, rounded once."""
    product = update.B.double() @ update.A.double()
    return (product * update.scale).float()


def merges(chosen: dict[str, Rounded]) -> Ways:
    """Return the ways of merging: each grid, from float and from the grid."""

    def ways(
        weight: Tensor, update: Factors
    ) -> Iterator[tuple[str, str, Tensor, Tensor, Tensor]]:
        delta = dense(update)
        for name, rounded in chosen.items():
            base = rounded(weight)
            yield name, "float", weight, base, rounded(weight + delta)
            yield name, "grid", base, rounded(base), rounded(base + delta)

    return ways


def shifts(group: int) -> Ways:
    """Return the ways of shifting zeros: each kind of zero."""

    def ways(
        weight: Tensor, update: Factors
    ) -> Iterator[tuple[str, str, Tensor, Tensor, Tensor]]:
        delta = dense(update)[:, ::group]  # constant inside a group
        for zeros in ZEROS:
            before, after = shifted(weight, delta, group, zeros)
            yield name_of(4, group, zeros), "zeros", before, before, after

    return ways


def total(layers: Sequence[Layer]) -> float:
    """Return ‖ΔW‖/‖W‖ of all layers."""
    updates = math.hypot(*(norm(update) for _, _, update in layers))
    return updates / math.hypot(*(float(w.norm()) for _, w, _ in layers))


def survivals(
    layers: Sequence[Layer], ways: Ways, targets: Sequence[float]
) -> list[dict[str, Any]]:
    """Return what every way keeps of an adapter as trained, and scaled to targets."""
    factors: dict[float | None, float] = {None: 1.0}
    factors |= {target: target / total(layers) for target in targets}
    found: dict[tuple[str, str, float | None], dict[str, LayerSurvival]] = {}
    for name, weight, update in layers:
        for target, factor in factors.items():
            scaled = replace(update, scale=update.scale * factor)
            for grid, start, moved, before, after in ways(weight, scaled):
                one = layer_survival(moved, before, after, scaled)
                if one is not None:
                    found.setdefault((grid, start, target), {})[name] = one
    return [
        record(grid, start, target, Survival(kept))
        for (grid, start, target), kept in found.items()
    ]


def shown(value: float) -> float:
    """Return a number with `DIGITS` significant figures."""
    return float(f"{value:.{DIGITS}g}")


def record(
    grid: str, start: str, target: float | None, kept: Survival
) -> dict[str, Any]:
    """Return a cell as it is written; layers only of an adapter as it was trained."""
    layers = kept.layers.values()
    own = {
        "layer_sizes": [shown(one.size) for one in layers],
        "layer_kept": [shown(one.kept) for one in layers],
    }
    return {
        "grid": grid,
        "start": start,
        "scaled_to": target,
        "size": shown(kept.size),
        "kept": shown(kept.kept),
        "noise": shown(kept.noise),
        **(own if target is None else {}),
    }


def float_weights(adapter: LoadedAdapter, config: Any) -> dict[str, Tensor]:
    """Return the float base's own weights, of a base that was quantized too."""
    labels = getattr(adapter.task, "labels", ())
    base = load_base(config.model, adapter.base.head, labels)
    return {n: stored_values(base.model.get_submodule(n)) for n in adapted(adapter)}


# ---- cross-entropy of test rows, paired ----


def answer(model: Any, adapter: LoadedAdapter, examples: Any) -> Predictions:
    """Return the likelihood of test rows under a model."""
    return predict(model, adapter.base, examples, 32)


def stored_as(adapter: LoadedAdapter, values: Iterable[tuple[str, Tensor]]) -> Any:
    """Return the base with the trained head, its matrices replaced by stored ones."""
    model = to_float(bare(adapter)).eval()
    for name, matrix in values:
        model.get_submodule(name).weight.data = matrix
    return model


def arms(
    adapter: LoadedAdapter, layers: Sequence[Layer], case: Case
) -> Iterator[tuple[str, str, Any]]:
    """Yield (grid, arm, model) of every model that is compared with the adapter."""
    plain = {name: (weight, dense(update)) for name, weight, update in layers}
    for grid in case.answered:
        if adapter.peft.name == "qa-lora":
            group = layer_of(adapter, layers[0][0]).get_base_layer().group
            pairs = {
                n: shifted(w, d[:, ::group], group, grid) for n, (w, d) in plain.items()
            }
            name = name_of(4, group, grid)
            ones = ((n, pair[0]) for n, pair in pairs.items())
            yield name, "base alone", stored_as(adapter, ones)
            ones = ((n, pair[1]) for n, pair in pairs.items())
            yield name, "merged into zeros", stored_as(adapter, ones)
            continue
        for arm, make in stored_arms(grids()[grid]).items():
            ones = ((n, make(w, d)) for n, (w, d) in plain.items())
            yield grid, arm, stored_as(adapter, ones)


def stored_arms(rounded: Rounded) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return arm -> what it makes of W and ΔW."""
    return {
        "base alone": lambda weight, delta: rounded(weight),
        "adapter beside": lambda weight, delta: rounded(weight) + delta,
        "merged in float": lambda weight, delta: rounded(weight + delta),
        "merged on the grid": lambda weight, delta: rounded(rounded(weight) + delta),
    }


def against(reference: Predictions, other: Predictions) -> dict[str, Any]:
    """Return the change of cross-entropy from a reference, paired over rows."""
    scores = [
        {"cross_entropy": ratio_of(one.nll, one.labels)} for one in (other, reference)
    ]
    found = score_intervals(scores, CONFIDENCE, RESAMPLES, 0)["cross_entropy"]
    own, _, change = (one.as_dict() for one in found)
    return {"cross_entropy": own, "change": change}


def answers(
    adapter: LoadedAdapter, layers: Sequence[Layer], case: Case, rows: Any
) -> list[dict[str, Any]]:
    """Return cross-entropy of every arm, and its change from the unmerged adapter."""
    examples = adapter.task(list(rows), adapter.base.processor)
    reference = answer(adapter.model, adapter, examples)
    found = [{"grid": "–", "arm": "adapter, unmerged", **against(reference, reference)}]
    for grid, arm, model in arms(adapter, layers, case):
        compared = against(reference, answer(model, adapter, examples))
        found.append({"grid": grid, "arm": arm, **compared})
        tell(f"  {grid} {arm}: {compared['change']['value']:+.4f} nats")
    return found


# ---- all of it ----

BEGAN = time.perf_counter()


def tell(text: str) -> None:
    """Print a line with the minutes since the start."""
    print(f"{(time.perf_counter() - BEGAN) / 60:5.1f} min  {text}", flush=True)


def measured(case: Case, size: Size, folder: Path) -> dict[str, Any]:
    """Train an adapter, and measure it everywhere."""
    config = compose(case.experiment, [*COMMON, *case.overrides])
    tell(f"{case.name}: training")
    run = train(config, folder)
    adapter = load_adapter(run)
    weights = float_weights(adapter, config)
    layers = []
    for name in adapted(adapter):
        update = factors_of(adapter, name)
        assert update is not None
        layers.append((name, weights[name], update))
    if config.peft.name == "qa-lora":
        ways = shifts(config.peft.params["group_size"])
    else:
        every = grids()
        ways = merges({g: every[g] for g in case.grids or every})
    tell(f"{case.name}: ‖ΔW‖/‖W‖ = {total(layers):.2%}; storing")
    cells = survivals(layers, ways, case.targets or size.targets)
    tell(f"{case.name}: answering")
    rows = split_of(run, adapter, "test")
    return {
        "name": case.name,
        "base": config.model.path.partition(":")[2],
        "run": config.run_id,
        "method": config.peft.name,
        "rank": config.peft.params["rank"],
        "learning_rate": config.training.learning_rate,
        "steps": config.training.max_steps,
        "size": shown(total(layers)),
        "test_rows": len(rows),
        "test": test_of(run),
        "cells": cells,
        "answers": answers(adapter, layers, case, rows) if case.answered else [],
    }


def test_of(run: Run) -> dict[str, Any]:
    """Return the primary metric on test rows: whether the adapter learnt anything."""
    text = (run.path / "eval" / "test.json").read_text(encoding="utf-8")
    found = json.loads(text)
    name = found["primary"]
    return {"metric": name, "value": shown(found["metrics"][name]["adapter"]["value"])}


def artificial(size: Size) -> dict[str, Any]:
    """Return the same of a Gaussian W and a random ΔW of rank 8."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    side = size.side
    layer = (GAUSSIAN, normal(side, side), Factors(normal(8, side), normal(side, 8), 1))
    cells = survivals([layer], merges(grids()), size.targets)
    return {"cells": [cell for cell in cells if cell["scaled_to"] is not None]}


def piece(case: Case, size: Size, folder: Path) -> dict[str, Any]:
    """Return an adapter's results, measured once: they stay in the folder."""
    file = folder / f"{case.name.replace(' ', '-')}.json"
    if not file.is_file():
        began = time.perf_counter()
        found = measured(case, size, folder)
        found["minutes"] = round((time.perf_counter() - began) / 60, 1)
        write_text(file, json.dumps(found))
    kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return kept


def study(size: Size, work: Path) -> dict[str, Any]:
    """Return all results of a size.

    Args:
        size: What is measured.
        work: Where pieces stay; those of this commit are not measured again.
    """
    here = environment()
    folder = work / str(here["git_commit"])
    adapters = [piece(case, size, folder) for case in size.cases]
    return {
        "environment": here,
        "cases": [asdict(case) for case in size.cases],
        "targets": list(size.targets),
        "adapters": adapters,
        GAUSSIAN: artificial(size),
        "minutes": round(sum(one["minutes"] for one in adapters), 1),
    }


def main() -> None:
    """Measure, and write results, page and figure."""
    from studies.adapter_survival.page import write

    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    if asked not in ("smoke", "evidence", "page"):
        raise SystemExit(__doc__)
    if asked == "smoke":
        with tempfile.TemporaryDirectory() as folder:
            write(study(SMOKE, Path(folder)), Path(folder))
        return
    if asked == "evidence":
        found = study(EVIDENCE, WORK)
        text = json.dumps(found, separators=(",", ":")) + "\n"
        write_text(RESULTS, text)
    write(json.loads(RESULTS.read_text(encoding="utf-8")), HERE)


if __name__ == "__main__":
    main()
