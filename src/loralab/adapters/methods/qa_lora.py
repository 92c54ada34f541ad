"""QA-LoRA (Xu et al. 2023, arXiv:2309.14717): LoRA that merges into a quantized base.

    h = W̃ x + s · B A Σ_g(x),   A: rank × in/g,  B: out × rank,  s = alpha / rank

The targeted modules are quantized first, in groups of g inputs with a real zero; the
merged model has the same codes and scales. Mathematics: `loralab.adapters.qalora`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from loralab.adapters.abilities import Abilities
from loralab.adapters.site import Site, TargetParams, wrap
from loralab.registry import register

if TYPE_CHECKING:
    from peft import LoraConfig


class QALoraParams(TargetParams):
    """The params of QA-LoRA."""

    rank: int = Field(8, gt=0)
    alpha: float = Field(16, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    bits: Literal[2, 3, 4, 8] = Field(4, description="of a code of the base")
    group_size: int = Field(
        32, gt=0, description="inputs that share a scale, a zero and a column of A"
    )
    clipping: Literal["minmax", "mse"] = Field(
        "minmax", description="a group's extremes, or the least squared error"
    )

    @property
    def rewrites(self) -> dict[str, Any]:
        """The params that tell what attaching makes of the base for good."""
        return {key: getattr(self, key) for key in ("bits", "group_size", "clipping")}


def qa_lora_config(params: QALoraParams, targets: Sequence[str] | str) -> LoraConfig:
    """Return PEFT's configuration, with the layer for quantized modules registered.

    Args:
        params: Rank, alpha, dropout, group size.
        targets: Module names or one regular expression, as PEFT takes them.
    """
    from peft import LoraConfig

    from loralab.adapters import qalora

    config = LoraConfig(
        r=params.rank,
        lora_alpha=params.alpha,  # type: ignore[arg-type]  # a float works
        lora_dropout=params.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        # written to adapter_config.json; use_qalora stays False, so that PEFT's own
        # layer, which scales otherwise, does not take this adapter for its own
        qalora_group_size=params.group_size,
    )
    return qalora.register(config)


def plain(model: Any) -> tuple[Any, dict[str, Any]]:
    """Return the plain LoRA with the same update: A repeated over each group."""
    from loralab.adapters.files import state_of
    from loralab.adapters.qalora import to_plain

    config = model.peft_config["default"]
    return config, to_plain(state_of(model), config.qalora_group_size)


def from_plain(params: QALoraParams) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what turns the stored plain LoRA into the tensors that are trained."""
    from loralab.adapters import qalora

    return lambda state: qalora.from_plain(state, params.group_size)


ABLE = Abilities(
    nf4="it quantizes the float base itself",
    affine="it quantizes the float base itself",
    int8="it quantizes the float base itself",
    fsdp="its base is of codes and scales, which are no rows of a weight",
    vllm="its plain LoRA belongs on the base as it was quantized here",
)


@register(
    "PEFT method",
    "qa-lora",
    QALoraParams,
    able=ABLE,
    native=True,
    plain=plain,
    from_plain=from_plain,
)
def qa_lora(params: QALoraParams, site: Site) -> Any:
    """Quantize the targeted modules in place, and put the adapter on them.

    Raises:
        QuantizationError: a targeted module cannot be quantized so.
    """
    from loralab.quantization.linear import quantize_modules

    if not next(site.model.parameters()).is_meta:
        quantize_modules(
            site.model, site.names, params.bits, params.group_size, params.clipping
        )
    return wrap(site, qa_lora_config(params, site.targets))
