"""From pydantic's errors to ours: key, value, reason, nearest spelling, fix."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args, get_origin

from loralab import registry
from loralab.config.schema import ExperimentConfig, Named
from loralab.errors import ConfigError, ConfigErrors, nearest

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "list": "a list",
}
"""What pydantic calls a type, in the names of its errors, in plain words."""


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the pydantic model in an annotation: ``X``, ``X | None``, ``list[X]``."""
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(part) for part in get_args(annotation))
    return next((model for model in found if model), None)


def _at(
    path: tuple[str, ...], names: dict[str, str], root: type[BaseModel]
) -> tuple[type[BaseModel] | None, FieldInfo | None]:
    """Return the model that stands at a dotted path, and the field of its last key.

    Of a mapping whose keys are free, such as ``data.columns``, there is no model; of an
    entry of one there is no field.
    """
    model: type[BaseModel] | None = root
    field, entries = None, None  # of a mapping of models, the model of its entries
    for depth, key in enumerate(path):
        if entries or key.isdigit():  # an entry of it, or an item of a list
            model, field, entries = entries or model, None, None
            continue
        if model is None or key not in model.model_fields:
            return None, None
        field = model.model_fields[key]
        if issubclass(model, Named) and key == "params":
            default = model.model_fields["name"].default
            chosen = names.get(".".join(path[:depth]), default)
            known = registry.known(model.kind, chosen)
            model = registry.get(model.kind, chosen).schema if known else None
        elif get_origin(field.annotation) is dict:
            model, entries = None, _model_in(field.annotation)
        else:
            model = _model_in(field.annotation)
    return model, field


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
    model, _ = _at(path, names, root)
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


def _setting(model: type[BaseModel], value: Any) -> str:
    """Return the first key that takes a value, set to it; if none does, any key."""
    from pydantic import ValidationError

    plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    for key in model.model_fields if plain else ():
        try:
            model.model_validate({key: value})
        except ValidationError as error:
            if any(one["loc"][:1] == (key,) for one in error.errors()):
                continue
        return f"{key}={value}"
    return f"{next(iter(model.model_fields))}=VALUE"


def _by_name(model: type[Named], key: str, value: Any) -> tuple[str, str]:
    """Return how a thing that is chosen by name is written, and a fix."""
    known = registry.names(model.kind)
    name = next(iter(get_close_matches(str(value), known, 1, 0.5)), "NAME")
    item = key.rpartition(".")[2].isdigit()
    fix = f"write {{name: {name}}}" if item else f"{key}.name={name}"
    return f"{{name, params}}; {nearest(str(value), known)}", fix


def _expected(
    kind: str,
    key: str,
    value: Any,
    model: type[BaseModel] | None,
    field: FieldInfo | None,
) -> tuple[str, str]:
    """Return what should stand where a value of a wrong type stands, and a fix.

    Args:
        kind: What pydantic calls the error.
        key: The dotted path of the value.
        value: What stands there.
        model: What should, if it is a group of keys.
        field: The field of the last key.

    Returns:
        Two texts; both empty if it is no such error.
    """
    if kind == "model_type" and model and issubclass(model, Named):
        return _by_name(model, key, value)
    if kind in ("model_type", "dict_type"):
        if model and model.model_fields:
            keys = f"a mapping with keys {', '.join(model.model_fields)}"
            return keys, f"{key}.{_setting(model, value)}"
        example = field.examples[0] if field and field.examples else {"KEY": "VALUE"}
        written = ", ".join(f"{own}: {one}" for own, one in example.items())
        return "a mapping", f"'{key}={{{written}}}'"
    word, _, how = kind.partition("_")
    if how in ("type", "parsing", "from_float") and word in KINDS:
        listed = word == "list" and isinstance(value, (str, int, float))
        return KINDS[word], f"{key}=[{value}]" if listed else ""
    return "", ""


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
    told, fix = _expected(detail["type"], key, value, *_at(path, names, root))
    said = f"must be {told}" if told else detail["msg"].replace("Input should", "must")
    return ConfigError(f"{value!r}: {said[:1].lower()}{said[1:]}", where=place, fix=fix)


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
