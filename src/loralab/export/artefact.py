"""`quantize`: an artefact from a run's adapter, or from a base alone.

    adapter, base  →  route  →  storage format  →  read back  →  survival, parity

An artefact is a run of kind ``artefact``. Its configuration is that of what it was made
of, so its task and rows are known; its hash is over what it was made of, the format and
the route. Nothing is believed: bytes are those of the files, values are read back from
them, and the certificate is measured in the engine that will run it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loralab import registry
from loralab.adapters.files import WEIGHTS, template_hash
from loralab.config import ExperimentConfig, RouteConfig, StorageConfig
from loralab.data.examples import get_preprocessor
from loralab.errors import ExportError, LoralabError
from loralab.export.beside import BESIDE, check_beside, put_beside
from loralab.export.certificate import ROWS, certify_run
from loralab.export.parity import Tolerance
from loralab.export.routed import Routed, check_format, survival_of, take
from loralab.export.subject import Subject, subject_of
from loralab.inference.artefact import FORMAT_VERSION, NOTE, read_note
from loralab.inference.load import LoadedAdapter
from loralab.quantization.storage import Source, Stored
from loralab.registry import Entry
from loralab.runs import Run
from loralab.runs.environment import environment
from loralab.runs.files import (
    atomic_directory,
    remove_leftovers,
    sha256_file,
)
from loralab.runs.run import create, held, move_aside, now

OnEvent = Callable[[dict[str, Any]], None]
CLOSE = 0.01
"""Predicted and measured bytes may differ by this share."""


def usual_route(run: Run) -> str:
    """Return the route that an adapter takes unless another is asked for."""
    own = run.config.peft.name
    return "qa-lora" if own == "qa-lora" else "merge-then-quantize"


def route_of(
    what: Run | ExperimentConfig, asked: RouteConfig | None
) -> RouteConfig | None:
    """Return the route that is taken; None of a base alone.

    Raises:
        ExportError: a route is asked for where there is no adapter.
    """
    if isinstance(what, Run):
        return asked or RouteConfig(name=usual_route(what))
    if asked is not None:
        raise ExportError("a base alone takes no route", where="--route")
    return None


def identity(
    what: Run | ExperimentConfig, storage: StorageConfig, route: RouteConfig | None
) -> tuple[str, str]:
    """Return the name and the digest of the artefact's run.

    Args:
        what: What is stored.
        storage: The format and its params.
        route: As `route_of` returns it.
    """
    if isinstance(what, Run):
        made_of = sha256_file(what.require_adapter() / WEIGHTS)
        parts = [what.config.name, storage.name]
        parts += [route.name] if route and route.name != usual_route(what) else []
    else:
        made_of = what.hash
        parts = [what.name, "base", storage.name]
    chosen = [one.model_dump(mode="json") for one in (storage, route) if one]
    content = [made_of, *chosen]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return "-".join(parts)[:64], digest[:10]


def quantize(
    what: Run | ExperimentConfig,
    storage: StorageConfig,
    route: RouteConfig | None = None,
    runs_dir: str | Path = "runs",
    *,
    force: bool = False,
    rows: int = ROWS,
    tolerance: Tolerance | None = None,
    on_event: OnEvent | None = None,
) -> Run:
    """Store a model in a format, measure what it kept, and certify it.

    Args:
        what: A run with an adapter; or an experiment, whose base alone is stored.
        storage: The format and its params.
        route: How the adapter gets in; by default ``qa-lora`` for an adapter that was
            trained so, else ``merge-then-quantize``.
        runs_dir: Where the run directory is made, or found.
        force: Make it again; the old run is renamed, not deleted.
        rows: Test rows of the parity certificate; 0 makes none.
        tolerance: What the certificate asks for; by default `Tolerance()`.
        on_event: Told of progress.

    Returns:
        The complete run, found if the same was made before.

    Raises:
        LoralabError: adapter, route and format do not go together, or a file is not
            what it should be.
    """
    tell = on_event or (lambda _: None)
    route = route_of(what, route)
    name, digest = identity(what, storage, route)
    run = Run(Path(runs_dir) / f"{name}-{digest}")
    there = (run.path / "run.json").is_file()
    certified = not rows or (run.path / "parity.json").is_file()
    if there and not force and run.status == "complete" and certified:
        tell({"event": "found", "run": str(run.path)})
        return run
    _check_head(what, storage.name)
    tell({"event": "preparing", "what": "loading what is to be stored"})
    subject = subject_of(what)
    stands = (run.path / "artefact").is_dir() and not force  # a kill came after it
    plan = None if stands else _planned(subject, storage, route)
    if there and force:
        tell({"event": "moved", "to": str(move_aside(run))})
    with held(run.path):
        remove_leftovers(run.path)
        config = subject.config.model_copy(update={"name": name})
        create(config, Path(runs_dir), "artefact", digest)
        with _ended(run):
            if plan and not (run.path / "artefact").is_dir():
                _store(run, subject, plan, tell)
            plan = None  # it holds a second model
            _describe(run, subject)
            if rows:
                certify_run(run, subject, rows, tolerance or Tolerance(), tell)
    tell({"event": "complete", "run": str(run.path)})
    return run


@contextmanager
def _ended(run: Run) -> Iterator[None]:
    """Write how it ended into ``run.json``; nothing of one that was killed."""
    try:
        yield
    except LoralabError as error:
        run.update(status="failed", error=str(error), finished=now())
        raise
    run.update(status="complete", finished=now(), error=None)


@dataclass(frozen=True)
class _Plan:
    """What is to be stored and how, known to go together before a run is made.

    Attributes:
        storage: The format as it was asked for.
        route: Also.
        entry: The format.
        params: Its own.
        routed: What the route made of the adapter; None of a base alone.
        model: What is to be stored.
        names: Its modules that are to be quantized.
        predicted: Bytes.
    """

    storage: StorageConfig
    route: RouteConfig | None
    entry: Entry
    params: Any
    routed: Routed | None
    model: Any
    names: Sequence[str]
    predicted: int


def _check_head(what: Run | ExperimentConfig, name: str) -> None:
    """Refuse a storage format that cannot store what a task's model is.

    Raises:
        ExportError: it cannot.
    """
    task = what.config.task if isinstance(what, Run) else what.task
    head = get_preprocessor(task).head
    heads = registry.get("storage format", name).facts["heads"]
    if heads and head not in heads:
        raise ExportError(
            f"{name} cannot store a model for {head}",
            where="--to",
            fix=f"it stores {', '.join(heads)}",
        )


def _planned(
    subject: Subject, storage: StorageConfig, route: RouteConfig | None
) -> _Plan:
    """Take the route, and predict the bytes.

    Raises:
        LoralabError: adapter, route and format do not go together.
    """
    base = subject.loaded.base
    entry = registry.get("storage format", storage.name)
    routed = None
    if route and isinstance(subject.loaded, LoadedAdapter):
        routed = take(subject.loaded, route.name, route.params)
        check_format(routed, storage.name)
        if routed.beside:
            check_beside(storage, entry.facts["engine"])
    params = entry.schema(**storage.params)
    model = routed.model if routed else base.model
    # what QA-LoRA did not quantize was float in training, and stays so
    names = routed.names if routed and routed.as_stored else base.facts.linear
    predicted = entry.facts["predict"](params, model, names, base.processor)
    return _Plan(storage, route, entry, params, routed, model, names, predicted)


def _store(run: Run, subject: Subject, plan: _Plan, tell: OnEvent) -> None:
    """Write the artefact's folder, whole or not at all."""
    with atomic_directory(run.path / "artefact") as folder:
        note = _written(folder, subject, plan, tell)
        note["route_params"] = plan.route.params if plan.route else None
        (folder / NOTE).write_text(json.dumps(note, indent=1), encoding="utf-8")


