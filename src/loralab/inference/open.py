"""`open_run`: what a run made, ready to answer."""

from __future__ import annotations

from loralab.inference.artefact import load_artefact
from loralab.inference.load import Loaded, load_adapter
from loralab.runs import Run


def open_run(run: Run, **model_changes: str) -> Loaded:
    """Load the adapter of a run on its base, or the run's stored model in its engine.

    Args:
        run: A finished run.
        model_changes: Fields of `ModelConfig` to load with, such as ``dtype="fp32"``.

    Raises:
        LoralabError: see `load_adapter` and `load_artefact`.
    """
    opens = load_artefact if run.read()["kind"] == "artefact" else load_adapter
    return opens(run, **model_changes)
