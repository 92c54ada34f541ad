"""A merge as a directory: what was merged, all that was ever done, one more task.

    DIR/
      state.json                   method, params, dtype; the log (see `log.py`)
      adapters/<digest>/…          the adapters as they were given, bit for bit
      merged-<hash>.safetensors    S_t of a continual method (see `stored.py`)

A continual method takes one step for one more task, from the file; a joint one is
merged from the adapters when it is exported. `undo` replays what is left from the
adapters: a projection cannot be subtracted. Everything new stands under temporary names
until it is whole, and ``state.json`` is replaced last, so that a kill at any moment
leaves the state of before; what it left behind is deleted by the next change.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from loralab import __version__
from loralab.config import MergeConfig
from loralab.config.named import chosen
from loralab.errors import MergeError
from loralab.lowrank.factors import frobenius_norm
from loralab.lowrank.files import AdapterFolder
from loralab.lowrank.update import frobenius
from loralab.merging.export.export import export
from loralab.merging.export.exported import Exported
from loralab.merging.export.room import Room
from loralab.merging.merge import MergedLayer, layers, merged_layers, shapes_of
from loralab.merging.method import Method, factor_of_norm_rule, resolve
from loralab.merging.state.fit import check_fit
from loralab.merging.state.folder import check_files, keep, place, tidy
from loralab.merging.state.log import Dtype, Entry, Log, begun, read_log
from loralab.merging.state.steps import (
    difference,
    distance,
    keep_sum,
    replayed,
    sources_of,
    stepped,
    stored_sum,
)
from loralab.merging.state.stored import Told, silent, told
from loralab.runs.run import held, now

logger = logging.getLogger(__name__)


class MergedState:
    """A directory that holds a merge; made by `init`, found again by `open`.

    Args:
        folder: The directory.
        log: What its ``state.json`` says.
    """

    def __init__(self, folder: Path, log: Log) -> None:
        self.folder, self._log = folder, log

    @classmethod
    def init(
        cls, folder: Path, method: str, dtype: Dtype = "float64", **params: Any
    ) -> MergedState:
        """Make the directory of a merge without a task.

        Args:
            folder: A new directory, or an empty one.
            method: A merge method's name.
            dtype: What the algebra is done in, and S_t is stored in.
            params: Of the method.

        Raises:
            ConfigError: no such method, or a param that it does not have.
            MergeError: something is in the directory already.
        """
        return cls.begin(folder, chosen(MergeConfig, method, params), dtype)

    @classmethod
    def begin(
        cls, folder: Path, config: MergeConfig, dtype: Dtype = "float64"
    ) -> MergedState:
        """Do what `init` does, for a method that is configured already."""
        folder = Path(folder)
        params = resolve(config).params.model_dump(mode="json")
        log = begun(config.model_copy(update={"params": params}), dtype)
        with held(folder, fix="wait until it is done"):
            if any(file.name != ".lock" for file in folder.iterdir()):
                raise MergeError(
                    "is not empty",
                    where=str(folder),
                    fix="name a new folder, or add to the merge that is here",
                )
            log.write(folder)
        return cls(folder, log)

    @classmethod
    def open(cls, folder: Path) -> MergedState:
        """Return the merge in a directory; every file of it is hashed.

        Raises:
            MergeError: no merge state, one of a later format, or a file that is missing
                or not what was written; it is named.
        """
        folder = Path(folder)
        while True:
            log = read_log(folder)
            try:
                check_files(folder, log)
            except MergeError:
                if read_log(folder).tip == log.tip:
                    raise
            else:  # otherwise another process has changed it meanwhile
                return cls(folder, log)

    @property
    def log(self) -> tuple[Entry, ...]:
        """All that was ever done, oldest first."""
        return self._log.entries

    @property
    def tasks(self) -> tuple[Entry, ...]:
        """The tasks that are merged, in their order."""
        return self._log.tasks

    @property
    def task_count(self) -> int:
        """How many tasks are merged."""
        return len(self.tasks)

    @property
    def avg_norm(self) -> float:
        """n̄_t, the mean of ‖ΔW_i‖_F over all layers; weights included.

        Raises:
            MergeError: no task is merged.
        """
        norms = [task.norm for task in self._some_tasks()]
        return math.fsum(norms) / len(norms)

    @property
    def lambda_t(self) -> float:
        """λ_t = ‖S_t‖ / n̄_t, whether the norm rule is followed or not.

        Of a joint method it is merged first. 1 where S_t is zero.

        Raises:
            MergeError: no task is merged.
        """
        norms = [task.norm for task in self._some_tasks()]
        return 1 / factor_of_norm_rule(self._norm(), norms)

    @property
    def method(self) -> Method:
        """The merge method with its params."""
        return self._log.resolved

    @property
    def dtype(self) -> torch.dtype:
        """What the algebra is done in."""
        return self._log.precision

    def add(
        self,
        adapter: Path,
        name: str | None = None,
        weight: float = 1.0,
        force: bool = False,
        on_event: Told = silent,
    ) -> Entry:
        """Merge one more adapter, and return the log's new entry.

        Args:
            adapter: A plain PEFT LoRA folder, or a run that made one.
            name: What the task is called; by default the adapter's own name.
            weight: What its update is multiplied with; negative unlearns.
            force: Take an adapter of another base, or the same once more.
            on_event: Is told each layer.

        Raises:
            AdapterError: the adapter is broken, not plain, holds NaN, or has other
                shapes than those before it.
            MergeError: it is of another base or was added before, without `force`; its
                name is taken; another process works here.
        """
        if not math.isfinite(weight) or weight == 0:
            raise MergeError(f"a weight of {weight:g} merges nothing", where=name or "")
        with self._changing():
            source = AdapterFolder.open(Path(adapter), name)
            sources = [*self.sources, source]
            check_fit(sources, force, len(self.tasks))
            self._check_name(source.name)
            norm = abs(weight) * math.hypot(
                *(frobenius_norm(source.factors(module)) for module in source.shapes)
            )
            digest, files = keep(self.folder, source.path)
            kept = AdapterFolder.open(place(self.folder, digest), source.name)
            self._write(
                action="add",
                adapter=source.name,
                digest=digest,
                weight=weight,
                norm=norm,
                files=files,
                merged=stepped(self.folder, self._log, kept, weight, on_event),
            )
        return self.log[-1]

    def undo(self, on_event: Told = silent) -> Entry:
        """Take the last task out again, and return the log's new entry.

        What is left is merged anew from the stored adapters. The adapter stays: the log
        names it.

        Raises:
            MergeError: no task is left, or another process works here.
        """
        with self._changing():
            last = self._some_tasks()[-1]
            left = self.tasks[:-1]
            merged = None
            if self.method.continual and left:
                made = replayed(self.folder, self._log, left, on_event)
                merged = keep_sum(self.folder, made)
                before = left[-1].merged
                gap = abs(merged.norm - before.norm) if before else 0.0
                if said := difference(self._log, left[-1], gap):
                    logger.warning("%s", said)
            self._write(
                action="undo",
                adapter=last.adapter,
                digest=last.digest,
                weight=last.weight,
                norm=last.norm,
                files={},
                merged=merged,
            )
        return self.log[-1]

    def verify(self, on_event: Told = silent) -> None:
        """Hash every file, and replay S_t from the adapters without writing anything.

        Raises:
            MergeError: a file is not what was written, or the replay gives another S_t.
        """
        with self._held():
            type(self).open(self.folder)
            stored = stored_sum(self.folder, self._log)
            if stored is None:
                return
            made = replayed(self.folder, self._log, self.tasks, on_event)
            if said := difference(self._log, self.tasks[-1], distance(stored, made)):
                raise MergeError(said, where=str(self.folder))

    def layers(self) -> Iterator[MergedLayer]:
        """Yield the merged layers one by one, before the norm rule.

        Raises:
            MergeError: no task is merged.
        """
        tasks = self._some_tasks()
        sources, weights = self.sources, [task.weight for task in tasks]
        stored = stored_sum(self.folder, self._log)
        if stored is None:
            yield from merged_layers(self.method, sources, weights, self.dtype)
            return
        for layer in layers(sources, weights, self.dtype):
            norms = tuple(frobenius_norm(task) for task in layer.tasks)
            yield MergedLayer(layer.name, stored.update(layer.name), norms)

    def export(
        self,
        folder: Path | str,
        *,
        rank: int | None = None,
        energy: float | None = None,
        budget_mb: float | None = None,
        dtype: str | None = None,
        head: str | None = None,
        on_event: Told = silent,
    ) -> Exported:
        """Write what is merged as a plain PEFT folder; exact without a limit.

        Args:
            folder: New or empty, or an adapter that was merged before.
            rank: At most this many directions of each layer.
            energy: Share of Σσ² over all layers that must stay, in (0, 1].
            budget_mb: Size of the weights' file, in 10⁶ bytes.
            dtype: ``fp64``, ``fp32``, ``bf16`` or ``fp16``; by default the narrowest
                that holds every adapter's.
            head: The task whose head the adapter shall have; by default one that all
                have.
            on_event: Is told each layer.

        Raises:
            ExportError: `export` in `merging/export/export.py` says when.
            MergeError: no task is merged, or another process works here.
        """
        with self._held():
            weights = [task.weight for task in self._some_tasks()]
            sources = self.sources
            merged = told(self.layers(), "exporting", len(shapes_of(sources)), on_event)
            return export(
                Path(folder),
                merged,
                sources,
                self.method,
                weights=weights,
                room=Room(rank, energy, budget_mb),
                dtype=dtype,
                head=head,
            )

    @property
    def scale(self) -> float:
        """What the norm rule multiplies S_t with; 1 for a method that follows none."""
        return 1 / self.lambda_t if self.method.normed else 1.0

    @property
    def sources(self) -> list[AdapterFolder]:
        """The tasks' adapters, as they are stored here."""
        return sources_of(self.folder, self.tasks)

    @cached_property
    def _joint_norm(self) -> float:
        """‖S_t‖_F of a joint method."""
        return math.hypot(*(frobenius(layer.update) for layer in self.layers()))

    def _norm(self) -> float:
        merged = self._log.merged
        return merged.norm if merged else self._joint_norm

    def _some_tasks(self) -> tuple[Entry, ...]:
        if not self.tasks:
            raise MergeError(
                "no task is merged",
                where=str(self.folder),
                fix="loralab merge add STATE ADAPTER",
            )
        return self.tasks

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the directory, and see it as it is now."""
        with held(self.folder, fix="wait until it is done"):
            if read_log(self.folder).tip != self._log.tip:
                self._see(type(self).open(self.folder)._log)
            yield

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the directory, without what a killed change left behind."""
        with self._held():
            tidy(self.folder, self._log)
            try:
                yield
            except OSError as error:
                raise MergeError(
                    "cannot be written; the merge is as it was",
                    where=str(self.folder),
                    why=str(error),
                    fix="make room, or get the right to write there",
                ) from None
            finally:
                tidy(self.folder, self._log)

    def _see(self, log: Log) -> None:
        self._log = log
        self.__dict__.pop("_joint_norm", None)

    def _write(self, **what: Any) -> None:
        log = self._log.then(**what, time=now(), version=__version__)
        log.write(self.folder)
        self._see(log)

    def _check_name(self, name: str) -> None:
        if name in (task.adapter for task in self.tasks):
            raise MergeError(
                f"a task is called {name} already",
                where=str(self.folder),
                fix="give this one another with --name",
            )