def _written(
    folder: Path, subject: Subject, plan: _Plan, tell: OnEvent
) -> dict[str, Any]:
    """Write weights, tokenizer and adapter; return the note of all that was done."""
    base, facts, routed = subject.loaded.base, plan.entry.facts, plan.routed

    def progress(what: str, done: int, of: int) -> None:
        tell({"event": "storing", "what": what, "done": done, "of": of})

    source = Source(plan.model, base.processor, base.head, plan.names)
    stored: Stored = plan.entry.target(plan.params, source, folder, progress)
    _check(stored, plan.predicted, plan.names, plan.storage.name)
    base.processor.save_pretrained(folder)
    found: dict[str, Any] = {
        "storage": plan.storage.model_dump(mode="json"),
        "engine": facts["engine"],
        "bytes": {"predicted": plan.predicted, "measured": stored.bytes},
        "quantized": len(set(stored.quantized) & set(base.facts.linear)),
        "linear": len(base.facts.linear),
        "besides": sorted(set(stored.quantized) - set(base.facts.linear)),
        "route": None,
        "survival": None,
    }
    if routed:
        found |= _kept(folder, routed, facts, plan.params)
        found["bytes"]["measured"] += routed.extra_bytes
    return {**found, **_about(subject, found["bytes"]["measured"], folder)}


