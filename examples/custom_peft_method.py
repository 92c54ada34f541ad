"""A PEFT method of your own: MiSS (arXiv:2409.15371), which PEFT has and loralab not.

    python examples/custom_peft_method.py

A method is a function from its params and the place it goes to, to a model. Here it
makes PEFT's configuration and wraps the base; `Abilities` says what it cannot, with the
reason, and such a plan is refused before anything loads. For a method that PEFT does
not have, and for the command line, see examples/plugin.
"""

from typing import Any

from pydantic import Field

import loralab
from loralab.adapters.abilities import Abilities
from loralab.adapters.site import Site, TargetParams, wrap

QUICK = [
    "data.max_rows={train: 192, validation: 32, test: 96}",
    "training.max_steps=6",
]  # leave them out to train on all rows
FLOAT = "PEFT has no quantized layer of it"


class MissParams(TargetParams):
    """The params of MiSS; its target modules are those of every method."""

    rank: int = Field(8, gt=0, description="rows of the matrix that shards share")


@loralab.register(
    "PEFT method", "miss", MissParams, able=Abilities(nf4=FLOAT, int8=FLOAT)
)
def miss(params: MissParams, site: Site) -> Any:
    """Return the base with MiSS on its targeted modules."""
    from peft import MissConfig

    return wrap(site, MissConfig(r=params.rank, target_modules=site.targets))


def main() -> None:
    """Train by the method, show what it took, and ask."""
    run = loralab.train(loralab.compose("trec-6", ["peft=miss", *QUICK]))
    found = run.evaluations()["test"]["metrics"]["accuracy"]["difference"]
    print(f"{run.read()['plan']['trainable']:,} trained parameters")
    print(f"accuracy over the base's: {found['value']:+.3f}")
    print(loralab.InferencePipeline.from_run(run)(["Who wrote Hamlet?"])[0]["label"])


if __name__ == "__main__":
    main()
