"""`attach`: put an adapter on a base, and assert that it is what was configured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loralab import registry
from loralab.config import PEFTConfig
from loralab.errors import AdapterError
from loralab.models.architecture import match_targets, peft_targets, target_patterns
from loralab.models.base import LoadedModel
from loralab.models.forward import HEADS
from loralab.models.quiet import quiet_libraries


@dataclass(frozen=True)
class Attached:
    """A PEFT model, and the account of what is trained.

    Attributes:
        model: The PEFT model.
        trainable: Trained parameters.
        total: All parameters.
        matched: Pattern -> how many modules it matched.
        scales: Effective scale alpha / rank -> how many modules have it.
    """

    model: Any
    trainable: int
    total: int
    matched: dict[str, int]
    scales: dict[float, int]


def attach(loaded: LoadedModel, config: PEFTConfig) -> Attached:
    """Attach the configured adapter to a loaded base.

    Args:
        loaded: The base; its model is changed in place. Newly initialised modules (a
            task's head) are trained and saved in full.
        config: Method and params.

    Raises:
        AdapterError: a pattern matches nothing, or a new head would stay frozen.
    """
    with quiet_libraries():  # PEFT imports bitsandbytes, which talks
        from peft import get_peft_model
    entry = registry.get("PEFT method", config.name)
    params = entry.schema(**config.params)
    wanted = getattr(params, "target_modules", "all-linear")
    patterns = target_patterns(wanted, loaded.facts)
    matched = match_targets(patterns, loaded.facts)
    _check_keys(params, matched)
    made = entry.target(params, peft_targets(patterns), loaded.new_modules)
    made.task_type = HEADS[loaded.head].task_type
    made.revision = loaded.revision
    try:
        with quiet_libraries():
            model = get_peft_model(loaded.model, made)
    except ValueError as error:
        raise AdapterError(
            "PEFT cannot adapt a module that a pattern matches",
            where="peft.params.target_modules",
            why=str(error).split("\n")[0],
        ) from None
    # PEFT writes the folder it was loaded from, and names a head twice
    made.base_model_name_or_path = loaded.path
    made.modules_to_save = list(loaded.new_modules) or None
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    check_adapted(model, matched, loaded.new_modules)
    trained = [p for p in model.parameters() if p.requires_grad]
    return Attached(
        model=model,
        trainable=sum(p.numel() for p in trained),
        total=sum(p.numel() for p in model.parameters()),
        matched={pattern: len(names) for pattern, names in matched.items()},
        scales=effective_scales(model),
    )


def _check_keys(params: Any, matched: dict[str, list[str]]) -> None:
    """Every key of a rank pattern must end a targeted module's path."""
    names = [name for found in matched.values() for name in found]
    for key in getattr(params, "rank_pattern", {}):
        if not any(name == key or name.endswith(f".{key}") for name in names):
            raise AdapterError(
                f"{key!r} is the end of no targeted module's path",
                where="peft.params.rank_pattern",
                fix=f"write for example {names[0]!r}",
            )


def effective_scales(model: Any) -> dict[float, int]:
    """Return how many adapted modules have which effective scale."""
    found: dict[float, int] = {}
    for module in model.modules():
        scaling = getattr(module, "scaling", None)
        if isinstance(scaling, dict):
            for value in scaling.values():
                found[float(value)] = found.get(float(value), 0) + 1
    return found


def check_adapted(
    model: Any,
    matched: dict[str, list[str]],
    new_modules: tuple[str, ...],
) -> None:
    """Assert that the adapter is on every matched module and that new heads train.

    Raises:
        AdapterError: PEFT adapted other modules, or a new head is frozen.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    prefix = "base_model.model."
    wanted = {name for names in matched.values() for name in names}
    adapted = {
        name.removeprefix(prefix)
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    if adapted != wanted:
        odd = sorted(adapted ^ wanted)
        raise AdapterError(
            f"PEFT adapted {len(adapted)} modules where {len(wanted)} were meant",
            where=odd[0],
            fix="write target_modules as full names",
        )
    for name in new_modules:
        wrapped = model.get_submodule(f"{prefix}{name}").named_parameters()
        live = [p for path, p in wrapped if "original_module" not in path]
        if not live or not all(p.requires_grad for p in live):
            raise AdapterError(
                "newly initialised, yet frozen: it would stay random", where=name
            )
