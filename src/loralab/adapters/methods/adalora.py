"""AdaLoRA (Zhang et al. 2023, arXiv:2303.10512): ranks that follow importance.

    h = W x + s · P Λ Q x,   Q: rank × in,  P: out × rank,  Λ diagonal
    s = alpha / (init_rank + 1e-5)

P and Q are drawn at random, Λ is zero, so training starts at the base model. It starts
with `init_rank` triplets (P's column, λ, Q's row) a module and ends with `target_rank`
a module on average: by importance, over all modules together. The run's adapter is a
plain LoRA of the ranks that were found. See `loralab.adapters.adalora` for how.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from loralab.adapters.abilities import Abilities
from loralab.adapters.site import Site, TargetParams, wrap
from loralab.registry import register

if TYPE_CHECKING:
    from peft import AdaLoraConfig


class AdaLoRAParams(TargetParams):
    """The params of AdaLoRA."""

    init_rank: int = Field(12, gt=0, description="of every module, at the beginning")
    target_rank: int = Field(8, gt=0, description="mean over modules, at the end")
    alpha: float = Field(
        24,
        gt=0,
        description="the update is scaled by alpha / init_rank, at the end too; 24 on "
        "12 is the scale 2 of lora's defaults",
    )
    dropout: float = Field(0.0, ge=0, lt=1)
    beta1: float = Field(0.85, gt=0, lt=1, description="smooths the sensitivity")
    beta2: float = Field(0.85, gt=0, lt=1, description="smooths its uncertainty")
    orth_reg_weight: float = Field(
        0.5, ge=0, description="of ‖PᵀP − I‖ and ‖QQᵀ − I‖, in the gradient only"
    )
    delta_t: int = Field(1, gt=0, description="steps between two allocations")
    warmup_share: float = Field(
        0.1, ge=0, lt=1, description="share of all steps before the budget falls"
    )
    final_share: float = Field(
        0.3, ge=0, lt=1, description="share of all steps at the final ranks"
    )

    @model_validator(mode="after")
    def _budget_falls(self) -> AdaLoRAParams:
        if self.init_rank <= self.target_rank:
            raise PydanticCustomError(
                "loralab",
                "init_rank is {i} and target_rank {t}: there would be nothing to take "
                "away, and the allocation would fail on it; make init_rank larger (the "
                "paper: 1.5 times), or use lora for a rank that stays",
                {"i": self.init_rank, "t": self.target_rank},
            )
        if self.warmup_share + self.final_share >= 1:
            raise PydanticCustomError(
                "loralab",
                "warmup_share + final_share is {s}, so the budget has no step to fall "
                "in; make the sum less than 1",
                {"s": self.warmup_share + self.final_share},
            )
        return self


def adalora_config(
    params: AdaLoRAParams, targets: Sequence[str] | str
) -> AdaLoraConfig:
    """Return PEFT's configuration.

    PEFT wants `total_step` before the steps are known: `set_schedule` writes it when
    they are, and training refuses to begin on any other number.

    Args:
        params: Ranks, alpha, dropout, importance.
        targets: Module names or one regular expression, as PEFT takes them.
    """
    from peft import AdaLoraConfig

    return AdaLoraConfig(
        init_r=params.init_rank,
        target_r=params.target_rank,
        lora_alpha=params.alpha,  # type: ignore[arg-type]  # a float works
        lora_dropout=params.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        beta1=params.beta1,
        beta2=params.beta2,
        orth_reg_weight=params.orth_reg_weight,
        deltaT=params.delta_t,
        total_step=1,
    )


DRIVEN = "its allocator is driven after each step, in a process that is alone"


@register(
    "PEFT method",
    "adalora",
    AdaLoRAParams,
    able=Abilities(vllm="", ddp=DRIVEN, fsdp=DRIVEN),
    driver="loralab.training.adaptive",
)
def adalora(params: AdaLoRAParams, site: Site) -> Any:
    """Return the base with AdaLoRA on it, of `init_rank` everywhere.

    PEFT 0.21.2 makes ``ranknum``, the constant that the scale is divided by, a trained
    parameter where the base is not in fp32 on the CPU, and does not save it.
    """
    model = wrap(site, adalora_config(params, site.targets))
    for name, parameter in model.named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad_(False)
    return model
