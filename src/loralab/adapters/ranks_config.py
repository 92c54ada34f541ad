"""The schemas of rank allocation, of a schedule, and of calibration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from loralab.config.schema import RankStrategyConfig
from loralab.registry import Strict


class CalibrationConfig(Strict):
    """What is looked at before training begins, where an init or a strategy asks."""

    batches: int = Field(8, gt=0, description="training batches that are looked at")
    rows: int = Field(16, gt=0, description="rows a batch")
    seed: int = Field(0, ge=0, description="which rows")


class RanksConfig(RankStrategyConfig):
    """A rank strategy with its params, and the budget that it spends."""

    budget: int | None = Field(
        None,
        gt=0,
        description="null: what the uniform `rank` would take; fixed ranks, of `table` "
        "and `from-run`, are held to it only if it is given",
    )
    unit: Literal["parameters", "rank"] = Field(
        "parameters", description="of `budget`: trained values, or the sum of ranks"
    )
    minimum: int = Field(1, ge=1, description="smallest rank of a module")
    maximum: int | None = Field(None, gt=0, description="largest rank of a module")
    seed: int = Field(0, ge=0, description="of strategies that draw")

    @model_validator(mode="after")
    def _bounds_are_bounds(self) -> RanksConfig:
        if self.maximum is not None and self.maximum < self.minimum:
            raise PydanticCustomError(
                "loralab",
                "maximum {a} is below minimum {i}",
                {"a": self.maximum, "i": self.minimum},
            )
        return self


class ResizeConfig(Strict):
    """One change of ranks during training."""

    at: float = Field(gt=0, lt=1, description="share of all steps that are done then")
    rank: int = Field(gt=0, description="mean rank from then on")
    ranks: RanksConfig | None = Field(
        None, description="how ranks are spread; null: by the update's spectrum"
    )

    @model_validator(mode="after")
    def _needs_no_rows(self) -> ResizeConfig:
        from loralab.adapters.allocation import needs_of

        if self.ranks and needs_of(self.ranks):
            raise PydanticCustomError(
                "loralab",
                "{n} looks at calibration rows, which a schedule does not; leave ranks "
                "out, to go by the update's spectrum",
                {"n": self.ranks.name},
            )
        return self
