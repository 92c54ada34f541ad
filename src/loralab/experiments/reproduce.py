"""`reproduce`: make a run again from its own directory, and say whether it is the same.

    inputs       rows and base by their fingerprints, before anything is computed
    again        the same configuration, in another folder; the original is only read
    compared     bit for bit on a CPU, else within a tolerance
    environment  what has changed since explains what differs

An adapter is trained again from ``config.yaml``; an artefact is stored again from what
it was made of, and certified again; a merge is replayed, entry by entry, from its log.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from loralab.adapters.files import WEIGHTS
from loralab.config import ExperimentConfig, RouteConfig, StorageConfig
from loralab.data.examples import get_preprocessor
from loralab.data.rows import load_rows
from loralab.errors import RunError
from loralab.experiments import sameness
from loralab.experiments.sameness import Compared
from loralab.export.artefact import identity, quantize
from loralab.export.parity import Tolerance
from loralab.inference.artefact import check_files, read_note
from loralab.merging.state.folder import place
from loralab.merging.state.log import STATE, read_log
from loralab.merging.state.state import MergedState
from loralab.models.numerics import choose_numerics
from loralab.models.source import fingerprint_of, resolve_source
from loralab.runs import Run, find_run
from loralab.runs.environment import environment
from loralab.training.train import train

OnEvent = Callable[[dict[str, Any]], None]
GPU_TOLERANCE = 0.01
"""Default off the CPU, where sums are not taken in one order. It is a convention, not
a measured bound."""
OF_THE_BASE = "the base of "
"""How a certificate calls what was made of no adapter."""
FINISHED_BY = {"adapter": "train` with --resume", "artefact": "quantize` again"}
"""The verb, by the kind of the run that did not end."""
ELSEWHERE = ("wandb", "trackio")
"""Callbacks that write outside the run's directory."""


@dataclass(frozen=True)
class Change:
    """Something of the environment that is not as it was.

    Attributes:
        name: Such as ``threads`` or ``packages.torch``.
        then: When the run was made.
        now: Here.
    """

    name: str
    then: Any
    now: Any