def _kept(
    folder: Path, routed: Routed, facts: dict[str, Any], params: Any
) -> dict[str, Any]:
    """Return the route and what survived of the adapter; put it beside, if it goes."""
    if routed.beside:
        put_beside(routed, facts["engine"], folder)
    survival = survival_of(
        routed,
        lambda weight: facts["rounded"](params, weight),
        facts["values"](params, folder),
    )
    return {
        "route": routed.route,
        "beside": BESIDE if routed.beside else None,
        "products": routed.extra_products,
        "survival": survival.as_dict() if survival else None,
    }


def _about(subject: Subject, size: int, folder: Path) -> dict[str, Any]:
    """Return what the artefact was made of, what it is for, and its files."""
    base = subject.loaded.base
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {
        "format": FORMAT_VERSION,
        "made_of": subject.name,
        "of_fp32": size / (4 * base.facts.parameters),
        "of_fp16": size / (2 * base.facts.parameters),
        "head": base.head,
        "task": subject.config.task.model_dump(mode="json"),
        "task_state": subject.state,
        "chat_template_sha256": template_hash(base.processor),
        "base": {
            "path": base.path,
            "revision": base.revision,
            "fingerprint": base.fingerprint,
            "dtype": base.numerics.dtype,
        },
        "files": {
            str(file.relative_to(folder)): {
                "bytes": file.stat().st_size,
                "sha256": sha256_file(file),
            }
            for file in files
        },
    }


def _check(stored: Stored, predicted: int, names: Any, format_name: str) -> None:
    """Refuse what was not quantized, or is not as large as it must be.

    Raises:
        ExportError: a module is still in float, or bytes are not those predicted.
    """
    if stored.quantized and (left := sorted(set(names) - set(stored.quantized))):
        raise ExportError(
            f"{len(left)} of {len(names)} modules are still float, such as {left[0]}",
            where=format_name,
        )
    if abs(stored.bytes - predicted) > CLOSE * predicted:
        raise ExportError(
            f"{stored.bytes:,} bytes were written, and {predicted:,} predicted",
            where=format_name,
            why="something was stored in another form than the format says",
        )


def _describe(run: Run, subject: Subject) -> None:
    """Write into ``run.json`` what was made, of what, on which machine."""
    base, note = subject.loaded.base, read_note(run.path / "artefact")
    left_out = ("files", "task", "task_state", "format", "base")
    run.update(
        task=subject.config.task.name,
        task_state=subject.state,
        base=base.record(),
        data=subject.data,
        artefact={k: v for k, v in note.items() if k not in left_out},
        environment=environment(),
    )
