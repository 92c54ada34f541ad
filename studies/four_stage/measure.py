"""Adapters by every route into every format: what survives, what it costs, how large.

    ledger   what is left, counted, and the minutes that this machine takes for it
    run      train, store and evaluate what is left; stopped, it goes on there
    page     tables, figures and README.md, from results.json

All is done by loralab's own verbs: `train`, `quantize`, `evaluate`. `analyse` turns the
runs into results.json, `page` that into words.

    python -m studies.four_stage.measure ledger evidence
    python -m studies.four_stage.measure run evidence
    python -m studies.four_stage.measure page

The smoke size runs alike, writes its page beside its runs, and proves nothing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from studies.four_stage.plan import FORMATS as KNOWN
from studies.four_stage.plan import NONE, PROBE, SIZES, Base, Format, Piece
from studies.four_stage.plan import pieces as all_pieces

from loralab.errors import LoralabError
from loralab.evaluation.evaluate import evaluate
from loralab.export.artefact import quantize
from loralab.runs import Run
from loralab.runs.environment import environment, git_commit
from loralab.runs.files import write_json, write_text
from loralab.training.prepare import plan_of, prepare
from loralab.training.timing import measure_rates
from loralab.training.train import train

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
WORK = Path("runs") / "four_stage"
"""Runs and seconds of each commit: stopped, a run goes on where it was."""
PRIMARY = "evidence"
FLOAT = Format("fp32", "safetensors", {"dtype": "fp32"})
"""How a base that brings its head along is kept, to be measured."""
LOADS = 3
"""A stored model's base is loaded, stored and opened again: about as long each."""

Tell = Callable[[str], None]


def tell(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


# ---- one piece ----


def made(piece: Piece, folder: Path) -> Run:
    """Return the run of a piece, trained or stored now, or found; it is evaluated."""
    base, way = piece.base, piece.way
    config = base.config(way.method, piece.seed)
    if base.own_head and way.method == PROBE:
        storage = FLOAT if way.route == NONE else KNOWN[way.format]
        run = quantize(config, storage.config, runs_dir=folder, rows=0)
    elif way.route == NONE:
        return train(config, folder, resume=True)
    else:
        adapter = train(config, folder, resume=True)
        run = quantize(adapter, KNOWN[way.format].config, way.routed, folder, rows=0)
    if "test" not in run.evaluations():
        evaluate(run)
    return run


def note(piece: Piece, folder: Path) -> Path:
    """Return the file that says which run a piece is, and the seconds it took."""
    return folder / "pieces" / f"{piece.key}.json"


def left(size: str, folder: Path) -> list[Piece]:
    """Return the pieces that were not done yet."""
    return [one for one in all_pieces(size) if not note(one, folder).is_file()]


def run_all(size: str, folder: Path, told: Tell = tell) -> None:
    """Do what is left, a piece after the other."""
    waiting = left(size, folder)
    for number, piece in enumerate(waiting, 1):
        began = time.perf_counter()
        run = made(piece, folder)
        seconds = round(time.perf_counter() - began, 1)
        write_json(note(piece, folder), {"run": run.id, "seconds": seconds})
        told(f"{number} of {len(waiting)}  {seconds:6.1f} s  {piece.key}")


# ---- the ledger ----


def seconds_of(base: Base) -> dict[str, float]:
    """Return the seconds of a training of each method, and of a stored model.

    Methods are timed on this machine by a few layers; a stored model takes loading,
    three times, and one pass over the test rows.
    """
    found: dict[str, float] = {}
    for method in dict.fromkeys(way.method for way in base.ways if way.route == NONE):
        config = base.config(method, 0)
        began = time.perf_counter()
        prepared = prepare(config, weights=False)
        loading = time.perf_counter() - began
        rates = measure_rates(prepared)
        tokens = plan_of(prepared)["tokens"]
        found[method] = loading + tokens / rates.tokens_per_second + rates.evaluation
        found.setdefault("stored", LOADS * loading + rates.evaluation)
    if base.own_head:
        found[PROBE] = found["stored"]
    return found


def ledger(size: str, folder: Path, told: Tell = tell) -> float:
    """Tell what is left and the minutes it takes here; they are written down.

    Returns:
        Minutes.
    """
    waiting, total, lines = left(size, folder), 0.0, []
    for base in SIZES[size]:
        mine = [one for one in waiting if one.base == base]
        if not mine:
            told(f"{base.name}: nothing left")
            continue
        rates = seconds_of(base)
        trained = [one for one in mine if one.way.route == NONE]
        seconds = sum(rates[one.way.method] for one in trained)
        seconds += rates["stored"] * (len(mine) - len(trained))
        total += seconds
        counts = f"{len(trained)} trainings, {len(mine) - len(trained)} stored models"
        each = ", ".join(f"{name} {rates[name]:.0f} s" for name in rates)
        lines.append(f"{base.name}: {counts} ({each}): {seconds / 60:.1f} minutes")
        told(lines[-1])
    minutes = total / 60
    told(f"in all {minutes:.0f} minutes")
    if len(waiting) == len(list(all_pieces(size))):  # before anything ran
        about = {"minutes": round(minutes, 1), "lines": lines}
        write_json(folder / "pieces" / "ledger.json", about)
    return minutes


# ---- results ----


def results(size: str, folder: Path) -> dict[str, Any]:
    """Return what the runs say, once all of them are done.

    Raises:
        SystemExit: pieces are left.
    """
    from studies.four_stage.analyse import of_base

    if waiting := left(size, folder):
        raise SystemExit(f"{len(waiting)} pieces are left: run {size} first")
    notes = {
        one: json.loads(note(one, folder).read_text(encoding="utf-8"))
        for one in all_pieces(size)
    }
    runs = {one: Run(folder / told["run"]) for one, told in notes.items()}
    told = folder / "pieces" / "ledger.json"
    return {
        "size": size,
        "environment": environment(),
        "ledger": json.loads(told.read_text(encoding="utf-8")),
        "seconds": {one.key: told["seconds"] for one, told in notes.items()},
        "bases": [
            of_base(
                base, {(p.seed, p.way): r for p, r in runs.items() if p.base == base}
            )
            for base in SIZES[size]
        ],
    }


def main() -> None:
    """Tell the ledger, measure, or write the page."""
    from studies.four_stage.page import write

    asked = sys.argv[1:]
    known = len(asked) == 2 and asked[0] in ("ledger", "run") and asked[1] in SIZES
    if asked == ["page"]:
        write(json.loads(RESULTS.read_text(encoding="utf-8")), HERE)
        return
    if not known:
        raise SystemExit(__doc__)
    size, folder = asked[1], WORK / f"{git_commit()}-{asked[1]}"
    try:
        ledger(size, folder)
        if asked[0] == "run":
            run_all(size, folder)
    except LoralabError as error:
        raise SystemExit(str(error)) from None
    if asked[0] == "ledger":
        return
    found = results(size, folder)
    into = HERE if size == PRIMARY else folder / "page"
    write_text(into / RESULTS.name, json.dumps(found, separators=(",", ":")) + "\n")
    write(found, into)


if __name__ == "__main__":
    main()
