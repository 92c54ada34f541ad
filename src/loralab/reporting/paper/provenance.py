"""Which runs and commits a number stands on, as its source tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loralab.reporting.paper.path import Hit
from loralab.reporting.paper.sources import Source

_COMMIT_KEYS = ("git_commit", "commit")


def runs_and_commits(source: Source, hit: Hit) -> dict[str, list[str]]:
    """Return the ids of the runs and the git commits behind a number.

    On the way from the root to the number every object is asked for its run and its
    commit; one that names an arm stands on that arm's runs and its reference's.
    """
    runs, commits = dict[str, None](), dict[str, None]()
    for key, value in _told(source, hit):
        (runs if key == "run" else commits)[value] = None
    return {"runs": list(runs), "commits": list(commits)}


def _told(source: Source, hit: Hit) -> Iterator[tuple[str, str]]:
    if source.record:
        yield "run", f"{source.record['name']}-{source.record['hash']}"
        yield from _own(source.record.get("environment", source.record))
    document = source.document
    if isinstance(document, Mapping):
        yield from _own(document.get("environment", {}))
        for commit in document.get("commits", ()):
            yield "commit", str(commit)
    node: Any = document
    for step in hit.steps:
        node = node[step]
        if isinstance(node, Mapping):
            yield from _own(node)
            yield from _of_arms(document, node)


def _own(node: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if isinstance(node.get("run"), str):
        yield "run", node["run"]
    for key in _COMMIT_KEYS:
        if isinstance(node.get(key), str):
            yield "commit", node[key]


def _of_arms(document: Any, node: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "data" not in node or "arm" not in node or "run" in node:
        return
    arms = {node["arm"], node.get("reference")}
    for run in document.get("runs", ()):
        if run["data"] == node["data"] and run["arm"] in arms:
            yield from _own(run)