@dataclass(frozen=True)
class Reproduction:
    """What came of it.

    Attributes:
        run: Its id, or the folder of a merge.
        kind: ``adapter``, ``artefact`` or ``merge``.
        again: The folder of the new one; None if it was not made, or not kept.
        tolerance: Within which it is equal; 0 is bit for bit.
        changes: Of the environment.
        inputs: Rows, base, and what an artefact was made of, by their hashes.
        compared: What it came to; empty where an input is another, for then nothing
            was made.
    """

    run: str
    kind: str
    again: str | None
    tolerance: float
    changes: tuple[Change, ...]
    inputs: tuple[Compared, ...]
    compared: tuple[Compared, ...]

    @property
    def equal(self) -> bool:
        """Whether it was made again, and all that was compared is the same."""
        return bool(self.compared) and all(
            one.equal for one in (*self.inputs, *self.compared)
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON has it; an infinite difference is null there."""
        found = asdict(self)
        for one in (*found["inputs"], *found["compared"]):
            if math.isinf(one["largest"]):
                one["largest"] = None
        return {"equal": self.equal, **found}


def changes(run: Run) -> tuple[Change, ...]:
    """Return what differs between the machine of then and this one.

    Raises:
        ModelError: the device of the configuration is not here.
    """
    content = run.read()
    then = dict(sameness.leaves(content.get("environment", {})))
    now = dict(sameness.leaves(environment()))
    if "numerics" in content:
        model = run.config.model
        here = choose_numerics(model.device, model.dtype)
        now |= {"device": here.device, "dtype": here.dtype}
        then |= {k: content["numerics"][k] for k in ("device", "dtype")}
    del now["memory_bytes"]  # no result depends on it
    return tuple(
        Change(name, then[name], value)
        for name, value in now.items()
        if name in then and then[name] != value
    )


def recorded_seconds(run: Run) -> float | None:
    """Return what the run took, from its own record; None if it does not say.

    Of a run that was resumed, training steps and evaluations alone.
    """
    content = run.read()
    if content.get("resumes"):
        measured = (sum(e["seconds"].values()) for e in run.evaluations().values())
        return float(content["training"]["step_seconds"] + sum(measured))
    try:
        began = datetime.fromisoformat(str(content["started"]))
        ended = datetime.fromisoformat(str(content["finished"]))
    except (KeyError, TypeError, ValueError):
        return None
    return float((ended - began).total_seconds())


def find_reproducible(reference: str, runs_dir: Path) -> Run | Path:
    """Return a run that is complete, or the folder of a merge.

    Raises:
        RunError: there is none, it did not end, or it is of a kind that is not made
            from its own directory.
    """
    folder = Path(reference).expanduser()
    if (folder / STATE).is_file():
        return folder
    run = find_run(reference, runs_dir)
    kind = str(run.read()["kind"])
    if kind not in ("adapter", "artefact"):
        raise RunError(
            f"a run of kind {kind} is not made again as one",
            where=str(run.path),
            fix="name one of the runs it is made of",
        )
    if run.status != "complete":
        raise RunError(
            f"this run is {run.status}, so there is nothing to compare with",
            where=str(run.path),
            fix=f"finish it: the same `loralab {FINISHED_BY[kind]}",
        )
    run.require(kind)
    return run


def reproduce(
    what: Run | Path,
    out: Path | None = None,
    *,
    tolerance: float | None = None,
    runs_dir: Path | None = None,
    on_event: OnEvent | None = None,
) -> Reproduction:
    """Make a run or a merge again, elsewhere, and compare.

    Args:
        what: As `find_reproducible` returns it.
        out: Where it is made, and kept; by default a temporary folder. One that was
            stopped there goes on.
        tolerance: See `loralab.experiments.sameness`; by default 0 on a CPU,
            `GPU_TOLERANCE` elsewhere.
        runs_dir: Where the run is that an artefact was made of; by default beside it.
        on_event: Told of progress.

    Raises:
        LoralabError: rows, base or source cannot be read, or `out` holds the run.
    """
    tell = on_event or (lambda _: None)
    if isinstance(what, Path):
        return _merge(what, out, tolerance or 0.0, tell)
    found = changes(what)
    config = what.config
    device = choose_numerics(config.model.device, config.model.dtype).device
    then = what.read().get("numerics", {}).get("device", "cpu")
    if tolerance is None:
        tolerance = 0.0 if {device, then} == {"cpu"} else GPU_TOLERANCE
    kind = str(what.read()["kind"])
    make: Again = _adapter if kind == "adapter" else _artefact
    inputs, again = make(what, runs_dir or what.path.parent, tolerance, tell)
    compared: list[Compared] = []
    kept = None
    if all(one.equal for one in inputs):
        with _room(out, what) as folder:
            made, compared = again(folder)
            kept = str(made.path) if out else None
    return Reproduction(
        what.id, kind, kept, tolerance, found, tuple(inputs), tuple(compared)
    )


Again = Callable[
    [Run, Path, float, OnEvent],
    tuple[list[Compared], Callable[[Path], tuple[Run, list[Compared]]]],
]
"""From a run to its compared inputs, and what makes it again in a folder."""


@contextmanager
def _room(out: Path | None, run: Run) -> Iterator[Path]:
    """Yield where it is made; never where the original is."""
    if out is None:
        with TemporaryDirectory(prefix="loralab-reproduce-") as made:
            yield Path(made)
        return
    content = run.read()
    own = f"{content['name']}-{content['hash']}"  # also of one that was moved aside
    if content["kind"] == "adapter":
        own = unheard(run.config).run_id
    there = Run(out / own)
    if (there.path / "run.json").is_file() and there.status == "complete":
        raise RunError(
            "a run of this configuration is here already",
            where=str(there.path),
            why="it would be found, and not made again",
            fix="name another folder with --out",
        )
    yield out


def _inputs(run: Run, config: ExperimentConfig, tell: OnEvent) -> list[Compared]:
    """Compare rows and base by their fingerprints."""
    before = run.read()
    tell({"event": "preparing", "what": "comparing rows and base with those of then"})
    task = get_preprocessor(config.task)
    rows = load_rows(config.data, task, before["data"].get("locks"))
    base = fingerprint_of(resolve_source(config.model).folder)
    found = (("data", rows.fingerprint), ("base", base))
    return [_same(name, before[name]["fingerprint"], now) for name, now in found]


def _same(what: str, then: str, now: str) -> Compared:
    if then == now:
        return Compared(what, True, 1)
    return Compared(what, False, 1, 1, 1.0, f"{then[:12]} then, {now[:12]} now")


def unheard(config: ExperimentConfig) -> ExperimentConfig:
    """Return a configuration without trackers elsewhere, which know a run by its id.

    They would write into what they hold of the original.
    """
    kept = [one for one in config.training.callbacks if one.name not in ELSEWHERE]
    training = config.training.model_copy(update={"callbacks": kept})
    return config.model_copy(update={"training": training})


def _adapter(run: Run, _: Path, tolerance: float, tell: OnEvent) -> Any:
    """Train again from the configuration alone."""
    config, locks = unheard(run.config), run.read()["data"].get("locks")

    def again(folder: Path) -> tuple[Run, list[Compared]]:
        made = train(config, folder, resume=True, locks=locks, on_event=tell)
        splits = [s for s in config.evaluation.splits if s in made.evaluations()]
        measured = (sameness.evaluation(run, made, s, tolerance) for s in splits)
        return made, [
            sameness.tensors(run.adapter, made.adapter, tolerance, WEIGHTS),
            sameness.losses(run, made, tolerance),
            *(one for some in measured for one in some),
        ]

    return _inputs(run, config, tell), again


def _artefact(run: Run, runs_dir: Path, tolerance: float, tell: OnEvent) -> Any:
    """Store again what it was made of, by its route, and certify it."""
    note = read_note(run.path / "artefact")
    check_files(run.path / "artefact", note, contents=True)
    storage = StorageConfig(**note["storage"])
    params = note.get("route_params") or {}
    route = RouteConfig(name=note["route"], params=params) if note["route"] else None
    what: Run | ExperimentConfig
    if note["made_of"].startswith(OF_THE_BASE):
        name = note["made_of"].removeprefix(OF_THE_BASE)
        what = run.config.model_copy(update={"name": name})
    else:
        what = find_run(note["made_of"], runs_dir)
    _, digest = identity(what, storage, route)
    source = _same("source, format and route", run.read()["hash"], digest)
    file = run.path / "parity.json"
    parity = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def again(folder: Path) -> tuple[Run, list[Compared]]:
        rows = parity["rows"] if parity else 0
        asked = Tolerance(**parity["tolerance"]) if parity else None
        made = quantize(
            what, storage, route, folder, rows=rows, tolerance=asked, on_event=tell
        )
        ours, theirs = (_hashes(one) for one in (run, made))
        results = [sameness.files("artefact files", ours, theirs)]
        if parity:
            text = (made.path / "parity.json").read_text(encoding="utf-8")
            pair = (_measured(parity), _measured(json.loads(text)))
            results.append(sameness.figures("certificate", *pair, tolerance))
        return made, results

    return [source, *_inputs(run, run.config, tell)], again


def _hashes(run: Run) -> dict[str, str]:
    files = read_note(run.path / "artefact")["files"]
    return {name: about["sha256"] for name, about in files.items()}


def _measured(parity: dict[str, Any]) -> dict[str, Any]:
    kinds = ("kl", "top1", "metrics", "greedy")
    return dict(sameness.leaves({kind: parity[kind] for kind in kinds}))


def _merge(
    folder: Path, out: Path | None, tolerance: float, tell: OnEvent
) -> Reproduction:
    """Replay a merge from its log, and compare each sum and what it exports."""
    state, log = MergedState.open(folder), read_log(folder)
    with TemporaryDirectory(prefix="loralab-reproduce-") as made:
        again = MergedState.begin((out or Path(made)) / "merge", log.method, log.dtype)
        for entry in state.log:
            if entry.action == "undo":
                again.undo(tell)
            else:
                kept = place(folder, entry.digest)
                again.add(kept, entry.adapter, entry.weight, force=True, on_event=tell)
        compared = [
            sameness.files("adapters", _digests(state), _digests(again)),
            sameness.figures("norms", _norms(state), _norms(again), tolerance),
        ]
        if not tolerance:
            compared.append(sameness.files("sums", _sums(state), _sums(again)))
        if state.tasks:
            pair = [Path(made) / name for name in ("then", "now")]
            for one, place_of in zip((state, again), pair, strict=True):
                one.export(place_of, on_event=tell)
            found = sameness.tensors(pair[0], pair[1], tolerance)
            compared.append(replace(found, what="merged tensors"))
    there = str(again.folder) if out else None
    versions = {
        (a.version, b.version) for a, b in zip(state.log, again.log, strict=True)
    }
    changed = [Change("packages.loralab", a, b) for a, b in versions if a != b]
    return Reproduction(
        str(folder), "merge", there, tolerance, tuple(changed), (), tuple(compared)
    )


def _digests(state: MergedState) -> dict[str, str]:
    return {f"{e.number} {e.action} {e.adapter}": e.digest for e in state.log}


def _norms(state: MergedState) -> dict[str, float]:
    return {f"{e.number} {e.action} {e.adapter}": e.norm for e in state.log}


def _sums(state: MergedState) -> dict[str, str]:
    return {
        f"after {entry.number}": entry.merged.sha256
        for entry in state.log
        if entry.merged
    }
