"""`ModelEvaluator`: runs measured and compared by one object."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from loralab.evaluation.compare import compare
from loralab.evaluation.evaluate import evaluate
from loralab.evaluation.side_by_side import answers, footprints, latency, open_all
from loralab.reporting.comparison import markdown
from loralab.runs import Run

Tell = Callable[[str, int, int], None]


class ModelEvaluator:
    """Measures runs, and compares them.

    Args:
        split: Whose rows: ``train``, ``validation`` or ``test``.
        tell: Called with (what is done, steps done, steps in all).
    """

    def __init__(self, split: str = "test", tell: Tell = lambda *_: None) -> None:
        self.split, self._tell = split, tell

    def evaluate_model(self, run: Run) -> dict[str, Any]:
        """Return the evaluation of a run; it is measured if it was not before.

        Raises:
            LoralabError: as `evaluate`.
        """
        found = run.evaluations().get(self.split)
        return found if found else evaluate(run, self.split)

    def compare(
        self,
        runs: Sequence[Run],
        *,
        rounds: int = 0,
        inputs: Sequence[Any] = (),
        **timing: Any,
    ) -> dict[str, Any]:
        """Compare runs: quality and size; and, where asked for, speed and answers.

        Args:
            runs: The first is the one that the others are paired with.
            rounds: Of the timing; 0 times nothing.
            inputs: What every run is asked.
            timing: Of `loralab.evaluation.side_by_side.latency`.

        Returns:
            ``records``, ``paired``; ``latency`` and ``footprint`` if timed;
            ``answers`` if asked.

        Raises:
            LoralabError: a run is not complete, or cannot be compared with the first.
        """
        found = compare(runs, self.split)
        if rounds:
            found["footprint"] = footprints(runs, self._tell)
        if rounds or inputs:
            models = open_all(runs)
        if rounds:
            found["latency"] = latency(
                models, runs[0], self.split, rounds=rounds, tell=self._tell, **timing
            )
        if inputs:
            found["answers"] = answers(models, inputs, max_new_tokens=64)
        return found

    def print_summary(self, found: dict[str, Any], file: TextIO = sys.stdout) -> None:
        """Write a comparison as Markdown tables."""
        file.write(markdown("Comparison", found))
