"""Ranks that change while training goes on: when, to what, and what is written down.

What the new ranks are is a function of the model and the step; this file has one, by
spectrum. Each change is an event ``ranks`` in the run's log. A checkpoint stands after
the change of its step, in the new shapes, so a resumed run goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from loralab import registry
from loralab.adapters.allocation import allocate, modules_of
from loralab.adapters.allotment import budget_of
from loralab.adapters.ranks_config import RanksConfig, ResizeConfig
from loralab.adapters.resize import (
    carry_optimizer,
    factors_of,
    fit_shapes,
    lora_parameters,
    ranks_of,
    resize,
)
from loralab.config import ExperimentConfig, PEFTConfig
from loralab.errors import ConfigError, TrainingError
from loralab.lowrank.budget import largest_within
from loralab.lowrank.factors import singular_values
from loralab.models.loaded import LoadedModel
from loralab.training.events import EventLog

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from loralab.training.trainer import PEFTTrainer

STEPS = 2**32
"""More than a training has; seed and step together seed the new rows."""

RanksAt = Callable[[Any, int], dict[str, int]]
"""From the PEFT model and the step to the rank of each module, by its path."""


class RankScheduleCallback(TrainerCallback):
    """Resizes the adapter at given shares of the training.

    It keeps no state: what it does at a step follows from the model, the seed and the
    step, so a resumed training repeats nothing and misses nothing.

    Args:
        changes: Share of all steps, in (0, 1) -> what gives the new ranks; the change
            comes after that step.
        log: Where the event ``ranks`` is written.
        seed: Of the new rows of A, together with the step.

    Raises:
        TrainingError: a share that is none, or training in several processes.
    """

    def __init__(
        self, changes: Mapping[float, RanksAt], log: EventLog, seed: int
    ) -> None:
        for share in changes:
            if not 0 < share < 1:
                raise TrainingError(
                    f"ranks cannot change at {share} of the steps", fix="0 < share < 1"
                )
        self._changes = dict(changes)
        self._log = log
        self._seed = seed

    def steps(self, total: int) -> dict[int, RanksAt]:
        """Return after which steps of `total` the ranks change, and how.

        Raises:
            TrainingError: two changes would come after one step.
        """
        found = {max(1, round(at * total)): how for at, how in self._changes.items()}
        if len(found) < len(self._changes):
            raise TrainingError(
                f"two changes of rank fall on one of {total} steps",
                where="peft.params.schedule",
                fix="move their shares apart, or train longer",
            )
        return found

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Refuse what would go wrong later.

        Raises:
            TrainingError: several processes hold copies of the tensors, or two changes
                fall on one step.
        """
        self.steps(state.max_steps)
        if args.world_size > 1:
            raise TrainingError(
                f"ranks cannot change in {args.world_size} processes",
                why="DDP keeps buckets of the very tensors that would be replaced",
                fix="train in one process, or without a rank schedule",
            )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Resize model and optimizer where the schedule says so; gradients are none."""
        step = state.global_step
        ranks_at = self.steps(state.max_steps).get(step)
        if ranks_at is None:
            return
        before = lora_parameters(model)
        generator = torch.Generator().manual_seed(self._seed * STEPS + step)
        report = resize(model, ranks_at(model, step), generator)
        anew = carry_optimizer(optimizer, before, lora_parameters(model))
        ranks = ranks_of(model)
        self._log.emit(
            "ranks",
            step=step,
            total_rank=sum(ranks.values()),
            ranks=ranks,
            changed=len(report),
            truncation_errors={
                name: done.relative_error
                for name, done in report.items()
                if done.after < done.before
            },
            optimizer_states_anew=len(anew),
        )


def by_spectrum(total_rank: int, explore: float = 0.0) -> RanksAt:
    """Return a rule: rank goes to the strongest directions, and some to try more.

    Of the budget, a share `explore` is set aside. The rest goes to the largest singular
    values of ΔW over all modules. What was set aside, and what found no direction, goes
    round the modules, one rank each, first to those whose weakest direction so chosen
    is the strongest: they have been cut off at the highest level. There it keeps what
    the module had (its next directions), and beyond that it is new directions. With
    `explore` 0 the least energy there is is truncated; with more, modules that use
    their rank can grow. (That rule of growth is ours, a heuristic.)

    Args:
        total_rank: Sum of ranks afterwards; fewer where the weights' sides forbid it.
        explore: Share of it that is given by the second rule, in [0, 1).

    Returns:
        A function of the model and the step; the step does not matter to it.
    """

    def ranks_at(model: Any, step: int) -> dict[str, int]:
        factors = factors_of(model)
        spectra = {name: singular_values(f).tolist() for name, f in factors.items()}
        most = {name: min(f.shape) for name, f in factors.items()}
        if total_rank < len(spectra):
            raise TrainingError(
                f"{total_rank} ranks are fewer than the {len(spectra)} adapted modules",
                why="PEFT knows no rank 0",
                fix="give a larger total rank",
            )
        proven = max(round((1 - explore) * total_rank), len(spectra))
        ranks = largest_within(spectra, proven, least=1)
        return grow(ranks, spectra, most, total_rank - sum(ranks.values()))

    return ranks_at


def grow(
    ranks: dict[str, int],
    spectra: dict[str, list[float]],
    most: dict[str, int],
    count: int,
) -> dict[str, int]:
    """Return ranks with `count` more, round the modules, strongest cut first.

    Args:
        ranks: Module -> rank, at least 1.
        spectra: Module -> singular values, descending.
        most: Module -> the rank it can have.
        count: How many to add; no module grows beyond `most`.
    """
    grown = dict(ranks)
    order = sorted(ranks, key=lambda name: -spectra[name][ranks[name] - 1])
    while count > 0 and (open_ones := [n for n in order if grown[n] < most[n]]):
        for name in open_ones[:count]:
            grown[name] += 1
        count -= len(open_ones)
    return grown


def _changes(config: PEFTConfig) -> list[ResizeConfig]:
    params: Any = registry.get("PEFT method", config.name).schema(**config.params)
    return list(params.schedule)


def by_strategy(
    strategy: RanksConfig, rank: int, base: LoadedModel, model: Any
) -> RanksAt:
    """Return a rule: a strategy's ranks under the parameters of a uniform rank.

    They are allocated at once, so that an impossible budget is told before the first
    step.

    Args:
        strategy: One that needs no statistics.
        rank: Mean rank, where the strategy has no budget of its own.
        base: The base; its facts tell modules apart.
        model: The PEFT model on it.
    """
    modules = modules_of(base.facts, model.get_base_model(), list(ranks_of(model)))
    budget = budget_of(strategy, modules, rank)
    ranks = allocate(strategy, modules, budget, None, strategy.seed)
    return lambda model, step: ranks


def check(config: ExperimentConfig) -> None:
    """Refuse early stopping with a schedule: the best step may have other ranks.

    Raises:
        ConfigError: both are configured.
    """
    if config.training.early_stopping and _changes(config.peft):
        raise ConfigError(
            "ranks that change cannot be combined with early stopping",
            where="training.early_stopping",
            why="the best checkpoint may have other ranks than were asked for",
            fix="set training.early_stopping=null, or peft.params.schedule=[]",
        )


def begin(model: Any, config: PEFTConfig, steps: int) -> None:
    """Do nothing: shares of all steps need no count of them."""


def drive(trainer: PEFTTrainer, log: EventLog, config: PEFTConfig) -> None:
    """Put the schedule on a trainer; on resume a checkpoint's shapes decide."""
    changes: dict[float, RanksAt] = {}
    for change in _changes(config):
        if change.ranks is None:
            count = len(ranks_of(trainer.model))
            changes[change.at] = by_spectrum(change.rank * count)
        else:
            changes[change.at] = by_strategy(
                change.ranks, change.rank, trainer.base, trainer.model
            )
    if changes:
        callback = RankScheduleCallback(changes, log, trainer.args.seed)
        trainer.add_callback(callback)
        trainer.fit = lambda tensors: fit_shapes(trainer.model, tensors)


def result(model: Any) -> Any:
    """Return the model: it is a LoRA already."""
    return model
