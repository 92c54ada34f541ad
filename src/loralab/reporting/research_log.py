"""A research log: one Markdown file that people write in, and runs are added to.

    ## 2026-11-21 14:05 UTC
    ### trec-6-9430fc0316        what differs from its preset, what it came to
    ### Observations             empty: room for a person
    ### Next steps
    ### Ideas

Every call appends one such entry with the runs that the file does not name yet. The
file is opened for appending, so no byte that stands in it can change. A run is known by
a comment below its heading, with its hash and the time it began.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

from loralab.config import ExperimentConfig, compose
from loralab.config.compose import presets
from loralab.errors import ConfigError, LoralabError, RunError
from loralab.evaluation.intervals import Interval
from loralab.reporting.tables import format_interval
from loralab.runs import Run, list_runs
from loralab.units import percent

ENDED = ("complete", "failed")
"""What is written down; other runs may still go on, and are added when they end."""
ROOM = ("Observations", "Next steps", "Ideas")
TITLE = "# Research log\n"
OWN_ROWS = "data.source.params.path=YOURS"
MARK = re.compile(r"^<!-- run (\S+ \S+) -->$", re.MULTILINE)


def add_runs(
    file: Path,
    runs_dir: Path,
    since: date | None = None,
    on_left_out: Callable[[LoralabError], None] = lambda error: None,
) -> list[Run]:
    """Append an entry with the runs that a log does not name yet.

    Args:
        file: The log, made if it is missing; what stands in it stays as it is.
        runs_dir: Where runs are.
        since: Leave out runs that began before this day (UTC).
        on_left_out: Told of each run whose files cannot be read; the others are added,
            and it is, too, once it is mended.

    Returns:
        The runs that were added, oldest first; without one, nothing is written.

    Raises:
        RunError: there is no such directory of runs.
    """
    if not runs_dir.is_dir():
        raise RunError("no such directory", where=str(runs_dir), fix="set --runs-dir")
    # only searched, never written back: bytes of another encoding do not matter
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    known = set(MARK.findall(text))
    sections: dict[Run, str] = {}
    for run in list_runs(runs_dir):
        try:
            if _has_ended(run, since) and _mark(run) not in known:
                sections[run] = _section(run)
        except LoralabError as error:
            on_left_out(error)
    if not sections:
        return []
    parts = [f"## {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"]
    parts += [*sections.values(), *(f"### {name}" for name in ROOM)]
    before = "\n" if text else f"{TITLE}\n"
    if text and not text.endswith("\n"):
        before = "\n\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as handle:
        handle.write(before + "\n\n".join(parts) + "\n")
    return list(sections)


def _has_ended(run: Run, since: date | None) -> bool:
    content = run.read()
    if content["status"] not in ENDED:
        return False
    return since is None or _began(run, content["started"]) >= since


def _began(run: Run, time: str) -> date:
    try:
        return datetime.fromisoformat(time).date()
    except ValueError:
        raise RunError(f"it began at {time!r}, no time", where=str(run.path)) from None


def _mark(run: Run) -> str:
    """Return what a run is known by: it stays so when it is moved aside."""
    content = run.read()
    return f"{content['hash']} {content['started']}"


def _section(run: Run) -> str:
    content = run.read()
    lines = [f"- {content['status']} {content['kind']}, began {content['started']}"]
    if content["status"] == "failed":
        lines.append(f"- error: {_first_line(content.get('error'))}")
    lines += _settings(run) if content["kind"] == "adapter" else _stored(content)
    lines += _results(run)
    head = f"### {run.id}\n<!-- run {_mark(run)} -->"
    return "\n".join([head, "", *lines])


def _first_line(text: object) -> str:
    return (str(text or "not told").strip().splitlines() or [""])[0]


def _settings(run: Run) -> list[str]:
    """Return how a run's configuration differs from the preset it is nearest to."""
    name, differences = from_preset(run.config)
    if not differences:
        return [f"- as preset `{name}`"]
    told = (f"`{key}={now}` (`{was}`)" for key, (was, now) in differences.items())
    return [f"- preset `{name}` with {', '.join(told)}"]


def from_preset(config: ExperimentConfig) -> tuple[str, dict[str, tuple[str, str]]]:
    """Return the preset that a configuration is nearest to, and what differs.

    It is the one of the same name, where there is one, else that with the fewest
    differences.

    Returns:
        The preset's name; key -> value there, value here.
    """
    names = presets("experiment")
    chosen = [config.name] if config.name in names else sorted(names)
    own = _content(config)
    found = {name: dict(_differences(_preset(name), own)) for name in chosen}
    nearest = min(found, key=lambda name: len(found[name]))
    return nearest, found[nearest]


@functools.lru_cache
def _preset(name: str) -> dict[str, Any]:
    try:
        return _content(compose(name))
    except ConfigError:  # a form for rows of one's own: it names no file
        return _content(compose(name, [OWN_ROWS]))


def _content(config: ExperimentConfig) -> dict[str, Any]:
    """Return a configuration as JSON has it; its name is no setting."""
    return dict(config.model_dump(mode="json", exclude={"name"}))


def _differences(
    there: Mapping[str, Any], here: Mapping[str, Any], where: str = ""
) -> Iterator[tuple[str, tuple[str, str]]]:
    for key in dict.fromkeys([*there, *here]):
        was, now = there.get(key), here.get(key)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            yield from _differences(was, now, f"{where}{key}.")
        elif was != now:
            yield f"{where}{key}", (_shown(was), _shown(now))


def _shown(value: object) -> str:
    """Return a value as it is set; what a mapping does not set is left out."""
    if isinstance(value, Mapping):
        inside = (f"{k}: {_shown(v)}" for k, v in value.items() if v not in (None, {}))
        return f"{{{', '.join(inside)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return "null" if value is None else str(value)


def _stored(content: Mapping[str, Any]) -> list[str]:
    """Return what an artefact is; one that failed may not know."""
    made = content.get("artefact")
    if not made:
        return []
    size = f"{made['bytes']['measured']:,} bytes ({percent(made['of_fp16'])} of fp16)"
    lines = [f"- {made['made_of']} as `{made['storage']['name']}`, {size}"]
    if made["survival"]:
        kept = percent(made["survival"]["kept"])
        lines.append(f"- {kept} of the adapter kept by `{made['route']}`")
    if "parity" in content:
        word = "passed" if content["parity"] else "not passed"
        lines.append(f"- parity certificate {word}")
    return lines


def _results(run: Run) -> list[str]:
    """Return every metric of every evaluated split, with its intervals."""
    lines = []
    for split, result in run.evaluations().items():
        share = percent(result["confidence"], None)
        head = f"- {split}, {result['measured_rows']:,} rows, {share} intervals:"
        lines.append(head)
        lines += [
            f"    - {name}: {_arms(result['metrics'][name])}"
            for name in _ordered(result)
        ]
    return lines


def _ordered(result: Mapping[str, Any]) -> Sequence[str]:
    names = dict.fromkeys([result["primary"], *result["metrics"]])
    return list(names)


def _arms(metric: Mapping[str, Mapping[str, float]]) -> str:
    """Return the run's value first, then the base's and the paired difference."""
    told = []
    for arm in ("adapter", "base", "difference"):
        if arm in metric:
            value = Interval(*(metric[arm][k] for k in ("value", "low", "high")))
            text = format_interval(value, signed=arm == "difference")
            told.append(text if arm == "adapter" else f"{arm} {text}")
    return ", ".join(told)
