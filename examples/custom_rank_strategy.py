"""A rank strategy of your own: the last layers get more rank than the others.

    python examples/custom_rank_strategy.py

A strategy says how much rank each module deserves; whole ranks that spend the uniform
rank's parameters are made of it, and alpha follows, so that every scale stays the same.
To use it from the command line too, see examples/plugin.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

import loralab
from loralab.adapters.allocation import Module
from loralab.reporting.ranks import rank_matrix

QUICK = [
    "data.max_rows={train: 192, validation: 32, test: 96}",
    "training.max_steps=6",
]  # leave them out to train on all rows


class LateParams(loralab.Params):
    """How many layers, and how much more."""

    layers: int = Field(2, gt=0, description="layers that get more, from the top")
    ratio: float = Field(4.0, gt=1, description="their rank ÷ that of the others")


@loralab.register("rank strategy", "late", LateParams)
def late(
    params: LateParams, modules: Sequence[Module], statistics: Any, seed: int
) -> list[float]:
    """Return one weight a module, of any scale."""
    first = max(module.depth for module in modules) + 1 - params.layers
    return [params.ratio if m.depth >= first else 1.0 for m in modules]


def main() -> None:
    """Train with the strategy, show the ranks it gave, and ask."""
    chosen = "peft.params.ranks={name: late, params: {layers: 2}}"
    run = loralab.train(loralab.compose("trec-6", [chosen, *QUICK]))
    columns, rows = rank_matrix(run.read()["calibration"]["ranks"]["ranks"])
    print("layer", *columns)
    for layer, ranks in rows:
        print(layer, *(rank or "–" for rank in ranks))
    print(loralab.InferencePipeline.from_run(run)(["Who wrote Hamlet?"])[0]["label"])


if __name__ == "__main__":
    main()
