"""Several processes for one training, and what that is to a run's identity.

The rows of an optimizer step are a random sample of

    per_device_train_batch_size × gradient_accumulation_steps × processes

units, whichever of the three they come from. So two processes with half the batch see
the rows of one process, in the same steps, and end with the same adapter but for the
rounding of sums taken in another order. Not the same bytes, so not the same run:
`parallel` is in the hash like every other key (one process as if the key were not).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from loralab.registry import Strict


class ParallelConfig(Strict):
    """Several processes of this machine that train one adapter."""

    strategy: Literal["none", "ddp", "fsdp"] = Field(
        "none",
        description="`ddp`: each process holds the whole model; `fsdp`: each holds its "
        "share of every tensor (FSDP2)",
    )
    processes: int = Field(
        1, gt=0, description="one a GPU; each takes per_device_train_batch_size rows"
    )

    @model_validator(mode="after")
    def _both_or_neither(self) -> ParallelConfig:
        if (self.strategy == "none") != (self.processes == 1):
            raise PydanticCustomError(
                "loralab",
                "strategy={s} and processes={p} contradict each other; {fix}",
                {
                    "s": self.strategy,
                    "p": self.processes,
                    "fix": "name a strategy and two processes or more, or neither",
                },
            )
        return self
