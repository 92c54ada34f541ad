"""LoRA (Hu et al. 2021, arXiv:2106.09685): a low-rank update beside each weight.

    h = W x + s · B A x,   A: rank × in,  B: out × rank,  s = alpha / rank

A is drawn at random, B is zero, so training starts at the base model. Variants:

    rslora  s = alpha / √rank                          (Kalajdzievski 2023, 2312.03732)
    dora    W' = m ⊙ (W + s B A) / ‖W + s B A‖, m learnt   (Liu et al. 2024, 2402.09353)
    LoRA+   B learns `learning_rate_ratio` times faster  (Hayou et al. 2024, 2402.12354)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from loralab.adapters.abilities import Abilities
from loralab.adapters.ranks_config import CalibrationConfig, RanksConfig, ResizeConfig
from loralab.adapters.site import Site, TargetParams, wrap
from loralab.registry import register

if TYPE_CHECKING:
    from peft import LoraConfig

Init = Literal[
    "default", "gaussian", "pissa", "olora", "orthogonal", "eva", "corda", "loftq",
    "lora-ga",
]  # fmt: skip


class LoraParams(TargetParams):
    """The params of LoRA."""

    rank: int = Field(8, gt=0)
    alpha: float = Field(16, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    init: Init = Field("default", description="how A and B begin")
    rslora: bool = Field(False, description="scale by alpha / √rank")
    dora: bool = Field(False, description="learn each output's magnitude apart")
    learning_rate_ratio: float = Field(
        1.0, gt=0, description="LoRA+: B's learning rate over A's; the paper takes 16"
    )
    rank_pattern: dict[str, int] = Field(
        default_factory=dict, description="module pattern -> its own rank"
    )
    alpha_pattern: dict[str, float] = Field(
        default_factory=dict, description="module pattern -> its own alpha"
    )
    ranks: RanksConfig | None = Field(
        None, description="a strategy that gives each module its rank, under a budget"
    )
    schedule: list[ResizeConfig] = Field(
        default_factory=list, description="ranks that shrink or grow while training"
    )
    calibration: CalibrationConfig = CalibrationConfig()

    @model_validator(mode="after")
    def _patterns_together(self) -> LoraParams:
        alone = set(self.rank_pattern) ^ set(self.alpha_pattern)
        if alone:
            raise ValueError(
                f"{sorted(alone)} stands in only one of rank_pattern and "
                "alpha_pattern, which would change its scale alpha / rank; give both"
            )
        return self

    @model_validator(mode="after")
    def _one_source_of_ranks(self) -> LoraParams:
        for wrong, words in (
            (self.ranks and self.rank_pattern, "ranks and rank_pattern both set ranks"),
            (self.dora and self.schedule, "schedule cannot resize DoRA's magnitudes"),
            (
                self.dora and self.init in ("pissa", "olora", "corda", "lora-ga"),
                f"dora would normalise by a base that init={self.init} has changed",
            ),
            (
                self.schedule and self.init in ("pissa", "olora", "corda", "lora-ga"),
                f"init={self.init} moves part of the base into the adapter, which "
                "shrinking would cut away",
            ),
        ):
            if wrong:
                raise PydanticCustomError("loralab", "{m}; choose one", {"m": words})
        return self

    @property
    def native(self) -> bool:
        """Whether the adapter stands on a base that attaching has changed for good."""
        return self.init == "loftq"

    @property
    def rewrites(self) -> dict[str, Any] | None:
        """The params that tell what attaching makes of the base for good."""
        return {"init": self.init} if self.native else None

    @property
    def limits(self) -> dict[str, str]:
        """What this variant cannot do though LoRA can, with the reason."""
        found: dict[str, str] = {}
        if self.schedule:
            reason = "its schedule replaces the tensors that processes have in common"
            found |= {"ddp": reason, "fsdp": reason}
        if self.dora:
            found["vllm"] = "vLLM serves no DoRA"
        if self.init in ("pissa", "olora", "corda", "loftq", "lora-ga"):
            reason = f"init={self.init} rewrites the base's float weights"
            found |= dict.fromkeys(("nf4", "int8", "affine", "fsdp"), reason)
        if self.dora:
            found["int8"] = (
                "bitsandbytes loses its scales once DoRA has read the weights"
            )
            found["affine"] = "PEFT's DoRA reads weights that affine codes do not have"
        if self.init == "eva":
            found["nf4"] = (
                "bitsandbytes packs the weights anew while EVA looks at inputs"
            )
        if self.init == "loftq":
            found["vllm"] = "the adapter belongs on the base that loftq has quantized"
        return found


VARIANTS = (
    {"dora": True},
    *({"init": i} for i in ("pissa", "olora", "eva", "corda", "loftq", "lora-ga")),
)


@register(
    "PEFT method",
    "lora",
    LoraParams,
    able=Abilities(affine="", vllm=""),
    variants=VARIANTS,
    driver="loralab.training.schedule",
)
def lora(params: LoraParams, site: Site) -> Any:
    """Return the base with LoRA on it, initialised by default."""
    return wrap(site, lora_config(params, site))


def lora_config(params: LoraParams, site: Site) -> LoraConfig:
    """Return PEFT's configuration."""
    from peft import LoraConfig

    return LoraConfig(
        r=params.rank,
        lora_alpha=params.alpha,  # type: ignore[arg-type]  # a float works
        lora_dropout=params.dropout,
        target_modules=site.targets,
        use_rslora=params.rslora,
        use_dora=params.dora,
        init_lora_weights="gaussian" if params.init == "gaussian" else True,
        rank_pattern=dict(params.rank_pattern),
        alpha_pattern=dict(params.alpha_pattern),
        fan_in_fan_out=site.conv1d,
    )
