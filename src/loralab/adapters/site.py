"""Where an adapter goes: the base, the modules that its patterns match, new heads.

A PEFT method is a function from its params and a `Site` to a model. Methods of PEFT
build a configuration and `wrap` the base in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from loralab.errors import AdapterError
from loralab.models.architecture import (
    biased_names,
    match_targets,
    norm_names,
    peft_targets,
    target_patterns,
)
from loralab.models.forward import HEADS
from loralab.models.loaded import LoadedModel
from loralab.models.quiet import quiet_libraries
from loralab.registry import Params


class TargetParams(Params):
    """The params of a method that goes on linear modules."""

    target_modules: str | list[str] = Field(
        "all-linear", description="attention, qv, mlp, all-linear, or a list of names"
    )

    @field_validator("target_modules")
    @classmethod
    def _names_something(cls, value: str | list[str]) -> str | list[str]:
        if not value:
            raise PydanticCustomError("loralab", "target_modules is empty")
        return value


@dataclass(frozen=True)
class Site:
    """The place of an adapter.

    Attributes:
        loaded: The base; its model is changed in place.
        matched: Pattern -> the modules it matches.
        modules_to_save: New modules (a head), trained and saved in full.
    """

    loaded: LoadedModel
    matched: Mapping[str, list[str]]
    modules_to_save: tuple[str, ...]

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self.loaded.model

    @property
    def names(self) -> list[str]:
        """Every targeted module, once, in the model's order."""
        wanted = {name for names in self.matched.values() for name in names}
        return [name for name, _ in self.model.named_modules() if name in wanted]

    @property
    def targets(self) -> list[str] | str:
        """The patterns as PEFT takes them."""
        return peft_targets(list(self.matched))

    def head(self) -> list[str]:
        """Return the parameters of the new modules."""
        inside = tuple(f"{name}." for name in self.modules_to_save)
        named = self.model.named_parameters()
        return [name for name, _ in named if inside and name.startswith(inside)]

    @property
    def conv1d(self) -> bool:
        """Whether the targets store their weight as in × out (GPT-2)."""
        return bool(self.loaded.facts.conv1d)


def site_of(loaded: LoadedModel, params: Params, over: str) -> Site:
    """Match the patterns of a method's params.

    Args:
        loaded: The base.
        params: Of the method; its ``target_modules`` are matched.
        over: What they range over: ``linear``, ``norms``, ``biases``, or ``nothing``.

    Raises:
        AdapterError: a pattern matches nothing.
    """
    if over == "nothing":
        return Site(loaded, {}, loaded.new_modules)
    wanted = getattr(params, "target_modules", "all")
    if over == "linear":
        patterns = target_patterns(wanted, loaded.facts)
        return Site(loaded, match_targets(patterns, loaded.facts), loaded.new_modules)
    find = norm_names if over == "norms" else biased_names
    names = find(loaded.model, loaded.new_modules)
    if not names:
        raise AdapterError(
            f"{loaded.facts.model_type} has no {over} to train",
            where="peft.name",
            fix="choose another method",
        )
    return Site(loaded, {f"all {over}": names}, loaded.new_modules)


def wrap(site: Site, config: Any) -> Any:
    """Put PEFT's adapter on the base.

    Args:
        site: The place.
        config: A `PeftConfig`; task, revision and modules to save are filled in.

    Returns:
        The `PeftModel`.

    Raises:
        AdapterError: PEFT refuses.
    """
    with quiet_libraries():  # PEFT imports bitsandbytes, which talks
        from peft import get_peft_model
    loaded = site.loaded
    config.task_type = HEADS[loaded.head].task_type
    config.revision = loaded.revision
    config.modules_to_save = list(site.modules_to_save) or None
    from loralab.adapters.beside import register

    register(loaded.model, config)
    try:
        with quiet_libraries():
            model = get_peft_model(loaded.model, config)
    except ValueError as error:
        raise AdapterError(
            "PEFT cannot put this adapter on this base",
            where="peft",
            why=str(error).split("\n")[0],
        ) from None
    if config.is_prompt_learning and not loaded.model.can_generate():
        # PEFT's disable_adapter asks for it, though only a generator has one
        loaded.model.prepare_inputs_for_generation = None
    # PEFT writes the folder it was loaded from, and names a head twice
    config.base_model_name_or_path = loaded.path
    config.modules_to_save = list(site.modules_to_save) or None
    return model
