"""From pydantic's errors to ours: key, value, reason, nearest spelling, fix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args, get_origin

from loralab import registry
from loralab.config.schema import ExperimentConfig, Named
from loralab.errors import ConfigError, ConfigErrors, nearest

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the pydantic model in an annotation: ``X``, ``X | None``, ``list[X]``."""
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(part) for part in get_args(annotation))
    return next((model for model in found if model), None)


def keys_at(
    path: tuple[str, ...],
    names: dict[str, str],
    root: type[BaseModel] = ExperimentConfig,
) -> list[str]:
    """Return the legal keys under a dotted path of a configuration.

    Args:
        path: For example ``("peft", "params")``.
        names: The chosen name of each named thing, by path: ``{"peft": "lora"}``.
        root: The schema of the whole.
    """
    model: type[BaseModel] | None = root
    free = False  # the next key is any name: an entry of a mapping of models
    for depth, key in enumerate(path):
        if key.isdigit() or free:  # an item of a list or mapping of models
            free = False
            continue
        if model is None or key not in model.model_fields:
            return []
        annotation = model.model_fields[key].annotation
        if issubclass(model, Named) and key == "params":
            chosen = names.get(".".join(path[:depth]), "")
            model = registry.get(model.kind, chosen).schema
        else:
            model, free = _model_in(annotation), get_origin(annotation) is dict
    return list(model.model_fields) if model else []


def _chosen_names(raw: Any, path: str = "") -> dict[str, str]:
    """Collect every ``name`` in the raw configuration, by the path it stands at."""
    if isinstance(raw, list):
        raw = {str(i): item for i, item in enumerate(raw)}
    if not isinstance(raw, dict):
        return {}
    found = {path: raw["name"]} if isinstance(raw.get("name"), str) else {}
    for key, value in raw.items():
        found |= _chosen_names(value, f"{path}.{key}" if path else str(key))
    return found


def _problem(
    detail: ErrorDetails, names: dict[str, str], where: str, root: type[BaseModel]
) -> ConfigError:
    path = tuple(str(part) for part in detail["loc"])
    whole = root.__name__.removesuffix("Config").lower()
    key, value = ".".join(path) or whole, detail["input"]
    place = f"{where}: {key}" if where else key
    if detail["type"] == "extra_forbidden":
        hint = nearest(path[-1], keys_at(path[:-1], names, root))
        fix = "correct the spelling, or remove the key"
        return ConfigError(f"unknown key (= {value!r}); {hint}", where=place, fix=fix)
    if detail["type"] == "missing":
        return ConfigError("must be set", where=place, fix=f"add {key}=VALUE")
    if detail["type"] == "loralab":  # our own validators: the message says it all
        return ConfigError(detail["msg"], where=place)
    return ConfigError(f"{value!r}: {detail['msg'].lower()}", where=place)


def config_errors(
    error: ValidationError,
    raw: Any,
    where: str = "",
    root: type[BaseModel] = ExperimentConfig,
) -> ConfigErrors:
    """Return our errors for all that pydantic found.

    Args:
        error: What ``root.model_validate`` raised.
        raw: What it was given.
        where: The file that the configuration came from.
        root: The schema of the whole.
    """
    names = _chosen_names(raw)
    details = error.errors(include_url=False)
    return ConfigErrors(_problem(detail, names, where, root) for detail in details)
