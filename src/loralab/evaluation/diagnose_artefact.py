"""What a stored model's own run shows: how its making ended, and what to do then."""

from __future__ import annotations

from loralab.evaluation.diagnose_case import Case, Finding

AGAIN = "the same `loralab quantize` again"
ENDED = {
    "interrupted": Finding(
        "interrupted", "failure", "killed before the artefact was done", AGAIN
    ),
    "running": Finding(
        "running", "note", "another process is storing it", "wait for its end"
    ),
    "complete": Finding(
        "artefact",
        "note",
        "a stored model; whether an adapter helps is seen of the adapter's own run",
        "loralab compare ADAPTER_RUN RUN tells what storing changed",
    ),
}


def of_artefact(case: Case) -> list[Finding]:
    """Return what the run of an artefact shows; no check of a training is of it."""
    if case.status != "failed":
        return [ENDED[case.status]]
    what, *rest = str(case.record.get("error")).split("\n")
    said = dict(line.strip().split(": ", 1) for line in rest if ": " in line)
    seen = "; ".join([f"quantize failed: {what}", *filter(None, [said.get("why")])])
    fix = said.get("fix", f"mend it, then {AGAIN}")
    return [Finding("failed", "failure", seen, fix)]
