"""The ranks that an experiment would be trained with, and nothing more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loralab import registry
from loralab.adapters.calibration import calibrates
from loralab.config import ExperimentConfig
from loralab.errors import ConfigError
from loralab.training.prepare import prepare


def ranks_of_experiment(
    config: ExperimentConfig, tell: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Return the ranks of an experiment's modules, as a run writes them down.

    The base's weights are read only where a strategy looks at them.

    Args:
        config: The experiment.
        tell: Told what is being done.

    Returns:
        ``strategy``, ``unit``, ``budget``, ``met``, ``parameters``, ``ranks``,
        ``scales`` (effective scale -> modules), and ``seconds`` of the allocation.

    Raises:
        ConfigError: the method has no ranks.
        LoralabError: whatever is wrong with rows, model or adapter.
    """
    params: Any = registry.get("PEFT method", config.peft.name).schema(
        **config.peft.params
    )
    if not hasattr(params, "ranks"):
        raise ConfigError(
            f"{config.peft.name} has no ranks to allocate",
            where="peft.name",
            fix="choose lora; adalora finds its ranks while it trains",
        )
    plain = params.model_copy(update={"init": "default"})  # it changes no rank
    peft = config.peft.model_copy(update={"params": plain.model_dump(mode="json")})
    config = config.model_copy(update={"peft": peft})
    prepared = prepare(config, tell, weights=calibrates(plain))
    attached = prepared.attached
    found = attached.record.get("ranks") or _configured(attached.model)
    return {**found, "scales": attached.scales}


def _configured(model: Any) -> dict[str, Any]:
    """Return the ranks that rank and rank_pattern say."""
    from loralab.adapters.layers import lora_layers

    layers = lora_layers(model)
    ranks = {name: int(layer.r["default"]) for name, layer in layers.items()}
    cost = sum(
        rank * (layers[name].in_features + layers[name].out_features)
        for name, rank in ranks.items()
    )
    return {
        "strategy": "as configured",
        "unit": "parameters",
        "budget": None,
        "met": cost,
        "parameters": cost,
        "seconds": 0.0,
        "ranks": ranks,
    }
