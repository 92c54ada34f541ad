"""From pydantic's errors to ours: key, value, reason, nearest spelling, fix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from loralab import registry
from loralab.config.schema import ExperimentConfig, Named
from loralab.errors import ConfigError, ConfigErrors, nearest

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the pydantic model in an annotation such as ``X`` or ``X | None``."""
    from pydantic import BaseModel

    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def keys_at(path: tuple[str, ...], names: dict[str, str]) -> list[str]:
    """Return the legal keys under a dotted path of the configuration.

    Args:
        path: For example ``("peft", "params")``.
        names: The chosen name of each named thing, by path: ``{"peft": "lora"}``.
    """
    model: type[BaseModel] | None = ExperimentConfig
    for depth, key in enumerate(path):
        if model is None or key not in model.model_fields:
            return []
        if issubclass(model, Named) and key == "params":
            chosen = names.get(".".join(path[:depth]), "")
            model = registry.get(model.kind, chosen).schema
        else:
            model = _model_in(model.model_fields[key].annotation)
    return list(model.model_fields) if model else []


def _chosen_names(raw: Any, path: str = "") -> dict[str, str]:
    """Collect every ``name`` in the raw configuration, by the path it stands at."""
    if not isinstance(raw, dict):
        return {}
    found = {path: raw["name"]} if isinstance(raw.get("name"), str) else {}
    for key, value in raw.items():
        found |= _chosen_names(value, f"{path}.{key}" if path else str(key))
    return found


def _problem(detail: ErrorDetails, names: dict[str, str], where: str) -> ConfigError:
    path = tuple(str(part) for part in detail["loc"])
    key, value = ".".join(path) or "experiment", detail["input"]
    place = f"{where}: {key}" if where else key
    if detail["type"] == "extra_forbidden":
        hint = nearest(path[-1], keys_at(path[:-1], names))
        fix = "correct the spelling, or remove the key"
        return ConfigError(f"unknown key (= {value!r}); {hint}", where=place, fix=fix)
    if detail["type"] == "missing":
        return ConfigError("must be set", where=place, fix=f"add {key}=VALUE")
    if detail["type"] in ("unknown_name", "no_training_rows", "no_validation_rows"):
        return ConfigError(detail["msg"], where=place)
    return ConfigError(f"{value!r}: {detail['msg'].lower()}", where=place)


def config_errors(error: ValidationError, raw: Any, where: str = "") -> ConfigErrors:
    """Return our errors for all that pydantic found.

    Args:
        error: What ``ExperimentConfig.model_validate`` raised.
        raw: What it was given.
        where: The file that the configuration came from.
    """
    names = _chosen_names(raw)
    details = error.errors(include_url=False)
    return ConfigErrors(_problem(detail, names, where) for detail in details)
