"""LoRA (Hu et al. 2021, arXiv:2106.09685): a low-rank update beside each weight.

    h = W x + s · B A x,   A: rank × in,  B: out × rank,  s = alpha / rank

A is drawn at random, B is zero, so training starts at the base model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from loralab.registry import Params, register

if TYPE_CHECKING:
    from peft import LoraConfig


class LoraParams(Params):
    """The params of LoRA."""

    rank: int = Field(8, gt=0)
    alpha: float = Field(16, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | list[str] = Field(
        "all-linear", description="attention, qv, mlp, all-linear, or a list of names"
    )
    rank_pattern: dict[str, int] = Field(
        default_factory=dict, description="module pattern -> its own rank"
    )
    alpha_pattern: dict[str, float] = Field(
        default_factory=dict, description="module pattern -> its own alpha"
    )

    @model_validator(mode="after")
    def _patterns_together(self) -> LoraParams:
        alone = set(self.rank_pattern) ^ set(self.alpha_pattern)
        if alone:
            raise ValueError(
                f"{sorted(alone)} stands in only one of rank_pattern and "
                "alpha_pattern, which would change its scale alpha / rank; give both"
            )
        if not self.target_modules:
            raise ValueError("target_modules is empty")
        return self


@register("PEFT method", "lora", LoraParams)
def lora(
    params: LoraParams, targets: Sequence[str] | str, modules_to_save: Sequence[str]
) -> LoraConfig:
    """Return PEFT's configuration.

    Args:
        params: Rank, alpha, dropout, patterns.
        targets: Module names or one regular expression, as PEFT takes them.
        modules_to_save: Modules trained and saved in full (a new head).
    """
    from peft import LoraConfig

    return LoraConfig(
        r=params.rank,
        lora_alpha=params.alpha,  # type: ignore[arg-type]  # a float works
        lora_dropout=params.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        rank_pattern=params.rank_pattern,
        alpha_pattern=params.alpha_pattern,
        modules_to_save=list(modules_to_save) or None,
    )
